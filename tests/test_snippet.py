"""The Python that the README shows, run as a program: on toy data, and on the 14M model of ``LIMBECK_DATA``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "snippet.py"


def ran(folder: Path, *args: str) -> list[str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_on_toy_data(tmp_path: Path) -> None:
    lines = ran(tmp_path)
    assert lines[0].startswith("<LanguageModel runs/tiny") and "report.html" in lines[-1]
    assert any(line.startswith("no figure was measured, as no rows were given") for line in lines)


@pytest.mark.slow
@pytest.mark.realdata
def test_on_the_model_of_the_real_data(tmp_path: Path, real_data: Path) -> None:
    lines = ran(tmp_path, str(real_data / "models" / "base-14m-gpt2"))
    assert "13,989,888 parameters" in lines[0]
