from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from limbeck.config import build
from limbeck.data.readers import read
from limbeck.errors import ConfigError, ModelError, TechniqueError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs import quantization as quantize
from limbeck.jobs.recipe import Display
from limbeck.jobs.reports import quantization as quantize_report
from limbeck.jobs.reports.quantization import alternated, show_quantized
from limbeck.measure.cost import SpeedProtocol, disk_bytes
from limbeck.measure.perplexity import NATS_PER_TOKEN
from limbeck.measure.scores import Scores
from limbeck.measure.stats import compare
from limbeck.model.config import Classes
from limbeck.model.decoder import Decoder
from limbeck.model.heads import with_classes
from limbeck.model.quantized import QuantizedWeight, is_quantized
from limbeck.tasks.text import Text
from limbeck.techniques.grid import Grid
from limbeck.techniques.rtn import RTN
from limbeck.verbs.quantize import Quantize
from tests.reference.small_model import MODERN, decoder, saved
from tests.reference.task_models import small, tokenizer

QUICK: dict[str, Any] = {
    "data": "toy:stories", "limit": 12,
    "measuring": {"generate": False, "batch_size": 4},
    "speed": {"prompt_tokens": 2, "new_tokens": 2, "repeats": 2, "warm_up": 0},
}  # fmt: skip


def quantized(model: Path, out: Path, **over: Any) -> dict[str, Any]:
    values = {**QUICK, "model": str(model), "out": str(out), **over}
    return dict(build(Quantize, values).run(Display.silent()).values)


def shown(values: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in show_quantized(values):
        console.print(part)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_it_rotates_first_where_asked(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", hidden_size=64)
    with pytest.raises(TechniqueError, match="set untie=true"):
        quantized(source, tmp_path / "run", rotate={}, technique={"kind": "rtn", "bits": 8})
    values = quantized(source, tmp_path / "run", rotate={"untie": True}, technique={"kind": "rtn", "bits": 8})
    made = load_bundle(str(tmp_path / "run"))
    assert not made.model.config.tied and [r.name for r in made.deployed_specs] == ["rtn"]
    assert values["rotate"]["untie"] and values["agreement"]["kl_nats"]["value"] < 0.01


def test_rtn_from_end_to_end(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", hidden_size=64)
    values = quantized(source, tmp_path / "run", technique={"kind": "rtn", "bits": 4})
    made = load_bundle(str(tmp_path / "run"))
    assert is_quantized(made.model) and [r.name for r in made.deployed_specs] == ["rtn"]
    assert made.generation["max_new_tokens"] == 7
    # I19: sizes of files
    sizes = values["bytes"]
    assert sizes["original"] == disk_bytes(source)
    assert sizes["quantized"] == disk_bytes(tmp_path / "run" / "model")
    assert sizes["ratio"] == sizes["quantized"] / sizes["original"] < 0.35
    # figures: those of the saved files, paired
    a, b = (Scores.read(tmp_path / "run" / "scores" / f"{n}.jsonl") for n in ("original", "quantized"))
    c = values["comparisons"][NATS_PER_TOKEN.name]
    wanted = compare(a, b, NATS_PER_TOKEN, resamples=100)
    assert (c["a"], c["b"], c["low"], c["high"]) == (wanted.a, wanted.b, wanted.low, wanted.high)
    assert c["relative"] == pytest.approx((wanted.b - wanted.a) / wanted.a) and "12 items" in c["verdict"]
    rows = read("toy:stories", limit=12)
    alone = Text().evaluate(
        made.model,
        made.tokenizer,
        rows,
        build(Quantize, {**QUICK, "model": "x", "out": "x"}).measuring,
        Text().decoding(),
    )  # noqa: E501
    assert NATS_PER_TOKEN.value(alone.scores) == pytest.approx(c["b"], rel=1e-6)
    near = values["agreement"]
    assert 0 < near["kl_nats"]["low"] <= near["kl_nats"]["value"] <= near["kl_nats"]["high"]
    assert 0 < near["top_agreement"]["value"] < 1 and near["top_agreement"]["items"] == 12
    # the run is whole, and says the same a second time
    run = tmp_path / "run"
    assert json.loads((run / "report.json").read_text()) == json.loads(json.dumps(values))
    assert set(json.loads((run / "provenance.json").read_text())) >= {"seed"}
    again = build(Quantize, {**QUICK, "model": str(source), "out": str(run), "technique": {"kind": "rtn", "bits": 4}})
    assert again.run(Display.silent()).values == values
    text = shown(values)
    assert c["verdict"][:40] in text and f"{sizes['ratio']:.3f}" in text and values["speed"]["sentence"][:30] in text


@pytest.mark.parametrize("technique", [{"kind": "gptq", "bits": 4}, {"kind": "mixed", "average_bits": 6.0}])
def test_calibration_reaches_the_technique(tmp_path: Path, technique: dict[str, Any]) -> None:
    source = saved(tmp_path / "m", **MODERN)
    values = quantized(
        source, tmp_path / "run", technique=technique, calibration="toy:verse", calibration_tokens=300, context=24
    )
    used = values["calibration"]
    assert not any("calibration rows" in told for told in values["told"])
    assert used["source"] == "toy:verse" and 0 < used["tokens"] <= 300 and used["sequences"] >= 300 // 24
    assert [r["kind"] for r in values["deployed_specs"]] == [technique["kind"]]
    assert is_quantized(load_bundle(str(tmp_path / "run")).model)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp64", "fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "q8_0", "q4_1"])
def test_every_format_is_loaded_as_it_was_saved(tmp_path: Path, form: str) -> None:
    source = saved(tmp_path / "m", hidden_size=64)
    quantized(source, tmp_path / "run", technique={"kind": "rtn", "grid": form})
    made = load_bundle(str(tmp_path / "run")).model
    kept = RTN(grid=Grid.model_validate(form)).apply(load_bundle(str(source)).model)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(values_of(made), values_of(kept), strict=True))


def values_of(model: Decoder) -> list[torch.Tensor]:
    return [m.decode() for m in model.modules() if isinstance(m, QuantizedWeight)]


def test_measuring_on_the_calibration_rows_is_said(tmp_path: Path) -> None:
    values = quantized(saved(tmp_path / "m"), tmp_path / "run", calibration=QUICK["data"])
    assert values["told"][0] == "the calibration rows are those measured on: the figures are too good"


def test_what_stays_keeps_its_stored_dtype(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", torch.bfloat16)
    technique = {"kind": "rtn", "bits": 8, "embeddings": False}
    quantized(source, tmp_path / "run", technique=technique)
    stored = load_bundle(str(tmp_path / "run")).model
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert tensors["embed.weight"].dtype == tensors["norm.weight"].dtype == torch.bfloat16
    assert torch.equal(stored.embed.weight, load_bundle(str(source)).model.embed.weight)


def test_bad_input_is_one_sentence_and_leaves_no_run(tmp_path: Path) -> None:
    source, run = saved(tmp_path / "m", hidden_size=64), tmp_path / "run"
    gptq = {"kind": "gptq", "bits": 4}
    with pytest.raises(TechniqueError, match="needs at least 256 tokens of calibration text here, not 0: give more"):
        quantized(source, run, technique=gptq)
    with pytest.raises(TechniqueError, match="needs at least 256 tokens of calibration text here, not .*: give more"):
        quantized(source, run, technique=gptq, calibration="toy:verse", calibration_tokens=100)
    with pytest.raises(ConfigError, match="3 calibration tokens do not hold the first row of toy:verse"):
        quantized(source, run, technique=gptq, calibration="toy:verse", calibration_tokens=3)
    with pytest.raises(TechniqueError, match="measures sensitivity on calibration text: give some"):
        quantized(source, run, technique={"kind": "mixed", "average_bits": 6})
    assert not run.exists()
    quantized(source, run)
    with pytest.raises(TechniqueError, match="quantized already: give rtn the full-precision model it came from"):
        quantized(run, tmp_path / "twice")
    config = run / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "limbeck_format": 99}))
    with pytest.raises(ModelError, match="limbeck_format 99: this version reads 1"):
        quantized(run, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_head_of_classes_has_figures_but_no_agreement(tmp_path: Path) -> None:
    model = with_classes(small(), Classes(labels=("0", "1")))
    save_bundle(model, tokenizer(), tmp_path / "m")
    values = quantized(
        tmp_path / "m", tmp_path / "run", data="toy:sentiment", task={"kind": "sentiment", "labels": ["0", "1"]}
    )
    assert values["agreement"] == {} and "accuracy" in values["comparisons"]
    assert "KL to the original" not in shown(values)


def test_a_run_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    source, run = saved(tmp_path / "m"), tmp_path / "run"
    first = quantized(source, run)
    (run / "report.json").unlink()
    assert quantized(source, run)["comparisons"] == first["comparisons"]


def test_a_missing_kernel_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "m", hidden_size=64)
    monkeypatch.setattr("limbeck.kernels.packed.Prepared.supports_integer", lambda _: False)
    values = quantized(source, tmp_path / "a", technique={"kind": "rtn", "grid": "q8_0"})
    assert any(told.startswith("no packed kernel runs 9 of 9 int8 matrices") for told in values["told"])
    assert "no packed kernel runs 9 of 9" in shown(values)

    def failing(*_: Any) -> None:
        warnings.warn("torch's packed int4 kernel failed here (x): dequantizing instead", stacklevel=1)

    real = alternated
    monkeypatch.setattr(quantize, "alternated", lambda *a: (failing(), real(*a))[1])
    monkeypatch.setattr("limbeck.kernels.packed.Prepared.supports_packed", lambda _: True)
    values = quantized(source, tmp_path / "b", technique={"kind": "rtn", "bits": 4})
    assert not any(told.startswith("no packed kernel runs") for told in values["told"])
    assert "torch's packed int4 kernel failed here (x): dequantizing instead" in values["told"]


@pytest.mark.parametrize(
    ("times", "word"),
    [
        ([(1.0, 2.0), (1.0, 4.0), (2.0, 4.0)], "2.00 times slower"),
        ([(2.0, 1.0), (4.0, 1.0), (4.0, 2.0)], "2.00 times faster"),
        ([(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)], "no difference in speed shown"),
    ],
)
def test_speed_is_the_median_of_ratios_in_turns(
    monkeypatch: pytest.MonkeyPatch, times: list[tuple[float, float]], word: str
) -> None:
    queue = [t for pair in times for t in pair]
    seen = []

    def fake(model: object, protocol: SpeedProtocol) -> dict[str, Any]:
        assert protocol.repeats == 1
        seen.append(model)
        t = queue.pop(0)
        told = {"protocol": {"batch_size": 1}, "dtype": "float32", "device": "cpu", "machine": {}}
        return {"prefill_ms": 10 * t, "decode_ms_per_token": t, **told}

    monkeypatch.setattr(quantize_report, "speed", fake)
    a, b = decoder(), decoder()
    found = alternated(a, b, SpeedProtocol(repeats=3))
    assert seen == [a, b] * 3 and word in found.sentence
    assert found.decode_ratio == found.prefill_ratio == sorted(y / x for x, y in times)[1]
    assert found.slower is ("slower" in word)
    told = quantize._told(decoder(), found)
    prompts = "the quantized model reads prompts 2.00 times slower here than the original"
    assert told == ([prompts, found.sentence] if found.slower else [])
