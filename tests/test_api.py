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
from limbeck.errors import ConfigError, DataError, LimbeckError, ModelError, TechniqueError
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


_SLOW = {"fit", "pretrain"}  # their examples train many models, or one from nothing


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in limbeck.__all__]
)
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
    assert result.model.export("tuned.gguf", to="gguf").path == Path("tuned.gguf")
    out = result.model.export(here / "hf")
    assert out.report["agreement"]["max_difference"] == 0


def test_pages_of_other_results(here: Path) -> None:
    """A comparison's page is written beside comparison.json, where the same call finds both; markup is escaped."""
    for name in ("a", "b"):
        limbeck.evaluate("runs/tiny", "toy:stories", limit=4, out=f"runs/{name}", **QUICK)
    for _ in range(2):
        compared = limbeck.compare("runs/a", "runs/b", out="runs/compared")
        assert compared.path == Path("runs/compared")
        assert "no difference shown" in compared.open(show=False).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="runs/a"):
        limbeck.compare("runs/a", "runs/b", out="runs/a")  # holds other files
    page = limbeck.report("runs/a", "runs/b", title="two <b>runs</b>", out="runs/page").open(show=False)
    assert page == Path("runs/page/report.html") and "<b>runs</b>" not in page.read_text(encoding="utf-8")
    shown = limbeck.JobResult("<i>x</i>", {"metrics": {"<b>": 1}, "run": "<u>"}, limbeck.load)
    assert "<b>&lt;" not in shown._repr_html_() and "<i>" not in shown.page() and "<u>" not in shown.page()
    assert limbeck.info("runs/a").path is None


def test_options_by_their_flags_names() -> None:
    values = nested("finetune", {"steps": 3, "learning_rate": 0.1, "train": {"accumulation": 2}, "limit": 4})
    assert values == {"train": {"steps": 3, "learning_rate": 0.1, "accumulation": 2}, "limit": 4}
    with pytest.raises(ConfigError, match="unknown key 'stepps'"):
        limbeck.finetune("runs/tiny", "toy:stories", stepps=3)
    with pytest.raises(ModelError, match="runs/tinny"):
        limbeck.load("runs/tinny")


def test_calibration_rows_are_not_measured_on(here: Path) -> None:
    """GPTQ with calibration rows alone: its report has sizes and speed, no figure, and says why."""
    technique = limbeck.GPTQ(bits=8)
    result = limbeck.quantize("runs/tiny", technique, calibration="toy:verse", calibration_tokens=600, out="runs/int8")
    assert result.metrics == {} and not list((here / "runs" / "int8" / "scores").glob("*"))
    assert result.report["told"][0].startswith("no figure was measured, as no rows were given: limbeck evaluate runs")
    assert result.report["bytes"]["quantized"] < result.report["bytes"]["original"]
    measured = limbeck.quantize(
        "runs/tiny", technique, data="toy:stories", limit=4, calibration="toy:verse", calibration_tokens=600
    )
    assert "nats per token" in measured.metrics
    with pytest.raises(TechniqueError, match="calibration text"):
        limbeck.quantize("runs/tiny", technique)


def adapted(here: Path) -> limbeck.LanguageModel:
    """``runs/tiny`` with a LoRA adapter beside its weights that changes what it predicts."""
    rows = [f"Once there was number {i} and it was happy." for i in range(30)]
    tuned = limbeck.finetune(
        "runs/tiny", rows, techniques=[limbeck.LoRA(rank=2, merge="never")], steps=20, learning_rate=0.01,
        out="runs/tuned", **QUICK,
    )  # fmt: skip
    limbeck.job("export", {"model": str(tuned.path), "to": "peft", "out": "adapter"})
    return limbeck.load("runs/tiny", adapter="adapter")


def test_an_adapter_is_applied_once(here: Path) -> None:
    """To a job that takes an adapter, to one that takes a name alone, and after the weights were changed."""
    model = adapted(here)
    alone = limbeck.evaluate("runs/tiny", "toy:stories", limit=4, **QUICK).metrics["nats per token"].value
    once = limbeck.evaluate(model, "toy:stories", limit=4, **QUICK).metrics["nats per token"].value
    assert once != alone and model.given() == {"model": "runs/tiny", "adapter": "adapter"}
    assert limbeck.verify(model, model.save(here / "saved")).report["equal"]  # verify takes names alone
    assert not limbeck.verify("runs/tiny", model).report["equal"]
    before = model.generate("Once", max_new_tokens=8)
    with torch.no_grad():
        model.bundle.model.norm.weight.mul_(1.0)  # written to, and yet the same
    assert set(model.given()) == {"model"}
    changed = limbeck.evaluate(model, "toy:stories", limit=4, **QUICK).metrics["nats per token"].value
    assert changed == once and limbeck.load(model.saved_name()).generate("Once", max_new_tokens=8) == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: limbeck.LoRA(rnk=8), "unknown key 'rnk' in LoRA"),
        (lambda: limbeck.LoRA(rank=0), "'rank' in LoRA"),
        (lambda: limbeck.GPTQ(bits="many"), "'bits' in GPTQ"),
        (lambda: limbeck.info(3), "a model of type int"),
        (lambda: limbeck.study({"arms": {1: set()}}), "the plan holds a value"),
        (lambda: limbeck.study({"arms": {"one": {"verb": "evaluat"}}}), "evaluat"),
        (lambda: limbeck.certify("runs/no", "runs/tiny"), "runs/no"),
        (lambda: limbeck.verify("runs/tiny", "no.gguf"), "no.gguf"),
        (lambda: limbeck.score({"0": "1"}, [{"question": "a", "answer": "b"}], task="qq"), "qq"),
        (lambda: limbeck.synthesize("qa", out="made"), "name a teacher"),
        (lambda: limbeck.report("runs"), "runs"),
    ],
)
def test_wrong_arguments_are_one_sentence(wrong: Any, words: str) -> None:
    with pytest.raises(LimbeckError) as caught:
        wrong()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_room_of_studies_can_be_called_before_and_after_it_is_imported() -> None:
    code = (
        "import limbeck; first = limbeck.study; import limbeck.study.plan as plan, limbeck.study.fit;"
        "print(first is limbeck.study, callable(limbeck.study), plan.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "limbeck.study.plan"]
