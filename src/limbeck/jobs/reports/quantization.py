"""What ``limbeck quantize`` shows: two models beside each other, their speed timed in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.jobs.checks import show_alarms
from limbeck.jobs.recipe import facts
from limbeck.jobs.reports.ending import next_steps
from limbeck.measure.alarm import Alarm
from limbeck.measure.cost import SpeedProtocol, speed
from limbeck.measure.stats import Comparison
from limbeck.model.decoder import Decoder

__all__ = ["Speeds", "alternated", "quality_lost", "show_quantized"]


_NEAR = {"kl_nats": "KL to the original", "top_agreement": "same top token"}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speed of two models that were timed in turns, so that what else the machine does meets both.

    Attributes:
        original: medians of the original's rounds as ``measure.cost.speed`` has them: prefill, decoding with its
            fastest and slowest round, tokens a second.
        quantized: of the quantized model's.
        decode_ratio: median over rounds of quantized over original, of the time a token.
        decode_ratios: every round's.
        prefill_ratio: the same of the prompt.
        sentence: what that means.
        protocol: of every round, with dtype, device and machine.
    """

    original: Mapping[str, Any]
    quantized: Mapping[str, Any]
    decode_ratio: float
    decode_ratios: tuple[float, ...]
    prefill_ratio: float
    sentence: str
    protocol: Mapping[str, Any]

    @property
    def slower(self) -> bool:
        """Smaller, but slower to decode with."""
        return self.decode_ratio > 1

    @property
    def slower_prompt(self) -> bool:
        """Smaller, but clearly slower to read prompts with."""
        return self.prefill_ratio > 1.03


def quality_lost(main: Comparison, most: float) -> Alarm:
    """Return the alarm that fires where the second model's main figure is worse than the first's by more than the share
    ``most``.
    """
    change = main.difference if main.statistic.better == "lower" else -main.difference
    share = change / abs(main.a) if main.a else (math.inf if change > 0 else 0.0)
    moved = f"{main.statistic.name} {main.a:.4g} became {main.b:.4g}"
    sentence = f"{moved} on {main.items} items: worse by {max(share, 0.0):.1%}, at most {most:.0%} is expected"
    return Alarm("quality lost", share, most, share > most, sentence)


def alternated(original: Decoder, quantized: Decoder, protocol: SpeedProtocol) -> Speeds:
    """Time both models in ``protocol.repeats`` rounds, one after the other in each."""
    once = protocol.model_copy(update={"repeats": 1})
    rounds = [(speed(original, once), speed(quantized, once)) for _ in range(protocol.repeats)]
    names = ("prefill_ms", "decode_ms_per_token")
    told = {key: rounds[0][1][key] for key in ("protocol", "dtype", "device", "machine")}
    told["protocol"] = {**told["protocol"], "repeats": protocol.repeats}
    both = [_medians([r[i] for r in rounds]) for i in (0, 1)]
    ratios = {name: [b[name] / a[name] for a, b in rounds] for name in names}
    decode = statistics.median(ratios["decode_ms_per_token"])
    return Speeds(
        original={**both[0], **told},
        quantized={**both[1], **told},
        decode_ratio=decode,
        decode_ratios=tuple(ratios["decode_ms_per_token"]),
        prefill_ratio=statistics.median(ratios["prefill_ms"]),
        sentence=_sentence(decode, ratios["decode_ms_per_token"], both),
        protocol=told,
    )


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One model's rounds of one repeat each, as ``speed`` tells a run of many."""
    steps = [r["decode_ms_per_token"] for r in rounds]
    middle = statistics.median(steps)
    return {
        "prefill_ms": statistics.median(r["prefill_ms"] for r in rounds),
        "decode_ms_per_token": middle,
        "decode_ms_fastest": min(steps),
        "decode_ms_slowest": max(steps),
        "tokens_per_second": 1e3 * rounds[0]["protocol"]["batch_size"] / middle,
    }


def _sentence(ratio: float, every: list[float], both: list[dict[str, float]]) -> str:
    a, b = (f"{s['decode_ms_per_token']:.2f}" for s in both)
    times = f"{b} ms a token against {a} ms, median of {len(every)} rounds"
    if min(every) <= 1 <= max(every):
        return f"no difference in speed shown: {times}, ratios {min(every):.2f} to {max(every):.2f}"
    word = f"{ratio:.2f} times slower" if ratio > 1 else f"{1 / ratio:.2f} times faster"
    return f"the quantized model decodes {word} here than the original: {times}"


def show_quantized(values: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    """Return a report for people: figures of both, verdicts, agreement, bytes, speed."""
    table = Table(title=f"{values['model']} by {values['technique']['kind']}", title_justify="left")
    for name in ("figure", "original", "quantized", "difference", "interval", "unit", "items"):
        table.add_column(name, justify="left" if name in ("figure", "unit") else "right")
    for name, c in values["comparisons"].items():
        span = f"[{_number(c['low'])}, {_number(c['high'])}]"
        figures = (_number(c["a"]), _number(c["b"]), f"{c['difference']:+.4g}", span)
        table.add_row(name, *figures, c["unit"], str(c["items"]))
    verdicts = [Text(f"{name}: {c['verdict']}") for name, c in values["comparisons"].items()]
    near, size = values["agreement"], values["bytes"]
    stored = ", ".join(size["original_stored"])
    rows = [
        *((name, _figure(near[key])) for key, name in _NEAR.items() if key in near),
        (
            "weights on disk",
            f"{size['quantized'] / 1e6:,.3f} MB of {size['original'] / 1e6:,.3f} MB ({stored}): {size['ratio']:.3f}",
        ),
        *(("peak memory", _peak(of)) for of in [values["cost"]["peak"]] if of),
        ("speed", values["speed"]["sentence"]),
    ]
    notes = [Text(told, style="yellow") for told in values["told"] if told != values["speed"]["sentence"]]
    return (
        *([table] if values["comparisons"] else []),
        *verdicts,
        *show_alarms(values.get("alarms") or []),
        facts("against the original", rows),
        *notes,
        Text(f"run folder: {values['run']}", style="dim"),
        *next_steps("quantize", values["run"]),
    )


def _figure(interval: Mapping[str, Any]) -> str:
    unit = f" {interval['unit']}" if interval["unit"] else ""
    return f"{_number(interval['value'])}{unit} [{_number(interval['low'])}, {_number(interval['high'])}]"


def _peak(of: Mapping[str, int]) -> str:
    return f"{of['load_bytes'] / 1e6:.1f} MB at load, {of['use_bytes'] / 1e6:.1f} MB in use"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
