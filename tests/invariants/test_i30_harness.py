"""I30: few-shot scores, GSM8K extraction and perplexity agree with lm-evaluation-harness on the same items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data.readers import read
from limbeck.data.rows import Row, Rows
from limbeck.data.toy.table import toy_rows
from limbeck.formats.load import Bundle, save_bundle
from limbeck.jobs.harness import Asked, Found, run_harness
from limbeck.measure.choice import score_choices
from limbeck.measure.perplexity import PerplexityProtocol, perplexity
from limbeck.measure.reasoning import flexible_answer, gold_answer, same_number, strict_answer
from limbeck.tasks.gsm8k import GSM8K
from limbeck.tasks.sst2 import SST2
from limbeck.tasks.task import Measuring, Result
from tests.reference.small_model import MODERN
from tests.reference.task_models import small, tokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # lm-eval's warnings are not ours

FAMILIES = pytest.mark.parametrize("over", [{}, MODERN], ids=["gpt2", "llama"])


def bundle(**over: Any) -> Bundle:
    return Bundle(small(**{"context": 512, **over}), tokenizer(), {}, "small")


def asked(*tasks: str, **over: Any) -> Asked:
    values = {"path": None, "data": {}, "shots": None, "chat": False, "limit": None, "seed": 0, "quiet": True}
    return Asked(**{"tasks": tasks, "measuring": Measuring(batch_size=3), **values, **over})


def one(model: Bundle, *tasks: str, **over: Any) -> Found:
    pytest.importorskip("lm_eval")
    (found,) = run_harness(model, asked(*tasks, **over))
    return found


def written(file: Path, rows: Rows) -> str:
    file.write_text("".join(json.dumps({"id": r.id, **r.fields}) + "\n" for r in rows))
    return str(file)


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, str]:
    """Sentences to measure on, and others to show of which some are measured."""
    rows = toy_rows("sentiment", size=40)
    return {
        "limbeck_sst2": written(tmp_path / "test.jsonl", rows[:12]),
        "limbeck_sst2_examples": written(tmp_path / "train.jsonl", rows[8:]),
    }


@FAMILIES
@pytest.mark.parametrize(("shots", "seed"), [(0, 0), (3, 0), (4, 7)])
def test_few_shot_scores_are_those_of_our_own_task(
    over: dict[str, Any], shots: int, seed: int, judged: dict[str, str]
) -> None:
    model = bundle(**over)
    found = one(model, "limbeck_sst2", data=judged, shots=shots, seed=seed)
    task = SST2(shots=shots, shot_seed=seed, examples=judged["limbeck_sst2_examples"])
    rows = task.read(judged["limbeck_sst2"], columns={}, limit=None, separator="")
    ours = task.evaluate(model.model, model.tokenizer, rows, Measuring(batch_size=5), task.decoding())
    assert found.result.samples[0][0] == ours.samples[0][0], "the same prompt"
    _agree(found, ours)
    prompt = [model.tokenizer.encode(found.result.samples[0][0])]
    answers = [model.tokenizer.encode(" negative"), model.tokenizer.encode(" positive")]
    alone = score_choices(model.model, prompt, answers).log_probs[0]
    scores = found.result.scores
    assert [scores["log_prob:negative"][0], scores["log_prob:positive"][0]] == pytest.approx(alone, abs=1e-5)


def _agree(found: Found, ours: Result) -> None:
    """Likelihoods to 1e-5 and the same predictions, item by item."""
    scores = found.result.scores
    assert scores.ids == ours.scores.ids
    assert scores["label_nll"] == pytest.approx(ours.scores["nll"], abs=1e-5)
    assert scores["confidence"] == pytest.approx(ours.scores["confidence"], abs=1e-5)
    assert scores["acc"].tolist() == scores["correct"].tolist() == ours.scores["correct"].tolist()
    words = {"negative": "0", "positive": "1"}
    assert {i: words[w] for i, w in found.result.predictions.items()} == dict(ours.predictions)


def test_scores_are_those_of_transformers_under_the_same_harness(judged: dict[str, str], tmp_path: Path) -> None:
    """lm-eval's own wrapper of transformers, on the folder that we wrote."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from limbeck.integrations.harness import LOCAL

    model = bundle()
    save_bundle(model.model, model.tokenizer, tmp_path / "model")
    found = one(model, "limbeck_sst2", data=judged, shots=2)
    manager = TaskManager(include_path=str(LOCAL), include_defaults=False, metadata=judged)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=4),
        tasks=["limbeck_sst2"],
        num_fewshot=2,
        task_manager=manager,
        fewshot_random_seed=0,
        bootstrap_iters=0,
    )
    rows = theirs["samples"]["limbeck_sst2"]
    scores = found.result.scores
    for c, word in enumerate(("negative", "positive")):
        assert [r["filtered_resps"][c][0] for r in rows] == pytest.approx(scores[f"log_prob:{word}"], abs=1e-5)
    assert theirs["results"]["limbeck_sst2"]["acc,none"] == pytest.approx(scores["acc"].mean())


@FAMILIES
def test_generations_and_their_extraction_are_those_of_our_own_task(over: dict[str, Any], tmp_path: Path) -> None:
    rows = Rows.of(
        [Row(f"r{i}", {"question": f"How many are {i} and 2?", "answer": f"{i}+2\n#### {i + 2}"}) for i in range(8)],
        "made",
    )
    data = {
        "limbeck_gsm8k": written(tmp_path / "test.jsonl", rows[:4]),
        "limbeck_gsm8k_examples": written(tmp_path / "train.jsonl", rows),
    }
    model = bundle(**over)
    found = one(model, "limbeck_gsm8k", data=data, shots=2, seed=3)
    task = GSM8K(shots=2, shot_seed=3, examples=data["limbeck_gsm8k_examples"])
    ours = task.evaluate(
        model.model, model.tokenizer, read(data["limbeck_gsm8k"]), Measuring(batch_size=3), task.decoding()
    )
    assert found.result.samples[0][0].count("Question: ") == 3
    assert dict(found.result.predictions) == dict(ours.predictions) and len(set(ours.predictions.values())) > 1
    assert found.result.scores["exact_match, strict-match"].tolist() == ours.scores["strict"].tolist()
    assert found.result.scores["exact_match, flexible-extract"].tolist() == ours.scores["flexible"].tolist()


SAME = [  # generated, right answer
    ("so 3 and 4 make 7.\n#### 7", "7"),
    ("#### 1,234", "1234"),
    ("#### -5", "-5"),
    ("#### 18.", "18"),
    ("#### 5 and then #### 6", "6"),
    ("#### 5 and then #### 6", "5"),
    ("the answer is 18", "18"),
    ("the answer is 180", "18"),
    ("18 at first, then 20", "18"),
    ("it costs $1,234.", "1234"),
    ("the sum is -7.", "-7"),
    ("no number at all", "3"),
    ("#### eighteen", "18"),
    ("### 18", "18"),
    ("0.5 litres", "0.5"),
    ("", "0"),
]

DIFFERENT = [  # generated, right answer, which way, ours, lm-eval's
    ("#### 18.00", "18", "strict", True, False),  # we compare numbers, lm-eval text
    ("####18", "18", "strict", True, False),  # lm-eval wants the space
    ("#### $18", "18", "strict", True, False),  # and no unit before the number
    ("#### 1,5", "15", "strict", False, True),  # a decimal comma is no thousand
    ("#### 5/2", "5", "strict", False, True),  # nor is a fraction its numerator
    ("#### \u22127", "7", "flexible", False, True),  # a typesetter's minus is a minus
    ("we have 5-3", "3", "flexible", True, False),  # lm-eval reads minus three
    ("that makes 7 ...", "7", "flexible", True, False),  # dots alone are a number to lm-eval
    ("that is 7.50", "7.5", "flexible", True, False),
]


def _theirs(text: str, right: str) -> dict[str, bool]:
    """Does lm-eval's task credit ``text``? Its filters and its metric, as the task file has them."""
    pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    from limbeck.integrations.harness import LOCAL

    lines = (LOCAL / "limbeck_gsm8k.yaml").read_text().replace("!function ", "")
    config = yaml.safe_load(lines)
    (metric,) = config["metric_list"]
    options = {k: v for k, v in metric.items() if k not in ("metric", "aggregation", "higher_is_better")}
    found = {}
    for name, chain in (("strict", config["filter_list"][0]), ("flexible", config["filter_list"][1])):
        regex = {k: v for k, v in chain["filter"][0].items() if k != "function"}
        ((got,),) = RegexFilter(**regex).apply([[text]], [{}])
        match = exact_match_fn(predictions=[got], references=[f"worked out\n#### {right}"], **options)["exact_match"]
        found[name] = bool(match)
    return found


def _ours(text: str, right: str) -> dict[str, bool]:
    gold = gold_answer(f"worked out\n#### {right}")
    assert gold is not None
    return {"strict": same_number(strict_answer(text), gold), "flexible": same_number(flexible_answer(text), gold)}


@pytest.mark.parametrize(("text", "right"), SAME)
def test_answers_are_credited_alike(text: str, right: str) -> None:
    assert _ours(text, right) == _theirs(text, right)


@pytest.mark.parametrize(("text", "right", "way", "ours", "theirs"), DIFFERENT)
def test_where_the_two_part_is_known(text: str, right: str, way: str, ours: bool, theirs: bool) -> None:
    assert (_ours(text, right)[way], _theirs(text, right)[way]) == (ours, theirs)


@pytest.mark.realdata
def test_both_ways_credit_every_reference_solution(real_data: Path) -> None:
    lines = (real_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines[::10]:
        solution = json.loads(line)["answer"]
        right = str(gold_answer(solution))
        assert _ours(solution, right) == _theirs(solution, right) == {"strict": True, "flexible": True}


def test_rolling_perplexity_is_ours_on_the_same_windows(tmp_path: Path) -> None:
    """Each document fits into a window; ours reads one token more, the last, whose prediction nobody asks for."""
    texts = {f"t{i}": str(row.fields["text"])[:150] for i, row in enumerate(toy_rows("stories", size=6))}
    rows = Rows.of((Row(name, {"text": text}) for name, text in texts.items()), "made")
    data = {"limbeck_text": written(tmp_path / "t.jsonl", rows)}
    model = bundle()
    found = one(model, "limbeck_text", data=data, measuring=Measuring(batch_size=2, context=200))
    protocol = PerplexityProtocol(context=201, stride=200, begin=True, end=False)
    ours = perplexity(model.model, model.tokenizer, texts, protocol)
    assert max(ours.scores["tokens"]) <= 200
    scores = found.result.scores
    assert scores.ids == ours.scores.ids and scores["nll"] == pytest.approx(ours.scores["nll"], rel=1e-6)
    assert scores["bytes"].tolist() == ours.scores["bytes"].tolist()
    bits = next(f for f in found.figures if f.name == "bits_per_byte").statistic(scores).value(scores)
    assert bits == pytest.approx(ours.bits_per_byte, rel=1e-6)
    assert np.isfinite(bits)
