"""``limbeck score``: predictions files in the published formats, against the truth, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import CHRF

from limbeck.cli import main
from limbeck.data.toy.table import toy_rows
from limbeck.errors import ConfigError, DataError
from tests.reference.tiny_runs import run

POEMS = [str(r.fields["text"]) for r in toy_rows("verse", size=4).rows]


def course_sonnets(file: Path, poems: list[str], first: int = 132) -> str:
    parts = (f"\n{first + i}\n{poem}\n\n" for i, poem in enumerate(poems))
    file.write_text("--Generated Sonnets-- \n\n" + "".join(parts))
    return str(file)


@pytest.fixture
def sonnets(tmp_path: Path) -> tuple[str, str, list[str]]:
    """Truth and predictions in the course's format: each poem goes on as another one does."""
    others = POEMS[1:] + POEMS[:1]
    made = ["\n".join(a.split("\n")[:3] + b.split("\n")[3:]) for a, b in zip(POEMS, others, strict=True)]
    truth = course_sonnets(tmp_path / "truth.txt", POEMS)
    return truth, course_sonnets(tmp_path / "made.txt", made), made


def test_sonnets_are_scored_as_sacrebleu_does(sonnets: tuple[str, str, list[str]]) -> None:
    truth, file, made = sonnets
    told = run("score", predictions=file, data=truth, task={"kind": "sonnets", "training": truth})
    metrics = told["metrics"]
    assert metrics["chrF"]["value"] == pytest.approx(CHRF().corpus_score(made, [POEMS]).score, abs=1e-9)
    assert metrics["memorised lines"]["value"] == 1 and metrics["perfect sonnets"]["items"] == 4
    assert metrics["chrF"]["low"] <= metrics["chrF"]["value"] <= metrics["chrF"]["high"]
    assert "nats per token" not in metrics and told["protocol"]["given_lines"] == 3


def pairs(file: Path, labels: list[int]) -> str:
    lines = [f"{i}\tid{i}\tis this {i}\tor that {i}\t{c}.0" for i, c in enumerate(labels)]
    file.write_text("\tid\tsentence1\tsentence2\tis_duplicate\n" + "\n".join(lines) + "\n")
    return str(file)


def labelled(file: Path, title: str, labels: list[Any]) -> str:
    file.write_text(f"id \t {title} \n" + "".join(f"id{i}, {c} \n" for i, c in enumerate(labels)))
    return str(file)


def test_paraphrases_of_the_course_are_scored_and_a_constant_answer_rings(tmp_path: Path) -> None:
    truth = [0, 1, 1, 0, 0, 1, 0, 0, 1, 0]
    data = pairs(tmp_path / "dev.csv", truth)
    good = [8505 if c else 3919 for c in truth]
    good[0], good[1] = 8505, -1
    file = labelled(tmp_path / "p.csv", "Predicted_Is_Paraphrase", good)
    told = run("score", predictions=file, data=data, task={"kind": "paraphrase"})
    figures = {name: m["value"] for name, m in told["metrics"].items()}
    assert figures["accuracy"] == 0.8 and figures["majority rate"] == 0.6
    assert figures["F1"] == pytest.approx(2 * 3 / (4 + 4)) and "nats per item" not in figures
    assert told["notes"]["classes"]["predicted"] == {"0": 5, "1": 4, "(none of them)": 1}
    assert not any(a["fired"] for a in told["alarms"])
    constant = labelled(tmp_path / "c.csv", "Predicted_Is_Paraphrase", [3919] * 10)
    rung = run("score", predictions=constant, data=data, task={"kind": "paraphrase"})
    assert {a["name"] for a in rung["alarms"] if a["fired"]} == {"collapse", "majority"}


def test_sentiments_of_the_course_are_scored(tmp_path: Path) -> None:
    data = tmp_path / "sst.csv"
    data.write_text("\tid\tsentence\tsentiment\n0\tid0\tgood\t4\n1\tid1\tbad\t0\n2\tid2\tso so\t2\n")
    file = labelled(tmp_path / "p.csv", "Predicted_Sentiment", [4, 0, 3])
    told = run("score", predictions=file, data=str(data), task={"kind": "sentiment"})
    assert told["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    odd = labelled(tmp_path / "odd.csv", "Predicted_Sentiment", [4, 0, 9])
    with pytest.raises(DataError, match="give 'id2' the class '9', none of 0, 1, 2, 3, 4"):
        run("score", predictions=odd, data=str(data), task={"kind": "sentiment"})


def test_texts_by_item_id_are_scored(tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_text("id,question,answer\na,2+2?,four\nb,3+3?,six\n")
    (tmp_path / "gsm.jsonl").write_text(
        '{"id": "a", "question": "q", "answer": "1+1=2 #### 2"}\n{"id": "b", "question": "r", "answer": "#### 3"}\n'
    )
    (tmp_path / "sst2.csv").write_text("id,sentence,label\na,fine,1\nb,bad,0\n")
    (tmp_path / "qa.json").write_text(json.dumps({"b": "six", "a": "five"}))
    (tmp_path / "gsm.json").write_text(json.dumps({"a": "so #### 2", "b": "it is 3"}))
    (tmp_path / "sst2.json").write_text(json.dumps({"a": "1", "b": "1"}))

    def figures(kind: str, data: str, file: str) -> dict[str, float]:
        task = {"kind": kind}
        told = run("score", predictions=str(tmp_path / file), data=str(tmp_path / data), task=task)
        return {name: m["value"] for name, m in told["metrics"].items()}

    assert figures("qa", "qa.csv", "qa.json")["exact"] == 0.5
    solved = figures("gsm8k", "gsm.jsonl", "gsm.json")
    assert (solved["exact match, strict"], solved["exact match, flexible"]) == (0.5, 1.0)
    assert figures("sst2", "sst2.csv", "sst2.json")["accuracy"] == 0.5


def test_a_file_of_another_split_is_refused_by_the_command(
    sonnets: tuple[str, str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, _, made = sonnets
    other = course_sonnets(tmp_path / "other.txt", made, first=145)
    assert main(["score", other, "--data", truth, "--task", "sonnets"]) == 2
    assert "is of another split: its poems are 145 to 148, 4 in all, not those 4" in capsys.readouterr().err
    data = pairs(tmp_path / "dev.csv", [0, 1])
    file = labelled(tmp_path / "p.csv", "Predicted_Is_Paraphrase", [3919, 8505, 3919])
    assert main(["score", file, "--data", data, "--task", "paraphrase"]) == 2
    assert "of another split: of 2 items, 1 are no items of it ('id2')" in " ".join(capsys.readouterr().err.split())


def test_what_predicts_nothing_cannot_be_scored(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"stories-0:0": "x"}')
    with pytest.raises(ConfigError, match="task 'text' predicts nothing for each row"):
        run("score", predictions=str(tmp_path / "p.json"), data="toy:stories", limit=1, task={"kind": "text"})


def test_two_files_are_compared_item_by_item(sonnets: tuple[str, str, list[str]], tmp_path: Path) -> None:
    truth, file, _ = sonnets
    common = {"data": truth, "task": {"kind": "sonnets"}}
    for name, scored in (("made", file), ("true", truth)):
        told = run("score", predictions=scored, out=str(tmp_path / name), **common)
        assert run("score", predictions=scored, out=str(tmp_path / name), **common)["metrics"] == told["metrics"]
    found = run("compare", run_a=str(tmp_path / "made"), run_b=str(tmp_path / "true"))["comparisons"]
    assert found["chrF"]["b"] == pytest.approx(100) and found["chrF"]["difference"] > 0
