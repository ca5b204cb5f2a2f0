"""The training loop: a function from a model, an objective and a stream to a trained model."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.errors import Interrupted
from limbeck.objectives.objective import Objective
from limbeck.run import Run
from limbeck.train.checkpoint import Checkpoints
from limbeck.train.compiling import WarmUp, compiled
from limbeck.train.distributed import World, shard, world, wrap
from limbeck.train.evaluation import Evaluation, evaluate
from limbeck.train.modes import checkpointing, random_state
from limbeck.train.optim import adamw, decayed, state_tensors
from limbeck.train.precision import Precision, TrainedWeights, emulates_bf16, fastest
from limbeck.train.progress import Bar
from limbeck.train.schedule import factor
from limbeck.train.settings import TrainSettings
from limbeck.train.signals import StepLeft, StopRequest
from limbeck.train.state import State, Tally
from limbeck.train.step import Outcome, Stepper
from limbeck.train.stream import Stream

__all__ = ["TrainResult", "train"]

B = TypeVar("B")
OnStep = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a training went.

    Attributes:
        steps: optimizer steps done, earlier sessions included.
        stopped: ``steps`` (all were done) or ``patience``.
        precision: dtype of the computation.
        best_step: step of the best evaluation, None where nothing was monitored.
        best_value: the monitored metric there.
        weights_step: step whose weights the model now holds.
        real_tokens: tokens seen, padding left out, over all ranks.
        target_tokens: tokens learned from, over all ranks.
        seconds: wall-clock of all sessions, evaluations and checkpoints included.
        tokens_per_second: real tokens by the seconds of the optimizer steps alone.
        peak_memory_bytes: of the device; on a CPU the largest resident size the process ever had.
        resumed_from: step of the checkpoint this session began with, None where it began afresh.
    """

    steps: int
    stopped: str
    precision: Precision
    best_step: int | None
    best_value: float | None
    weights_step: int
    real_tokens: int
    target_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    resumed_from: int | None


def train(
    model: nn.Module,
    objective: Objective[B],
    stream: Stream[B],
    settings: TrainSettings,
    *,
    evaluations: Sequence[Evaluation] = (),
    run: Run | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    on_step: OnStep | None = None,
    save_extra: Callable[[Path], None] | None = None,
    utilisation: float = 0.0,
) -> TrainResult:
    """Train ``model`` in place.

    With a ``run`` that holds checkpoints, training goes on from the newest whole one and ends bit-equal to a training
    that was never cut (CPU, same threads): micro-batches are pure functions of their index, and dropout is seeded by
    that index, so ranks and accumulation do not change it either. The caller's random state is left as it was.

    Args:
        model: moved to ``device``; ends in full precision with the best weights (or the last), in its mode of before.
        objective: ``(model, batch) -> terms``.
        stream: micro-batches; rank r of R takes micro-batch ``(step * K + j) * R + r`` of step's K.
        settings: everything else.
        evaluations: run every ``evaluate_every`` steps and at the end; on every rank.
        run: where metrics and checkpoints go; None: nothing is written. Only rank 0 writes.
        seed: of dropout and of evaluations that draw.
        device: where to compute.
        progress: show a bar where stderr is a terminal.
        on_step: called after each step with its number (from 1) and its losses; what it raises ends the training.
        save_extra: writes further files into each checkpoint's folder.
        utilisation: share of the device's limit that one token a second takes; above 0, ``mfu`` is logged.

    Raises:
        DivergedError: a loss or the gradient is not finite; names step, micro-batch and rows.
        NothingToLearnError: a step without any target; names its rows.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved first. A step that took longer is not in it.
        CheckpointError: the run has checkpoints, and none is whole.
        ConfigError: nothing is trainable, the monitor is not measured, or settings differ from the checkpoints'.
        StorageError: the disk refused a write; the last checkpoint is whole.
    """
    device = torch.device(device)
    here = world()
    modes = {module: module.training for module in model.modules()}
    model.to(device)
    with random_state(device), checkpointing(model, settings), StopRequest() as stop:
        try:
            hooks = _Hooks(tuple(evaluations), on_step, save_extra, stop)
            loop = _Loop(model, objective, stream, settings, run, here, device, seed, hooks)
            loop.utilisation = utilisation
            try:
                with compiled(loop.working, settings.compile):  # the copy that is sharded, if one is
                    return loop.go(progress and here.main)
            finally:
                loop.stepper.feed.close()
                loop.weights.release()
        finally:
            for module, mode in modes.items():
                module.training = mode


@dataclass(frozen=True, slots=True)
class _Hooks:
    """What happens between the steps."""

    evaluations: tuple[Evaluation, ...]
    on_step: OnStep | None
    extra: Callable[[Path], None] | None
    stop: StopRequest


class _Loop:
    """The parts of one training, put together once and driven by ``go``."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[Any],
        stream: Stream[Any],
        settings: TrainSettings,
        run: Run | None,
        here: World,
        device: torch.device,
        seed: int,
        hooks: _Hooks,
    ) -> None:
        self.settings, self.run, self.world, self.device, self.seed = settings, run, here, device, seed
        self.hooks = hooks
        self.total = settings.total_steps(stream.per_epoch if settings.steps is None else 0, here.size)
        self.checkpoints = None if run is None else Checkpoints(run.checkpoints, settings.keep)
        self.plain, self.sharded = model, settings.shard and here.size > 1
        self.best_in_memory: dict[str, Tensor] | None = None
        self.unsaved = True
        self.utilisation, self.warm_up = 0.0, WarmUp(settings.compile)
        self.state = State(settings=settings.model_dump(mode="json") | {"ranks": here.size})
        self.timings = self._choose_precision(model, objective, stream)
        self.working = shard(model, self.state.precision == "bf16") if self.sharded else model
        kept: Any = "fp32" if self.sharded and self.state.precision == "bf16" else self.state.precision
        self.weights = TrainedWeights(
            self.working, kept, settings.accumulation == here.size == 1 and device.type == "cpu"
        )
        self.optimizer = adamw(self.weights.trained, decayed(self.working, settings.decay_embeddings), settings)
        # bf16 masters gather gradients outside autograd's sight, where DDP cannot reduce them: the loop does, in fp32.
        averages = self.sharded or kept != "bf16"
        outer = wrap(self.working, here) if averages and not self.sharded else self.working
        self.stepper = Stepper(
            outer, self.weights, self.optimizer, objective, stream, settings,
            world=here, device=device, seed=seed, averages=averages, leavable=self._leavable,
        )  # fmt: skip

    def _choose_precision(self, model: nn.Module, objective: Objective[Any], stream: Stream[Any]) -> dict[str, float]:
        """Settle ``state.precision``: as told, as the checkpoints say, or by timing; returns timings in seconds.

        Where bf16 is emulated nothing is timed: fp32 is chosen.
        """
        chosen: str = self.settings.precision
        timings: dict[Any, float] = {}
        if chosen == "auto":
            chosen = self.world.share(self._precision_before())
        if chosen == "auto" and self.world.share(emulates_bf16(self.device)):
            chosen = "fp32"  # a single step in bf16 may take minutes
        if chosen == "auto":
            model.train()

            def once(twin: nn.Module, weights: TrainedWeights) -> None:
                settings = self.settings.model_copy(update={"accumulation": 1})
                optimizer = adamw(weights.trained, decayed(twin, settings.decay_embeddings), settings)
                alone = World()
                step = Stepper(
                    twin, weights, optimizer, objective, stream, settings,
                    world=alone, device=self.device, seed=self.seed, averages=False,
                )  # fmt: skip
                try:
                    step(0, settings.learning_rate)
                finally:
                    step.feed.close()

            try:
                with self._leavable():
                    timings = fastest(model, once, self.device)
            except StepLeft:
                raise Interrupted("stopped before the first step; nothing was saved") from None
            chosen = self.world.share(next(iter(timings)))
        self.state.precision = chosen
        return {str(name): value for name, value in timings.items()}

    def _precision_before(self) -> str:
        if self.checkpoints is not None:
            for _, state in self.checkpoints.states(self.settings):
                if isinstance(state, State):
                    return state.precision
        return "auto"

    def _resume(self) -> int | None:
        """Load the newest whole checkpoint, if the run has one, and cut the metrics back to it."""
        if self.checkpoints is None or self.run is None:
            return None
        checkpoints = self.checkpoints
        state = checkpoints.restore(self.weights, self.optimizer, self.settings)
        if state is not None:
            self.state, self.unsaved = state, False
            self.world.on_main(lambda: checkpoints.adopt(state))
        if self.world.main:
            self.run.rewind(self.state.metrics_bytes, self.state.step if state is not None else -1)
        return None if state is None else state.step

    def go(self, shown: bool) -> TrainResult:
        """Run to the end."""
        resumed_from = self._resume()
        if self.timings:
            self._log({f"{name}_step_seconds": seconds for name, seconds in self.timings.items()})
        state, settings, began = self.state, self.settings, time.perf_counter() - self.state.seconds
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.working.train()
        with Bar(self.total, state.step, shown) as bar:
            while True:
                state.seconds = time.perf_counter() - began
                if self._asked_to_stop():
                    self._interrupt()
                best = self._evaluation_due() and self._evaluate()
                done = state.step >= self.total or self._out_of_patience()
                every = settings.checkpoint_every
                if best or done or (every and state.step and state.step % every == 0):
                    self._save(best)
                if done:
                    break
                try:
                    self._step(bar)
                except StepLeft:  # the weights are those before it
                    self.weights.clear_gradients(keep=False)
                    self._interrupt()
        return self._finish(began, resumed_from)

    def _leavable(self) -> AbstractContextManager[None]:
        """Return a section that a signal may end; ranks that wait for each other finish theirs."""
        return self.hooks.stop.leavable() if self.world.size == 1 else nullcontext()

    def _step(self, bar: Bar) -> None:
        state, start = self.state, time.perf_counter()
        rate = self.settings.learning_rate * factor(state.step, self.total, self.settings)
        seen = self.stepper(state.step, rate)
        if not self.settings.keep_gradients:
            self.weights.clear_gradients(keep=False)
        self.unsaved = True
        state.step += 1
        seconds = time.perf_counter() - start
        state.step_seconds += seconds
        if took := self.warm_up.after(seconds, state.step == self.total):
            self._log(took)
        state.real_tokens += seen.real_tokens
        state.target_tokens += seen.target_tokens
        state.tally.add(seen.sums, seen.counts, seen.weights)
        means = _means(seen)
        state.tally.peak(means["train/loss"], seen.grad_norm)
        per_second = state.real_tokens / max(state.step_seconds, 1e-9)
        bar.update(state.step, means["train/loss"], per_second)
        if state.step % self.settings.log_every == 0 or state.step == self.total:
            self._log(
                state.tally.means()
                | state.tally.peaks
                | {"learning_rate": rate, "grad_norm": seen.grad_norm, "tokens": state.real_tokens}
                | {"seconds": state.step_seconds, "tokens_per_second": per_second}
                | ({"mfu": per_second * self.utilisation} if self.utilisation else {})
            )
            state.tally = Tally()
        if self.hooks.on_step is not None:
            self.hooks.on_step(state.step, means)

    def _asked_to_stop(self) -> bool:
        """Ranks must agree: a signal may reach them in different steps."""
        return any(self.world.add([float(self.hooks.stop.asked)]))

    def _interrupt(self) -> None:
        if self.run is None:
            where = "nothing was saved, as there is no run folder"
        else:
            self._save(False)
            where = f"its checkpoint is in {self.run.checkpoints}: run the same command again to go on"
        raise Interrupted(f"stopped after step {self.state.step} of {self.total}; {where}")

    def _evaluation_due(self) -> bool:
        state, settings = self.state, self.settings
        if not self.hooks.evaluations or state.evaluated == state.step or self._out_of_patience():
            return False
        if state.step == 0:
            return settings.evaluate_first
        every = settings.evaluate_every
        return state.step == self.total or bool(every and state.step % every == 0)

    def _evaluate(self) -> bool:
        """Measure, log, and say whether these are the best weights so far."""
        try:
            with self._leavable():
                measured = evaluate(self.working, self.hooks.evaluations, self.state.step, self.settings, self.seed)
        except StepLeft:
            self._interrupt()
            raise
        except Exception:
            if self.world.size == 1 and self.state.step:  # steps are dear: what they learned outlives a failed measure
                self._save(False)
            raise
        values = self.world.share(measured)
        self.state.evaluated, self.unsaved = self.state.step, True
        self._log(values)
        monitor = self.settings.monitor
        return bool(monitor) and self.state.judge(values[monitor], self.settings)

    def _out_of_patience(self) -> bool:
        return bool(self.settings.patience) and self.state.worse >= self.settings.patience

    def _log(self, values: Mapping[str, float]) -> None:
        if self.run is not None and self.world.main:
            self.run.log(self.state.step, **values)

    def _save(self, best: bool) -> None:
        """Write a checkpoint; without a run keep the best weights in memory, where they are to be restored."""
        if self.checkpoints is None or self.run is None:
            if best and self.settings.restore_best:
                changing, _ = self.weights.state()
                self.best_in_memory = {n: t.to("cpu", copy=True) for n, t in changing.items()}
            return
        if not self.unsaved:
            return
        checkpoints, run = self.checkpoints, self.run
        weights, moments = self.weights.state(), state_tensors(self.optimizer, self.weights.trained)

        def write() -> None:
            self.state.metrics_bytes = run.flush()
            checkpoints.save(self.state, weights, moments, self.hooks.extra)

        self.world.on_main(write)
        self.unsaved = False

    def _finish(self, began: float, resumed_from: int | None) -> TrainResult:
        state, weights_step = self.state, self.state.step
        if self.settings.monitor and self.settings.restore_best and state.best_step not in (None, state.step):
            assert state.best_step is not None
            weights_step = state.best_step
            if self.checkpoints is not None:
                self.checkpoints.load_weights(weights_step, self.weights)
            elif self.best_in_memory is not None:
                self.weights.load(self.best_in_memory)
        if self.sharded:
            changing, _ = self.weights.state()
            TrainedWeights(self.plain, self.stepper.weights.precision).load(changing)
        state.seconds = time.perf_counter() - began
        return TrainResult(
            steps=state.step,
            stopped="steps" if state.step >= self.total else "patience",
            precision=state.precision,  # type: ignore[arg-type]
            best_step=state.best_step,
            best_value=state.best_value,
            weights_step=weights_step,
            real_tokens=state.real_tokens,
            target_tokens=state.target_tokens,
            seconds=state.seconds,
            tokens_per_second=state.real_tokens / max(state.step_seconds, 1e-9),
            peak_memory_bytes=_peak_memory_bytes(self.device),
            resumed_from=resumed_from,
        )


def _means(seen: Outcome) -> dict[str, float]:
    tally = Tally()
    tally.add(seen.sums, seen.counts, seen.weights)
    return tally.means()


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
