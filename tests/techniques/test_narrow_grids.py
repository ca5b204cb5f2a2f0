"""int2 to int7 and nf4: how codes share bytes, which numbers they are, and how models on them are saved and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.decode.step import CompiledStep
from limbeck.errors import ConfigError, TechniqueError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.kernels.packed import dispatch
from limbeck.kernels.packed_layout import NARROW, NF4, dynamic_map, pack, unpack
from limbeck.model.cache import KVCache
from limbeck.model.quantized import QuantizedWeight
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.lora import LoRA
from limbeck.techniques.mixed import Mixed
from limbeck.techniques.qat import QAT
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import apply_all, convert_all
from tests.reference.quantized import batches, decoder, nll, reference_logits
from tests.reference.small_tokenizer import byte_level

INTEGERS = [k for k in NARROW if k != "nf4"]


def matrix(rows: int = 7, columns: int = 150, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("columns", [1, 7, 8, 33])
def test_codes_are_one_stream_of_bits_a_row(kind: str, columns: int) -> None:
    bits = NARROW[kind]
    codes = torch.randint(0, 2**bits, (5, columns), generator=torch.Generator().manual_seed(columns)).to(torch.uint8)
    stored = pack(codes, kind)
    assert stored.shape == (5, -(-columns * bits // 8)) and stored.dtype == torch.uint8
    for row, held in zip(codes.tolist(), stored.tolist(), strict=True):
        assert int.from_bytes(bytes(held), "little") == sum(code << bits * i for i, code in enumerate(row))
    assert torch.equal(unpack(stored, columns, kind), codes)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_are_even_steps(kind: str, symmetric: bool) -> None:
    grid, bits = Grid(format=kind, symmetric=symmetric, scale_dtype="fp32"), NARROW[kind]  # type: ignore[arg-type]
    assert grid.bits == bits and grid.group_size == 32
    weight = matrix().double()
    found = encode(weight, grid)
    assert found.codes.nbytes + found.scales.nbytes + (0 if symmetric else found.zeros.nbytes) == found.layout.bytes
    decoded = found.decode(torch.float64)
    for row, near in zip(weight, decoded, strict=True):
        for at in range(0, 150, 32):
            w, n = row[at : at + 32], near[at : at + 32]
            if symmetric:
                step, low = w.abs().max() / (2 ** (bits - 1) - 1), 0.0
            else:
                step, low = (w.max() - w.min()) / (2**bits - 1), w.min()
            assert (n - (((w - low) / step).round() * step + low)).abs().max() < 1e-6
    errors = [float((encode(weight, Grid(format=k)).decode() - weight).square().sum()) for k in INTEGERS]  # type: ignore[arg-type]
    assert errors == sorted(errors, reverse=True)


def test_nf4_has_the_published_quantiles() -> None:
    """Dettmers et al. 2023, section 3: eight quantiles of N(0, 1) above zero, seven below, zero itself."""
    share = 0.9677083
    above = torch.special.ndtri(torch.linspace(share, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(share, 0.5, 8, dtype=torch.float64)[:-1])
    wanted = torch.cat((below, torch.zeros(1, dtype=torch.float64), above)).sort().values
    assert (torch.tensor(NF4, dtype=torch.float64) - wanted / wanted.max()).abs().max() < 1e-6


def test_the_dynamic_map_is_a_sign_a_power_of_ten_and_a_fraction() -> None:
    found = dynamic_map().double()
    assert len(found.unique()) == 256 and float(found.max()) == 1.0 and (found == 0).sum() == 1
    assert torch.equal(found[found < 0], -found[(found > 0) & (found < 1)].flip(0))
    assert abs(float(found.min()) + 0.99296875) < 1e-7  # 63.5 / 64 of 0.9, above 0.1
    assert [int(((found >= 10.0**-e) & (found < 10.0 ** (1 - e))).sum()) for e in range(1, 8)] == [
        64,
        32,
        16,
        8,
        4,
        2,
        1,
    ]


@pytest.mark.parametrize("scale_dtype", ["double", "fp16", "fp32"])
def test_nf4_takes_the_nearest_level(scale_dtype: str) -> None:
    grid, weight = Grid(format="nf4", scale_dtype=scale_dtype), matrix(9, 200)  # type: ignore[arg-type]
    assert grid.group_size == 64 and grid.bits == 4
    found, levels = encode(weight, grid), torch.tensor(NF4)
    scales = found.scale_numbers().float().repeat_interleave(64, dim=1)[:, :200]
    nearest = ((weight / scales)[..., None] - levels).abs().argmin(dim=-1)
    assert torch.equal(unpack(found.codes, 200, "nf4").long(), nearest)
    assert torch.equal(found.decode(), levels[nearest] * scales)
    exact = torch.nn.functional.pad(weight, (0, 56)).view(9, 4, 64).abs().amax(-1)
    assert (found.scale_numbers() - exact).abs().max() < {"double": 0.05, "fp16": 2e-3, "fp32": 1e-9}[scale_dtype]


def test_double_quantization_costs_a_byte_a_scale_and_four_a_256() -> None:
    found = encode(matrix(40, 512), Grid(format="nf4"))
    assert found.scales.dtype == torch.uint8 and found.scales.shape == (40, 8) and found.second.shape == (1 + 2,)
    assert found.layout.bytes == 40 * 256 + 40 * 8 + 3 * 4
    rows = torch.tensor([39, 3, 3])
    assert torch.equal(found.take(rows).decode(), found.decode()[rows])
    flat = encode(torch.ones(3, 64), Grid(format="nf4"))  # scales that are all alike have no distance to share
    assert torch.equal(flat.decode(), torch.ones(3, 64))


ON_GRIDS = [
    RTN(bits=3),
    RTN(bits=5, clip="search"),
    RTN(grid=Grid(format="int6", symmetric=False)),
    RTN(grid=Grid(format="nf4")),
    GPTQ(grid=Grid(format="nf4")),
    GPTQ(grid=Grid(format="int3", symmetric=False)),
]


@pytest.mark.parametrize("technique", ON_GRIDS, ids=lambda t: f"{t.name}-{t.grid.format}")
def test_a_model_is_saved_and_run_from_its_codes(technique: RTN | GPTQ, tmp_path: Path) -> None:
    plain = decoder(vocab_size=280)
    stated = technique.stated_bytes(plain)
    model = technique.apply(plain, batches())
    assert model.count_bytes() == stated
    save_bundle(model, byte_level(280), tmp_path, deployed_specs=(technique,))
    again = load_bundle(str(tmp_path)).model
    wanted = reference_logits(model)
    assert torch.equal(reference_logits(again), wanted)
    with torch.inference_mode(), dispatch("auto"):  # dequantizes, as no compiled product knows them
        assert (again(batches(1)[0]) - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)
    for weight in (m for m in again.modules() if isinstance(m, QuantizedWeight)):
        held = [x for x in vars(weight.prepared()).values() if isinstance(x, Tensor)]
        assert not held  # no copy beside the codes
    cache = KVCache(again.config, 1, 16)
    assert CompiledStep.of(again, cache) is None  # decoding takes torch's path
    ids = torch.randint(0, 53, (1, 9), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), dispatch("reference"):
        parts = torch.cat([again(Batch.of_ids(ids[:, at : at + 3]), cache=cache) for at in (0, 3, 6)], dim=1)
        assert (parts - again(Batch.of_ids(ids))).abs().max() < 1e-4


def test_qlora_trains_beside_nf4() -> None:
    pair = (RTN(grid=Grid(format="nf4")), LoRA(rank=4))
    model, batch = apply_all(pair, decoder()), batches(1)[0]
    codes = {n: b.clone() for n, b in model.named_buffers()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = nll(model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(b, codes[n]) for n, b in model.named_buffers())
    assert [t.name for t in convert_all(pair, model)[1]] == ["rtn", "lora"]


def test_three_bits_are_trained_with_learned_scales_or_without() -> None:
    for technique in (QAT(bits=3, learned_scales=True), QAT(bits=3), QAT(grid=Grid(format="nf4"))):
        model = technique.apply(decoder())
        nll(model, batches(1)[0]).backward()
        assert all(p.grad is not None for p in model.parameters())
        wanted = reference_logits(model)
        assert (reference_logits(technique.convert(model)[0]) - wanted).abs().max() < 1e-5
    with pytest.raises(TechniqueError, match="rounded to 8 bits and cannot be learned"):
        QAT(grid=Grid(format="nf4"), learned_scales=True).apply(decoder())


def test_a_budget_chooses_among_them() -> None:
    grids = tuple(Grid(format=f) for f in ("int3", "int5", "nf4", "int8"))  # type: ignore[arg-type]
    technique = Mixed(candidates=grids, average_bits=5.5)
    plain = decoder(hidden_size=64, heads=2)
    stated = technique.stated_bytes(plain)
    assert technique.apply(plain, batches()).count_bytes() <= stated


def test_bits_are_two_to_eight() -> None:
    assert RTN(bits=6).grid == Grid(format="int6")
    with pytest.raises((ConfigError, ValueError), match="bits"):
        RTN(bits=9)  # type: ignore[arg-type]
