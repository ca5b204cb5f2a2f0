"""The loop: it learns, stops, keeps the best, and leaves things as they were."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.config import Config
from limbeck.errors import ConfigError, DivergedError, Interrupted
from limbeck.run import Run
from limbeck.train import signals
from limbeck.train.checkpoint import Checkpoints
from limbeck.train.loop import train
from limbeck.train.schedule import factor
from limbeck.train.settings import TrainSettings
from tests.reference.training import HeldOut, PlainNextToken, Random, same, tiny, weights


class Recipe(Config):
    name: str = "x"


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**({"steps": 6, "precision": "fp32", "learning_rate": 1e-2, "log_every": 2} | changes))


def fit(model: nn.Module, chosen: TrainSettings, **keywords: Any) -> Any:
    return train(model, PlainNextToken(), Random(), chosen, progress=False, **keywords)


@dataclass
class Scripted:
    """An evaluation that returns written values and remembers the weights it saw."""

    values: list[float]
    name: str = "valid/nll"

    def __post_init__(self) -> None:
        self.seen: list[tuple[int, dict[str, torch.Tensor]]] = []

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        self.seen.append((step, {n: w.float() for n, w in weights(model).items()}))
        return {self.name: self.values[len(self.seen) - 1]}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_it_learns(precision: str) -> None:
    model = tiny()
    before = HeldOut(0, 6)(model.eval(), 0)["valid/nll"]
    result = fit(model, settings(steps=60, precision=precision, clip_norm=1.0))
    assert HeldOut(0, 6)(model.eval(), 0)["valid/nll"] < before - 0.5
    assert result.precision == precision and result.steps == 60 and result.stopped == "steps"
    assert model.dtype == (torch.float64 if precision == "fp64" else torch.float32)


def test_it_is_plain_adamw_written_out() -> None:
    """Against the same steps written with torch alone: mean over all targets, clipping, schedule, decay groups."""
    model, twin = tiny().double(), tiny().double()
    chosen = settings(precision="fp64", accumulation=2, clip_norm=0.5, warmup=2, weight_decay=0.1)
    fit(model, chosen)
    matrices = [p for n, p in twin.named_parameters() if p.ndim == 2 and "embed" not in n and "positions" not in n]
    rest = [p for p in twin.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    objective = PlainNextToken()
    for step in range(6):
        batches = [Random().at(2 * step + j) for j in range(2)]
        targets = sum(objective.counts(b)["nll"] for b in batches)
        optimizer.zero_grad()
        (sum(objective(twin, b)["nll"].sum for b in batches) / targets).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for g in optimizer.param_groups:
            g["lr"] = 1e-2 * factor(step, 6, chosen)
        optimizer.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12, msg=name)


def test_result_and_metrics_tell_the_same(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        result = fit(tiny(), settings(steps=5, evaluate_every=2), run=run, evaluations=[HeldOut()])
    lines = run.metrics()
    assert [(x["step"], "valid/nll" in x) for x in lines] == [
        (0, True), (2, False), (2, True), (4, False), (4, True), (5, False), (5, True),
    ]  # fmt: skip
    trained = [x for x in lines if "train/nll" in x]
    assert trained[-1]["tokens"] == result.real_tokens == sum(int(Random().at(i).real.sum()) for i in range(5))
    assert result.target_tokens == sum(PlainNextToken().counts(Random().at(i))["nll"] for i in range(5))
    values = {x["step"]: x["valid/nll"] for x in lines if "valid/nll" in x}
    assert result.best_value == min(values.values()) == values[result.best_step]
    assert result.seconds > 0 and result.tokens_per_second > 0 and result.peak_memory_bytes > 1 << 26
    assert result.resumed_from is None


def test_logged_losses_are_means_over_their_window(tmp_path: Path) -> None:
    steps: list[Mapping[str, float]] = []
    with Run.create(tmp_path, Recipe()) as run:
        fit(tiny(), settings(steps=4), run=run, on_step=lambda step, losses: steps.append(losses))
    counts = [PlainNextToken().counts(Random().at(i))["nll"] for i in range(4)]
    assert [line["step"] for line in run.metrics()] == [2, 4]
    for line, (a, b) in zip(run.metrics(), [(0, 1), (2, 3)], strict=True):
        mean = (steps[a]["train/nll"] * counts[a] + steps[b]["train/nll"] * counts[b]) / (counts[a] + counts[b])
        assert line["train/nll"] == pytest.approx(mean, rel=1e-12)


def test_epochs_set_the_length() -> None:
    assert fit(tiny(), settings(steps=None, epochs=2, accumulation=4)).steps == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("saved", [True, False])
def test_it_ends_with_the_best_weights(precision: str, saved: bool, tmp_path: Path) -> None:
    chosen = settings(evaluate_every=1, precision=precision)
    run = Run.create(tmp_path, Recipe()) if saved else None
    watch, model = Scripted([5, 4, 3, 6, 3, 7, 7]), tiny()
    result = fit(model, chosen, evaluations=[watch], run=run)
    assert (result.best_step, result.best_value, result.weights_step, result.steps) == (2, 3.0, 2, 6)
    seen = dict(watch.seen)
    here = weights(model)
    if precision == "bf16":  # evaluated in bf16, kept in fp32
        assert not same(here, seen[2])
        here = {n: w.bfloat16().float() for n, w in here.items()}
    assert same(here, seen[2])
    last = fit(other := tiny(), chosen.model_copy(update={"restore_best": False}), evaluations=[HeldOut()])
    assert last.weights_step == 6 and not same(weights(other), weights(model))
    if run is not None:
        run.close()
        assert Checkpoints(run.checkpoints).pointer("best") == Checkpoints(run.checkpoints).path(2)


def test_a_model_that_only_got_worse_comes_back_as_it_was() -> None:
    model = tiny()
    start = weights(model)
    result = fit(model, settings(evaluate_every=2), evaluations=[Scripted([1, 2, 3, 4])])
    assert result.weights_step == 0 and same(weights(model), start)


def test_patience_ends_it(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        watch = Scripted([5, 4, 6, 6, 0, 0])
        chosen = settings(steps=50, evaluate_every=3, patience=2)
        result = fit(tiny(), chosen, evaluations=[watch], run=run)
        assert (result.stopped, result.steps, result.best_step) == ("patience", 9, 3)
        again = fit(tiny(), chosen, evaluations=[watch], run=run)
        assert (again.stopped, again.steps, again.resumed_from) == ("patience", 9, 9)
        assert len(watch.seen) == 4


def test_high_values_can_be_best() -> None:
    chosen = settings(evaluate_every=2, mode="max", monitor="valid/accuracy")
    result = fit(tiny(), chosen, evaluations=[Scripted([0.1, 0.5, 0.9, 0.2], "valid/accuracy")])
    assert (result.best_step, result.best_value) == (4, 0.9)


def test_without_a_monitor_the_last_weights_stay(tmp_path: Path) -> None:
    watch = Scripted([1, 2, 3], "any")
    with Run.create(tmp_path, Recipe()) as run:
        result = fit(model := tiny(), settings(evaluate_every=3, monitor=""), evaluations=[watch], run=run)
    assert result.best_step is None and result.weights_step == 6
    assert same(weights(model), dict(watch.seen)[6])
    assert Checkpoints(run.checkpoints).steps() == [6]


def test_modes_flags_and_gradients_come_back() -> None:
    model = tiny(dropout=0.1)
    model.eval()
    model.blocks[1].train()
    modes = [m.training for m in model.modules()]
    during = []
    fit(model, settings(checkpointing=True), on_step=lambda *_: during.append((model.training, model.checkpointing)))
    assert set(during) == {(True, True)}
    assert [m.training for m in model.modules()] == modes and not model.checkpointing
    assert all(p.grad is None for p in model.parameters())


def test_recomputed_activations_change_nothing() -> None:
    plain, again = tiny(dropout=0.2), tiny(dropout=0.2)
    fit(plain, settings())
    fit(again, settings(checkpointing=True))
    assert same(weights(plain), weights(again))
    with pytest.raises(ConfigError, match="Linear has no activation checkpointing"):
        fit(nn.Linear(2, 2), settings(checkpointing=True))


def test_kept_gradient_buffers_change_nothing() -> None:
    plain, kept, seen = tiny(), tiny(), set()
    fit(plain, settings(accumulation=2))
    chosen = settings(accumulation=2, keep_gradients=True)
    fit(kept, chosen, on_step=lambda *_: seen.add(kept.embed.weight.grad.data_ptr()))
    assert len(seen) == 1
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves(number: signal.Signals, tmp_path: Path) -> None:
    whole = tiny(dropout=0.1)
    fit(whole, settings(evaluate_every=3), evaluations=[HeldOut()])
    model, before = tiny(dropout=0.1), signal.getsignal(number)

    def ask(step: int, _: Mapping[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    with Run.create(tmp_path, Recipe()) as run:
        words = r"stopped after step 3 of 6; its checkpoint is in .*checkpoints: run the same command again to go on"
        with pytest.raises(Interrupted, match=words):
            fit(model, settings(evaluate_every=3), evaluations=[HeldOut()], run=run, on_step=ask)
        assert signal.getsignal(number) is before
        assert [x["step"] for x in run.metrics()] == [0, 2]
        model = tiny(dropout=0.1)
        result = fit(model, settings(evaluate_every=3), evaluations=[HeldOut()], run=run)
        assert result.resumed_from == 3
        assert [(x["step"], "valid/nll" in x) for x in run.metrics()] == [
            (0, True), (2, False), (3, True), (4, False), (6, False), (6, True),
        ]  # fmt: skip
    assert same(weights(model), weights(whole))


def test_ctrl_c_leaves_a_long_step_and_saves_what_was_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.1)

    class Slow(PlainNextToken):
        calls = 0

        def __call__(self, model: Any, batch: Any, counts: Any = None) -> Any:
            Slow.calls += 1
            terms = super().__call__(model, batch)
            if Slow.calls == 4:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(2000):
                    time.sleep(0.01)
            return terms

    whole, model = tiny(dropout=0.1), tiny(dropout=0.1)
    fit(whole, settings())
    with Run.create(tmp_path, Recipe()) as run:
        with pytest.raises(Interrupted, match=r"stopped after step \d of 6; its checkpoint is in"):
            train(model, Slow(), Random(), settings(), run=run, progress=False)
        left = Checkpoints(run.checkpoints).steps()[-1]
        assert left < 4
        model = tiny(dropout=0.1)
        assert fit(model, settings(), run=run).resumed_from == left
    assert same(weights(model), weights(whole))


def test_ctrl_c_leaves_a_long_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.1)

    def slow(model: nn.Module, step: int) -> Mapping[str, float]:
        if step:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(2000):
                time.sleep(0.01)
        return {"valid/nll": 1.0}

    with Run.create(tmp_path, Recipe()) as run:
        with pytest.raises(Interrupted, match="after step 6 of 6"):
            fit(tiny(), settings(), evaluations=[slow], run=run)
        assert Checkpoints(run.checkpoints).steps()[-1] == 6


def test_ctrl_c_without_a_run_says_that_nothing_was_saved() -> None:
    model = tiny()
    with pytest.raises(Interrupted, match="after step 2 of 6; nothing was saved"):
        fit(
            model, settings(precision="bf16"),
            on_step=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None,
        )  # fmt: skip
    assert model.dtype == torch.float32


def test_divergence_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Spoiled(Random):
        def at(self, index: int) -> Any:
            if index == 4:
                with torch.no_grad():
                    model.norm.weight.fill_(float("nan"))
            return super().at(index)

    model = tiny()
    with Run.create(tmp_path, Recipe()) as run:
        with pytest.raises(DivergedError, match=r"the loss of step 5 is nan at micro-batch 4 \(rows 8 and 9\)"):
            train(model, PlainNextToken(), Spoiled(), settings(checkpoint_every=2), run=run, progress=False)
        assert Checkpoints(run.checkpoints).steps() == [2, 4]


def test_what_a_failed_evaluation_followed_is_saved(tmp_path: Path) -> None:
    def fail(model: nn.Module, step: int) -> Mapping[str, float]:
        if step:
            raise ZeroDivisionError
        return {"valid/nll": 1.0}

    with Run.create(tmp_path, Recipe()) as run:
        with pytest.raises(ZeroDivisionError):
            fit(tiny(), settings(), evaluations=[fail], run=run)
        assert Checkpoints(run.checkpoints).steps() == [0, 6]
        watch, whole = Scripted([0.5]), tiny()
        result = fit(tiny(), settings(), evaluations=[watch], run=run)
    assert (result.resumed_from, result.best_step) == (6, 6)
    fit(whole, settings())
    assert same(watch.seen[0][1], weights(whole))


def test_auto_takes_what_was_faster_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.train import loop

    measure = loop.fastest

    def slow_fp32(*arguments: Any) -> Any:
        times = measure(*arguments)
        assert set(times) == {"fp32", "bf16"}
        return {"bf16": 0.5, "fp32": 1.5}

    monkeypatch.setattr(loop, "fastest", slow_fp32)
    monkeypatch.setattr(loop, "emulates_bf16", lambda _: False)
    auto, told = tiny(), tiny()
    with Run.create(tmp_path, Recipe()) as run:
        result = fit(auto, settings(precision="auto"), run=run)
    assert result.precision == "bf16"
    assert run.metrics()[0] == {"step": 0, "bf16_step_seconds": 0.5, "fp32_step_seconds": 1.5}
    fit(told, settings(precision="bf16"))
    assert same(weights(auto), weights(told))


def test_auto_never_tries_an_emulated_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.train import loop

    monkeypatch.setattr(loop, "emulates_bf16", lambda _: True)
    monkeypatch.setattr(loop, "fastest", lambda *_: pytest.fail("a step in bf16 was timed"))
    assert fit(tiny(), settings(precision="auto")).precision == "fp32"


def test_further_files_lie_in_each_checkpoint(tmp_path: Path) -> None:
    with Run.create(tmp_path, Recipe()) as run:
        fit(tiny(), settings(checkpoint_every=3), run=run, save_extra=lambda folder: (folder / "x").touch())
        assert all((p / "x").exists() for p in run.checkpoints.glob("step-*"))
        assert Checkpoints(run.checkpoints).steps() == [3, 6]


def test_memory_does_not_grow_with_steps() -> None:
    def tensors() -> int:
        import gc

        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    counted: list[int] = []
    fit(tiny(), settings(steps=12), on_step=lambda step, _: counted.append(tensors()) if step > 2 else None)
    assert len(counted) == 10 and len(set(counted[2:])) == 1
