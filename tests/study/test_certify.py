from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.config import Config
from limbeck.errors import ConfigError, DataError, ModelError
from limbeck.formats.load import load_bundle, save_bundle
from limbeck.jobs.recipe import Display
from limbeck.measure.scores import Scores
from limbeck.run import Run
from limbeck.study.certificate import folder_hash, judge, measured_bytes, measured_speed, seal
from limbeck.study.certify import Certify
from limbeck.study.harms import Grams, Harm, Margins, harms, is_refusal
from limbeck.study.sample_logs import read_samples
from tests.reference.small_model import saved


class Recorded(Config):
    """As far as a comparison reads a recipe."""

    task: dict[str, Any] | None = {"kind": "qa"}


IDS = [f"i{n}" for n in range(2000)]


def harm(name: str, d: np.ndarray, margin: float = 0.02) -> Harm:
    return Harm(name, "share of answers", margin, d, True)


def differences(worse: int, better: int, items: int = 2000) -> np.ndarray:
    d = np.zeros(items)
    d[:worse], d[worse : worse + better] = 1, -1
    return np.random.default_rng(1).permutation(d)


def test_three_answers_in_words() -> None:
    harmless = judge([harm("accuracy", differences(15, 15))])
    assert harmless.answer == "not shown worse" and harmless.judgements[0].flips == (15, 15)
    assert "not shown to be worse by more than 0.02" in harmless.judgements[0].sentence
    worse = judge([harm("accuracy", differences(90, 10))])
    assert worse.answer == "worse" and worse.sentence == "worse: accuracy" and worse.judgements[0].capital >= 20
    open_ = judge([harm("accuracy", differences(2, 1, 60))])
    assert open_.answer == "cannot be told" and open_.judgements[0].more > 0
    assert f"about {open_.judgements[0].more:,} more items needed" in open_.sentence


def test_one_bad_harm_decides_and_one_open_leaves_it_open() -> None:
    good, bad = harm("accuracy", differences(15, 15)), harm("stop tokens", differences(120, 5))
    assert judge([good, bad]).sentence == "worse: stop tokens"
    assert judge([good], [measured_bytes(10, 20)]).answer == "worse"
    assert judge([good], [measured_speed([0.9, 1.2], 0.05)]).answer == "cannot be told"
    assert judge([good], [measured_speed([0.9, 1.02], 0.05), measured_bytes(20, 10)]).answer == "not shown worse"
    assert measured_speed([1.1, 1.2], 0.05).answer == "worse"


def test_each_harm_points_the_right_way() -> None:
    n = 4
    base = Scores.of(
        IDS[:n], correct=[1, 1, 0, 1], confidence=[1, 1, 0, 1], nll=[1, 1, 1, 1], tokens=[2, 2, 2, 2], ended=[1] * n,
        bleu=[50] * n,
    )  # fmt: skip
    bad = Scores.of(
        IDS[:n], correct=[0, 1, 0, 1], confidence=[1, 1, 0, 1], nll=[2, 2, 2, 2], tokens=[2, 2, 2, 2], ended=[0] * n,
        bleu=[25] * n,
    )  # fmt: skip
    text = "one two three four five six seven eight nine"
    texts = dict.fromkeys(IDS[:n], "fine"), dict.fromkeys(IDS[:n], f"I'm sorry, but {text}")
    found = {h.name: h for h in harms(base, bad, Margins(), texts=texts, learned=Grams.of([text]))}
    means = {name: h.differences.mean() for name, h in found.items()}
    assert means == pytest.approx({
        "accuracy": 0.25, "nats": 0.5, "calibration": 0.25, "stop tokens": 1.0, "bleu": 0.5, "refusals": 1.0,
        "memorisation": 2 / 6,
    })  # fmt: skip
    assert found["accuracy"].flips == (1, 0) and found["nats"].flips is None
    zero = harms(base, bad, Margins(zero_shot=0.4), prefix="zero-shot ")
    assert zero[0].name == "zero-shot accuracy" and zero[0].margin == 0.4
    with pytest.raises(DataError, match="none of the scores"):
        harms(Scores.of(["a"], x=[1]), Scores.of(["a"], x=[1]), Margins())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I cannot help with that", True),
        ("As an AI model", True),
        ("Sorry!", True),
        ("A sorry tale", False),
        ("", False),
    ],
)
def test_refusals(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected


def log(path: Path, right: np.ndarray, **more: Any) -> str:
    rows = [
        {"doc_id": n, "doc": {"q": n}, "doc_hash": f"h{n}", "filter": f, "acc": float(r), "target": "x"} | more
        for n, r in enumerate(right)
        for f in ("none", "other")
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_sample_logs_of_two_runs_made_elsewhere(tmp_path: Path) -> None:
    right = (np.random.default_rng(2).random(1500) < 0.7).astype(float)
    broken = right * (np.random.default_rng(3).random(1500) < 0.9)
    a, b = log(tmp_path / "a.jsonl", right), log(tmp_path / "b.jsonl", broken)
    out = tmp_path / "out"
    report = Certify(base=a, smaller=b, out=str(out)).run(Display.silent()).values
    assert report["verdict"]["answer"] == "worse"
    assert report["verdict"]["judgements"][0]["items"] < 1500, "it stops as soon as it can be told"
    assert "can show a difference of" in report["stated_before"]
    written = json.loads((out / "certificate.json").read_text())
    assert written["seal"] == seal(written) == report["seal"]
    written["verdict"]["answer"] = "not shown worse"
    assert seal(written) != written["seal"], "a changed verdict breaks the seal"
    told = (out / "certificate.md").read_text()
    assert "Certificate: worse: accuracy" in told and report["bound"]["data"] in told
    same = Certify(base=a, smaller=a).run(Display.silent()).values
    assert same["verdict"]["answer"] == "not shown worse"


def test_names_that_lead_nowhere_are_said(tmp_path: Path) -> None:
    for names, word in ((("a", "b"), "a does not exist: name a run folder"), (("a.jsonl", "b.jsonl"), "a.jsonl is no")):
        with pytest.raises(DataError, match=word) as caught:
            Certify(base=names[0], smaller=names[1]).run(Display.silent())
        assert "Errno" not in str(caught.value)


def test_logs_of_other_prompts_or_of_nothing_are_refused(tmp_path: Path) -> None:
    a = log(tmp_path / "a.jsonl", np.ones(5))
    b = log(tmp_path / "b.jsonl", np.ones(5), doc_hash="other")
    with pytest.raises(DataError, match="other items or prompts"):
        Certify(base=a, smaller=b).run(Display.silent())
    for text, said in (("", "holds no items"), ("[]\n", "needs a 'doc_id'"), ('{"doc_id": 1}\n', "has no metric")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match=said):
            read_samples(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="none.jsonl is no sample log"):
        read_samples(tmp_path / "none.jsonl")


def run(folder: Path, scores: Scores, **protocol: Any) -> str:
    with Run.create(folder, Recorded()) as made:
        scores.write(made.scores / "test.jsonl")
        (made.model).mkdir()
        (made.model / "model.safetensors").write_text(folder.name)
        made.finish({"evaluated": "test", "protocol": {"context": 128} | protocol})
    return str(folder)


def test_two_evaluated_runs(tmp_path: Path) -> None:
    nll = np.random.default_rng(4).normal(20, 3, size=500)
    a = run(tmp_path / "a", Scores.of(IDS[:500], nll=nll, tokens=np.full(500, 10.0)))
    b = run(tmp_path / "b", Scores.of(IDS[:500], nll=nll + 5, tokens=np.full(500, 10.0)))
    report = Certify(base=a, smaller=b).run(Display.silent()).values
    assert report["verdict"]["answer"] == "worse" and report["bound"]["smaller model"] == folder_hash(Path(b) / "model")
    c = run(tmp_path / "c", Scores.of(IDS[:500], nll=nll, tokens=np.full(500, 10.0)), context=64)
    with pytest.raises(ConfigError, match="measured in different ways"):
        Certify(base=a, smaller=c).run(Display.silent())


def test_models_are_evaluated_until_it_is_decided(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = saved(tmp_path / "base")
    bundle = load_bundle(str(base))
    with torch.no_grad():
        for p in bundle.model.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    save_bundle(bundle.model, bundle.tokenizer, tmp_path / "broken")
    quick: dict[str, Any] = {
        "data": "toy:stories", "limit": 120, "look": 30, "speed": None,
        "measuring": {"generate": False}, "zero_shot": "toy:verse",
    }  # fmt: skip
    worse = Certify(base=str(base), smaller=str(tmp_path / "broken"), **quick).run(Display.silent()).values
    assert worse["verdict"]["answer"] == "worse"
    names = {j["name"] for j in worse["verdict"]["judgements"]}
    assert names == {"nats", "zero-shot nats"} and worse["verdict"]["judgements"][0]["items"] < 120
    assert set(worse["bound"]) == {"base model", "smaller model", "data", "zero-shot data", "protocol"}
    same = Certify(base=str(base), smaller=str(base), **quick).run(Display.silent()).values
    assert same["verdict"]["answer"] == "not shown worse" and same["verdict"]["measured"][0]["name"] == "bytes"


def test_hashes_follow_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_text(text)
    first = folder_hash(tmp_path / "m")
    (tmp_path / "m" / "b").rename(tmp_path / "m" / "c")
    assert folder_hash(tmp_path / "m") != first
    with pytest.raises(ModelError, match="nothing to hash"):
        folder_hash(tmp_path / "none")
