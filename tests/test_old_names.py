"""Files of version 896ecae load, and old flags and options are read with a warning."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import cli
from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.recipe import Display
from limbeck.model.config import DecoderConfig
from limbeck.model.presets import Architecture
from limbeck.old_names import OldNameWarning, kinds_now, quiet
from limbeck.run import Run
from limbeck.study.study import Study
from limbeck.techniques.grid import Grid
from limbeck.techniques.qat import QAT
from limbeck.techniques.rtn import RTN
from limbeck.verbs.finetune import Finetune
from tests.reference.tiny_runs import run

OLD = Path(__file__).parent / "fixtures" / "896ecae"
"""A study of three arms, its runs and their models, written by commit 896ecae; checkpoints and events left out."""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in: the runs name each other from the folder above."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize(("arm", "kind"), [("qaft", QAT), ("rtn", RTN)])
def test_a_saved_model_loads_without_a_word(old: Path, arm: str, kind: type, tmp_path: Path) -> None:
    made = load_bundle(str(old / "study" / arm / "seed-0" / "model"))  # a warning would be an error
    (spec,) = made.deployed_specs
    assert type(spec) is kind and made.model.config.hidden_size == 32 and made.model.config.head_dim == 16
    assert spec.grid == Grid(format="int4", group_size=32)  # type: ignore[attr-defined]
    save_bundle(made.model, made.tokenizer, tmp_path / "new", deployed_specs=made.deployed_specs)
    again = load_bundle(str(tmp_path / "new"))
    ids = torch.arange(20)[None]
    assert again.deployed_specs == made.deployed_specs
    assert '"qaft"' not in (tmp_path / "new" / "limbeck.json").read_text()
    from limbeck.data.batch import Batch

    assert torch.equal(again.model(Batch.of_ids(ids)), made.model(Batch.of_ids(ids)))


def test_a_saved_model_measures_as_it_did(old: Path) -> None:
    """The figure of the old report, from the old folder, by the new code.

    The old one was computed on fp32 activations; products in eight-bit integers move it by up to 0.0003 nats
    (``docs/quantized-layout.md``).
    """
    then = Run.open(old / "study" / "qaft" / "seed-0").report()["metrics"]["nats per token"]
    values = {"data": "toy:stories", "limit": 12, "part": "test", "measuring": {"generate": False}}
    now = run("evaluate", model=str(old / "study/qaft/seed-0"), dtype="fp32", probes="off", **values)
    assert now["metrics"]["nats per token"]["value"] == pytest.approx(then["value"], abs=3e-4)


def test_a_finished_study_is_read_and_not_repeated(old: Path) -> None:
    with pytest.warns(OldNameWarning) as told:
        report = build(Study, {"plan": "study.yaml", "out": "study"}).run(Display.silent())
    assert {str(w.message) for w in told} == {
        "'width' is now called 'hidden_size'", "'qaft' is now called 'qat'", "'group' is now called 'group_size'",
        "'resamples' is read no more: intervals are computed without resampling",
    }  # fmt: skip
    for arm in ("base", "qaft", "rtn"):
        assert (old / f"study/{arm}/seed-0/report.json").read_bytes() == (
            OLD / f"study/{arm}/seed-0/report.json"
        ).read_bytes()
        assert not list((old / f"study/{arm}/seed-0/checkpoints").glob("step*"))  # nothing was trained
    assert set(report.values["arms"]) == {"base", "qaft", "rtn"}


def test_the_same_recipe_by_its_new_names_is_the_same_run(old: Path) -> None:
    values = {
        "model": "study/base/seed-0", "data": "toy:stories", "limit": 12, "batch_size": 4, "dtype": "fp32",
        "probes": "off", "techniques": [{"kind": "qat", "grid": {"format": "int4", "group_size": 32}}],
        "train": {"steps": 2, "log_every": 1}, "measuring": {"generate": False},
        "out": "study/qaft/seed-0",
    }  # fmt: skip
    with Run.create(Path("study/qaft/seed-0"), build(Finetune, values)) as same:
        assert same.finished
    other = {**values, "techniques": [{"kind": "qat", "grid": {"format": "int4", "group_size": 64}}]}
    with pytest.raises(ConfigError, match="holds another run"):
        Run.create(Path("study/qaft/seed-0"), build(Finetune, other))


@pytest.mark.parametrize(
    ("kind", "values", "now"),
    [
        (Grid, {"format": "int4", "group": 64}, Grid(format="int4", group_size=64)),
        (Architecture, {"width": 32}, Architecture(hidden_size=32)),
        (
            DecoderConfig,
            {"vocab_size": 9, "width": 32, "heads": 2, "head_width": 8},
            DecoderConfig(vocab_size=9, hidden_size=32, heads=2, head_dim=8),
        ),
        (QAT, {"kind": "qat", "grid": {"format": "int4", "group": 64}}, QAT(grid=Grid(format="int4", group_size=64))),
    ],
)
def test_an_old_key_is_read_with_a_warning(kind: Any, values: dict[str, Any], now: Any) -> None:
    with pytest.warns(OldNameWarning, match="is now called"):
        assert build(kind, values) == now
    with quiet():
        assert build(kind, values) == now


def test_a_key_by_both_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="'width' is the old name of 'hidden_size': give one of them"):
        build(Architecture, {"width": 32, "hidden_size": 32})


def test_kinds_at_every_depth() -> None:
    with pytest.warns(OldNameWarning):
        assert kinds_now({"a": [{"kind": "qaft", "b": {"kind": "lora"}}]}) == {
            "a": [{"kind": "qat", "b": {"kind": "lora"}}]
        }


def resolved(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main([*args, "--print-config"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("--width", "64"), ("--hidden-size", "64")),
        (("--architecture.width", "64"), ("--architecture.hidden-size", "64")),
        (("--technique", "qaft", "--qaft.bits", "4"), ("--technique", "qat", "--qat.bits", "4")),
        (("--technique", "qaft,lora"), ("--technique", "qat,lora")),
    ],
)
def test_an_old_flag_is_read_with_a_warning(
    old: tuple[str, ...], new: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    first = ("pretrain", "--data", "toy:stories")
    with pytest.warns(OldNameWarning, match="is now called"):
        found = resolved(capsys, *first, *old)
    assert found == resolved(capsys, *first, *new)


def test_an_old_kind_in_a_file_takes_the_new_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("data: toy:stories\ntechniques: [{kind: qaft, bits: 8}]\n", encoding="utf-8")
    with pytest.warns(OldNameWarning):
        found = resolved(capsys, "pretrain", "--config", str(tmp_path / "r.yaml"), "--qat.learned-scales")
    assert "kind: qat\n" in found and "learned_scales: true" in found


def test_a_width_that_is_no_old_name_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert "width: 40" in resolved(capsys, "compare", "a", "b", "--width", "40")
