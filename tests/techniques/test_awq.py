"""AWQ: an equal function before rounding for every family, a choice no worse than rounding, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.formats.load import load_bundle
from limbeck.model.decoder import Decoder
from limbeck.model.taps import taps
from limbeck.techniques.awq import AWQ, scale_columns
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rtn import RTN
from tests.reference.checkpoints import FAMILIES, VOCAB, save
from tests.reference.quantized import batches, decoder, reference_logits

IDS = torch.randint(1, VOCAB, (2, 40), generator=torch.Generator().manual_seed(11))
PLAN = AWQ(bits=4)


def uneven(**over: object) -> Decoder:
    """A model whose norms make some columns twenty times the rest, as trained models have them."""
    model = decoder(hidden_size=64, heads=2, **over)
    with torch.no_grad():
        for block in model.blocks:
            block.attention_norm.weight[3:7] *= 20
            block.ffn_norm.weight[11:14] *= 20
    return model


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_answers_alike_before_it_is_rounded(name: str, tmp_path: Path) -> None:
    save(name, tmp_path)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = load_bundle(str(tmp_path), dtype).model
        wanted, before = model(Batch.of_ids(IDS)), model.blocks[0].attention.out.weight.clone()
        alphas = scale_columns(model, PLAN, [Batch.of_ids(IDS)], steps=4)
        assert (model(Batch.of_ids(IDS)) - wanted).abs().max() < tolerance
        c = model.config
        scaled = {n.split(".", 2)[2] for n in alphas}
        normed = c.norm_at != "after"
        assert ("attention.qkv" in scaled) == ("ffn.up" in scaled) == normed
        assert ("ffn.down" in scaled) == (c.gated or c.activation == "relu")
        assert any(alphas.values()) and all(0 <= a < 1 for a in alphas.values())
        if alphas["blocks.0.attention.out"]:
            assert (model.blocks[0].attention.out.weight - before).abs().max() > 1e-4


def test_the_alpha_is_that_of_least_output_error() -> None:
    """By a slow search over the outputs themselves."""
    model, text = uneven(), batches(2)
    weight = model.blocks[0].attention.qkv.weight.detach().clone()
    seen: list[torch.Tensor] = []
    with torch.no_grad(), taps(model.blocks[0], ["attention.qkv"], inputs=lambda _, x: seen.append(x)):
        for b in text:
            model(b)
    x = torch.cat([s[b.real] for s, b in zip(seen, text, strict=True)])
    errors = []
    for k in range(10):
        s = x.abs().mean(dim=0).clamp(min=1e-4) ** (k / 10)
        s = s / (s.max() * s.min()).sqrt()
        rounded = encode(weight * s, PLAN.grid).decode()
        errors.append(float(((x / s) @ rounded.T - x @ weight.T).square().sum()))
    alphas = scale_columns(model, PLAN, text, steps=10)
    found = round(alphas["blocks.0.attention.qkv"] * 10)
    assert errors[found] <= 1.001 * min(errors) < 0.9 * errors[0]


def test_it_answers_nearer_than_round_to_nearest() -> None:
    text = batches(4)
    for over in ({}, {"norm": "rms", "gated": True, "activation": "silu", "kv_heads": 1}):
        wanted = reference_logits(uneven(**over))
        awq = (reference_logits(AWQ(bits=4).apply(uneven(**over), text)) - wanted).square().mean()
        rtn = (reference_logits(RTN(bits=4).apply(uneven(**over))) - wanted).square().mean()
        assert awq < rtn


def test_one_step_is_round_to_nearest() -> None:
    found = reference_logits(AWQ(bits=4, steps=1).apply(uneven(), batches(1)))
    assert torch.equal(found, reference_logits(RTN(bits=4).apply(uneven())))


def test_a_layer_that_stays_as_it_is_is_not_scaled() -> None:
    plan = AWQ(bits=4, overrides={"qkv": None, "up": Grid(format="bf16")})
    assert set(scale_columns(uneven(), plan, batches(1), 2)) == {"blocks.0.attention.out", "blocks.1.attention.out"}


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(TechniqueError, match="awq scales columns by their activations: it needs calibration text"):
        AWQ(bits=4).apply(decoder())
    with pytest.raises(TechniqueError, match="awq goes before what was done to it"):
        AWQ(bits=4).apply(LoRA(rank=2).apply(decoder()), batches(1))
    with pytest.raises(TechniqueError, match="more than a weight by now"):
        AWQ(bits=4).apply(RTN(bits=4).apply(decoder()), batches(1))
