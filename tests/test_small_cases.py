"""Small files that tools fail on, where a folder ``cases`` lies beside the real data; each with its right value."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference.commands import Limbeck, Said, refused
from tests.reference.small_model import saved

pytestmark = pytest.mark.realdata

MEASURE = ("--probes", "off", "--no-generate", "--json")
TRAIN = ("--batch-size", "2", "--steps", "1", "--dtype", "fp32", "--audit", "off", "--fractions", "1,0,0", *MEASURE)


@pytest.fixture(scope="session")
def cases(real_data: Path) -> Path:
    folder = real_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip("no small cases beside the real data")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "start", context=512)


def done(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def items(found: dict[str, Any]) -> int:
    return int(next(iter(found["metrics"].values()))["items"])


@pytest.mark.parametrize(
    ("file", "task", "flags", "wanted"),
    [
        ("quotes.tsv", "sst2", (), 20),
        ("quotes1.tsv", "sst2", (), 20),
        ("semi.csv", "sst2", ("--columns", "sentence=sentence, raw"), 10),
        ("surr.jsonl", "qa", (), 12),
        ("nan.jsonl", "qa", ("--qa.empty", "count"), 10),
        ("nanpairs.jsonl", "paraphrase", (), 11),
        ("roman.txt", "sonnets", (), 6),
        ("dot.txt", "sonnets", (), 6),
        ("year.txt", "sonnets", (), 6),
    ],
)
def test_items(
    file: str, task: str, flags: tuple[str, ...], wanted: int, model: Path, cases: Path, limbeck: Limbeck
) -> None:
    assert items(done(limbeck("evaluate", model, "--task", task, "--data", cases / file, *flags, *MEASURE))) == wanted


def test_rows_that_are_not_a_number_are_named(model: Path, cases: Path, limbeck: Limbeck) -> None:
    said = limbeck("evaluate", model, "--task", "qa", "--data", cases / "nan.jsonl", *MEASURE)
    refused(said, "nan:6, nan:8")
    said = limbeck("evaluate", model, "--task", "qa", "--data", cases / "nan.parquet", *MEASURE)
    refused(said, "lack a value")
    found = limbeck("evaluate", model, "--task", "qa", "--data", cases / "nan.parquet", "--qa.empty", "count", *MEASURE)
    assert 0 < items(done(found)) < 8


def test_a_huge_cell(model: Path, cases: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    subprocess.run([sys.executable, cases / "huge_cell.py", tmp_path / "huge.csv"], check=True)
    asked = ("evaluate", model, "--task", "text", "--text.truncate", "--data", tmp_path / "huge.csv", *MEASURE)
    assert items(done(limbeck(*asked))) == 2


def test_one_figure_for_four_files_of_the_same_lines(model: Path, cases: Path, limbeck: Limbeck) -> None:
    names = ("lines_lf.txt", "lines_crlf.txt", "lines_lf.csv", "lines_crlf.csv")
    found = [done(limbeck("evaluate", model, "--task", "text", "--data", cases / n, *MEASURE)) for n in names]
    assert len({f["metrics"]["nats per token"]["value"] for f in found}) == 1


@pytest.mark.parametrize(
    ("verb", "task", "file", "flags", "rows", "dropped"),
    [
        ("finetune", "instructions", "alp_null.jsonl", ("--instructions.empty", "count"), 11, 1),
        ("dpo", "preferences", "pref_null.jsonl", ("--preferences.empty", "count"), 11, 1),
        ("finetune", "sentiment", "lab_under.csv", ("--sentiment.labels", "1_0,10"), None, None),
        ("finetune", "sentiment", "lab_zero.csv", ("--sentiment.labels", "01,02"), None, None),
        ("finetune", "sentiment", "lab_float.csv", ("--sentiment.labels", "0.0,1.0"), None, None),
        ("finetune", "instructions", "sharegpt.jsonl", (), 20, None),
        ("finetune", "instructions", "alp.json", (), 20, None),
    ],
)
def test_trainings(
    verb: str, task: str, file: str, flags: tuple[str, ...], rows: int | None, dropped: int | None,
    model: Path, cases: Path, tmp_path: Path, limbeck: Limbeck,
) -> None:  # fmt: skip
    source = cases / file
    if file == "alp.json":
        source = Path(shutil.copy(cases / "alp.jsonl", tmp_path / file))
    found = done(
        limbeck(verb, "--model", model, "--task", task, "--data", source, "--out", tmp_path / "run", *flags, *TRAIN)
    )["data"]["train"]
    assert found["rows"] == rows or rows is None
    assert found.get("dropped") == dropped


def test_chat_templates(model: Path, cases: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    def asked(template: str, file: str) -> Said:
        flags = ("--instructions.template", cases / template, "--out", tmp_path / template, *TRAIN)
        return limbeck("finetune", "--model", model, "--task", "instructions", "--data", cases / file, *flags)

    assert done(asked("gen.jinja", "afirst.jsonl"))["data"]["train"]["rows"] == 20
    assert done(asked("gemma.jinja", "afirst.jsonl"))["data"]["train"]["rows"] == 20
    refused(asked("nosys.jinja", "sys.jsonl"), "row sys:")


def test_long_prompts_are_counted(cases: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    start = saved(tmp_path / "m", context=128)
    found = done(limbeck("evaluate", start, "--task", "qa", "--data", cases / "longqa.jsonl", "--json"))
    assert found["protocol"]["prompts_cut"] == 6 and found["protocol"]["decoding"]["max_new_tokens"] == 64
