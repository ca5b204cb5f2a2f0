from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from limbeck.errors import ModelError
from limbeck.jobs.description import best_of
from limbeck.jobs.recipe import Display, Report
from limbeck.run import Run
from limbeck.verbs.info import Info
from tests.reference.small_model import MODERN, decoder, saved
from tests.reference.small_tokenizer import byte_level
from tests.reference.toy_recipe import Toy


def text_of(report: Report) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    report.show(console)
    console.file.close()
    return console.export_text()


def test_a_model_is_measured_not_guessed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", torch.float16)
    report = Info(model=str(folder)).run(Display.silent())
    found, model = report.values["model"], decoder()
    assert found["family"] == "gpt2"
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["weights_bytes"] == (folder / "model.safetensors").stat().st_size
    assert found["folder_bytes"] == sum(f.stat().st_size for f in folder.iterdir())
    assert set(found["stored_dtypes"]) == {"F16"}
    assert found["memory_bytes"] == 4 * found["parameters"]
    assert found["kv_bytes_per_token"] == 2 * 2 * 16 * 4
    linear = 2 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 288
    assert found["flops_per_token"] == {"context": 32, "forward": 2 * (linear + 2 * 2 * 16 * 32)}
    assert found["tokenizer"]["vocab_size"] == byte_level().vocab_size
    assert found["tokenizer"]["fingerprint"] == byte_level().fingerprint
    assert found["generation"]["max_new_tokens"] == 7
    shown = text_of(report)
    for part in ("gpt2", f"{found['parameters']:,}", "learned positions", "F16", "max_new_tokens=7", "MB as float32"):
        assert part in shown
    json.loads(report.to_json())


def test_precision_is_that_asked_for(tmp_path: Path) -> None:
    found = Info(model=str(saved(tmp_path / "m", **MODERN)), dtype="bf16").run(Display.silent()).values["model"]
    assert (found["family"], found["dtype"]) == ("llama", "bfloat16")
    assert found["memory_bytes"] == 2 * found["parameters"]
    assert found["kv_bytes_per_token"] == 2 * 2 * 2 * 4 * 2  # grouped: half the heads


def test_a_window_bounds_the_cache(tmp_path: Path) -> None:
    rolling = {"kind": "sliding", "window": 5, "sinks": 2}
    model = saved(tmp_path / "m", context=1000, positions="rope", pattern=(rolling, {"kind": "causal"}))
    report = Info(model=str(model)).run(Display.silent())
    found = report.values["model"]
    assert found["kv_bytes_per_token"] == 2 * 2 * 16 * 4
    assert found["kv_bytes"] == (5 + 2 + 1000) * 2 * 16 * 4
    assert "256 bytes a token, 0.13 MB for the whole context" in text_of(report)


def test_a_mix_that_no_family_says(tmp_path: Path) -> None:
    report = Info(model=str(saved(tmp_path / "m", norm="rms"))).run(Display.silent())
    assert report.values["model"]["family"] is None
    assert "native layout" in text_of(report)


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", Toy(seed=3)) as run:
        run.log(10, **{"valid/nll": 3.5})
        run.log(20, **{"valid/nll": 3.25})
    report = Info(model=str(tmp_path / "run")).run(Display.silent())
    found = report.values["run"]
    assert (found["finished"], found["step"], found["best"], found["report"]) == (False, 20, None, None)
    assert found["recipe"]["seed"] == 3
    assert "model" not in report.values
    shown = text_of(report)
    assert "not finished at step 20" in shown and "nothing was monitored" in shown


def test_a_finished_run_shows_its_figures_and_its_model(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", Toy()) as run:
        saved(run.model)
        run.log(5, loss=1.0)
        (run.scores / "test.jsonl").write_text("")
        metric = {"value": 1.5, "low": 1.25, "high": 1.75, "unit": "nats/token"}
        run.finish({"metrics": {"nll": metric, "odd": 3}})
    report = Info(model=str(tmp_path / "run"), out=str(tmp_path / "o")).run(Display.silent())
    assert report.values["run"]["finished"] and report.values["model"]["parameters"] > 0
    assert report.values["run"]["report"]["metrics"]["nll"] == metric
    shown = text_of(report)
    for part in ("finished at step 5", "1.5 [1.25, 1.75] nats/token", "test.jsonl", "odd"):
        assert part in shown
    assert json.loads((tmp_path / "o" / "info.json").read_text()) == json.loads(report.to_json())


@pytest.mark.parametrize(("mode", "best"), [("min", (1.0, 2)), ("max", (3.0, 1))])
def test_the_best_value_is_the_first_of_the_monitored(mode: str, best: tuple[float, int]) -> None:
    lines = [{"step": 1, "x": 3.0}, {"step": 2, "x": 1.0}, {"step": 3, "x": 1.0}, {"step": 4, "x": None}, {"step": 5}]
    value, step = best
    assert best_of(lines, {"monitor": "x", "mode": mode}) == {"metric": "x", "value": value, "step": step}
    assert best_of(lines, {"monitor": ""}) is None
    assert best_of(lines, {"monitor": "y"}) is None


def test_what_is_neither_a_model_nor_a_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a model nor a run"):
        Info(model=str(tmp_path)).run(Display.silent())


def test_a_pattern_says_what_it_saves_and_is_drawn(tmp_path: Path) -> None:
    sparse = {"kind": "log_sparse", "window": 4}
    model = saved(tmp_path / "m", context=512, pattern=(sparse, {"kind": "causal"}))
    report = Info(model=str(model), length=64).run(Display.silent())
    first, second = report.values["model"]["attention"]
    assert first["layers"] == [0] and first["length"] == 64 and second["keys_per_query"] == 32.5
    assert first["keys_per_query"] == (4 * 64 - 6 + sum(64 - d for d in (4, 8, 16, 32))) / 64
    flops = report.values["model"]["flops_per_token"]["forward"]
    dense = Info(model=str(saved(tmp_path / "d", context=512))).run(Display.silent())
    saved_keys = 512 - (4 + len([4, 8, 16, 32, 64, 128, 256]))
    assert dense.values["model"]["flops_per_token"]["forward"] - flops == 2 * 2 * 16 * saved_keys
    shown = text_of(report)
    assert "log_sparse (window 4) in layer 0" in shown and "log_sparse attention over 64 tokens" in shown
    assert "causal attention over" not in shown  # nothing to draw
