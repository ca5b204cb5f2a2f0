"""I41: a quantized model takes no more time than its origin and less memory in use, or an alarm says so."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import torch

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.formats.native import write_model
from limbeck.jobs.quantization import _larger
from limbeck.kernels import native
from limbeck.measure.cost import SpeedProtocol
from limbeck.measure.footprint import Footprint, footprint
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN

FORMATS = ("int8", "q8_0", "int4", "q4_0", "q4_1")


def made(kind: str, layers: int = 4) -> tuple[Decoder, tuple]:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=8192, context=512, layers=layers, hidden_size=768, heads=12)).eval()
    if kind == "fp32":
        return model, ()
    technique = RTN(grid=Grid(format=kind))
    model, spec = technique.convert(technique.apply(model))
    return model, (spec,)


def seconds(model: Decoder) -> tuple[float, float]:
    """Processor time of this process for a prompt of 192 and for 12 steps after it."""
    with evaluating(model):
        session = DecodingSession(model, [list(range(192))], 14)
        start = time.process_time()
        logits = session.start()
        read = time.process_time() - start
        logits = session.step(logits.argmax(dim=-1).tolist())  # describes the model to the compiled step
        start = time.process_time()
        for _ in range(12):
            logits = session.step(logits.argmax(dim=-1).tolist())
        return read, time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_never_slower(kind: str) -> None:
    if native.load() is None:
        pytest.skip("without compiled kernels the alarm of quantize says what is slower")
    origin, smaller = made("fp32")[0], made(kind)[0]
    rounds = [(seconds(origin), seconds(smaller)) for _ in range(8)][1:]
    for part in (0, 1):
        assert statistics.median(b[part] / a[part] for a, b in rounds) < 1 / 0.97


@pytest.mark.slow
def test_it_takes_less_memory_in_use(tmp_path: Path) -> None:
    used = {}
    for kind in ("fp32", "int8", "int4"):
        model, specs = made(kind, layers=8)
        folder = tmp_path / kind
        folder.mkdir()
        Tokenizer.train(["a few words"], 300).save(folder)
        write_model(model, folder, {}, specs)
        protocol = SpeedProtocol(repeats=1, warm_up=0, prompt_tokens=64, new_tokens=8)
        used[kind] = footprint(folder, protocol=protocol).use_bytes
    assert used["int8"] <= 0.4 * used["fp32"] and used["int4"] < used["int8"]


def test_more_memory_in_use_is_said() -> None:
    assert _larger(Footprint(0, 0, 5_000_000), Footprint(0, 0, 5_000_000)) == []
    assert _larger(Footprint(0, 0, 5_000_000), Footprint(0, 0, 6_000_000)) == [
        "the quantized model takes more memory in use here than the original: 6.0 against 5.0 MB"
    ]
