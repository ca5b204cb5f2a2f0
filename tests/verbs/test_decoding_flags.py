"""Every way to decode by the flags of ``generate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck import cli
from limbeck.config import build
from limbeck.errors import ConfigError
from limbeck.jobs.recipe import Display
from limbeck.verbs.generate import Generate
from tests.reference.commands import Limbeck
from tests.reference.small_model import saved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("m") / "model", context=64))


@pytest.fixture
def generate(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The generations that a command line makes, and the decoding that it reports."""
    seen: list[dict[str, Any]] = []
    real = Generate.run

    def kept(self: Generate, session: Display) -> Any:
        report = real(self, session)
        seen.append(dict(report.values))
        return report

    monkeypatch.setattr(cli, "_hush", lambda: None)
    monkeypatch.setattr(Generate, "run", kept)

    def call(*flags: str) -> dict[str, Any]:
        code = cli.main(["generate", model, "the", "--max-new-tokens", "12", "--quiet", *flags])
        assert code == 0, capsys.readouterr().err
        return seen[-1]

    return call


def texts(values: dict[str, Any]) -> list[str]:
    return [g["text"] for g in values["generations"]]


def test_seeds_draw_other_samples_and_the_same_again(generate: Any) -> None:
    sampled = ("--temperature", "1")
    one, again = (generate(*sampled, "--seed", "3") for _ in range(2))
    assert one["generations"] == again["generations"] and one["decoding"]["seed"] == 3
    assert texts(generate(*sampled, "--seed", "4")) != texts(one) == texts(generate(*sampled, "--decoding.seed", "3"))
    many = texts(generate(*sampled, "--samples", "4", "--seed", "3"))
    assert len(set(many)) == 4 and many[0] == texts(one)[0]


def test_beams_n_best_and_length_penalty(generate: Any) -> None:
    values = generate("--beams", "4", "--n-best", "3", "--length-penalty", "0.5")
    sums = [g["log_prob"] / g["tokens"] ** 0.5 for g in values["generations"]]
    assert len(sums) == 3 and sums == sorted(sums, reverse=True)
    greedy = generate()["generations"][0]
    assert generate("--beams", "4", "--length-penalty", "0")["generations"][0]["log_prob"] >= greedy["log_prob"]


def test_filters_and_penalties_are_read(generate: Any) -> None:
    greedy = texts(generate())
    assert texts(generate("--temperature", "1", "--min-p", "0.999")) == greedy  # none but the likeliest is left
    assert texts(generate("--temperature", "1", "--top-k", "1")) == greedy
    assert texts(generate("--temperature", "1", "--top-p", "1e-9")) == greedy
    ids = generate("--repetition-penalty", "1e9")["generations"][0]["ids"]
    assert len(set(ids)) == len(ids)


def test_stop_strings_end_the_text_and_are_cut_off(generate: Any) -> None:
    whole = texts(generate("--temperature", "1"))[0]
    at = whole[4]
    got = generate("--temperature", "1", "--stop", at, "--stop", "never seen")["generations"][0]
    assert got["stopped"] == "stop" and got["text"] == whole[: whole.index(at)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"beams": 2, "temperature": 1}, "does not sample"),
        ({"min_p": 0.1}, "no effect at temperature 0"),
        ({"samples": 2}, "would be copies"),
        ({"n_best": 2}, "belong to beam search"),
        ({"stop": [""]}, "empty stop text"),
    ],
)
def test_options_that_would_not_be_read_are_refused(model: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(Generate, {"model": model, "decoding": values})


def test_an_interruption_keeps_what_was_generated(
    tmp_path: Path, limbeck: Limbeck, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limbeck.decode import generate as generating

    plain, calls = generating._decode, []

    def interrupted(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        plain(*args)

    monkeypatch.setattr(generating, "_decode", interrupted)
    asked = ("generate", saved(tmp_path / "m"), "hi", "--samples", "8", "--temperature", "1", "--max-new-tokens", "4")
    said = limbeck(*asked, "--batch-size", "2", "--out", tmp_path / "out", "--json")
    assert said.code == 130 and "4 of 8 generations were done and are kept" in said.err
    told, kept = json.loads(said.out), json.loads((tmp_path / "out" / "generations.json").read_text())
    assert len(told["generations"]) == len(kept["generations"]) == 4 and kept["interrupted"] is True
    assert told["exit_code"] == 130
