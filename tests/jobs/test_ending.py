"""The end of a report: sizes before and after with their dtypes, and commands that can be copied."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.formats.load import load_bundle
from limbeck.jobs.reports.ending import described_base, next_steps, size_sentence
from limbeck.measure.cost import disk_bytes
from tests.reference.commands import Limbeck
from tests.reference.small_model import saved

FLAGS = ("--data", "toy:stories", "--limit", 30, "--probes", "off", "--measuring.generate", "false", "--steps", 1)


def test_a_base_of_fp16_is_said_to_have_grown(limbeck: Limbeck, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", torch.float16)
    said = limbeck(
        "finetune", "--model", base, "--technique", "lora", "--out", tmp_path / "run", "--no-generate", *FLAGS[:6],
        "--steps", 1,
    )  # fmt: skip
    assert said.code == 0, said.err
    before, after = disk_bytes(base) / 1e6, disk_bytes(tmp_path / "run" / "model") / 1e6
    line = " ".join(said.err.split())
    assert f"{after:,.2f} MB (F32) after, {before:,.2f} MB (F16) before" in line
    assert "larger because it is stored in a wider dtype" in line
    assert f"page: limbeck report {tmp_path / 'run'} writes" in line and "next: limbeck quantize" in line


def test_sizes_of_a_base_and_what_was_made(tmp_path: Path) -> None:
    base, made = saved(tmp_path / "base"), saved(tmp_path / "made", torch.bfloat16)
    told = described_base(str(base), made)
    assert told["stored_dtypes"].keys() == {"F32"} and told["made_dtypes"].keys() == {"BF16"}
    sentence = size_sentence(disk_bytes(made), told)
    assert "(BF16) after" in sentence and "wider" not in sentence
    with pytest.raises(LimbeckError):
        described_base(str(tmp_path / "none"), made)
    assert load_bundle(str(base)).folder == base


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "distill", "dpo", "quantize", "evaluate"])
def test_the_next_command_is_one_that_is_read(limbeck: Limbeck, tmp_path: Path, verb: str) -> None:
    page, command = (str(line) for line in next_steps(verb, "runs/a b"))
    assert page == "page: limbeck report 'runs/a b' writes runs/a b/report.html"
    words: list[Any] = shlex.split(re.sub(r" (shows|makes|compares) .*", "", command.removeprefix("next: limbeck ")))
    assert limbeck(*words, "--print-config").code == 0


def test_a_verb_without_a_next_command_has_its_page() -> None:
    assert len(next_steps("score", "runs/a")) == 1
