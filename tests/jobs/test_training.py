from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, DataError, ModelError, TechniqueError, VocabularyError
from limbeck.formats.load import load_bundle
from limbeck.jobs import distillation
from limbeck.measure.scores import Scores
from tests.reference.tiny_runs import PRETRAIN, pretrained, run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    pretrained(folder)
    return folder


SHORT: dict[str, Any] = {
    "dtype": "fp32",
    "limit": 40,
    "batch_size": 8,
    "train": {"steps": 2, "learning_rate": 1e-3, "log_every": 1},
    "measuring": {"generate": False},
}


def test_a_run_folder_holds_what_the_next_verb_needs(base: Path) -> None:
    for name in ("recipe.yaml", "metrics.jsonl", "provenance.json", "report.json", "model/model.safetensors"):
        assert (base / name).is_file(), name
    report = json.loads((base / "report.json").read_text())
    assert report["evaluated"] == "test"
    assert report["training"]["steps"] == 3
    scores = Scores.read(base / "scores" / "test.jsonl")
    assert len(scores) == report["data"]["test"]["rows"]
    figure = scores["nll"].sum() / scores["tokens"].sum()
    assert report["metrics"]["nats per token"]["value"] == pytest.approx(figure, rel=1e-12)


def test_the_same_command_finds_its_finished_run(base: Path) -> None:
    before = (base / "report.json").read_bytes()
    again = pretrained(base)
    assert again == json.loads(before)
    assert (base / "report.json").read_bytes() == before


def test_another_recipe_does_not_write_into_a_run(base: Path) -> None:
    with pytest.raises(ConfigError, match="another run"):
        pretrained(base, seed=7)


def test_evaluate_gives_the_figure_of_the_report(base: Path, tmp_path: Path) -> None:
    told = json.loads((base / "report.json").read_text())
    found = run("evaluate", model=str(base), data="toy:stories", part="test", limit=40, out=str(tmp_path / "e"),
                measuring={"generate": False, "batch_size": 3})  # fmt: skip
    value, expected = (r["metrics"]["nats per token"]["value"] for r in (found, told))
    assert value == pytest.approx(expected, rel=1e-6)


def test_equal_seeds_give_equal_weights(base: Path, tmp_path: Path) -> None:
    pretrained(tmp_path / "again")
    a, b = (load_bundle(str(f)).model.state_dict() for f in (base, tmp_path / "again"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    pretrained(tmp_path / "other", seed=1)
    c = load_bundle(str(tmp_path / "other")).model.state_dict()
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_lora_is_merged_and_reported(base: Path, tmp_path: Path) -> None:
    values = run("finetune", model=str(base), data="toy:verse", out=str(tmp_path / "lora"), packing=False,
                 task={"kind": "sonnets"}, techniques=[{"kind": "lora", "rank": 2}], **SHORT)  # fmt: skip
    assert 0 < values["cost"]["trainable"] < values["cost"]["parameters"]
    before, after = (load_bundle(str(f)).model for f in (base, tmp_path / "lora"))
    assert before.config == after.config
    changed = {k for k, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[k])}
    assert changed
    assert all(".attention." in k or ".ffn." in k for k in changed)


def test_distil_into_a_copy_with_fewer_layers(base: Path, tmp_path: Path) -> None:
    values = run("distill", teacher=str(base), data="toy:stories", out=str(tmp_path / "d"),
                 techniques=[{"kind": "depth", "layers": 1}], **SHORT)  # fmt: skip
    assert load_bundle(str(tmp_path / "d")).model.config.layers == 1
    assert values["start"]["teacher"] == str(base)
    lines = [json.loads(x) for x in (tmp_path / "d" / "metrics.jsonl").read_text().splitlines()]
    assert any("train/kl" in line for line in lines)


def test_distil_from_the_teacher_on_disk_is_close_to_the_live_one(base: Path, tmp_path: Path) -> None:
    common = {**SHORT, "teacher": str(base), "data": "toy:stories", "techniques": [{"kind": "depth", "layers": 1}]}
    common["train"] = {"steps": 1, "learning_rate": 1e-3, "log_every": 1}
    run("distill", out=str(tmp_path / "live"), **common)
    cached = run("distill", out=str(tmp_path / "disk"), teacher_top_k=299, **common)
    first = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[1]) for n in ("live", "disk")]
    assert first[0]["train/kl"] == pytest.approx(first[1]["train/kl"], rel=2e-2)
    assert "teacher_cache" in cached


def test_the_teacher_computes_in_the_dtype_of_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    live = distillation.LiveTeacher
    monkeypatch.setattr(distillation, "LiveTeacher", lambda model: seen.append(model.dtype) or live(model))
    for dtype in ("fp32", "bf16"):
        options = {**SHORT, "dtype": dtype, "techniques": [{"kind": "depth", "layers": 1}]}
        values = run("distill", out=str(tmp_path / dtype), teacher=str(base), data="toy:stories", **options)
        assert values["metrics"]["nats per token"]["value"] < 10
    assert seen == [torch.float32, torch.bfloat16]


def test_qa_generates_and_scores(base: Path, tmp_path: Path) -> None:
    values = run("finetune", model=str(base), data="toy:qa", out=str(tmp_path / "qa"), task={"kind": "qa"},
                 decoding={"max_new_tokens": 5}, **{**SHORT, "measuring": {}})  # fmt: skip
    assert {"nats per token", "bleu", "f1", "exact", "ended"} <= set(values["metrics"])
    predictions = json.loads((tmp_path / "qa" / "scores" / "test.predictions.json").read_text())
    assert len(predictions) == values["metrics"]["bleu"]["items"]


def test_dry_run_writes_nothing(base: Path, tmp_path: Path) -> None:
    values = run("finetune", model=str(base), data="toy:stories", out=str(tmp_path / "no"), dry_run=True, **SHORT)
    assert values["expected"]["steps"] == 2
    assert values["expected"]["state_bytes"] == 16 * values["expected"]["parameters"]
    assert not (tmp_path / "no").exists()


def test_without_validation_rows_the_last_weights_stay(base: Path, tmp_path: Path) -> None:
    values = run("finetune", model=str(base), data="toy:stories", test="toy:stories", out=str(tmp_path / "x"), **SHORT)
    assert values["training"]["weights_step"] == 2
    with pytest.raises(ConfigError, match="patience needs validation rows"):
        run("finetune", model=str(base), data="toy:stories", test="toy:stories", out=str(tmp_path / "y"),
            **{**SHORT, "train": {"steps": 2, "patience": 2}})  # fmt: skip


def test_bad_input_is_told(base: Path, tmp_path: Path) -> None:
    def fails(error: type[Exception], match: str, verb: str = "finetune", **values: Any) -> None:
        with pytest.raises(error, match=match):
            run(verb, **{"out": str(tmp_path / "bad"), "model": str(base), "data": "toy:stories", **SHORT, **values})

    fails(DataError, "no-such-file", data="no-such-file.csv")
    fails(ModelError, "nowhere", model="./nowhere")
    fails(ConfigError, "fp16", dtype="fp16")
    fails(ConfigError, "no device", device="abacus")
    fails(ConfigError, "did you mean 'batch_size'", batch_sise=3)
    fails(TechniqueError, "did you mean|available|match", techniques=[{"kind": "lora", "targets": ["atention"]}])
    fails(DataError, "zero", fractions=(0.0, 0.5, 0.5))
    other = tmp_path / "other"
    pretrained(other, vocab_size=280)
    fails(VocabularyError, ".", verb="distill", teacher=str(other))
    fails(ConfigError, "both name a student", verb="distill", teacher=str(base), architecture={})
    fails(ConfigError, "nothing to learn", verb="distill", teacher=str(base), alpha=0.0, beta=0.0)


def test_pretrain_takes_a_tokenizer_or_trains_one(base: Path, tmp_path: Path) -> None:
    values = pretrained(tmp_path / "t", tokenizer=str(base), vocab_size=4096)
    assert values["start"]["source"] == f"random weights; tokenizer of {base}"
    with pytest.raises(ConfigError, match="vocab_size is for a tokenizer trained here"):
        pretrained(tmp_path / "u", tokenizer=str(base))
    assert PRETRAIN["vocab_size"] == 300
