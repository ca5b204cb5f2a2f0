"""``import limbeck``: the examples of every public name, and the forms that data and models may take."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import limbeck
from limbeck.errors import ConfigError, DataError, ModelError
from limbeck.given import data_name
from limbeck.handle import nested
from tests.reference.tiny_runs import pretrained, run

QUICK: dict[str, Any] = {"probes": "off", "dtype": "fp32", "measuring": {"generate": False}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``runs/tiny``, in which the examples run; rows given as objects are kept below it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", limbeck.__all__)
def test_the_example_of_every_public_name_runs(name: str) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(limbeck, name), name, globs={})
    examples = [test for test in found if test.examples]
    assert len(examples) == 1, f"{name} has no example"
    told: list[str] = []
    assert doctest.DocTestRunner().run(examples[0], out=told.append).failed == 0, "".join(told)


def test_importing_limbeck_imports_neither_torch_nor_pydantic() -> None:
    code = "import sys, limbeck; dir(limbeck); print(sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="no attribute 'finetoon'"):
        limbeck.finetoon  # noqa: B018


ROWS = [{"question": f"How much is {i}?", "answer": f"{i}"} for i in range(30)]


@pytest.mark.parametrize("form", ["rows", "arrow", "datasets", "pandas", "generator"])
def test_every_form_of_data_is_one_data_set(form: str) -> None:
    if form == "pandas":
        data: Any = pytest.importorskip("pandas").DataFrame(ROWS)
    elif form == "arrow":
        data = pa.Table.from_pylist(ROWS)
    elif form == "datasets":
        from datasets import Dataset

        data = Dataset.from_list(ROWS)
    else:
        data = ROWS if form == "rows" else (row for row in ROWS)
    assert data_name(data) == data_name(ROWS)
    assert [json.loads(line) for line in Path(data_name(ROWS)).read_text().splitlines()] == ROWS


def test_texts_are_rows_and_missing_cells_stay_missing() -> None:
    assert json.loads(Path(data_name(["one"])).read_text()) == {"text": "one"}
    frame = pytest.importorskip("pandas").DataFrame({"a": ["x", None], "b": [1.0, np.nan]})
    rows = [json.loads(line) for line in Path(data_name(frame)).read_text().splitlines()]
    assert rows == [{"a": "x", "b": 1.0}, {"a": None, "b": None}]


@pytest.mark.parametrize(
    ("data", "words"),
    [([], "no rows"), (3, "type int"), ({"a": 1}, "type dict"), ([1], "row 0 is a int"), ([{"a": {1, 2}}], "value")],
)
def test_data_that_cannot_be_read(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        data_name(data)


def test_the_same_figures_as_the_command(here: Path) -> None:
    result = limbeck.evaluate("runs/tiny", "toy:stories", limit=6, **QUICK)
    command = run("evaluate", model="runs/tiny", data="toy:stories", limit=6, **QUICK)
    ours = {n: (m.value, m.low, m.high) for n, m in result.metrics.items()}
    assert ours == {n: (m["value"], m["low"], m["high"]) for n, m in command["metrics"].items()}
    assert result.path is None and "nats per token" in repr(result)
    with pytest.raises(ConfigError, match="made no model"):
        result.model  # noqa: B018
    with pytest.raises(ConfigError, match="wrote no folder"):
        result.open()


def test_generate_stream_and_several_prompts() -> None:
    model = limbeck.load("runs/tiny")
    text = model.generate("Once", max_new_tokens=6)
    assert model.generate(["Once", "The"], max_new_tokens=6)[0] == text
    assert "".join(model.stream("Once", max_new_tokens=6)) == text
    several = model.generate("Once", max_new_tokens=4, samples=3, temperature=1.0, seed=1)
    assert len(several) == 3 and several == model.generate("Once", max_new_tokens=4, samples=3, temperature=1.0, seed=1)
    pieces = model.stream("Once", max_new_tokens=30)
    next(pieces)
    pieces.close()  # the thread behind it ends
    with pytest.raises(ConfigError, match="streamed together"):
        next(model.stream("Once", samples=2, temperature=1.0))
    with pytest.raises(ConfigError, match="max_tokens"):
        model.generate("Once", max_tokens=3)
    with pytest.raises(ConfigError, match="leaves no room"):  # from the thread behind it
        next(model.stream("Once", max_new_tokens=1000))
    with pytest.raises(ConfigError, match="no chat template"):
        model.chat("Hello")


def test_perplexity_of_a_text_and_of_a_file(here: Path) -> None:
    model = limbeck.load("runs/tiny")
    text = "Once upon a time there was a cat. It was happy."
    (here / "t.txt").write_text(text)
    found = model.perplexity(text)
    assert found.value == pytest.approx(model.perplexity(str(here / "t.txt")).value)
    assert (found.low, found.high, found.items) == (1.0, None, 1)  # one document leaves the whole range open
    two = model.perplexity([text, "The dog ran."])
    assert two.low is not None and two.high is not None and two.low <= float(two) <= two.high
    assert two.protocol["mode"] == "documents"


def test_a_changed_model_is_passed_on_as_changed(here: Path) -> None:
    model = limbeck.load("runs/tiny")
    before = limbeck.evaluate(model, "toy:stories", limit=4, **QUICK).metrics["nats per token"].value
    assert model.saved_name() == "runs/tiny"
    with torch.no_grad():
        for p in model.bundle.model.parameters():
            p.mul_(0.5)
    assert model.saved_name() != "runs/tiny"
    after = limbeck.evaluate(model, "toy:stories", limit=4, **QUICK).metrics["nats per token"].value
    assert after != before
    again = limbeck.load(model.save(here / "saved"))
    assert again.generate("Once", max_new_tokens=5) == model.generate("Once", max_new_tokens=5)


def test_finetune_compare_export_and_the_page(here: Path) -> None:
    rows = [{"text": f"Once there was number {i} and it was happy."} for i in range(30)]
    base = limbeck.load("runs/tiny")
    result = limbeck.finetune(
        base, rows, techniques=[limbeck.LoRA(rank=2)], steps=2, out="runs/tuned", task={"kind": "text"}, **QUICK
    )
    assert result.path == Path("runs/tuned") and result.model.parameters == base.parameters
    page = result.open(show=False)
    assert page == Path("runs/tuned/report.html") and "nats per token" in page.read_text(encoding="utf-8")
    again = limbeck.finetune(
        base, rows, techniques=["lora"], steps=2, out="runs/other", **{**QUICK, "lora": None}
    )  # by name
    compared = limbeck.compare(result, again)
    assert set(compared.report["comparisons"]) >= {"nats per token"} and "verdict" in compared._repr_html_()
    out = result.model.export(here / "hf")
    assert out.report["agreement"]["max_difference"] == 0


def test_options_by_their_flags_names() -> None:
    values = nested("finetune", {"steps": 3, "learning_rate": 0.1, "train": {"accumulation": 2}, "limit": 4})
    assert values == {"train": {"steps": 3, "learning_rate": 0.1, "accumulation": 2}, "limit": 4}
    with pytest.raises(ConfigError, match="unknown key 'stepps'"):
        limbeck.finetune("runs/tiny", "toy:stories", stepps=3)
    with pytest.raises(ModelError, match="runs/tinny"):
        limbeck.load("runs/tinny")
    with pytest.raises(ConfigError, match="'data' is required"):
        limbeck.quantize("runs/tiny", "rtn")
