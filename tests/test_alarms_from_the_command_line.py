"""The quiet failures that the project is for, each walked into through the command line until its alarm rings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import main

LEAK = "this very sentence stands in the training text and in the test text, word for word, as nobody noticed"
SHAPE = [
    "--architecture.preset",
    "toy",
    "--layers",
    "2",
    "--width",
    "32",
    "--heads",
    "2",
    "--architecture.context",
    "64",
]
COMMON = ["--dtype", "fp32", "--json", "--quiet"]

Command = Callable[..., dict[str, Any]]


@pytest.fixture
def limbeck(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a verb that must succeed, and return its JSON."""

    def call(*argv: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*argv, *COMMON]) == 0, capsys.readouterr().err
        out: dict[str, Any] = json.loads(capsys.readouterr().out)
        return out

    return call


@pytest.fixture
def base(limbeck: Command, tmp_path: Path) -> str:
    """A small decoder that has learned a little of the toy stories."""
    out = str(tmp_path / "base")
    limbeck("pretrain", "--data", "toy:stories", "--limit", "200", "--vocab-size", "300", "--context", "96", *SHAPE,
            "--steps", "60", "--learning-rate", "1e-2", "--no-generate", "--probes", "off", "--audit", "off",
            "--out", out)  # fmt: skip
    return out


def rang(report: dict[str, Any]) -> set[str]:
    return {alarm["name"] for alarm in report["alarms"] if alarm["fired"]}


def test_a_model_tuned_hard_on_verse_has_lost_its_generality(limbeck: Command, base: str, tmp_path: Path) -> None:
    gentle, hard = (
        limbeck("finetune", "--model", base, "--data", "toy:verse", "--limit", "40", "--task", "sonnets",
                "--steps", steps, "--learning-rate", rate, "--no-generate", "--audit", "off",
                "--out", str(tmp_path / steps))
        for steps, rate in (("1", "1e-6"), ("40", "2e-2"))
    )  # fmt: skip
    assert "generality" not in rang(gentle)
    assert "generality" in rang(hard)
    # the same is found afterwards, by whoever names what the model was before
    told = limbeck("evaluate", str(tmp_path / "40"), "--data", "toy:verse", "--limit", "10", "--base", base,
                   "--general", "toy:stories", "--no-generate")  # fmt: skip
    assert {"generality", "general-text"} <= rang(told)
    assert "zero-shot" in {alarm["name"] for alarm in told["alarms"]}
    assert not {"generality", "general-text"} & rang(
        limbeck("evaluate", base, "--data", "toy:verse", "--limit", "10", "--base", base, "--no-generate")
    )


def test_a_model_that_gives_one_answer_rings_at_the_accuracy_of_the_majority(
    limbeck: Command, base: str, tmp_path: Path
) -> None:
    rows = [{"sentence": f"the plot number {i} is quite good", "label": 0} for i in range(24)]
    train, test = tmp_path / "train.json", tmp_path / "test.json"
    train.write_text(json.dumps(rows))
    test.write_text(json.dumps([{"sentence": f"a test text {i}", "label": int(i % 3 == 0)} for i in range(30)]))
    task = ["--task", "sentiment", "--sentiment.labels", "0,1"]
    limbeck("finetune", "--model", base, "--data", str(train), *task, "--steps", "12", "--learning-rate", "1e-2",
            "--fractions", "1,0,0", "--probes", "off", "--audit", "off", "--out", str(tmp_path / "run"))  # fmt: skip
    told = limbeck("evaluate", str(tmp_path / "run"), "--data", str(test), *task)
    assert told["metrics"]["accuracy"]["value"] == pytest.approx(told["metrics"]["majority rate"]["value"])
    assert {"collapse", "majority"} <= rang(told)


def test_an_evaluation_on_leaked_rows_is_flagged_or_refused(
    limbeck: Command, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned, test, clean = tmp_path / "learned.json", tmp_path / "test.json", tmp_path / "clean.json"
    learned.write_text(json.dumps(["a story of a dog that nobody else has told", f"learned: {LEAK}"]))
    test.write_text(json.dumps(["a text that is nowhere else to be found, I hope", f"test: {LEAK}"]))
    clean.write_text(json.dumps(["a text that is nowhere else to be found, I hope"]))
    asked = ["evaluate", base, "--no-generate", "--learned", str(learned)]
    told = limbeck(*asked, "--data", str(test))
    assert told["alarms"][0]["name"] == "leakage" and told["alarms"][0]["fired"] and told["alarms"][0]["value"] == 0.5
    assert {f["other"] for f in told["audit"]["findings"]} == {"test:1"}
    assert "leakage" not in rang(limbeck(*asked, "--data", str(clean)))
    assert main([*asked, "--data", str(test), "--overlap", "refuse", *COMMON]) == 2
    assert "1 training rows" in capsys.readouterr().err
    assert limbeck("evaluate", base, "--no-generate", "--data", str(test))["audit"] is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--overlap", "refuse"], "overlap needs learned"),
        (["--general", "toy:stories"], "general needs base"),
        (["--zero-shot", "pairs.csv"], "zero_shot needs base"),
        (["--base", "somewhere", "--probes", "off"], "base is what probes compare with"),
    ],
)
def test_what_would_be_read_by_nothing_is_refused(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "m", "--data", "toy:stories", *flags]) == 2
    assert sentence in capsys.readouterr().err
