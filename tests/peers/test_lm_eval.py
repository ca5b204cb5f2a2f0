"""Our model in lm-eval's own command line and evaluator, and lm-eval's tasks in our ``evaluate``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from limbeck.cli import main
from limbeck.data.toy.table import toy_rows
from limbeck.errors import ConfigError, DataError
from limbeck.formats.load import save_bundle
from limbeck.measure.scores import Scores
from tests.reference.task_models import small, tokenizer
from tests.reference.tiny_runs import run

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("default"),  # lm-eval's warnings are not ours
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows of both tasks, and a task file of somebody's own."""
    folder = tmp_path_factory.mktemp("harness")
    save_bundle(small(context=512), tokenizer(), folder / "model")
    judged = [f"{r.fields['sentence']}\t{r.fields['label']}" for r in toy_rows("sentiment", size=30)]
    for name, rows in (("test", judged[:10]), ("train", judged[10:])):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    sums = [{"question": f"{i} and 2?", "answer": f"it is\n#### {i + 2}"} for i in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(s) + "\n" for s in sums))
    (folder / "mine").mkdir()
    (folder / "mine" / "longer.yaml").write_text(
        "task: longer\ndataset_path: nowhere/at-all\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: 'It is said: {{sentence}}\\nSo it is'\ndoc_to_choice: [bad, rather good]\ndoc_to_target: label\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, "
        "{metric: acc_norm, aggregation: mean, higher_is_better: true}, "
        "{metric: f1, aggregation: f1, higher_is_better: true}]\n"
    )
    return folder


def evaluate(place: Path, *tasks: str, data: dict[str, str] | None = None, **over: Any) -> dict[str, Any]:
    files = {name: str(place / file) for name, file in (data or {}).items()}
    values = {"model": str(place / "model"), "tasks": tasks, "rows": files}
    return run("harness", **{**values, **over})


RUN = ["--model", "limbeck", "--batch_size", "4", "--num_fewshot", "2", "--seed", "0", "--limit", "9"]


def arguments(place: Path, task: str) -> list[str]:
    rows = {"limbeck_sst2": str(place / "test.tsv"), "limbeck_sst2_examples": str(place / "train.tsv")}
    return [
        *RUN,
        "--model_args",
        f"pretrained={place / 'model'},dtype=fp32",
        "--tasks",
        task,
        "--metadata",
        json.dumps(rows),
    ]


@pytest.fixture
def expected(place: Path) -> float:
    data = {"limbeck_sst2": "test.tsv", "limbeck_sst2_examples": "train.tsv"}
    values = evaluate(place, "limbeck_sst2", data=data, shots=2, limit=9)
    value = float(values["metrics"]["acc"]["value"])
    assert 0 < value < 1
    return value


def test_lm_evals_own_command_runs_our_model(place: Path, expected: float) -> None:
    """Released versions know no models of other packages; a task file of ours, read first, brings it along."""
    from limbeck.integrations.harness import LOCAL

    command = [sys.executable, "-m", "lm_eval", *arguments(place, str(LOCAL / "limbeck_sst2.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if "limbeck_sst2" in line and "acc" in line)
    assert float(line.split("|")[7]) == pytest.approx(expected, abs=1e-4)


def test_its_command_line_with_our_model_in_it(
    place: Path, expected: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from limbeck.integrations.harness import LOCAL
    from limbeck.integrations.lm_eval_cli import main as lm_eval

    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments(place, "limbeck_sst2"), "--include_path", str(LOCAL)])
    assert lm_eval() == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "limbeck_sst2" in line and "acc" in line)
    assert float(line.split("|")[7]) == pytest.approx(expected, abs=1e-4)
    wrong = arguments(place / "absent", "limbeck_sst2")
    monkeypatch.setattr(sys, "argv", ["lm_eval", *wrong, "--include_path", str(LOCAL)])
    assert lm_eval() == 2 and capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_the_model_is_declared_to_versions_that_look_for_it() -> None:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import get_model

    from limbeck.integrations.lm_eval import LimbeckLM

    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'limbeck = "{LimbeckLM.__module__}:{LimbeckLM.__name__}"' in project.partition('"lm_eval.models"')[2]
    assert get_model("limbeck") is LimbeckLM and issubclass(LimbeckLM, LM)


def test_answers_are_cached_by_lm_eval(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from limbeck.integrations import requests
    from limbeck.integrations.harness import LOCAL

    metadata = {"limbeck_sst2": str(place / "test.tsv"), "limbeck_gsm8k": str(place / "sums.jsonl")}
    manager = TaskManager(include_path=str(LOCAL), include_defaults=False, metadata=metadata)

    def scores() -> Any:
        return lm_eval.simple_evaluate(
            "limbeck", {"pretrained": str(place / "model")}, ["limbeck_sst2", "limbeck_gsm8k"], limit=3,
            task_manager=manager, use_cache=str(tmp_path / "cache"), bootstrap_iters=0, batch_size="auto",
        )["results"]  # fmt: skip

    first = scores()
    for name in ("score_continuations", "generate"):
        monkeypatch.setattr(requests, name, lambda *_, **__: pytest.fail("asked again"))
    assert scores() == first


def test_what_gave_way_is_logged(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    from lm_eval.api.instance import Instance

    from limbeck.integrations.lm_eval import LimbeckLM

    lm = LimbeckLM(str(place / "model"), max_length=16, batch_size="2")
    lm.loglikelihood([Instance("loglikelihood", {}, ("the plot was good " * 9, " yes"), 0)])
    assert "1 of 1 contexts were longer than 16 tokens allow and lost their beginning" in caplog.text


def test_lm_evals_own_tasks_take_local_rows(place: Path) -> None:
    """The prompts of the published tasks, without the Hub."""
    data = {"sst2": "test.tsv", "gsm8k": "sums.jsonl", "gsm8k_examples": "sums.jsonl"}
    values = evaluate(place, "sst2", "gsm8k", data=data, shots=0)
    assert values["parts"]["sst2"]["metrics"]["acc"]["items"] == 10
    assert "Is this sentence positive or negative?" in values["samples"][0][0]
    assert {"gsm8k: exact_match, strict-match", "sst2: majority rate"} <= set(values["metrics"])
    assert values["protocol"]["gsm8k"]["harness"].startswith("lm-eval ")
    assert (values["protocol"]["gsm8k"]["version"], values["protocol"]["gsm8k"]["shots"]) == (3.0, 0)


def test_a_task_file_of_ones_own_and_its_figures(place: Path, tmp_path: Path) -> None:
    over = {"task_path": str(place / "mine"), "data": {"longer": "test.tsv"}}
    values = evaluate(place, "longer", out=str(tmp_path / "run"), **over)
    assert list(values["metrics"])[:2] == ["acc", "acc_norm"] and list(
        values["parts"]["longer"]["without_interval"]
    ) == ["f1"]
    scores = Scores.read(Path(values["scores"]))
    assert {"log_prob:bad", "log_prob:rather good"} <= set(scores.columns) and scores.ids[0] == "test:2"
    by_file = evaluate(place, str(place / "mine" / "longer.yaml"), data={"longer": "test.tsv"})
    assert by_file["metrics"] == values["metrics"]
    again = evaluate(place, "longer", out=str(tmp_path / "more"), **{**over, "batch_size": 1})
    assert again["metrics"]["acc"]["value"] == values["metrics"]["acc"]["value"]
    compared = run("compare", run_a=str(tmp_path / "run"), run_b=str(tmp_path / "more"), resamples=100)
    assert compared["comparisons"]["acc"]["difference"] == 0


@pytest.mark.parametrize(
    ("tasks", "over", "message"),
    [
        (["limbeck_sst2"], {}, "limbeck_sst2 takes its rows from a file: name it by limbeck_sst2=FILE"),
        (["limbeck_sst"], {"data": {}}, "there is no task 'limbeck_sst', .* did you mean 'limbeck_sst2'"),
        (["limbeck_sst2"], {"data": {"sst2": "test.tsv"}}, "--rows names 'sst2', and no such task is asked"),
        (["limbeck_sst2"], {"data": {"limbeck_sst2": "test.tsv"}, "shots": 2}, "no rows to draw them from"),
        (["limbeck_sst2"], {"task_path": "nowhere"}, "--task-path nowhere is no folder"),
        (["torn.yaml"], {}, "there is no task 'torn.yaml'"),
        (["limbeck_sst2"], {"chat": True}, "has no chat template: leave out --chat"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    place: Path, tasks: list[str], over: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate(place, *tasks, **over)


def test_data_that_cannot_be_had_is_one_sentence(place: Path) -> None:
    with pytest.raises(DataError, match="lm-eval cannot load longer: .*rows of your own are named by --rows"):
        evaluate(place, "longer", task_path=str(place / "mine"))
    with pytest.raises(ConfigError, match="'longer' shows 2 examples: name their rows, --rows longer_examples"):
        evaluate(place, "longer", task_path=str(place / "mine"), data={"longer": "test.tsv"}, shots=2)


def test_a_label_outside_the_choices_is_an_error(place: Path) -> None:
    (place / "odd.tsv").write_text("sentence\tlabel\ngood\t1\nodd\t7\n")
    with pytest.raises(DataError, match="row odd:3 of .* has the label '7', which is none of 0, 1"):
        evaluate(place, "limbeck_sst2", data={"limbeck_sst2": "odd.tsv"})
    with pytest.raises(DataError, match="item odd:3 of longer has the label 7, which is none of bad, rather good"):
        evaluate(place, "longer", task_path=str(place / "mine"), data={"longer": "odd.tsv"})


def test_a_chat_template_is_put_around_prompts(place: Path, tmp_path: Path) -> None:
    save_bundle(small(context=512), tokenizer(), tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<answer>{% endif %}"
    )
    data = {"limbeck_sst2": "test.tsv", "limbeck_sst2_examples": "train.tsv"}
    values = evaluate(place, "limbeck_sst2", data=data, model=str(tmp_path / "chat"), chat=True, shots=1)
    prompt = values["samples"][0][0]
    assert prompt.count("<user>Review: ") == 2 and prompt.count("<assistant>") == 1 and prompt.endswith("<answer>")
    assert values["protocol"]["chat_template"] is True


def test_the_command_prints_one_object_and_no_more(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--rows", f"limbeck_sst2={place / 'test.tsv'}", "--limit", "4", "--json", "--quiet"]
    assert main(["harness", str(place / "model"), "limbeck_sst2", *given]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["metrics"]["acc"]["items"] == 4 and said.err == ""
