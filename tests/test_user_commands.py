"""What a new user tripped over on the command line, each from the command to the sentence and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import ConfigError, StorageError
from limbeck.formats.load import load_bundle
from limbeck.jobs.recipe import Display
from limbeck.run import Run
from limbeck.storage import share, writing
from tests.reference.commands import Limbeck, refused
from tests.reference.tiny_runs import ARCHITECTURE, PRETRAIN, pretrained, run

FAST: dict[str, Any] = {
    "data": "toy:stories",
    "limit": 40,
    "batch_size": 4,
    "dtype": "fp32",
    "probes": "off",
    "audit": "off",
    "train": {"steps": 1, "learning_rate": 1e-3},
    "measuring": {"generate": False},
}
MEASURED = ("--probes", "off", "--dtype", "fp32")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user") / "base"
    pretrained(folder, probes="off", audit="off")
    return folder


def test_two_models_measured_alike_on_text_are_compared(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        run("finetune", model=str(base), seed=seed, out=str(tmp_path / name), **FAST)
    said = limbeck("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["protocol_differences"] == []
    assert {"nats per token", "nats per word", "nats per byte"} <= set(found["comparisons"])
    assert found["comparisons"]["nats per token"]["a"] != found["comparisons"]["nats per token"]["b"]


def test_the_protocol_of_text_holds_settings_and_no_finding(base: Path) -> None:
    changes = {"task": {"kind": "text", "end": False, "truncate": True}, "measuring": FAST["measuring"]}
    values = run("evaluate", model=str(base), data="toy:stories", limit=4, probes="off", **changes)
    assert values["protocol"]["truncate"] and not values["protocol"]["end"] and values["protocol"]["context"] == 64
    assert not {"perplexity", "nll", "tokens", "items"} & set(values["protocol"])
    assert values["notes"]["tokens"] > 0 and values["notes"]["bits_per_byte"] > 0


def test_many_differences_of_two_protocols_are_cut(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    for name, text in (("a", {}), ("b", {"end": False, "truncate": True, "begin": False, "stride": 32})):
        run(
            "evaluate", model=str(base), data="toy:stories", limit=9 if text else 8, probes="off",
            task={"kind": "text", **text}, measuring={**FAST["measuring"], "context": 64 if text else 48},
            out=str(tmp_path / name),
        )  # fmt: skip
    refused(limbeck("compare", tmp_path / "a", tmp_path / "b"), "measured in different ways", "; and ", "any-protocol")


def test_flags_of_the_default_task_need_no_task_flag(base: Path, limbeck: Limbeck) -> None:
    typed = ("evaluate", base, "--data", "toy:stories", "--text.truncate", "--no-text.end", "--print-config")
    said = limbeck(*typed, "--json")
    assert said.code == 0, said.err
    task = json.loads(said.out)["task"]
    assert (task["kind"], task["truncate"], task["end"]) == ("text", True, False)
    refused(limbeck("evaluate", base, "--data", "toy:qa", "--task", "qa", "--text.truncate"), "--task text")


def test_what_is_generated_for_a_file_of_prompts_goes_to_stdout(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("Once upon a time\n<|endoftext|>\nÜnïcödé 🦊\n", encoding="utf-8")
    said = limbeck("generate", base, "--prompts", prompts, "--max-new-tokens", 3, "--quiet")
    assert said.code == 0 and said.err == ""
    assert "[p:0, 3 tokens, length]\nOnce upon a time" in said.out and "Ünïcödé 🦊" in said.out
    said = limbeck("generate", base, "--prompts", prompts, "--max-new-tokens", 3, "--json")
    assert [g["id"] for g in json.loads(said.out)["generations"]] == ["p:0", "p:1"]


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_shown(base: Path, limbeck: Limbeck) -> None:
    said = limbeck("generate", base, "word " * 100, "--max-new-tokens", 3)
    refused(said, "context of 64")
    assert said.out == ""


def test_predictions_are_written_in_the_tasks_format(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    given = ("evaluate", base, "--data", "toy:qa", "--task", "qa", "--limit", 3, "--max-new-tokens", 4, *MEASURED)
    file, out = tmp_path / "new" / "answers.json", tmp_path / "run"
    said = limbeck(*given, "--predictions", file, "--out", out, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["predictions"] == str(file)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert list(written) == ["qa-0:0", "qa-0:1", "qa-0:2"]
    assert written == json.loads((out / "scores" / "all.predictions.json").read_text(encoding="utf-8"))
    file.unlink()
    assert limbeck(*given, "--predictions", file, "--out", out).code == 0  # a finished run writes what was lost
    assert json.loads(file.read_text(encoding="utf-8")) == written

    course = tmp_path / "pairs.csv"
    pairs = ("evaluate", base, "--data", "toy:paraphrase", "--task", "paraphrase", "--limit", 3, *MEASURED)
    assert limbeck(*pairs, "--predictions", course).code == 0
    header, *lines = course.read_text(encoding="utf-8").splitlines()
    assert header == "id \t Predicted_Is_Paraphrase " and len(lines) == 3


def test_predictions_that_cannot_be_are_refused_before_the_work(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    file = tmp_path / "x.json"
    text = ("evaluate", base, "--data", "toy:stories", "--predictions")
    refused(limbeck(*text, file), "task 'text' predicts nothing", "leave out --predictions")
    answers = ("evaluate", base, "--data", "toy:qa", "--task", "qa", "--predictions")
    refused(limbeck(*answers, file, "--no-generate"), "or --no-generate")
    refused(limbeck(*answers, tmp_path), "is a folder")
    assert not file.exists()


def test_a_part_of_no_share_is_one_sentence(base: Path, limbeck: Limbeck) -> None:
    said = limbeck("evaluate", base, "--data", "toy:stories", "--part", "test", "--fractions", "0.5,0.5,0")
    refused(said, "the test share of 'fractions' is zero")


def test_a_run_without_a_model_yet_is_named_so(tmp_path: Path, limbeck: Limbeck) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("out: null\n", encoding="utf-8")
    refused(limbeck("generate", tmp_path / "begun", "x"), "has no model yet", "run its command again")


def test_qa_counts_rows_without_an_answer_where_told(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    rows = tmp_path / "q.csv"
    rows.write_text("question,answer\nwhat?,that\nwho?,\nwhere?,here\n", encoding="utf-8")
    given = ("evaluate", base, "--data", rows, "--task", "qa", "--no-generate", *MEASURED, "--json")
    refused(limbeck(*given), "1 of 3 rows", "q:3", "remove them")
    said = limbeck(*given, "--qa.empty", "count")
    assert said.code == 0, said.err
    notes = json.loads(said.out)["notes"]
    assert notes["dropped_rows"] == 1


def test_a_fresh_student_reads_as_far_as_its_teacher(tmp_path: Path) -> None:
    learned = {"preset": "toy-gpt2", "layers": 1, "hidden_size": 16, "heads": 2, "context": 32}
    run("pretrain", **{**PRETRAIN, **FAST, "context": 32, "architecture": learned, "out": str(tmp_path / "teacher")})
    small = {"layers": 1, "hidden_size": 16, "heads": 2}
    for name, shape, reach in (("same", small, 32), ("longer", {**small, "context": 48}, 48)):
        out = tmp_path / name
        values = run("distill", teacher=str(tmp_path / "teacher"), architecture=shape, out=str(out), **FAST)
        assert load_bundle(str(out)).model.config.context == reach
        # documents are longer than 32 tokens: none reaches beyond the teacher's learned positions
        assert values["training"]["steps"] == 1


def test_a_setting_refused_leaves_no_run_behind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    values = {**PRETRAIN, **FAST, "architecture": ARCHITECTURE, "out": str(out)}
    with pytest.raises(ConfigError, match="fp16"):
        run("pretrain", **{**values, "dtype": "fp16"})
    assert not out.exists()


def test_a_run_that_made_nothing_gives_way_to_a_corrected_recipe(tmp_path: Path) -> None:
    from limbeck.verbs.evaluate import Evaluate

    first, second = (Evaluate(model="m", data="d", limit=n) for n in (1, 2))
    with Run.create(tmp_path / "r", first) as begun:
        begun.provenance(seed=0, data={"all": "one"})
    with Run.create(tmp_path / "r", second) as again:
        assert not again.resumed and again.recipe()["limit"] == 2
        again.provenance(seed=1, data={"all": "two"})
        again.log(1, loss=2.0)
    with pytest.raises(ConfigError, match="another run"):
        Run.create(tmp_path / "r", first)


def test_a_run_that_was_moved_is_the_same_run(tmp_path: Path) -> None:
    from limbeck.verbs.evaluate import Evaluate

    with Run.create(tmp_path / "r", Evaluate(model="m", data="d", out="r")) as begun:
        begun.finish({"verb": "evaluate"})
    (tmp_path / "r").rename(tmp_path / "moved")
    with Run.create(tmp_path / "moved", Evaluate(model="m", data="d", out="moved")) as found:
        assert found.resumed and found.finished


def test_weights_have_the_permissions_of_any_file(base: Path) -> None:
    ordinary = (base / "recipe.yaml").stat().st_mode
    found = sorted(base.rglob("*.safetensors"))
    assert len(found) >= 3 and {f.stat().st_mode for f in found} == {ordinary}


def test_share_follows_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch(0o600)
    before = os.umask(0o027)
    try:
        share(file)
        assert file.stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)


def test_a_refused_write_names_what_was_asked_for_and_what_helps(tmp_path: Path) -> None:
    import errno

    hidden = tmp_path / ".model.0123abcd.tmp" / "part-1"
    with pytest.raises(StorageError) as full, writing(hidden):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"cannot write {tmp_path}/model: the disk is full" in str(full.value) and "make room" in str(full.value)
    with pytest.raises(StorageError) as denied, writing(tmp_path / "x"):
        raise OSError(errno.EACCES, "Permission denied")
    assert "permission is denied" in str(denied.value) and "make room" not in str(denied.value)


def test_tables_in_a_file_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Display().console.width == 140
    monkeypatch.setenv("COLUMNS", "70")
    assert Display().console.width == 70


def test_only_a_training_says_how_much_was_trained(base: Path, limbeck: Limbeck) -> None:
    said = limbeck("evaluate", base, "--data", "toy:stories", "--limit", 3, "--no-generate", *MEASURED)
    assert said.code == 0 and "parameters" in said.err and "trained" not in said.err


def test_raw_is_text_and_a_device_is_no_file(base: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    file = tmp_path / "wiki.raw"
    file.write_text(" = Title = \n\n Some words stand here . \n", encoding="utf-8")
    stream = ("--text.mode", "stream", "--no-text.begin", "--no-text.end", "--no-generate", *MEASURED, "--json")
    said = limbeck("evaluate", base, "--data", file, *stream)
    assert said.code == 0, said.err
    assert json.loads(said.out)["notes"]["bytes"] == file.stat().st_size
    refused(limbeck("evaluate", base, "--data", "/dev/null"), "/dev/null is no regular file")


def test_a_wrong_value_in_a_study_names_its_arm(tmp_path: Path, limbeck: Limbeck) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("arms:\n  first: {verb: pretrain}\n  second: {verb: pretran}\n", encoding="utf-8")
    refused(limbeck("study", plan, "--out", tmp_path / "out"), "'arms.second.verb'", "got 'pretran'")


def test_a_near_miss_of_a_folder_is_offered_it(base: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent.parent)
    near = f"{base.parent.name}/bass"  # could be a Hub id
    refused(limbeck("generate", near, "x"), f"'{near}' is n", f"did you mean '{base.parent.name}/base'?")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("argv", [("demo", "--print-config", "--json"), ("demo", "--no-such", "--json"), ("--help",)])
def test_a_full_disk_behind_stdout_is_one_sentence(argv: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "limbeck", *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("limbeck: error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("model", "more", "nats", "tokens"),
    [("stories260K", (), 1.30498, 36664), ("models/base-14m-gpt2", ("--text.begin",), 3.24382, 20613)],
)
def test_the_documented_commands_give_the_reference_losses(
    model: str, more: tuple[str, ...], nats: float, tokens: int, real_data: Path, limbeck: Limbeck
) -> None:
    said = limbeck(
        "evaluate", real_data / model, "--data", real_data / "tinystories" / "valid.txt", "--limit", 100,
        "--text.truncate", "--no-text.end", *more, "--no-generate", *MEASURED, "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["metrics"]["nats per token"]["value"] == pytest.approx(nats, abs=1e-5)
    assert found["notes"]["tokens"] == tokens
