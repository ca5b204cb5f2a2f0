"""lm-eval's log of a task as scores: figures that the items give back, choices, labels, predictions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.errors import DataError
from limbeck.integrations.items import ROW_ID, found_of
from limbeck.jobs.harness import Found

CONFIG: dict[str, Any] = {
    "metadata": {"version": 2, "rows": "made.csv"}, "dataset_path": None, "dataset_name": None, "test_split": "test",
    "validation_split": None, "num_fewshot": 0, "doc_to_text": "{{q}}", "doc_to_target": math.floor,
    "doc_to_choice": None, "description": "", "target_delimiter": " ", "fewshot_delimiter": "\n\n",
    "generation_kwargs": None, "filter_list": None, "metric_list": [{"metric": "acc"}],
}  # fmt: skip


def found(
    kind: str, samples: list[dict[str, Any]], whole: dict[str, Any], better: dict[str, Any], **config: Any
) -> Found:
    task = SimpleNamespace(
        OUTPUT_TYPE=kind, config=SimpleNamespace(**{**CONFIG, **config}), higher_is_better=lambda: better
    )
    return found_of("made", task, samples, whole, {"harness": "lm-eval 9", "shot_seed": 3}, ["told"])


def choice(
    doc_id: int, scores: list[float], target: Any, words: tuple[str, ...] = (" no", " yes"), **more: Any
) -> dict:
    return {
        "doc_id": doc_id, "doc": {"q": "why", ROW_ID: f"row{doc_id}"}, "target": target, "filter": "none",
        "arguments": [("why", w) for w in words], "resps": [[(s, False)] for s in scores],
        "filtered_resps": [(s, False) for s in scores], "metrics": ["acc"], **more,
    }  # fmt: skip


def test_choices_become_a_classifier_with_its_majority() -> None:
    samples = [
        choice(0, [-1.0, -2.0], 0, acc=1.0),
        choice(1, [-1.0, -3.0], "yes", acc=0.0),
        choice(2, [-2.0, -1.0], 1, acc=1.0),
    ]
    one = found("multiple_choice", samples, {"acc,none": 2 / 3}, {"acc": True})
    scores = one.result.scores
    assert scores.ids == ("row0", "row1", "row2")
    assert scores["log_prob:yes"].tolist() == [-2, -3, -1]
    assert scores["correct"].tolist() == scores["acc"].tolist() == [1, 0, 1]
    assert scores["label_nll"][1] == pytest.approx(3 + math.log(math.exp(-1) + math.exp(-3)))
    assert scores["confidence"][0] == pytest.approx(1 / (1 + math.exp(-1)))
    values = {f.name: f.statistic(scores).value(scores) for f in one.figures}
    assert list(values) == ["acc", "macro F1", "majority rate", "F1", "nats per item"]
    assert values["acc"] == values["majority rate"] == pytest.approx(2 / 3)
    assert one.result.predictions == {"row0": "no", "row1": "no", "row2": "yes"}
    assert one.result.samples[0] == ("why", " no", "no") and one.result.notes["told"][-1] == "told"
    assert one.result.protocol | {} == {
        **one.result.protocol, "harness": "lm-eval 9", "version": 2, "corpus": "made.csv", "shot_seed": None,
        "doc_to_target": "math.floor", "split": "test",
    }  # fmt: skip


def test_choices_that_differ_from_item_to_item_are_no_classes() -> None:
    samples = [choice(0, [-1, -2], 0, (" a", " b"), acc=1.0), choice(1, [-1, -2], 1, (" c", " d"), acc=0.0)]
    one = found("multiple_choice", samples, {"acc,none": 0.5}, {"acc": True})
    assert set(one.result.scores.columns) == {"acc", "log_prob:0", "log_prob:1"} and len(one.figures) == 1
    ragged = [*samples, choice(2, [-1, -2, -3], 1, (" c", " d", " e"), acc=0.0)]
    assert set(found("multiple_choice", ragged, {"acc,none": 1 / 3}, {}).result.scores.columns) == {"acc"}


@pytest.mark.parametrize("target", [2, -1, "no idea", "n", "1"])
def test_a_label_outside_the_choices_is_an_error_that_names_the_item(target: Any) -> None:
    with pytest.raises(DataError, match=r"item row4 of made has the label .* which is none of no, yes"):
        found("multiple_choice", [choice(4, [-1, -2], target, acc=0.0)], {"acc,none": 0.0}, {"acc": True})


def written(doc_id: int, chain: str, hit: float) -> dict[str, Any]:
    return {
        "doc_id": doc_id, "doc": {"q": "why"}, "target": "18", "filter": chain, "arguments": [("why", {"until": []})],
        "resps": [[f"so {doc_id}"]], "filtered_resps": ["18"], "metrics": ["exact_match"], "exact_match": hit,
    }  # fmt: skip


def test_every_filter_is_a_figure_of_its_own() -> None:
    samples = [
        written(i, chain, hit) for chain, hits in (("strict", (1, 0)), ("loose", (1, 1))) for i, hit in enumerate(hits)
    ]
    whole = {"exact_match,strict": 0.5, "exact_match,loose": np.float64(1.0)}
    one = found("generate_until", samples, whole, {"exact_match": True})
    assert [f.name for f in one.figures] == ["exact_match, strict", "exact_match, loose"]
    assert one.result.scores["exact_match, strict"].tolist() == [1, 0]
    assert one.result.predictions == {"0": "so 0", "1": "so 1"} and one.result.samples[1] == ("why", "so 1", "18")


def test_rolling_figures_are_exponentials_and_bits_of_ratios() -> None:
    pairs = {"word_perplexity": [(-6.0, 2), (-3.0, 4)], "bits_per_byte": [(-6.0, 8), (-3.0, 10)]}
    samples = [
        {"doc_id": i, "doc": "text", "target": "text", "filter": "none", "arguments": [("text",)], "resps": [[-1.0]],
         "filtered_resps": [-1.0], "metrics": list(pairs), **{k: v[i] for k, v in pairs.items()}}
        for i in range(2)
    ]  # fmt: skip
    whole = {"word_perplexity,none": math.exp(9 / 6), "bits_per_byte,none": 9 / 18 / math.log(2)}
    one = found("loglikelihood_rolling", samples, whole, {})
    scores = one.result.scores
    assert {f.name: f.statistic(scores).value(scores) for f in one.figures} == pytest.approx(
        {"word_perplexity": whole["word_perplexity,none"], "bits_per_byte": whole["bits_per_byte,none"]}
    )
    assert scores["nll"].tolist() == [6, 3] and scores["bytes"].tolist() == [8, 10] and not one.result.predictions


def test_the_perplexity_of_answers_is_taken_over_items() -> None:
    samples = [
        {**written(i, "none", 0), "metrics": ["perplexity", "acc"], "perplexity": value, "acc": i}
        for i, value in enumerate((-1.0, -2.0))
    ]
    one = found("loglikelihood", samples, {"perplexity,none": math.exp(1.5), "acc,none": 0.5}, {"perplexity": False})
    assert [(f.name, f.better) for f in one.figures] == [("perplexity", "lower"), ("acc", "higher")]


def test_what_is_no_sum_over_items_has_no_interval() -> None:
    samples = [choice(0, [-1, -2], 0, metrics=["f1", "acc", "odd"], f1=(0, 0), acc=1.0, odd=3.0)]
    whole = {"f1,none": 0.75, "acc,none": 1.0, "odd,none": 4.0}  # odd is aggregated in another way than by its mean
    one = found("multiple_choice", samples, whole, {"acc": True})
    assert one.others == {"f1": 0.75, "odd": 4.0} and one.figures[0].name == "acc"
    assert "odd" not in one.result.scores.columns
