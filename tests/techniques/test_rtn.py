"""Round to nearest: what is replaced, what is left, what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from limbeck.config import build
from limbeck.errors import ConfigError, TechniqueError
from limbeck.model.decoder import Decoder
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight, is_quantized
from limbeck.techniques.depth import Depth
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.lora import LoRA
from limbeck.techniques.rtn import RTN
from limbeck.techniques.technique import apply_all, convert_all, deployed
from tests.reference.quantized import batches, decoder, nll, reference_logits


def rounded_by_hand(model: Decoder, grid: Grid) -> Decoder:
    """The full model with every matrix overwritten by its rounding."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2 and name != "positions.weight":
                p.copy_(encode(p, grid).decode(p.dtype))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("grid", [Grid(format=f) for f in ("int8", "int4", "q4_1", "fp8_e4m3", "bf16")], ids=str)
def test_it_is_the_model_with_rounded_weights(grid: Grid, tied: bool):
    for dtype in (torch.float32, torch.float64):
        got = reference_logits(RTN(grid=grid).apply(decoder(dtype=dtype, tied=tied)))
        assert got.dtype == dtype
        wanted = reference_logits(rounded_by_hand(decoder(dtype=dtype, tied=tied), grid))
        # the weights are the same bits; a BLAS may still order the sums of a product by where its operands lie
        torch.testing.assert_close(got, wanted, rtol=0, atol=64 * torch.finfo(dtype).eps)


def test_a_tied_head_borrows_the_embedding():
    model = RTN(bits=4).apply(decoder())
    assert isinstance(model.embed, QuantizedEmbedding) and isinstance(model.head, QuantizedLinear)
    assert model.head.quantized is model.embed.quantized
    assert not any(key.startswith("head") for key in model.state_dict())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.head.quantized is again.embed.quantized is not model.embed.quantized
        assert torch.equal(reference_logits(again), reference_logits(model))


def test_embeddings_and_head_can_be_left():
    tied = RTN(bits=8, embeddings=False).apply(decoder())
    assert isinstance(tied.embed, nn.Embedding) and tied.head.weight is tied.embed.weight
    untied = RTN(bits=8, head=False).apply(decoder(tied=False))
    assert isinstance(untied.head, nn.Linear) and isinstance(untied.embed, QuantizedEmbedding)
    assert isinstance(tied.positions, nn.Embedding)


def test_overrides_choose_by_pattern_first_match_first():
    overrides = {"blocks.0.ffn.up": Grid(format="q8_0"), "up": None, "positions": Grid(format="fp8_e5m2")}
    model = RTN(bits=4, overrides=overrides).apply(decoder())
    assert model.blocks[0].ffn.up.quantized.layout == Grid(format="q8_0").layout(144, 36)
    assert isinstance(model.blocks[1].ffn.up, nn.Linear)
    assert isinstance(model.positions, QuantizedEmbedding) and model.positions.quantized.layout.kind == "fp8_e5m2"


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        (
            RTN(overrides={"blocks.0.fnn.up": None}),
            "'blocks.0.fnn.up' of rtn matches no .*did you mean 'blocks.0.ffn.up'",
        ),
        (RTN(overrides={"head": None}), "'head' of rtn matches no"),  # tied: it is the embedding
        (RTN(overrides={"*": None}), "leaves every weight"),
    ],
)
def test_settings_that_fit_no_weight_are_refused(technique: RTN, said: str):
    with pytest.raises(TechniqueError, match=said):
        technique.apply(decoder())


def test_bits_are_a_short_form_that_must_agree():
    assert RTN(bits=4).grid == Grid(format="int4") and RTN(bits=8).grid == Grid() == RTN().grid
    assert build(RTN, {"grid": "q4_0"}).grid == Grid(format="q4_0")
    assert RTN.model_validate(RTN(bits=4).model_dump()) == RTN(bits=4)
    with pytest.raises(ConfigError, match="bits 4 and grid q8_0 disagree"):
        build(RTN, {"bits": 4, "grid": "q8_0"})


def test_a_quantized_model_is_refused():
    model = RTN().apply(decoder())
    assert is_quantized(model) and not is_quantized(decoder())
    with pytest.raises(TechniqueError, match="quantized already: give rtn the full-precision model"):
        RTN().apply(model)


def test_a_damaged_weight_is_refused():
    model = decoder()
    model.blocks[1].ffn.up.weight.data[0, 0] = torch.nan
    with pytest.raises(TechniqueError, match="not finite"):
        RTN().apply(model)


def test_casting_the_model_rounds_no_scale():
    model = RTN(bits=4).apply(decoder())
    before = {k: v.clone() for k, v in model.state_dict().items() if "codes" in k or "scales" in k}
    model.bfloat16()
    assert model.embed(torch.tensor([[1, 2]])).dtype == torch.bfloat16
    assert model(batches(1)[0]).dtype == torch.bfloat16
    model.float()
    after = model.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())
    assert model.embed(torch.tensor([[1, 2]])).dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_it_loads_onto_meta_without_a_full_copy(tied: bool):
    technique = RTN(bits=4, overrides={"down": Grid(format="int8", symmetric=False)})
    model, deployed_spec = technique.convert(technique.apply(decoder(tied=tied)))
    assert deployed_spec == technique
    with torch.device("meta"):
        empty = Decoder(model.config)
    empty = deployed_spec.deployed_skeleton(empty)
    assert all(x.is_meta for x in empty.state_dict().values())
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert not any(x.is_meta for x in (*empty.parameters(), *empty.buffers()))
    assert torch.equal(reference_logits(empty), reference_logits(model))
    assert empty.count_bytes() == model.count_bytes() == technique.stated_bytes(decoder(tied=tied))


def test_memory_made_empty_takes_the_saved_tensors():
    model = RTN(bits=4).apply(decoder())
    with torch.device("meta"):
        empty = Decoder(model.config)
    empty = RTN(bits=4).deployed_skeleton(empty).to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    assert torch.equal(reference_logits(empty), reference_logits(model))


def test_new_codes_are_seen_after_an_old_forward():
    first, second = RTN(bits=4).apply(decoder(1)), RTN(bits=4).apply(decoder(2))
    batch = batches(1)[0]
    with torch.no_grad():
        first(batch)
        first.load_state_dict(second.state_dict())
        assert torch.equal(first(batch), second(batch))


def test_an_adapter_on_top_trains_and_stays_beside():
    techniques = (RTN(bits=4), LoRA(rank=2, targets="all"))
    model = apply_all(techniques, decoder())
    before = reference_logits(model)
    assert torch.equal(before, reference_logits(RTN(bits=4).apply(decoder())))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nll(model, batches(1)[0])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01
    wanted = reference_logits(model)
    finished, deployed_specs = convert_all(techniques, model)
    assert [r.name for r in deployed_specs] == ["rtn", "lora"]
    rebuilt = deployed(deployed_specs, Decoder(finished.config))
    rebuilt.load_state_dict(finished.state_dict(), strict=True)
    assert torch.equal(reference_logits(rebuilt), wanted)


def test_it_goes_before_adapters_not_after():
    with pytest.raises(TechniqueError, match="rtn goes before what was done to it"):
        RTN().apply(LoRA(rank=2).apply(decoder()))


def test_the_deployed_spec_tells_of_the_blocks_that_are_left():
    techniques = (RTN(bits=4, overrides={"blocks.0.*": None}), Depth(layers=(1,)))
    model, deployed_specs = convert_all(techniques, apply_all(techniques, decoder()))
    assert deployed_specs[0].overrides["blocks.0.ffn.up"] == Grid(format="int4")
    rebuilt = deployed(deployed_specs, Decoder(model.config))
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(reference_logits(rebuilt), reference_logits(model))


def test_parts_of_a_fused_layer_keep_their_rows():
    model = RTN(bits=4).apply(decoder())
    qkv = model.blocks[0].attention.qkv
    assert qkv.rows("k") == slice(36, 72) and (qkv.in_features, qkv.out_features) == (36, 108)
    assert "int4, rows=108" in repr(qkv) and isinstance(qkv.quantized, QuantizedWeight)
    assert torch.equal(qkv.quantized.decode(), qkv.quantized.value().decode(torch.float32))
