"""The compiled step gives what the decoder's own forward gives: every format, shape, pattern and cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.step import MOST_ROWS, CompiledStep
from limbeck.errors import DataError
from limbeck.kernels import native
from limbeck.kernels.packed import Dispatch, dispatch
from limbeck.model.cache import KVCache, KVKind
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import LogSparse, Sliding
from limbeck.model.quantized import QuantizedWeight
from limbeck.techniques.grid import Grid
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rtn import RTN
from tests.reference.small_model import MODERN, decoder

WIDE: dict[str, Any] = {"hidden_size": 96, "heads": 4, "ffn_width": 136, "vocab_size": 291}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": WIDE,
    "modern": {**WIDE, **MODERN},
    "odd": {"hidden_size": 44, "heads": 2, "ffn_width": 50, "vocab_size": 289, "kv_heads": 1},
    "wide heads": {**WIDE, **MODERN, "head_dim": 80, "tied": False},
    "gelu": {**WIDE, "activation": "gelu"},
    "relu, gated": {**WIDE, "activation": "relu", "gated": True},
    "window": {**WIDE, "pattern": Sliding(window=4, sinks=1)},
    "log-sparse": {**WIDE, "pattern": LogSparse(window=2, sinks=1)},
    "log-sparse, rotary": {**WIDE, **MODERN, "pattern": (LogSparse(window=1), LogSparse(window=2, sinks=3, restart=5))},
    "nearer sinks": {**WIDE, **MODERN, "pattern": Sliding(window=3, sinks=2, sink_distance="cache")},
    "streaming": {**WIDE, "context": 8, "pattern": Sliding(window=3, sinks=2, sink_distance="cache")},
    "two patterns": {**WIDE, **MODERN, "pattern": (Sliding(window=3), {"kind": "causal"})},
}
GRIDS = [
    Grid(format=f)  # type: ignore[arg-type]
    for f in ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "int8", "int4", "q8_0", "q4_0", "q4_1")
] + [
    Grid(format="int8", symmetric=False), Grid(format="int8", granularity="tensor"),
    Grid(format="int8", granularity="group", group_size=64, symmetric=False),
    Grid(format="int4", granularity="channel"),
    Grid(format="int4", symmetric=False), Grid(format="int4", group_size=64), Grid(format="int4", group_size=128),
]  # fmt: skip


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")


@pytest.fixture
def said() -> Iterator[list[bool]]:
    """Whether each session's steps were compiled ones."""
    asked: list[bool] = []
    true = CompiledStep.of

    def listening(model: Decoder, cache: KVCache) -> CompiledStep | None:
        found = true(model, cache)
        asked.append(found is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledStep, "of", listening)
        yield asked


PROMPTS = [[5, 6, 7, 8, 9], [3], [4, 2, 8]]


def steps(model: Decoder, rows: int = 3, count: int = 7, kind: KVKind = "model", ragged: bool = True) -> Tensor:
    """(count, rows, V) logits of a session's steps; every third has a row at rest, whose logits are left out (0)."""
    out = []
    with evaluating(model):
        session = DecodingSession(model, [PROMPTS[i % 3] for i in range(rows)], count, cache=kind)
        with dispatch("reference"):  # prompts are not what is tested
            session.start()
        for i in range(count):
            alive = [j % 2 == 0 for j in range(rows)] if ragged and i % 3 == 1 else None
            logits = session.step([(7 * i + j) % 200 for j in range(rows)], alive).clone()
            out.append(logits if alive is None else logits * torch.tensor(alive)[:, None])
    return torch.stack(out)


def torch_steps(model: Decoder, path: Dispatch = "reference", **options: Any) -> Tensor:
    with dispatch(path):
        return steps(model, **options)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_in_fp32(name: str, rows: int, said: list[bool]) -> None:
    model = decoder(**SHAPES[name])
    assert_near(steps(model, rows=rows), torch_steps(model, rows=rows), 5e-6)
    assert said == [True, False]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.format}-{g.granularity}-{g.group_size}-{g.symmetric}")
@pytest.mark.parametrize("name", ["gpt2", "modern", "odd"])
def test_every_grid_as_torch_decodes_it(name: str, grid: Grid, said: list[bool]) -> None:
    model = RTN(grid=grid).apply(decoder(**SHAPES[name]))
    integers = any(m.prepared().supports_integer() for m in model.modules() if isinstance(m, QuantizedWeight))
    for rows in (1, 3 if grid.format == "bf16" else 6):  # from four rows on bf16 codes round activations to bf16 too
        found, exact = steps(model, rows=rows), torch_steps(model, rows=rows)
        assert_near(found, exact, 5e-2 if integers else 1e-5)  # inputs are rounded to int8
    assert said == [True, False] * 2


def test_integers_are_rounded_as_in_a_prompt() -> None:
    """To the last places but where a number on the border between two codes falls on either side: in few grids."""
    near = []
    for grid in [g for g in GRIDS if g.format in ("int8", "int4", "q8_0", "q4_0", "q4_1")]:
        model = RTN(grid=grid).apply(decoder(**SHAPES["gpt2"]))
        if not any(m.prepared().supports_integer() for m in model.modules() if isinstance(m, QuantizedWeight)):
            pytest.skip("this machine has no product of integers")
        found, wanted = steps(model, rows=2), torch_steps(model, "integer", rows=2)
        assert_near(found, wanted, 1.5e-2)
        near.append(bool((found - wanted).abs().max() <= 2e-6 * wanted.abs().max()))
    assert sum(near) >= 0.7 * len(near)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5])
def test_narrow_weights_are_nearer_to_their_fp32_than_torch_is(dtype: torch.dtype, rows: int) -> None:
    narrow = decoder(**SHAPES["modern"]).to(dtype)
    wide = decoder(**SHAPES["modern"])
    wide.load_state_dict(narrow.state_dict())  # the same numbers, computed in fp32
    true = torch_steps(wide, rows=rows)
    found = steps(narrow, rows=rows), torch_steps(narrow, rows=rows)
    ours, theirs = (float((x.float() - true).abs().max()) for x in found)
    assert ours <= 1.05 * theirs
    assert ours <= 4 * torch.finfo(dtype).eps * float(true.abs().max())


@pytest.mark.parametrize("name", ["gpt2", "modern", "window", "wide heads", "odd"])
def test_an_int8_cache_rounds_the_same_in_both(name: str, said: list[bool]) -> None:
    model = decoder(**SHAPES[name])
    ours, theirs = steps(model, kind="int8"), torch_steps(model, kind="int8")
    assert said == [True, False]
    exact = torch_steps(model)
    rounded = float((theirs - exact).abs().max())
    assert 0 < rounded <= 0.05 * float(exact.abs().max())
    # a number on the border between two codes may fall on either side: rarely, and by one code
    assert float((ours - theirs).abs().max()) <= 0.5 * rounded


def test_an_int8_cache_is_smaller() -> None:
    model = decoder(hidden_size=128, heads=2)
    sizes = [KVCache(model.config, 2, 20, torch.float32, kind=kind).bytes for kind in ("model", "int8")]
    assert sizes[1] == sizes[0] * (64 + 4) // (64 * 4)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    model = decoder(**SHAPES["modern"])
    one = steps(model)
    torch.set_num_threads(threads)
    assert torch.equal(steps(model), one)


def test_selected_rows_go_on_where_they_stood(said: list[bool]) -> None:
    model = decoder(**SHAPES["modern"])

    def walk() -> Tensor:
        with evaluating(model):
            session = DecodingSession(model, PROMPTS, 6)
            session.start()
            session.step([1, 2, 3])
            session.select([2, 0, 0])  # as many: the cache's tensors are new ones
            first = session.step([4, 5, 6]).clone()
            session.select([1, 0])  # fewer
            return torch.cat((first, session.step([7, 8])))

    got = walk()
    with dispatch("reference"):
        assert_near(got, walk(), 5e-6)
    assert said == [True, True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.double(),
        lambda m: LoRA(rank=2).apply(m),
        lambda m: (m.blocks[0].ffn.register_forward_hook(lambda *_: None), m)[1],
    ],
    ids=["fp64", "adapter", "hook"],
)
def test_what_it_does_not_know_runs_through_torch(change: Any, said: list[bool]) -> None:
    model = change(decoder())
    steps(model, count=2)
    assert said == [False]


def test_many_rows_run_through_torch(said: list[bool]) -> None:
    steps(decoder(), rows=MOST_ROWS + 1, count=1)
    assert said == [False]


def test_numbers_that_are_none_stay_none() -> None:
    model = decoder(**SHAPES["modern"])
    with torch.no_grad():
        model.blocks[1].ffn.down.weight[3, 4] = torch.nan
    assert bool(steps(model, ragged=False).isnan().any(dim=-1).all())


def test_past_learned_positions_is_refused() -> None:
    model = decoder(context=6)
    with evaluating(model):
        session = DecodingSession(model, [[1, 2, 3, 4, 5]], 3)
        session.start()
        session.step([1])
        with pytest.raises(DataError, match="6 learned positions"):
            session.step([1])


def test_a_full_cache_is_refused() -> None:
    model = decoder(**SHAPES["modern"])
    with evaluating(model):
        session = DecodingSession(model, [[1, 2]], 1)
        session.start()
        session.step([1])
        with pytest.raises(ValueError, match="holds 3 of 3"):
            session.step([1])


def test_rewinding_forgets_what_a_draft_left() -> None:
    model = decoder(**SHAPES["modern"])
    with evaluating(model):
        session = DecodingSession(model, [[1, 2, 3]], 6)
        session.start()
        straight = session.step([4]).clone()
        session.step([9])
        session.step([8])
        session.rewind([3])
        assert_near(session.step([4]), straight, 1e-6)


@pytest.mark.parametrize("kind", ["model", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "modern", "window", "odd"])
def test_several_tokens_at_once_are_one_after_another(name: str, kind: KVKind) -> None:
    model, tokens = decoder(**SHAPES[name]), [[4, 5, 6, 7], [9, 8, 7, 6]]
    with evaluating(model):
        one, many = (DecodingSession(model, PROMPTS[:2], 5, cache=kind) for _ in range(2))
        one.start()
        many.start()
        each = torch.stack([one.step([row[i] for row in tokens]).clone() for i in range(4)], dim=1)
        tolerance = 5e-6 if kind == "model" or name != "window" else 0.02  # there own tokens are seen before they round
        assert_near(many.extend(tokens), each, tolerance)
        assert many.lengths == one.lengths == [9, 5]
        assert_near(many.step([3, 3]), one.step([3, 3]), 1e-5 if kind == "model" else 0.02)
