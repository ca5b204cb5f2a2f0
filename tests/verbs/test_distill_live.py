"""``limbeck distill``: on the student's own text, on the teacher's answers, from a teacher with another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.tokenizer import Tokenizer
from limbeck.formats.load import save_bundle
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Decoder
from tests.reference.commands import Limbeck, refused
from tests.reference.task_models import small, tokenizer

SHORT = (
    "--task", "qa", "--data", "toy:qa", "--limit", 40, "--steps", 4, "--precision", "fp32", "--batch-size", 4,
    "--probes", "off", "--no-generate", "--evaluate-every", 2, "--json",
)  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    save_bundle(small(layers=3), tokenizer(), tmp_path / "teacher")
    save_bundle(small(hidden_size=32), tokenizer(), tmp_path / "student")
    other = Tokenizer.train(["the cat sat on the mat and asked a question of the dog. " * 3], 300)
    torch.manual_seed(2)
    foreign = Decoder(DecoderConfig(vocab_size=other.vocab_size, context=128, layers=2, hidden_size=16, heads=2))
    save_bundle(foreign, other, tmp_path / "foreign")
    return {name: tmp_path / name for name in ("teacher", "student", "foreign")}


def distilled(limbeck: Limbeck, out: Path, teacher: Path, student: Path, *more: object) -> dict[str, Any]:
    said = limbeck("distill", "--teacher", teacher, "--model", student, "--out", out, *SHORT, *more)
    assert said.code == 0, said.err
    values: dict[str, Any] = json.loads(said.out)
    return values


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_on_policy_learns_other_things_than_the_data_and_repeats_itself(
    limbeck: Limbeck, tmp_path: Path, models: dict[str, Path]
) -> None:
    own = ("--on-policy.share", 1, "--on-policy.max-new-tokens", 6, "--alpha", 0, "--beta", 1, "--on", "answers")
    a = distilled(limbeck, tmp_path / "a", models["teacher"], models["student"], *own)
    distilled(limbeck, tmp_path / "b", models["teacher"], models["student"], *own)
    data = ("--alpha", 0, "--beta", 1, "--on", "answers")
    distilled(limbeck, tmp_path / "c", models["teacher"], models["student"], *data)
    assert a["training"]["steps"] == 4
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    kept = [json.loads(line) for line in (tmp_path / "a" / "replay-0.jsonl").read_text().splitlines()]
    assert [index for index, _ in kept] == [0, 1, 2, 3] and all(1 <= len(x[2]) <= 6 for _, some in kept for x in some)
    assert not (tmp_path / "c" / "replay-0.jsonl").exists()


def test_an_adaptive_share_reads_the_runs_own_losses(limbeck: Limbeck, tmp_path: Path, models: dict[str, Path]) -> None:
    flags = (
        "--on-policy.schedule",
        "adaptive",
        "--on-policy.rise",
        1,
        "--on-policy.max-new-tokens",
        4,
        "--learning-rate",
        1,
    )
    distilled(limbeck, tmp_path / "a", models["teacher"], models["student"], *flags, "--steps", 8, "--no-restore-best")
    losses = [json.loads(line).get("valid/nll") for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    told = [loss for loss in losses if loss is not None]
    assert any(b > a for a, b in zip(told, told[1:], strict=False))  # at this rate the loss rises
    assert (tmp_path / "a" / "replay-0.jsonl").read_text()  # and the student was then asked


def test_the_teachers_answers_are_learned_and_kept(limbeck: Limbeck, tmp_path: Path, models: dict[str, Path]) -> None:
    flags = ("--answers", "teacher", "--answer-tokens", 5, "--alpha", 1, "--beta", 0)
    values = distilled(limbeck, tmp_path / "a", models["teacher"], models["student"], *flags)
    key, *answers = [json.loads(line) for line in (tmp_path / "a" / "teacher_answers.jsonl").read_text().splitlines()]
    assert len(key) == 64 and len(answers) == values["data"]["train"]["rows"] and all(1 <= len(x) <= 5 for x in answers)
    distilled(limbeck, tmp_path / "b", models["teacher"], models["student"], "--alpha", 1, "--beta", 0)
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


@pytest.mark.parametrize("how", ["text", "position"])
def test_a_teacher_with_another_tokenizer_on_request(
    limbeck: Limbeck, tmp_path: Path, models: dict[str, Path], how: str
) -> None:
    said = limbeck(
        "distill", "--teacher", models["foreign"], "--model", models["student"], "--out", tmp_path / "no", *SHORT
    )
    refused(said, "different vocabularies", "--cross-tokenizer")
    values = distilled(
        limbeck, tmp_path / "a", models["foreign"], models["student"], "--cross-tokenizer", how, "--beta", 2
    )
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert any("train/uld" in line for line in lines) and values["training"]["steps"] == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--on-policy.share", 1, "--packing"), "leave packing out"),
        (("--on-policy.share", 1, "--teacher-top-k", 4), "leave teacher_top_k out"),
        (("--answer-tokens", 4), "set answers to teacher"),
        (("--cross-tokenizer", "text", "--packing"), "one document a row"),
        (("--cross-tokenizer", "text", "--divergence", "jsd"), "leave divergence and on out"),
        (("--on-policy.replay", 1), "set a share above 0"),
    ],
)
def test_options_that_do_not_go_together(
    limbeck: Limbeck, tmp_path: Path, models: dict[str, Path], flags: tuple[object, ...], said: str
) -> None:
    answer = limbeck(
        "distill", "--teacher", models["teacher"], "--model", models["student"], "--out", tmp_path / "a", *SHORT, *flags
    )
    refused(answer, said)
    if "cross" in str(flags[0]) and "packing" in str(flags[-1]):
        alone = limbeck("distill", "--teacher", models["teacher"], "--out", tmp_path / "a", *SHORT, *flags[:2])
        refused(alone, "name it with 'model'")
