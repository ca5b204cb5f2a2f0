"""I32: no speed is told but a measured one, on a machine that is named, against the unchanged model."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.config import build
from limbeck.formats.load import load_bundle
from limbeck.jobs import quantization as quantize
from limbeck.jobs.recipe import Display
from limbeck.jobs.reports import quantization as quantize_report
from limbeck.measure.cost import SpeedProtocol
from limbeck.model.decoder import Decoder
from limbeck.model.quantized import is_quantized
from limbeck.verbs.quantize import Quantize
from tests.reference.quantized import reference_logits
from tests.reference.small_model import decoder, saved

ROOT = Path(__file__).parents[2]
CLAIM = re.compile(r"\d(?:[.,]\d+)?\s?(?:x|times)\s(?:as\sfast|faster|slower|quicker|the\sspeed)", re.IGNORECASE)
MACHINE = re.compile(r"EPYC|Xeon|AMX|AVX|H100|machine with")
WORDS = re.compile(
    r"decodes (\d+\.\d+) times (faster|slower) here than the original: (\S+) ms a token against (\S+) ms"
)


def test_a_quantized_model_is_timed_against_the_unchanged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "m", hidden_size=64)
    unchanged = reference_logits(load_bundle(str(source)).model)
    timed: list[tuple[bool, torch.Tensor, float, float]] = []
    real = quantize_report.speed

    def watched(model: Decoder, protocol: SpeedProtocol) -> dict[str, Any]:
        found = real(model, protocol)
        told = (found["decode_ms_per_token"], found["prefill_ms"])
        timed.append((is_quantized(model), reference_logits(model), *told))
        return found

    monkeypatch.setattr(quantize_report, "speed", watched)
    recipe = build(
        Quantize,
        {
            "model": str(source), "out": str(tmp_path / "run"), "data": "toy:stories", "limit": 4,
            "technique": {"kind": "rtn", "bits": 4}, "measuring": {"generate": False},
            "speed": {"prompt_tokens": 4, "new_tokens": 4, "repeats": 3, "warm_up": 0},
        },
    )  # fmt: skip
    values = recipe.run(Display.silent()).values
    assert [t[0] for t in timed] == [False, True] * 3, "in turns"
    assert all(torch.equal(t[1], unchanged) for t in timed[::2]), "the original is what lies in the folder"
    saved_again = reference_logits(load_bundle(str(tmp_path / "run")).model)
    assert all(torch.equal(t[1], saved_again) for t in timed[1::2]), "and the other what was saved"
    # every figure of the report is one of these measurements
    pairs = list(zip(timed[::2], timed[1::2], strict=True))
    told = values["speed"]
    assert told["decode_ratio"] == statistics.median(b[2] / a[2] for a, b in pairs)
    assert told["prefill_ratio"] == statistics.median(b[3] / a[3] for a, b in pairs)
    assert values["cost"]["speed"]["decode_ms_per_token"] == statistics.median(b[2] for _, b in pairs)
    assert values["cost"]["speed"]["decode_ms_slowest"] == max(b[2] for _, b in pairs)
    assert {"cpu", "cores", "threads"} <= told["protocol"]["machine"].keys()
    assert told["protocol"]["protocol"]["repeats"] == 3


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([(4.0, 2.0), (6.0, 2.0), (4.0, 1.0)], True),
        ([(1.0, 3.0), (1.0, 2.0), (2.0, 5.0)], True),
        ([(1.0, 0.1), (1.0, 0.1), (1.0, 1.01)], False),
    ],
)
def test_times_faster_is_said_of_what_every_round_shows_alone(
    times: list[tuple[float, float]], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = [t for pair in times for t in pair]

    def fake(model: object, protocol: SpeedProtocol) -> dict[str, Any]:
        t = queue.pop(0)
        told = {"protocol": {"batch_size": 1}, "dtype": "float32", "device": "cpu", "machine": {}}
        return {"prefill_ms": t, "decode_ms_per_token": t, **told}

    monkeypatch.setattr(quantize_report, "speed", fake)
    found = quantize_report.alternated(object(), object(), SpeedProtocol(repeats=3))  # type: ignore[arg-type]
    words = WORDS.search(found.sentence)
    assert (words is not None) is shown
    if words is None:
        assert found.sentence.startswith("no difference in speed shown: ")
        return
    ratio = statistics.median(b / a for a, b in times)
    told, way, quantized, original = words.groups()
    assert way == ("slower" if ratio > 1 else "faster") and told == f"{max(ratio, 1 / ratio):.2f}"
    assert float(quantized) == statistics.median(b for _, b in times)
    assert float(original) == statistics.median(a for a, _ in times)
    assert ("slower" in " ".join(quantize._told(decoder(), found))) is (ratio > 1), "a slower model is said to be one"


def test_the_documents_claim_no_speed_without_the_machine_that_showed_it() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for paragraph in re.split(r"\n\s*\n|\n- ", page.read_text(encoding="utf-8")):
            claim = CLAIM.search(" ".join(paragraph.split()))
            assert claim is None or MACHINE.search(paragraph), f"{page.name} claims '{claim[0]}' and names no machine"
    assert CLAIM.search("is 10 to 100 times slower than bf16") and CLAIM.search("decodes 2.5x faster")


def test_every_benchmark_s_figures_have_their_stamp() -> None:
    files = sorted((ROOT / "docs" / "results" / "performance").glob("*.json"))
    assert files
    for file in files:
        stamp = json.loads(file.read_text(encoding="utf-8"))["stamp"]
        assert all(stamp.get(key) for key in ("cpu", "cores", "threads", "versions", "commit", "command")), file.name
