"""I12: rotary positions are a rotation; scores depend on relative position alone; both public conventions convert."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from limbeck.model.config import Llama3Scaling, Rope
from limbeck.model.positions import Rotary, interleaved_rows, inverse_frequencies, rotate
from tests.reference.slow_decoder import slow_angles
from tests.reference.twins import llama_config

SCALED = Rope(theta=500.0, scaling=Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_context=64))
ROPES = st.sampled_from([Rope(), Rope(theta=1e6), SCALED])
WIDTHS = st.sampled_from([2, 4, 8, 16])


def half_split_rows(heads: int, head_dim: int) -> torch.Tensor:
    """(heads * head_dim,) int64: order in which to take the rows of a query or key matrix of the interleaved
    convention (pairs (2i, 2i + 1): the paper, Meta's Llama files, llama.cpp) to get the half-split one used here and in
    transformers (pairs (i, i + D/2)): ``half = interleaved[half_split_rows(H, D)]``.
    """
    return torch.arange(heads * head_dim).view(heads, head_dim // 2, 2).transpose(1, 2).reshape(-1)


def turned(rope, x, positions):
    """Rotate x (T, D) at ``positions`` (T,)."""
    rotary = Rotary(rope, x.shape[-1], 16)
    cos, sin = rotary.tables(positions[None], int(positions.max()) + 1, x.dtype)
    return rotate(x[None, None], cos, sin)[0, 0]


@given(ROPES, WIDTHS, st.integers(0, 5000), st.integers(0, 2**31))
def test_norms_are_kept_pair_by_pair(rope, width, position, seed):
    x = torch.randn(1, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = turned(rope, x, torch.tensor([position]))
    before, after = x.view(2, width // 2).norm(dim=0), y.view(2, width // 2).norm(dim=0)
    assert torch.allclose(before, after, rtol=1e-12, atol=0)


@given(ROPES, WIDTHS, st.integers(0, 500), st.integers(0, 500), st.integers(1, 3000), st.integers(0, 2**31))
def test_scores_depend_on_relative_position_alone(rope, width, query, key, shift, seed):
    x = torch.randn(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    near = turned(rope, x, torch.tensor([query, key]))
    far = turned(rope, x, torch.tensor([query + shift, key + shift]))
    assert float(near[0] @ near[1]) == pytest.approx(float(far[0] @ far[1]), abs=1e-9)


@given(ROPES, st.sampled_from([2, 6]), st.integers(0, 2**31))
def test_position_zero_is_the_identity_and_position_one_is_not(rope, width, seed):
    x = torch.randn(1, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(turned(rope, x, torch.tensor([0])), x)
    assert not torch.allclose(turned(rope, x, torch.tensor([1])), x)


def test_angles_are_those_written_out_one_by_one():
    for rope in (Rope(), SCALED):
        config = llama_config(rope=rope, head_dim=16)
        expected = torch.tensor(slow_angles(config, 7), dtype=torch.float64)
        assert torch.allclose(inverse_frequencies(rope, 16) * 7, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("width", [16, 64, 128])
def test_llama3_frequencies_equal_transformers(width):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(head_dim=width, max_position_embeddings=131_072, rope_parameters=said)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    scaling = Llama3Scaling(factor=32, low_freq_factor=1, high_freq_factor=4, original_context=8192)
    ours = inverse_frequencies(Rope(theta=500_000.0, scaling=scaling), width)
    assert torch.allclose(ours.float(), theirs, rtol=2e-6, atol=0)
    assert not torch.allclose(ours, inverse_frequencies(Rope(theta=500_000.0), width))


def _interleaved(x, positions, theta):
    """The paper's convention, (2i, 2i + 1) as a complex number."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2).contiguous())
    frequency = theta ** (-torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1])
    angle = positions[:, None].double() * frequency
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


@given(st.integers(1, 4), WIDTHS, st.integers(0, 2**31))
def test_the_interleaved_convention_converts_both_ways(heads, width, seed):
    generator = torch.Generator().manual_seed(seed)
    wq, wk = torch.randn(2, heads * width, 6, dtype=torch.float64, generator=generator)
    hidden = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    positions = torch.arange(5)
    to_half, back = half_split_rows(heads, width), interleaved_rows(heads, width)
    assert torch.equal(wq[to_half][back], wq) and torch.equal(wq[back][to_half], wq)

    def scores(turn, q, k):
        q, k = ((hidden @ w.T).view(5, heads, width).transpose(0, 1) for w in (q, k))
        return torch.stack([turn(a) @ turn(b).T for a, b in zip(q, k, strict=True)])

    paper = scores(lambda x: _interleaved(x, positions, 1e4), wq, wk)
    ours = scores(lambda x: turned(Rope(), x, positions), wq[to_half], wk[to_half])
    assert torch.allclose(paper, ours, rtol=1e-10, atol=1e-10)
    if width > 2:  # with one pair the conventions are the same
        mixed = scores(lambda x: turned(Rope(), x, positions), wq, wk)
        assert not torch.allclose(paper, mixed, rtol=1e-3, atol=1e-3)


@pytest.mark.realdata
def test_the_original_of_stories260k_converts_to_its_hugging_face_file(real_data):
    folder = real_data / "stories260K"
    raw = (folder / "stories260K.bin").read_bytes()
    width, hidden, layers, heads, kv_heads, vocab, _ = struct.unpack("<7i", raw[:28])
    floats = torch.from_numpy(np.frombuffer(raw, dtype="<f4", offset=28).copy())
    state, d = load_file(folder / "model.safetensors"), width // heads
    at = vocab * width + layers * width  # behind the embedding and the attention norms
    for name, rows in (("q", heads), ("k", kv_heads)):
        size = rows * d * width
        for i in range(layers):
            stored = floats[at + i * size : at + (i + 1) * size].view(rows * d, width)
            converted = stored[half_split_rows(rows, d)]
            assert torch.equal(converted, state[f"model.layers.{i}.self_attn.{name}_proj.weight"])
        at += layers * size
    assert hidden == 172


def test_tables_grow_on_demand_and_not_to_the_whole_context():
    rotary = Rotary(Rope(), 8, 1 << 30)
    rotary.tables(torch.arange(4)[None], 4, torch.float32)
    rotary.tables(torch.arange(300)[None], 300, torch.float32)
    assert all(table.shape[0] < 1024 for pair in rotary._tables.values() for table in pair)
    short, _ = Rotary(Rope(), 8, 1 << 30).tables(torch.arange(300)[None], 300, torch.float32)
    grown, _ = rotary.tables(torch.arange(300)[None], 300, torch.float32)
    assert torch.equal(short, grown)


def test_half_precision_is_rotated_in_fp32():
    x = torch.randn(3, 8).bfloat16()
    positions = torch.tensor([1000, 2000, 3000])
    rounded = turned(Rope(), x, positions)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, turned(Rope(), x.float(), positions).bfloat16())
