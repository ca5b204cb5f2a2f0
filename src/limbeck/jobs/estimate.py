"""What a training would see, need and take: whole with ``--dry-run``, in a line before and after its first minute."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import RenderableType

from limbeck.data.batches import Batches
from limbeck.data.preview import preview
from limbeck.data.tokenizer import Tokenizer
from limbeck.jobs.recipe import Report, facts
from limbeck.jobs.start import Source
from limbeck.losses.terms import total
from limbeck.measure.cost import free_bytes, held_bytes, peak_memory, peak_memory_bytes
from limbeck.model.decoder import Decoder
from limbeck.objectives.objective import AnyObjective
from limbeck.train.distributed import world
from limbeck.train.settings import TrainSettings
from limbeck.train.stream import parts, tokens

__all__ = ["FirstMinute", "announce", "batch_that_fits", "dry_run", "expect", "needs"]

_MB = 1e6


def needs(model: Decoder, stream: Source, settings: TrainSettings) -> dict[str, Any]:
    """Return what the whole training takes, by arithmetic alone: nothing is computed with ``model``, nothing is drawn.

    Returns:
        ``steps``, ``tokens``, ``parameters``, ``trainable``, ``state_bytes`` (weights, gradients and AdamW's two
        moments, in fp32 but for codes), ``width`` (tokens of a row) and ``flops``.
    """
    ranks = world().size
    steps = settings.total_steps(stream.per_epoch, ranks)
    trained = float(stream.describe()["tokens"]) * steps * settings.accumulation * ranks / stream.per_epoch
    parameters, trainable = model.count_parameters(), model.count_parameters(trainable=True)
    weights = model.count_bytes() + sum((4 - p.element_size()) * p.numel() for p in model.parameters())
    width = max(b.ids.shape[1] for b in parts(stream.at(0)))
    return {
        "steps": steps,
        "tokens": round(trained),
        "parameters": parameters,
        "trainable": trainable,
        "state_bytes": weights + 12 * trainable,
        "width": width,
        "flops": 3 * trained * model.flops_per_token(width),
    }


def batch_that_fits(batch_size: int, batch_bytes: int, state_bytes: int, free: int) -> int:
    """Return the largest micro-batch whose activations fit beside gradients and moments.

    Args:
        batch_size: rows of the micro-batch that was measured.
        batch_bytes: what it took above what was held.
        state_bytes: yet to be taken by gradients and moments.
        free: bytes that the device or the machine still gives.

    Returns:
        Rows; 0 where not even one fits.
    """
    return max(0, int((free - state_bytes) * batch_size / max(batch_bytes, 1)))


def announce(needed: Mapping[str, Any], utilisation: float) -> str:
    """Return one line before a training: what it takes, and the least time where the device's limit is known.

    Args:
        needed: of ``needs``.
        utilisation: share of the device's limit that one token a second takes; 0: the limit is not known.
    """
    least = f", at least {needed['tokens'] * utilisation / 60:.1f} min at this device's limit" if utilisation else ""
    return (
        f"plan: {needed['steps']:,} steps, {needed['tokens']:,} tokens, {needed['flops']:.3g} FLOP, "
        f"{needed['state_bytes'] / _MB:,.0f} MB of weights, gradients and moments, "
        f"{needed['trainable']:,} of {needed['parameters']:,} parameters learn{least}"
    )


class FirstMinute:
    """After the first minute of a training, evaluations included, tells the time that is left and the batch that fits.

    Called after each step, as ``train``'s ``on_step``. The first step is not timed: it holds what happens once.

    Args:
        needed: of ``needs``.
        batch_size: rows of a micro-batch.
        device: whose memory is measured; its peak must have been reset when this is made.
        say: where the line goes.
        compiled: blocks are compiled: tell what the first step took.
        seconds: how long to measure.
        clock: tells seconds.
    """

    def __init__(
        self,
        needed: Mapping[str, Any],
        batch_size: int,
        device: torch.device,
        say: Callable[[str], object],
        *,
        compiled: bool = False,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._compiled, self._began, self._warm_up = compiled, clock(), 0.0
        self._needed, self._batch_size, self._device, self._say = needed, batch_size, device, say
        self._seconds, self._clock = seconds, clock
        self._held, self._free = held_bytes(device), free_bytes(device)
        self._first: tuple[int, float] | None = None
        self._told = False

    def __call__(self, step: int, losses: Mapping[str, float]) -> None:
        """Note that ``step`` steps are done."""
        if self._told:
            return
        if self._first is None:
            self._first = step, self._clock()
            self._warm_up = self._first[1] - self._began
            return
        passed = self._clock() - self._first[1]
        if passed < self._seconds:
            return
        self._told = True
        steps, a_step = self._needed["steps"], passed / (step - self._first[0])
        rate = self._needed["tokens"] / steps / a_step
        learned = 3 * 4 * self._needed["trainable"]
        grown = peak_memory_bytes(self._device) - self._held
        told = f"measured: {rate:,.0f} tokens/s, {(steps - step) * a_step / 60:.1f} min left"
        if grown > learned:  # else earlier work left memory that this one did not have to take
            fits = batch_that_fits(self._batch_size, grown - learned, learned, self._free)
            told += (
                f"; memory grew by {grown / _MB:,.0f} MB, so a micro-batch of about {fits:,} rows would fit "
                f"(now {self._batch_size})"
            )
        if self._compiled:
            told += f"; all up to the first step took {self._warm_up:.0f} s, compiling included, a step {a_step:.2f} s"
        self._say(told)


def expect(
    model: Decoder,
    objective: AnyObjective,
    stream: Source,
    settings: TrainSettings,
    batch_size: int,
    rate: float | None = None,
) -> dict[str, Any]:
    """Try micro-batches on a copy of ``model`` and say what the whole training would need.

    Memory is measured on one micro-batch, with the gradients in place that ``state_bytes`` counts. The time is that of
    two more, or with ``rate``, in FLOP/s, that of a device which reaches it; several ranks share it.

    Returns:
        What ``needs`` says, ``seconds`` (of the training steps alone), ``tokens_per_second``, ``activation_bytes``
        (growth of the process's peak in the trial), ``free_bytes`` before it, ``batch_that_fits``, in rows, and
        ``planned_rate`` where it was given.
    """
    needed = needs(model, stream, settings)
    trial, ranks = copy.deepcopy(model).train(), world().size
    for parameter in trial.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter).zero_()  # written, so that the kernel counts it as held
    with peak_memory(model.device) as peak:
        free = free_bytes(model.device)  # after what earlier work freed was given back
        _micro_batch(trial, objective, stream.at(0))
    if rate is None:
        seconds = needed["tokens"] * _seconds_a_token(trial, objective, [stream.at(1), stream.at(2)]) / ranks
    else:
        seconds = needed["flops"] / rate / ranks
    activation = peak.grown_bytes
    learned = 3 * 4 * int(needed["trainable"])
    found = {
        "seconds": seconds,
        "tokens_per_second": needed["tokens"] / seconds,
        "activation_bytes": activation,
        "free_bytes": free,
        "batch_that_fits": batch_that_fits(batch_size, activation, learned, free),
    }
    return needed | found | ({} if rate is None else {"planned_rate": rate})


def _seconds_a_token(trial: Decoder, objective: AnyObjective, batches: Sequence[Any]) -> float:
    started = time.perf_counter()
    for batch in batches:
        _micro_batch(trial, objective, batch)
    return (time.perf_counter() - started) / sum(tokens(b)[0] for b in batches)


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
    batch_size: int,
    rate: float | None = None,
) -> Report:
    """Show the micro-batch ``shown`` token by token, and what the training would need; nothing is written.

    With ``rate``, in FLOP/s, the time is that of a device which reaches it, in place of this one's; what is at work and
    the batch that fits are measured on this one.
    """
    expected = expect(model, objective, stream, settings, batch_size, rate)
    values = {"dry_run": True, "data": stream.describe(), "expected": expected}
    known = names if isinstance(stream, Batches) else ()  # rows of corpora go by number
    tables = [preview(batch, tokenizer, names=known) for batch in parts(shown)]
    return Report(values, (*tables, facts("data", _described(stream.describe())), _table(expected)))


def _described(told: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return a stream's description for people: a line a figure, and one for each corpus."""
    rows: list[tuple[str, object]] = [
        (k, f"{v:,}" if isinstance(v, int) else v) for k, v in told.items() if not isinstance(v, Mapping)
    ]
    for name, c in told.get("corpora", {}).items():
        sizes = f"{c['tokens']:,} tokens in {c['documents']:,} documents, {c['bytes_per_token']:.2f} bytes a token"
        rows.append((name, f"{sizes}; {c['share']:.1%} of the training tokens"))
    return rows


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
            (
                "batch",
                f"{expected['batch_that_fits']:,} rows or so fit in {expected['free_bytes'] / _MB:,.0f} MB free here",
            ),
            ("arithmetic", f"{expected['flops']:.3g} FLOP"),
        ],
    )
