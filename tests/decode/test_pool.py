"""Sequences that join and leave between steps decode as each of them does alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.decode.pool import DecodingPool
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.step import MOST_ROWS
from limbeck.kernels.packed import dispatch
from limbeck.model.cache import CachePool, KVKind
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import LogSparse, Sliding
from tests.reference.small_model import MODERN, decoder

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "modern": MODERN,
    "window": {"pattern": Sliding(window=4, sinks=1)},
    "log-sparse": {**MODERN, "pattern": LogSparse(window=2, sinks=1)},
    "two patterns": {**MODERN, "pattern": (Sliding(window=3), {"kind": "causal"})},
}
PROMPTS = [[5, 6, 7, 8, 9], [3], [4, 2, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 12]]


def alone(model: Decoder, prompt: list[int], count: int, kind: KVKind) -> Tensor:
    """(count, V) logits after the prompt and after each greedy token, without neighbours."""
    session = DecodingSession(model, [prompt], count, cache=kind)
    logits = [session.start()[0].clone()]
    while len(logits) < count:
        logits.append(session.step([int(logits[-1].argmax())])[0].clone())
    return torch.stack(logits)


def together(model: Decoder, kind: KVKind, rows: int = 3, jobs: int = 9, seed: int = 0) -> list[tuple[int, Tensor]]:
    """Prompt number and logits (n, V) of each of ``jobs`` sequences that join and leave at random."""
    draw, pool = random.Random(seed), DecodingPool(model, rows, 32, kind)
    waiting = [(i % len(PROMPTS), draw.randint(1, 12)) for i in range(jobs)]
    active: list[tuple[int, int, list[Tensor]]] = []
    done = []
    while waiting or active:
        while waiting and pool.used < rows and draw.random() < 0.7:
            number, count = waiting.pop(0)
            active.append((number, count, [pool.join(PROMPTS[number]).clone()]))
        for at in reversed(range(len(active))):
            number, count, logits = active[at]
            if len(logits) == count:
                done.append((number, torch.stack(logits)))
                pool.leave(at)
                active[at] = active[-1]
                active.pop()
        assert pool.used == len(active)
        if active:
            found = pool.step([int(logits[-1].argmax()) for _, _, logits in active])
            for (_, _, logits), row in zip(active, found, strict=True):
                logits.append(row.clone())
    return done


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["model", "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_neighbours_that_come_and_go_change_no_logit(name: str, kind: KVKind, path: Any) -> None:
    model = decoder(**SHAPES[name])
    with evaluating(model), dispatch(path):
        done = together(model, kind)
        assert len(done) == 9
        for number, logits in done:
            wanted = alone(model, PROMPTS[number], len(logits), kind)
            assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()
            assert torch.equal(logits.argmax(-1), wanted.argmax(-1))


def test_more_rows_than_the_compiled_step_takes_go_through_torch() -> None:
    model, rows = decoder(), MOST_ROWS + 2
    with evaluating(model):
        done = together(model, "model", rows, jobs=rows + 4)
        for number, logits in done:
            wanted = alone(model, PROMPTS[number], len(logits), "model")
            assert (logits - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_the_room_is_allocated_once_and_stays_where_it_is() -> None:
    model = decoder()
    pool = CachePool(model.config, 3, 32)
    with evaluating(model):
        decoding = DecodingPool(model, 3, 32)
        before = decoding.bytes
        together(model, "model")
    assert before == decoding.bytes == pool.bytes == 2 * 2 * 3 * 33 * 16 * 4
    pool.join(pool.begin())
    places = [k.data_ptr() for k in pool.cache.keys]
    pool.join(pool.begin())
    pool.join(pool.begin())
    pool.leave(0)
    assert [k.data_ptr() for k in pool.cache.keys] == places and pool.used == 2


def test_a_full_pool_and_a_long_prompt_are_refused() -> None:
    model = decoder()
    with evaluating(model):
        pool = DecodingPool(model, 1, 8)
        with pytest.raises(ValueError, match="9 more do not fit"):
            pool.join([1] * 9)
        assert pool.used == 0
        pool.join([1] * 8)
        with pytest.raises(ValueError, match="all 1 rows of the cache pool are taken"):
            pool.join([1])
        with pytest.raises(ValueError, match="1 more do not fit"):
            pool.step([2])
        pool.leave(0)
        pool.join([1])
        assert pool.used == 1


def test_reading_a_prompt_gives_what_joining_gives() -> None:
    model = decoder()
    with evaluating(model):
        pool = DecodingPool(model, 2, 32)
        logits = pool.join(PROMPTS[0])
        every = pool.join_reading(PROMPTS[0], lambda hidden, head: head(hidden)[0])
        assert every.shape == (5, 288) and (every[-1] - logits).abs().max() <= 2e-6 * logits.abs().max()
        a, b = pool.step([3, 3])
        assert (a - b).abs().max() <= 2e-6 * a.abs().max()
