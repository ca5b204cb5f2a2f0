"""A study's second table: what each arm costs beyond its bytes, and how near a quantized model is to its original."""

from __future__ import annotations

import statistics as averages
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["costs"]

Reports = Sequence[Mapping[str, Any]]


def costs(arms: Sequence[tuple[str, Reports]]) -> list[list[str]]:
    """Return a heading, then a row an arm: memory, speed, fidelity to the original; columns nobody measured are left
    out.

    Memory and speed are medians over seeds; KL and agreement are the first seed's, with their intervals.

    Args:
        arms: label and the report of each seed.
    """
    held = [(name, [cell(reports) for _, reports in arms]) for name, cell in _COLUMNS]
    kept = [(name, cells) for name, cells in held if any(c != "-" for c in cells)]
    rows = [[label, *(cells[i] for _, cells in kept)] for i, (label, _) in enumerate(arms)]
    return [["arm", *(name for name, _ in kept)], *rows]


def _middle(reports: Reports, found: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    values = [v for r in reports if (v := found(r)) is not None]
    return averages.median(values) if values else None


def _peak(key: str) -> Callable[[Reports], str]:
    def megabytes(report: Mapping[str, Any]) -> float | None:
        peak = (report.get("cost") or {}).get("peak") or {}
        return peak[key] / 1e6 if key in peak else None

    return lambda reports: _told(_middle(reports, megabytes), "{:,.1f}")


def _prefill(reports: Reports) -> str:
    def rate(report: Mapping[str, Any]) -> float | None:
        speed = (report.get("cost") or {}).get("speed") or {}
        if "prefill_ms" not in speed:
            return None
        tokens: int = speed["protocol"]["prompt_tokens"] * speed["protocol"]["batch_size"]
        return 1e3 * tokens / float(speed["prefill_ms"])

    return _told(_middle(reports, rate), "{:,.0f}")


def _ratio(reports: Reports) -> str:
    return _told(_middle(reports, lambda r: (r.get("speed") or {}).get("decode_ratio")), "{:.2f}")


def _near(key: str) -> Callable[[Reports], str]:
    def cell(reports: Reports) -> str:
        near = (reports[0].get("agreement") or {}).get(key)
        return "-" if near is None else f"{near['value']:.4g} [{near['low']:.4g}, {near['high']:.4g}]"

    return cell


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


_COLUMNS: tuple[tuple[str, Callable[[Reports], str]], ...] = (
    ("peak MB at load", _peak("load_bytes")),
    ("peak MB in use", _peak("use_bytes")),
    ("prefill tokens/s", _prefill),
    ("time a token, of the original's", _ratio),
    ("KL to the original, nats", _near("kl_nats")),
    ("same top token", _near("top_agreement")),
)
