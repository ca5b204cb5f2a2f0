"""Micro-batches made ahead are those of the stream, in its order; what fails there fails in the step that wanted it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch, PairBatch
from limbeck.train import step
from limbeck.train.distributed import World
from limbeck.train.loop import train
from limbeck.train.prefetch import Prefetcher
from limbeck.train.settings import TrainSettings
from tests.reference import resumable
from tests.reference.training import PlainNextToken, Random, same, tiny, weights

CPU = torch.device("cpu")


@dataclass
class Numbers:
    """Batches that hold their own number; ``bad`` ones cannot be made."""

    bad: frozenset[int] = frozenset()
    pause: float = 0.0
    made: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    per_epoch: int = 0

    def at(self, index: int) -> Batch:
        time.sleep(self.pause)
        if index in self.bad:
            raise ValueError(f"row {index} is bad")
        self.made.append(index)
        self.threads.add(threading.current_thread().name)
        return Batch.of_ids(torch.full((1, 2), index))


def feeding() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("limbeck-feed")]


def numbers(fed: Any) -> list[int]:
    return [int(f.to(CPU).ids[0, 0]) for f in fed]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("first", [0, 7])
def test_order_and_content_are_the_streams(ahead: bool, k: int, first: int):
    stream = Numbers()
    feed = Prefetcher(stream, CPU, ahead)
    wanted = [list(range(s * k, s * k + k)) for s in range(first, first + 5)]
    for now, then in zip(wanted, [*wanted[1:], []], strict=True):
        fed = feed.take(now, then)
        assert numbers(fed) == now == [int(f.batch.ids[0, 0]) for f in fed]
    feed.close()
    assert stream.made == sum(wanted, []) and not feeding()


def test_what_comes_next_is_made_meanwhile():
    stream = Numbers()
    feed = Prefetcher(stream, CPU, True)
    feed.take([0], [1])
    for _ in range(200):
        if stream.made == [0, 1]:
            break
        time.sleep(0.01)
    assert stream.made == [0, 1] and all(name.startswith("limbeck-feed") for name in stream.threads)
    feed.close()


def test_a_cpu_has_no_thread():
    stream = Numbers()
    Prefetcher(stream, CPU).take([0, 1], [2, 3])
    assert stream.made == [0, 1] and stream.threads == {threading.current_thread().name} and not feeding()


def test_an_error_reaches_the_step_that_wanted_the_batch():
    feed = Prefetcher(Numbers(bad=frozenset({2})), CPU, True)
    assert numbers(feed.take([0], [1])) == [0]
    assert numbers(feed.take([1], [2])) == [1]
    with pytest.raises(ValueError, match="row 2 is bad"):
        feed.take([2], [3])
    assert numbers(feed.take([3], [4])) == [3]
    feed.close()


def test_a_change_of_plan_drops_what_was_begun():
    stream = Numbers()
    feed = Prefetcher(stream, CPU, True)
    feed.take([0], [1, 2])
    assert numbers(feed.take([9], [10])) == [9]
    assert set(feed._coming) == {10}
    feed.close()


def test_closing_waits_for_what_runs_and_drops_the_rest():
    stream = Numbers(pause=0.05)
    feed = Prefetcher(stream, CPU, True)
    feed.take([0], list(range(1, 40)))
    began = time.perf_counter()
    feed.close()
    assert time.perf_counter() - began < 1 and len(stream.made) < 10 and not feeding()


def learned(stream: Any = None, accumulation: int = 1, on_step: Any = None) -> dict[str, Tensor]:
    model = tiny(dropout=0.1)
    chosen = TrainSettings(steps=6, precision="fp32", learning_rate=1e-2, accumulation=accumulation)
    train(model, PlainNextToken(0.1), stream or Random(), chosen, progress=False, on_step=on_step)
    return weights(model)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_training_fed_ahead_learns_the_same(accumulation: int, monkeypatch: pytest.MonkeyPatch):
    plain, during = learned(accumulation=accumulation), []
    monkeypatch.setattr(step, "Prefetcher", partial(Prefetcher, ahead=True))
    fed = learned(accumulation=accumulation, on_step=lambda *_: during.append(len(feeding())))
    assert same(plain, fed) and during == [1] * 6 and not feeding()


@pytest.mark.parametrize("killed_at", [1, 2, 7])
def test_it_resumes_at_any_step(killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, *_ = resumable.fit(tmp_path / "whole")
    monkeypatch.setattr(step, "Prefetcher", partial(Prefetcher, ahead=True))

    def kill(number: int, _: object) -> None:
        if number == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumable.fit(tmp_path / "cut", on_step=kill)
    assert not feeding()
    again, *_ = resumable.fit(tmp_path / "cut")
    assert same(whole, again) and not feeding()


class Broken(Random):
    def at(self, index: int) -> Batch:
        if index == 3:
            raise OSError("the disk is gone")
        return super().at(index)


def test_what_fails_ahead_fails_in_its_own_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "Prefetcher", partial(Prefetcher, ahead=True))
    done: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        learned(Broken(), on_step=lambda number, _: done.append(number))
    assert done == [1, 2, 3] and not feeding()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_rank_gets_its_own(ranks: int):
    taken: list[list[int]] = []
    for rank in range(ranks):
        parts: Any = SimpleNamespace(settings=SimpleNamespace(accumulation=2), world=World(rank, ranks))
        wanted = [step.Stepper.indices(parts, s) for s in range(4)]
        feed, plan = Prefetcher(Numbers(), CPU, True), zip(wanted, [*wanted[1:], []], strict=True)
        taken.append([i for now, then in plan for i in numbers(feed.take(now, then))])
        feed.close()
    assert [i for turn in zip(*taken, strict=True) for i in turn] == list(range(8 * ranks)) and not feeding()


@pytest.mark.gpu
def test_on_a_gpu_it_arrives_whole():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    feed = Prefetcher(Numbers(), device)
    for i in range(20):
        (fed,) = feed.take([i], [i + 1])
        assert fed.batch.ids.is_pinned() and int(fed.to(device).ids[0, 0]) == i
    feed.close()


@pytest.mark.gpu
def test_pairs_are_pinned_too():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    side = Batch.of_ids(torch.zeros(2, 3))
    pinned = PairBatch(side, side, ("a", "b")).pin()
    assert pinned.chosen.ids.is_pinned() and pinned.rejected.ids.is_pinned() and pinned.keys == ("a", "b")
