"""``limbeck dpo``: from the verb to the report, every reference, resumed, packed, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.config import build
from limbeck.errors import ConfigError, DataError
from limbeck.formats.load import load_bundle
from limbeck.jobs import training as fit
from limbeck.jobs.recipe import Display
from limbeck.objectives import reference_store
from limbeck.run import Run
from limbeck.verbs.table import recipe
from tests.reference.metrics import same_but_time
from tests.reference.small_model import saved
from tests.reference.training import same, weights

LORA = [{"kind": "lora", "rank": 2}]
COMMON: dict[str, Any] = {
    "data": "toy:preferences", "limit": 40, "batch_size": 4, "dtype": "fp32", "probes": "off", "audit": "off",
    "train": {"steps": 4, "learning_rate": 1e-2, "log_every": 1, "checkpoint_every": 2, "evaluate_every": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("m") / "start", context=256))


def values(model: str, **changes: Any) -> dict[str, Any]:
    return {**COMMON, "model": model, **changes}


def run(model: str, **changes: Any) -> dict[str, Any]:
    return dict(build(recipe("dpo"), values(model, **changes)).run(Display.silent()).values)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [same_but_time(line) for line in Run.open(folder).metrics()]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return weights(load_bundle(str(folder)).model)


@pytest.mark.parametrize("changes", [{}, {"techniques": LORA}, {"packing": True}], ids=["whole", "lora", "packed"])
def test_a_run_begins_at_log_2_learns_and_measures(changes: dict[str, Any], model: str, tmp_path: Path) -> None:
    report = run(model, out=str(tmp_path / "run"), **changes)
    logged = lines(tmp_path / "run")
    assert logged[0]["valid/preference"] == pytest.approx(math.log(2), rel=1e-6)
    assert logged[1]["train/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert logged[0]["valid/accuracy"] == 0.5 and logged[0]["valid/margin"] == pytest.approx(0, abs=1e-5)
    assert logged[-1]["valid/preference"] < 0.68 and logged[-1]["valid/margin"] > 0
    assert logged[-1]["valid/reference_chosen"] == pytest.approx(logged[0]["valid/log_prob_chosen"], rel=1e-5)
    assert report["preference"]["reference"] == ("adapter_off" if changes.get("techniques") else "frozen")
    assert {"accuracy", "accuracy by sum", "shorter is chosen", "margin per token"} <= report["metrics"].keys()
    assert report["metrics"]["accuracy"]["items"] == report["data"]["test"]["rows"]
    bundle = load_bundle(str(tmp_path / "run"))
    assert bundle.tokenizer.chat_template is not None and "Assistant:" in bundle.tokenizer.chat_template


def test_it_can_be_compared_item_by_item_with_what_it_was(model: str, tmp_path: Path) -> None:
    run(model, out=str(tmp_path / "after"))
    task = {"kind": "preferences"}
    common = {"data": COMMON["data"], "limit": 40, "task": task, "part": "test", "probes": "off"}
    before = build(recipe("evaluate"), {"model": model, "out": str(tmp_path / "before"), **common})
    before.run(Display.silent())
    both = {"runs": [str(tmp_path / "after"), str(tmp_path / "before")]}
    fields = recipe("compare").model_fields
    names = dict(zip([n for n, f in fields.items() if f.is_required()], both["runs"], strict=True))
    told = build(recipe("compare"), names).run(Display.silent()).values
    assert "accuracy" in json.dumps(told, default=str)


class Killed(BaseException):
    """Nothing holds it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"techniques": [{"kind": "lora", "rank": 2, "dropout": 0.2}]}, {"reference": "precomputed"}],
    ids=["frozen", "adapter_off", "precomputed"],
)
def test_killed_and_resumed_it_ends_bit_equal(
    changes: dict[str, Any], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, out=str(tmp_path / "whole"), **changes)
    plain = fit.train

    def dying(*args: Any, **options: Any) -> Any:
        def on_step(step: int, _: Mapping[str, float]) -> None:
            if step == 3:
                raise Killed

        return plain(*args, **{**options, "on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(fit, "train", dying)
        with pytest.raises(Killed):
            run(model, out=str(tmp_path / "cut"), **changes)
    report = run(model, out=str(tmp_path / "cut"), **changes)
    assert report["training"]["resumed_from"] == 2
    assert same(final(tmp_path / "whole"), final(tmp_path / "cut"))
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_every_reference_teaches_the_same(model: str, tmp_path: Path) -> None:
    ends = {}
    for reference in ("frozen", "adapter_off", "precomputed"):
        run(model, out=str(tmp_path / reference), reference=reference, techniques=LORA)
        ends[reference] = final(tmp_path / reference)
    for reference in ("adapter_off", "precomputed"):
        for name, want in ends["frozen"].items():
            assert torch.allclose(ends[reference][name], want, atol=2e-4), name


def test_precomputed_log_probabilities_are_written_once_shared_and_refused_when_stale(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"reference": "precomputed", "reference_file": str(tmp_path / "reference.json")}
    run(model, out=str(tmp_path / "1"), **shared)
    text = (tmp_path / "reference.json").read_text()
    assert len(json.loads(text)["pairs"]) == 40 - run(model, out=str(tmp_path / "1"), **shared)["data"]["test"]["rows"]
    with monkeypatch.context() as patch:
        patch.setattr(reference_store, "pair_log_probs", None)  # nothing is asked again
        run(model, out=str(tmp_path / "2"), beta=0.5, **shared)
    assert (tmp_path / "reference.json").read_text() == text
    with pytest.raises(DataError, match=r"stale: row preferences-0:\d+ is not among them, or its tokens have changed"):
        run(model, out=str(tmp_path / "3"), task={"kind": "preferences", "template": "bare"}, **shared)
    torch.manual_seed(9)
    other = str(saved(tmp_path / "other", context=256))
    with pytest.raises(DataError, match="stale: they are of another model"):
        run(other, out=str(tmp_path / "4"), **shared)
    (tmp_path / "reference.json").write_text('{"format": "x"}')
    with pytest.raises(Exception, match="holds no reference log-probabilities"):
        run(model, out=str(tmp_path / "5"), **shared)


def test_an_adapter_that_has_learned_is_not_switched_off_for_a_reference(model: str, tmp_path: Path) -> None:
    """Without it the model is the base, not what this training starts from."""
    adapted = [{**LORA[0], "merge": "never"}]
    run(model, out=str(tmp_path / "first"), techniques=adapted)
    again = run(str(tmp_path / "first"), out=str(tmp_path / "second"))
    assert again["preference"]["reference"] == "frozen"
    assert lines(tmp_path / "second")[0]["valid/preference"] == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(ConfigError, match="reference=adapter_off a new adapter alone must learn"):
        run(str(tmp_path / "first"), out=str(tmp_path / "third"), reference="adapter_off")
    with pytest.raises(ConfigError, match="reference=adapter_off a new adapter alone must learn"):
        run(model, out=str(tmp_path / "fourth"), reference="adapter_off")


def test_ipo_smoothing_and_averages_reach_the_loss(model: str, tmp_path: Path) -> None:
    run(model, out=str(tmp_path / "ipo"), loss="ipo", beta=0.25, average=True)
    assert lines(tmp_path / "ipo")[0]["valid/preference"] == pytest.approx(4.0, rel=1e-5)
    run(model, out=str(tmp_path / "smooth"), label_smoothing=0.3)
    run(model, out=str(tmp_path / "plain"))
    assert lines(tmp_path / "smooth")[-1]["valid/preference"] > lines(tmp_path / "plain")[-1]["valid/preference"]


def test_dropout_is_off_unless_asked_for_and_the_saved_config_keeps_it(tmp_path: Path) -> None:
    dropping = str(saved(tmp_path / "start", context=256, dropout=0.5))
    run(dropping, out=str(tmp_path / "off"))
    run(dropping, out=str(tmp_path / "on"), dropout=True)
    first = [lines(tmp_path / name)[1]["train/loss"] for name in ("off", "on")]
    assert first[0] == pytest.approx(math.log(2), rel=1e-6) and abs(first[1] - math.log(2)) > 1e-4
    assert load_bundle(str(tmp_path / "off")).model.config.dropout == 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": {"kind": "qa"}, "data": "toy:qa"}, "has one answer, and a preference needs two"),
        ({"reference_file": "x.json"}, "reference_file needs reference=precomputed"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing belongs to the sigmoid loss"),
        ({"beta": 0}, "beta"),
        ({"task": {"kind": "preferences", "template": "tunrs"}}, "names no chat template"),
        ({"data": "toy:stories"}, "is no preference pair in a known format"),
    ],
)
def test_what_it_refuses(changes: dict[str, Any], says: str, model: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        run(model, out=str(tmp_path / "run"), **changes)


def test_a_dry_run_shows_both_sides_and_writes_nothing(model: str, tmp_path: Path) -> None:
    from rich.console import Console

    report = build(recipe("dpo"), values(model, out=str(tmp_path / "run"), dry_run=True)).run(Display.silent())
    console = Console(width=200, record=True, file=StringIO())
    report.show(console)
    shown = console.export_text()
    assert shown.count("learned,") == 8 and "[<|endoftext|>:0]" in shown  # four pairs, both sides
    assert report.values["expected"]["tokens"] > 0 and not (tmp_path / "run").exists()


def test_finetune_learns_the_chosen_side_alone(model: str, tmp_path: Path) -> None:
    settings = values(model, task={"kind": "preferences"}, out=str(tmp_path / "run"))
    fitted = build(recipe("finetune"), settings).run(Display.silent()).values
    chosen = {line["step"]: line["valid/nll"] for line in lines(tmp_path / "run") if "valid/nll" in line}
    assert chosen[4] < chosen[0] - 0.1
    assert fitted["training"]["target_tokens"] < fitted["data"]["encoding"]["target_tokens"]  # no rejected side
