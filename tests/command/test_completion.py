"""Completion by a real bash: the script is sourced, and asks the program what may follow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.command.verb import schema
from tests.reference.commands import Limbeck, refused

_ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD={at}
_limbeck_completion limbeck
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def folder(tmp_path: Path, limbeck: Limbeck) -> Path:
    """A folder with the script for bash, and a program ``limbeck`` to be found on the path."""
    said = limbeck("--print-completion", "bash")
    assert said.code == 0, said.err
    (tmp_path / "completion.sh").write_text(said.out, encoding="utf-8")
    program = tmp_path / "bin" / "limbeck"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m limbeck "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return tmp_path


def completed(folder: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("limbeck", *words))
    code = _ASK.format(script=folder / "completion.sh", words=quoted, at=len(words))
    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(shutil.which("bash")), "--norc", "-c", code], capture_output=True, text=True, env={**os.environ, **path}
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_flags_and_choices(folder: Path) -> None:
    assert set(completed(folder, "")) == set(schema()["verbs"])
    assert completed(folder, "quan") == ["quantize"]
    assert completed(folder, "finetune", "--learning-r") == ["--learning-rate"]
    assert completed(folder, "finetune", "--task", "so") == ["sonnets"]
    assert completed(folder, "finetune", "--technique", "rtn,lo") == ["rtn,lora"]
    assert completed(folder, "list", "fig") == ["figures"]
    assert {"--help", "--help-all", "--print-example"} <= set(completed(folder, "quantize", "m", "--"))
    # neither a word too many, nor help asked for before, disturbs it
    assert completed(folder, "info", "a", "b", "--help-all", "--dev") == ["--device"]


def test_scripts_of_the_shells(limbeck: Limbeck) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = limbeck("--print-completion", shell).out
        assert "_LIMBECK_COMPLETE" in text and f"{shell}_complete" in text
    refused(limbeck("--print-completion", "bsh"), "bash, zsh, fish", "did you mean 'bash'")


def test_completion_imports_no_torch() -> None:
    asked = {"_LIMBECK_COMPLETE": "bash_complete", "COMP_WORDS": "limbeck finetune --ta", "COMP_CWORD": "2"}
    code = (
        "import sys; from limbeck import cli; code = cli.main([]);"
        "sys.stderr.write(f'{code}{set(sys.modules) & {\"torch\", \"pydantic\"}}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert done.stdout == "plain,--task\n" and done.stderr == "0set()", done.stdout + done.stderr
