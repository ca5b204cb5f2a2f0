"""A certificate: the three answers on every harm, bound to the hashes of models, data and protocol."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.errors import ModelError
from limbeck.storage import plain
from limbeck.study.harms import Harm
from limbeck.study.sequential import adjusted, bet, confidence_sequence, items_for, more_items, smallest_difference

__all__ = [
    "Answer",
    "Judgement",
    "Measured",
    "Verdict",
    "card",
    "folder_hash",
    "judge",
    "measured_bytes",
    "measured_speed",
    "seal",
    "sensitivity",
]

Answer = Literal["not shown worse", "worse", "cannot be told"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer on one harm.

    Attributes:
        name: of the harm.
        unit: of the figures.
        answer: one of three.
        margin: harm that is accepted.
        change: mean difference, positive where the smaller model is worse.
        low: lower end of its 95 % confidence sequence, which holds at every look.
        high: upper end.
        capital: of the bet against "no harm", adjusted for the number of harms; worse at ``1 / alpha``.
        capital_against_margin: of the bet against "harm of the margin"; not shown worse at ``1 / alpha``.
        items: looked at.
        more: items that would decide, if they are like those seen; 0 where it is decided.
        flips: items from right to wrong and back.
        sentence: the answer in words.
    """

    name: str
    unit: str
    answer: Answer
    margin: float
    change: float
    low: float
    high: float
    capital: float
    capital_against_margin: float
    items: int
    more: int
    flips: tuple[int, int] | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The answer on a cost that is measured and not sampled: bytes, or time a token in alternated rounds."""

    name: str
    answer: Answer
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All answers together.

    Attributes:
        answer: worse where any harm is; not shown worse where every harm is; else it cannot be told.
        sentence: in words.
        judgements: one for each sampled harm.
        measured: one for each measured cost.
    """

    answer: Answer
    sentence: str
    judgements: tuple[Judgement, ...]
    measured: tuple[Measured, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(plain(asdict(self)))


def sensitivity(
    harms: Sequence[tuple[str, float]], items: int, discordant: float, alpha: float, power: float
) -> tuple[float, list[str]]:
    """State before any look what the test could see.

    Args:
        harms: name and margin of each harm of right and wrong answers.
        items: that there are.
        discordant: planned share of answers that change.
        alpha: error rate.
        power: chance to see the difference.

    Returns:
        The smallest difference in the share of right answers, and a sentence for each margin that is smaller.
    """
    bar = alpha / max(len(harms), 1)
    least = smallest_difference(items, discordant, bar, power)
    short = [
        f"{name}: a difference of {margin:.2%} would need about {items_for(margin, discordant, bar, power):,} items"
        for name, margin in harms
        if margin < least
    ]
    return least, short


def judge(
    harms: Sequence[Harm], measured: Sequence[Measured] = (), *, alpha: float = 0.05, discordant: float = 0.05
) -> Verdict:
    """Judge all harms at the last item that was looked at.

    "Worse" is corrected for the number of harms (closed testing of the capitals). "Not shown worse by more than the
    margin" needs each harm's own bet, as a whole verdict needs all of them (intersection-union test).

    Args:
        harms: on the items looked at so far, in their order.
        measured: answers that need no sampling.
        alpha: error rate of each answer.
        discordant: planned share of answers that change.
    """
    bets = [bet(h.differences, h.margin, discordant if h.answers else None) for h in harms]
    against = adjusted([float(b.harm[-1]) for b in bets])
    found = [
        _judgement(h, own, float(b.no_harm[-1]), alpha, len(harms))
        for h, own, b in zip(harms, against, bets, strict=True)
    ]
    every = [*((j.name, j.answer) for j in found), *((m.name, m.answer) for m in measured)]
    answers = [answer for _, answer in every]
    if "worse" in answers:
        bad = [name for name, answer in every if answer == "worse"]
        return Verdict("worse", f"worse: {', '.join(bad)}", tuple(found), tuple(measured))
    if all(a == "not shown worse" for a in answers):
        told = f"not shown to be worse by more than the margins on {len(answers)} harms"
        return Verdict("not shown worse", told, tuple(found), tuple(measured))
    open_ = [name for name, answer in every if answer == "cannot be told"]
    more = max((j.more for j in found), default=0)
    need = f": about {more:,} more items needed" if more else ""
    return Verdict("cannot be told", f"cannot be told ({', '.join(open_)}){need}", tuple(found), tuple(measured))


def _judgement(harm: Harm, against: float, margin_bet: float, alpha: float, count: int) -> Judgement:
    bar = math.log(1 / alpha)
    change, items = float(harm.differences.mean()), len(harm.differences)
    low, high = confidence_sequence(harm.differences)
    flips = "" if harm.flips is None else f"; {harm.flips[0]} answers turned wrong, {harm.flips[1]} right"
    facts = f"change {_number(change)} {harm.unit} [{_number(low)}, {_number(high)}], {items} items{flips}"
    more = 0
    answer: Answer
    if margin_bet >= bar:
        answer, told = "not shown worse", f"not shown to be worse by more than {harm.margin:g}: {facts}"
    elif against >= bar:
        answer, told = "worse", f"worse: {facts}"
    else:
        own = float(bet(harm.differences, harm.margin).harm[-1]) if count > 1 else against
        more = more_items(harm.differences, harm.margin, (own, margin_bet), (alpha / count, alpha))
        answer, told = "cannot be told", f"cannot be told: about {more:,} more items needed; {facts}"
    return Judgement(
        harm.name, harm.unit, answer, harm.margin, change, low, high, math.exp(min(against, 700)),
        math.exp(min(margin_bet, 700)), items, more, harm.flips, f"{harm.name}: {told}",
    )  # fmt: skip


def measured_bytes(base: int, smaller: int) -> Measured:
    """Compare the bytes of both models' weight files."""
    told = f"{smaller:,} against {base:,} bytes on disk ({smaller / base:.1%})"
    answer: Answer = "not shown worse" if smaller <= base else "worse"
    return Measured("bytes", answer, f"bytes: {told}")


def measured_speed(ratios: Sequence[float], margin: float) -> Measured:
    """Judge time a token from alternated rounds: worse where every round is slower than the margin, and the reverse.

    Args:
        ratios: time of the smaller model over the base's, one for each round.
        margin: share of time that it may take more.
    """
    least, most = min(ratios), max(ratios)
    told = f"{np.median(ratios):.2f} times the base's time a token ({least:.2f} to {most:.2f}, {len(ratios)} rounds)"
    if least > 1 + margin:
        return Measured("speed", "worse", f"speed: worse: {told}")
    if most <= 1 + margin:
        return Measured("speed", "not shown worse", f"speed: not slower by more than {margin:.0%}: {told}")
    return Measured("speed", "cannot be told", f"speed: cannot be told: {told}; repeat on a quiet machine")


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 of every file of a model folder: names and contents, hidden files left out.

    Raises:
        ModelError: no such folder, or an empty one.
    """
    files = (
        sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".")) if folder.is_dir() else []
    )
    if not files:
        raise ModelError(f"{folder} is no model folder: there is nothing to hash")
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        whole.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()


def seal(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a certificate's values without its ``seal``, as canonical JSON."""
    body = {k: v for k, v in plain(values).items() if k != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def card(values: Mapping[str, Any]) -> str:
    """Return the certificate as Markdown for a model card."""
    verdict, bound = values["verdict"], values["bound"]
    lines = [f"# Certificate: {verdict['sentence']}", "", values["stated_before"], ""]
    lines += [
        "| harm | answer | accepted | change [95 % at every look] | items | flips |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for j in verdict["judgements"]:
        flips = "-" if j["flips"] is None else f"{j['flips'][0]} lost, {j['flips'][1]} won"
        change = f"{_number(j['change'])} [{_number(j['low'])}, {_number(j['high'])}] {j['unit']}"
        lines.append(f"| {j['name']} | {j['answer']} | {j['margin']:g} | {change} | {j['items']:,} | {flips} |")
    lines += [f"| {m['name']} | {m['answer']} | - | {m['sentence']} | - | - |" for m in verdict["measured"]]
    lines += ["", "| bound to | SHA-256 |", "|---|---|", *(f"| {k} | `{v}` |" for k, v in bound.items())]
    return "\n".join([*lines, f"| this certificate | `{values['seal']}` |", ""])


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:+.4g}"
