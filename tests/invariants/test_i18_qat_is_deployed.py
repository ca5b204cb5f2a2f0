"""I18: codes and scales of fake quantization and of the packed file are bit-equal; all paths agree with plain fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from limbeck.kernels.packed import dispatch
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid
from limbeck.techniques.qat import QAT, FakeWeight
from tests.reference.quantized import batches, decoder, nll, reference_logits

CASES = [
    QAT(grid=Grid(format=f, **more), learned_scales=learned)
    for f, more in (
        ("int8", {}), ("int4", {}), ("int4", {"granularity": "channel"}), ("int4", {"symmetric": False}),
        ("q8_0", {}), ("q4_0", {}), ("q4_1", {}), ("fp8_e4m3", {}), ("fp8_e5m2", {}),
    )
    for learned in (False, True)
]  # fmt: skip


def tuned(technique: QAT, **over: object) -> Decoder:
    model = technique.apply(decoder(**over)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in batches(3):
        optimizer.zero_grad()
        nll(model, batch).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("technique", CASES, ids=lambda t: f"{t.grid.format}-{t.grid.granularity}-{t.learned_scales}")
def test_what_was_trained_is_what_is_saved(technique: QAT, tied: bool, tmp_path):
    model = tuned(technique, tied=tied)
    with torch.no_grad():
        seen = {name: (m.codes(), m.value()) for name, m in model.named_modules() if isinstance(m, FakeWeight)}
    wanted = reference_logits(model)
    packed, deployed_spec = technique.convert(model)
    save_file(packed.state_dict(), str(tmp_path / "model.safetensors"))
    with torch.device("meta"):
        again = Decoder(packed.config)
    again = deployed_spec.deployed_skeleton(again)
    again.load_state_dict(load_file(str(tmp_path / "model.safetensors")), strict=True, assign=True)
    assert len(seen) == (9 if tied else 10)
    for name, (codes, value) in seen.items():
        held = again.get_submodule(name.replace("fake", "quantized"))
        assert torch.equal(held.codes.view(torch.uint8), codes.codes.view(torch.uint8))
        assert torch.equal(held.scales, codes.scales)
        assert codes.zeros is None or torch.equal(held.zeros, codes.zeros)
        assert torch.equal(held.decode(), value)  # what the training forward multiplied by
    assert torch.equal(reference_logits(again), wanted)


@pytest.mark.parametrize("path", ["packed", "dequantize", "auto"])
@pytest.mark.parametrize("technique", CASES, ids=lambda t: f"{t.grid.format}-{t.grid.granularity}-{t.learned_scales}")
@pytest.mark.filterwarnings("ignore:no packed kernel")
def test_fast_paths_agree_with_the_plain_one(technique: QAT, path: str):
    model, _ = technique.convert(tuned(technique))
    batch = batches(1)[0]
    plain = reference_logits(model, batch)[batch.real]
    with dispatch(path), torch.no_grad():
        fast = model(batch)[batch.real]
    p, q = F.log_softmax(plain.double(), -1), F.log_softmax(fast.double(), -1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert float(kl.mean()) <= 1e-4
    best = plain.topk(2, dim=-1)
    # a tie is what rounding may turn: bf16 moves logits by up to 4 % of their spread, inputs in int8 by up to 10 %
    tie = 0.1 if path == "auto" else 0.05
    clear = best.values[:, 0] - best.values[:, 1] > tie * plain.std()
    assert float(clear.float().mean()) > 0.5
    assert torch.equal(fast.argmax(-1)[clear], best.indices[clear, 0])


def test_a_float64_model_deploys_what_it_trained():
    technique = QAT(bits=4)
    model = technique.apply(decoder(dtype=torch.float64))
    wanted = reference_logits(model)
    # codes and scales are equal to the bit (above); the order of a product's sums is the BLAS's own
    torch.testing.assert_close(reference_logits(technique.convert(model)[0]), wanted, rtol=0, atol=1e-13)
