"""What an evaluation had to cut or lower: in its protocol as what ran, in sentences, and as alarms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.measure.alarm import Alarm

__all__ = ["clamped", "cut_alarms", "cuts", "unlike"]

_SHARE = 0.1  # of rows or prompts that are cut, or of new tokens that are not written


def clamped(asked: int | None, ran: object, where: str) -> list[str]:
    """Say that a context was lowered to what the model reads; nothing where it was not."""
    if asked is None or not isinstance(ran, int) or ran >= asked:
        return []
    return [f"{where} ran with a context of {ran} tokens, the model's own, not the {asked} asked for"]


def unlike(trained: int, report: Mapping[str, Any], validated: bool) -> list[str]:
    """Say that validation and the final evaluation ran with different contexts."""
    ran = report["protocol"].get("context")
    if not validated or not isinstance(ran, int) or ran == trained:
        return []
    return [
        f"validation ran with a context of {trained} tokens and the {report['evaluated']} rows with {ran}, so that "
        f"their figures are not comparable: give --measuring.context {trained} for one protocol"
    ]


def cuts(notes: Mapping[str, Any]) -> dict[str, int]:
    """Return rows and prompts that were cut, where any were: two evaluations that cut otherwise measure otherwise."""
    counts = {"rows_cut": _rows_cut(notes), "prompts_cut": notes.get("prompts_cut", 0)}
    return {name: count for name, count in counts.items() if count}


def cut_alarms(notes: Mapping[str, Any], items: int) -> list[Alarm]:
    """Hold the shares of rows and prompts cut, and of new tokens not written, where there are any, against a tenth."""
    rows, prompts = notes.get("rows") or items, notes.get("prompts", 0)
    found = []
    if cut := _rows_cut(notes):
        sentence = f"{cut} of {rows} rows were longer than the context and cut or left out"
        found.append(_alarm("cut-items", cut / max(rows, 1), sentence))
    if prompts and (cut := notes["prompts_cut"]):
        sentence = f"{cut} of {prompts} prompts lost their beginning to fit into the context with the new tokens"
        found.append(_alarm("cut-prompts", cut / prompts, sentence))
    if "new_tokens_asked" in notes:
        ran, asked = notes["new_tokens"], notes["new_tokens_asked"]
        sentence = f"at most {ran} new tokens were written, half of the context, of {asked} asked for"
        found.append(_alarm("limited-tokens", 1 - ran / asked, sentence))
    return found


def _rows_cut(notes: Mapping[str, Any]) -> int:
    return int(notes.get("truncated", 0)) + int(notes.get("too_long", 0))


def _alarm(name: str, share: float, sentence: str) -> Alarm:
    return Alarm(name, share, _SHARE, share > _SHARE, f"{sentence}; up to {_SHARE:.0%} are expected")
