"""Is what was shipped the model that was measured? Two deployments compared, down to the first thing that differs.

Texts, conversations, stop tokens and settings are compared exactly; weights by the error that their stored type
explains; logits and activations by the rounding of the coarser side. What differs is named: a field, a tensor with its
part, or the first activation in the order of computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.chat import Message
from limbeck.data.probes import PROBES
from limbeck.measure.sides import BundleSide, Side

__all__ = [
    "CONVERSATIONS", "DeploymentCheck", "Difference", "Flips", "compare", "compare_settings", "first_difference",
    "flips",
]  # fmt: skip

Kind = Literal["tokenizer", "begin", "template", "stops", "field", "weight", "logits", "activation", "greedy", "cache"]

CONVERSATIONS = (
    (Message("user", "Hello!"),),
    (Message("system", "Be brief."), Message("user", "What is a limbeck?"), Message("assistant", "A still."),
     Message("user", "Whence the word?")),
)  # fmt: skip
"""Conversations whose layouts are compared."""

_UNTRAINED = ("dropout",)  # fields that change nothing but training
# relative error of a matrix (Frobenius) that its stored type explains, with room; and of logits against the largest
_WEIGHTS = {"fp64": 0.0, "fp32": 1e-6, "fp16": 1e-3, "bf16": 6e-3, "int8": 0.02, "int7": 0.04, "fp8_e4m3": 0.06,
            "int6": 0.08, "fp8_e5m2": 0.12, "int5": 0.15, "nf4": 0.25, "int4": 0.25, "int3": 0.5,
            "int2": 1.0}  # fmt: skip
_LOGITS = {"fp64": 1e-4, "fp32": 1e-4, "fp16": 1e-2, "bf16": 0.06}
_CACHE = {"fp16": 2e-2, "bf16": 0.1}  # relative difference of a deployment's cached and full forward, else:
_CACHE_FP32 = 1e-3
_TIE = (
    1e-3  # relative to the largest logit: a choice this far below the best is a tie; twice the bound where that is more
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    Attributes:
        kind: what sort of thing.
        where: the field, tensor or activation.
        message: a sentence.
    """

    kind: Kind
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Flips:
    """Predictions of the next token that changed.

    Attributes:
        items: predictions.
        right_to_wrong: the source had the token that follows, the target has not.
        wrong_to_right: the other way.
        changed: any other choice than the source's.
    """

    items: int
    right_to_wrong: int
    wrong_to_right: int
    changed: int


@dataclass(frozen=True, slots=True)
class DeploymentCheck:
    """What a comparison found.

    Attributes:
        source: name of the first side.
        target: name of the second.
        findings: what differs; empty where the two are equal.
        kl_nats: KL(source || target), the mean over tokens.
        top_agreement: share of tokens with the same highest logit.
        max_difference: largest difference of a logit, relative to the largest logit.
        flips: of the next token of the texts.
        greedy_tokens: greedy tokens compared.
        greedy_agreed: those before the first difference that is no tie.
    """

    source: str
    target: str
    findings: tuple[Difference, ...]
    kl_nats: float
    top_agreement: float
    max_difference: float
    flips: Flips
    greedy_tokens: int
    greedy_agreed: int

    @property
    def equal(self) -> bool:
        """Nothing differs beyond what the stored types explain."""
        return not self.findings


def compare(
    source: Side, target: Side, *, texts: Sequence[str] = (), ids: Tensor | None = None, new_tokens: int = 16
) -> DeploymentCheck:
    """Compare two deployments.

    Args:
        source: the model that was measured.
        target: what was shipped.
        texts: further texts to encode and to predict; probes of all scripts are always encoded.
        ids: (B, T) prompts for logits; None: the texts, or random ids where there are none.
        new_tokens: of each greedy continuation.
    """
    found = compare_settings(source, target, texts)
    found += _weights(source, target)
    ids = _prompts(source, texts) if ids is None else ids
    before, after = source.logits(ids), target.logits(ids)
    rows = min(before.shape[-1], after.shape[-1])  # a side may pad its vocabulary
    kl, top, difference = _near(before[..., :rows], after[..., :rows])
    bound = _LOGITS.get(_coarser(source, target))
    if not torch.isfinite(after).all() and torch.isfinite(before).all():
        found.append(Difference("logits", "logits", f"{target.name} gives logits that are not finite"))
    if bound is not None and not difference <= bound:
        at = first_difference(source.points(ids), target.points(ids), bound)
        where, share = at if at is not None else ("head", difference)
        message = f"logits differ by {difference:.2g} of the largest; the first difference is at {where} ({share:.2g})"
        found.append(Difference("activation", where, message))
    found += _caches(source, target, ids[:1, : min(ids.shape[1], 24)])
    tie = max(_TIE, 2 * (bound or 0))  # the best may be too low and another too high, each by the bound
    tokens, agreed = _greedy(source, target, ids[:2, : max(1, ids.shape[1] // 2)], new_tokens, tie)
    if bound is not None and agreed < tokens and not found:
        found.append(Difference("greedy", f"token {agreed}", "greedy continuations part where there is no tie"))
    changed = flips(before[:, :-1, :rows], after[:, :-1, :rows], ids[:, 1:])
    return DeploymentCheck(
        source.name, target.name, tuple(found), kl, top, difference, changed, tokens, agreed
    )  # fmt: skip


def compare_settings(source: Side, target: Side, texts: Sequence[str] = ()) -> list[Difference]:
    """Compare all but numbers: tokens, begin token, chat template, stop tokens and the decoder's settings."""
    found = [*_tokens(source, target, texts), *_templates(source, target), *_stops(source, target)]
    return [*found, *_fields(source, target)]


def _coarser(source: Side, target: Side) -> str:
    order = list(_WEIGHTS)
    return max((source.coarsest, target.coarsest), key=lambda kind: order.index(kind) if kind in order else len(order))


def _tokens(source: Side, target: Side, texts: Sequence[str]) -> Iterator[Difference]:
    every = [*PROBES, *texts, *_pieces(source)]
    for text, a, b in zip(every, source.encode_many(every), target.encode_many(every), strict=True):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            shown = text if len(text) <= 40 else text[:37] + "..."
            message = f"{shown!r} is encoded differently from token {at} on: {a[at : at + 3]} and {b[at : at + 3]}"
            yield Difference("tokenizer", "encode", message)
            return
    a, b = source.prompt("Once upon a time"), target.prompt("Once upon a time")
    if a != b:
        yield Difference(
            "begin", "begin token", f"a prompt begins with {a[:2]} in {source.name}, {b[:2]} in {target.name}"
        )


def _pieces(side: Side) -> list[str]:
    """Return the text of every id, which tells a lost merge, and the special tokens, alone and together."""
    if not isinstance(side, BundleSide):
        return []
    t = side.tokenizer
    special = [t.piece(i) for i in sorted(t.special_ids)[:64]]
    return [*(t.decode([i]) for i in range(t.vocab_size)), *special, "".join(special)]


def _templates(source: Side, target: Side) -> Iterator[Difference]:
    for turns in CONVERSATIONS:
        a, b = source.conversation(turns), target.conversation(turns)
        if a == b:
            continue
        if a is None or b is None:
            which = source.name if a is None else target.name
            yield Difference("template", "chat template", f"{which} has no chat template, the other has one")
        else:
            shown = a if isinstance(a, str) else f"{a[:6]}...", b if isinstance(b, str) else f"{b[:6]}..."
            yield Difference("template", "chat template", f"a conversation becomes {shown[0]} and {shown[1]}")
        return


def _stops(source: Side, target: Side) -> Iterator[Difference]:
    a, b = source.stops(), target.stops()
    if a != b:
        lost, new = sorted(a - b), sorted(b - a)
        told = [f"{target.name} does not stop at {lost}"] if lost else []
        told += [f"{target.name} stops at {new} too"] if new else []
        yield Difference("stops", "stop tokens", " and ".join(told))


def _fields(source: Side, target: Side) -> Iterator[Difference]:
    if source.config is None or target.config is None:
        return
    a, b = source.config.model_dump(), target.config.model_dump()
    for name in a:
        if name not in _UNTRAINED and not _same(a[name], b[name]):
            yield Difference(
                "field", name, f"{name} is {_short(a[name])} in {source.name} and {_short(b[name])} in {target.name}"
            )


def _same(a: Any, b: Any) -> bool:
    """Are two values of a setting equal, numbers but for fp32's rounding?"""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return bool(a == b)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _weights(source: Side, target: Side) -> Iterator[Difference]:
    """Name every tensor whose error its stored type does not explain."""
    if not isinstance(source, BundleSide) or not isinstance(target, BundleSide):
        return
    a, b = source.weights(), target.weights()
    bound = max(_WEIGHTS[source.coarsest], _WEIGHTS[target.coarsest])
    for name in a.keys() | b.keys():
        if name not in a or name not in b:
            which = source.name if name not in a else target.name
            yield Difference("weight", name, f"{which} has no tensor {name}, the other has")
    for name in (n for n in a if n in b):
        if a[name].shape != b[name].shape:
            yield Difference("weight", name, f"{name} has shape {tuple(a[name].shape)} and {tuple(b[name].shape)}")
            continue
        allowed = bound if a[name].dim() == 2 else min(bound, _WEIGHTS["bf16"])
        error = _error(a[name], b[name])
        if not error <= allowed:
            part = _part(source, name, a[name], b[name], allowed)
            yield Difference("weight", f"{name}{part}", f"{name}{part} differs by {error:.2g} of its norm")
            continue
        rows = _bad_rows(a[name], b[name], allowed)
        if rows:
            shown = ", ".join(map(str, rows[:3]))
            yield Difference("weight", name, f"{name} differs in {len(rows)} of {len(a[name])} rows ({shown}, ...)")


def _error(a: Tensor, b: Tensor) -> float:
    """Relative error in the Frobenius norm; not a number where a value is not."""
    return float((a - b).norm() / a.norm().clamp(min=1e-30)) if not torch.equal(a, b) else 0.0


def _part(side: BundleSide, name: str, a: Tensor, b: Tensor, bound: float) -> str:
    parts = side.parts(name)
    wrong = [part for part, rows in parts.items() if not _error(a[rows], b[rows]) <= bound]
    return f" ({', '.join(wrong)})" if wrong and len(parts) > 1 else ""


def _bad_rows(a: Tensor, b: Tensor, bound: float) -> list[int]:
    """Rows of a matrix far off, which the error of the whole hides: a few rows of an embedding."""
    if a.dim() != 2 or torch.equal(a, b):
        return []
    errors = (a - b).norm(dim=1) / a.norm(dim=1).clamp(min=1e-12 + 1e-3 * float(a.norm()) / len(a) ** 0.5)
    return [int(i) for i in (~(errors <= 3 * bound)).nonzero().flatten()]


def _prompts(source: Side, texts: Sequence[str]) -> Tensor:
    rows = [source.prompt(text) for text in texts]
    width = min(64, min((len(row) for row in rows), default=0))
    if width >= 8:
        return torch.tensor([row[:width] for row in rows])
    vocabulary = source.logits(torch.tensor([[0]])).shape[-1]
    length = min(24, source.config.context // 2 if source.config is not None else 24)
    return torch.randint(vocabulary, (2, max(2, length)), generator=torch.Generator().manual_seed(0))


def _near(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    a, b = a.double(), b.double()
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean().clamp_min(0))
    top = float((a.argmax(-1) == b.argmax(-1)).double().mean())
    return kl, top, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def first_difference(a: dict[str, Tensor], b: dict[str, Tensor], bound: float) -> tuple[str, float] | None:
    """Find the first activation that differs by more than ``bound`` of its largest value, in the order of computation.

    Blocks first, by bisection, as what differs once stays different; then what is inside the first such block.

    Returns:
        Its name and the difference; None where none differs.
    """

    def share(name: str) -> float:
        if a[name].shape != b[name].shape:
            return float("inf")
        difference = float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp_min(1e-30))
        return difference if difference == difference else float("inf")

    shared = [name for name in a if name in b]
    whole = [name for name in shared if name.count(".") <= 1]
    low, high = 0, len(whole)
    while low < high:
        middle = (low + high) // 2
        if share(whole[middle]) > bound:
            high = middle
        else:
            low = middle + 1
    if low == len(whole):
        return None
    inside = [name for name in shared if name.startswith(f"{whole[low]}.")]
    name = next((name for name in inside if share(name) > bound), whole[low])
    return name, share(name)


def flips(before: Tensor, after: Tensor, right: Tensor) -> Flips:
    """Count predictions that changed; logits (B, T, V) twice, (B, T) the tokens that follow."""
    a, b = before.argmax(-1), after.argmax(-1)
    lost, won = ((a == right) & (b != right)).sum(), ((a != right) & (b == right)).sum()
    return Flips(right.numel(), int(lost), int(won), int((a != b).sum()))


def _caches(source: Side, target: Side, ids: Tensor) -> Iterator[Difference]:
    for side in (source, target):
        full, cached = side.logits(ids), side.cached_logits(ids)
        difference = float((full - cached).abs().max() / full.abs().max().clamp_min(1e-30))
        if not difference <= _CACHE.get(side.arithmetic, _CACHE_FP32) and torch.isfinite(full).all():
            message = (
                f"{side.name} decodes with a cache otherwise than without, by {difference:.2g} of the largest logit"
            )
            yield Difference("cache", "cache", message)


def _greedy(source: Side, target: Side, prompts: Tensor, new_tokens: int, tie: float) -> tuple[int, int]:
    """Continue prompts greedily on the source; count how far the target chooses alike, or a token that is tied."""
    ids = prompts
    for _ in range(new_tokens):
        ids = torch.cat((ids, source.logits(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    at = prompts.shape[1] - 1
    a, b = source.logits(ids)[:, at:-1], target.logits(ids)[:, at:-1]
    rows = min(a.shape[-1], b.shape[-1])  # a side may pad its vocabulary
    chosen = b[..., :rows].argmax(-1, keepdim=True)
    below = a.max(-1).values - a.gather(-1, chosen)[..., 0]
    same = below <= tie * a.abs().max()
    agreed = same.long().cumprod(dim=1).sum()
    return same.numel(), int(agreed)
