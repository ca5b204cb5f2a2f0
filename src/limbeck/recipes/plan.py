"""``--dry-run``: what a training would see, need and take, without training."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import RenderableType

from limbeck.data.batches import Batches
from limbeck.data.preview import preview
from limbeck.data.tokenizer import Tokenizer
from limbeck.losses.terms import total
from limbeck.measure.cost import peak_memory
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.recipes.recipe import Report, facts
from limbeck.recipes.start import Source
from limbeck.train.settings import TrainSettings
from limbeck.train.stream import parts, tokens

__all__ = ["dry_run", "expect"]

_MB = 1e6


def expect(model: Decoder, objective: AnyObjective, stream: Source, settings: TrainSettings) -> dict[str, Any]:
    """Time two micro-batches on a copy of ``model`` and say what the whole training would need.

    Returns:
        ``steps``, ``tokens``, ``seconds`` (of the training steps alone), ``state_bytes`` (weights, gradients and
        AdamW's two moments, in fp32) and ``activation_bytes`` (growth of the process's peak in the trial).
    """
    steps = settings.total_steps(stream.per_epoch)
    described = stream.describe()
    trial = copy.deepcopy(model).train()
    parameters, trainable = model.count_parameters(), model.count_parameters(trainable=True)
    state = 4 * (parameters + 3 * trainable)
    batches = [stream.at(i) for i in range(1, 3)]
    with peak_memory(model.device) as peak:
        _micro_batch(trial, objective, stream.at(0))
    started = time.perf_counter()
    for batch in batches:
        _micro_batch(trial, objective, batch)
    seconds = (time.perf_counter() - started) / sum(tokens(b)[0] for b in batches)
    width = max(b.ids.shape[1] for b in parts(batches[0]))
    trained_tokens = float(described["tokens"]) * steps * settings.accumulation / stream.per_epoch
    return {
        "steps": steps,
        "tokens": round(trained_tokens),
        "seconds": seconds * trained_tokens,
        "tokens_per_second": 1 / seconds,
        "parameters": parameters,
        "trainable": trainable,
        "state_bytes": state,
        "activation_bytes": max(0, peak.peak_bytes - peak.before_bytes),
        "flops": 3 * trained_tokens * model.flops_per_token(width),
    }


def _micro_batch(model: Decoder, objective: AnyObjective, batch: Any) -> None:
    batch = batch.to(model.device)
    loss = total(objective(model, batch), objective.counts(batch))
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    model.zero_grad(set_to_none=True)


def dry_run(
    model: Decoder,
    tokenizer: Tokenizer,
    objective: AnyObjective,
    stream: Source,
    settings: TrainSettings,
    shown: Any,
    names: Sequence[str],
    *,
    rate: float | None = None,
) -> Report:
    """Show the micro-batch ``shown`` token by token, and what the training would need; nothing is written.

    With ``rate``, in FLOP/s, the time is that of a device which reaches it, in place of this one's.
    """
    expected = expect(model, objective, stream, settings)
    if rate is not None:
        seconds = expected["flops"] / rate
        expected |= {"seconds": seconds, "tokens_per_second": expected["tokens"] / seconds, "planned_rate": rate}
    values = {"dry_run": True, "data": stream.describe(), "expected": expected}
    known = names if isinstance(stream, Batches) else ()  # rows of corpora go by number
    tables = [preview(batch, tokenizer, names=known) for batch in parts(shown)]
    described = facts("data", [(k, f"{v:,}" if isinstance(v, int) else v) for k, v in stream.describe().items()])
    return Report(values, (*tables, described, _table(expected)))


def _table(expected: dict[str, Any]) -> RenderableType:
    minutes = expected["seconds"] / 60
    told = expected.get("planned_rate")
    how = "measured on two micro-batches" if told is None else f"as stated: {told:.3g} FLOP/s"
    return facts(
        "expected",
        [
            ("steps", f"{expected['steps']:,}"),
            ("tokens", f"{expected['tokens']:,}"),
            (
                "time",
                f"{minutes:.1f} min at {expected['tokens_per_second']:,.0f} tokens/s, {how}",
            ),
            ("parameters", f"{expected['parameters']:,}, trainable {expected['trainable']:,}"),
            ("memory", f"{expected['state_bytes'] / _MB:,.0f} MB of weights, gradients and moments"),
            ("at work", f"{expected['activation_bytes'] / _MB:,.0f} MB more"),
            ("arithmetic", f"{expected['flops']:.3g} FLOP"),
        ],
    )
