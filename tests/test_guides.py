"""The commands of the quickstart and of the guides run as they are written, on a tiny model and with few steps."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.cli import main
from tests.reference.tiny_runs import ARCHITECTURE, pretrained

DOCS = Path(__file__).parents[1] / "docs"
NEEDS_A_FILE = ("limbeck fit SEARCH", "limbeck synthesize qa --answers")  # of the reader's own


def blocks(page: Path, kind: str) -> list[str]:
    """Return the code blocks of a page that are of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the shell lines of a page, continued lines joined, comments left out."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", *NEEDS_A_FILE))]


def follow(line: str) -> None:
    """Run one line of a page; trainings take two steps."""
    if line.startswith("limbeck "):
        words = shlex.split(re.sub(r"--steps \d+", "--steps 2", line))[1:]
        assert main(words) == 0, line
    else:
        subprocess.run(line, shell=True, check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this processor has no bf16 products")
@pytest.mark.parametrize(
    "name",
    ["quickstart", "guides/laptop", "guides/data", "guides/compare", "guides/synthesize", "guides/sparse-attention"],
)
def test_the_commands_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    pretrained(tmp_path / "base", architecture={**ARCHITECTURE, "layers": 4})
    data, *_ = blocks(DOCS / "quickstart.md", "python")
    exec(compile(data, "quickstart.md", "exec"), {})
    for number, text in enumerate(blocks(DOCS / f"{name}.md", "yaml")):
        Path("study.yaml" if number == 0 else f"{number}.yaml").write_text(text)
    lines = commands(DOCS / f"{name}.md")
    assert len(lines) >= 2
    for line in lines:
        follow(line)


def test_a_command_that_fails_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```sh\n# a remark\nlimbeck info \\\n    gone\n```\n```\nlimbeck no\n```\n")
    (line,) = commands(page)
    with pytest.raises(AssertionError, match="limbeck info"):
        follow(line)


@pytest.mark.slow
def test_the_example_of_a_task_and_a_technique_works(tmp_path: Path) -> None:
    """In a copy of the source, as the page says: two files, two lines in the tables, the schema, two commands."""
    source = tmp_path / "src"
    shutil.copytree(DOCS.parent / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs" / "verbs").mkdir(parents=True)
    task, in_tasks, technique, in_techniques = blocks(DOCS / "guides" / "extend.md", "python")
    for room, file, code, line, table in (
        ("tasks", "headline", task, in_tasks, "TASKS: dict[str, type[Task]] = {\n"),
        ("techniques", "bitfit", technique, in_techniques, "TECHNIQUES: dict[str, type[Technique]] = {\n"),
    ):
        folder = source / "limbeck" / room
        (folder / f"{file}.py").write_text(code)
        text = (folder / "table.py").read_text()
        assert table in text
        name = line.strip().partition(".")[0]
        text = text.replace(table, table + line).replace(
            "__all__", f"from limbeck.{room}.{file} import {name}\n\n__all__", 1
        )
        (folder / "table.py").write_text(text)
    pretrained(tmp_path / "base", architecture={**ARCHITECTURE})
    rows = [f"Yesterday Ada{i} saw a storm.,A storm" for i in range(30)]
    (tmp_path / "news.csv").write_text("\n".join(["article,headline", *rows]))
    environment = {**os.environ, "PYTHONPATH": str(source)}
    for line in ["python -m limbeck.schema", *commands(DOCS / "guides" / "extend.md")]:
        if not line.startswith("make "):
            words = [sys.executable, "-m", *shlex.split(line.replace("python -m ", ""))]
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stdout} {done.stderr}"
