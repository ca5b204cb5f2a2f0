"""I19: the size reported is the size of the file, with embeddings and head in it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.grid import Grid
from limbeck.techniques.qat import QAT
from limbeck.techniques.quantized import Quantizer
from limbeck.techniques.rtn import RTN
from tests.reference.quantized import batches, decoder

CASES = [
    RTN(bits=8), RTN(bits=4), RTN(grid=Grid(format="q4_1")), RTN(bits=4, embeddings=False), GPTQ(bits=4),
    QAT(bits=4, learned_scales=True), RTN(bits=8, overrides={"positions": Grid(format="bf16"), "up": None}),
]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("technique", CASES, ids=str)
def test_stated_reported_and_written_bytes_are_one(technique: Quantizer, tied: bool, tmp_path):
    stated = technique.stated_bytes(decoder(tied=tied))
    model, _ = technique.convert(technique.apply(decoder(tied=tied), batches(8)))
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in model.state_dict().items() if k != "head.weight" or not tied}
    save_file(kept, str(file))
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert stated == model.count_bytes() == file.stat().st_size - header


@pytest.mark.parametrize(
    ("technique", "most"), [(RTN(bits=8), 0.27), (RTN(bits=4), 0.17), (RTN(grid=Grid(format="q4_0")), 0.17)]
)
def test_a_gpt2_small_shrinks_as_promised(technique: RTN, most: float):
    with torch.device("meta"):
        model = Decoder(DecoderConfig(vocab_size=50257, layers=12, hidden_size=768, heads=12))
    full = model.count_bytes()
    assert full == 4 * 124_439_808
    assert technique.deployed_skeleton(model).count_bytes() <= most * full
