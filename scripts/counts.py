"""Count what the source and its help are, at an earlier commit and now: docs/counts.md.

Usage: python scripts/counts.py 896ecae [docs/counts.md]

Counted are files and lines by room, lines of help by verb (``--help``, and ``--help-all`` where there is one), words of
the README and of quickstart and guides, and names of public classes that several modules define.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def rooms(root: Path) -> dict[str, tuple[int, int]]:
    """Return room -> its files and lines of Python and C; modules beside the rooms count as one."""
    found: dict[str, tuple[int, int]] = {}
    for file in sorted((root / "src" / "limbeck").rglob("*")):
        if file.suffix in (".py", ".c", ".h"):
            parts = file.relative_to(root / "src" / "limbeck").parts
            room = f"{parts[0]}/" if len(parts) > 1 else "modules"
            files, lines = found.get(room, (0, 0))
            found[room] = (files + 1, lines + len(file.read_text(encoding="utf-8").splitlines()))
    return found


def repeated_classes(root: Path) -> list[str]:
    """Return the names of public classes that several modules define."""
    names = Counter(
        node.name
        for file in (root / "src").rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return sorted(name for name, count in names.items() if count > 1)


def words(files: Sequence[Path]) -> int:
    """Return the number of words of some pages, code included."""
    return sum(len(file.read_text(encoding="utf-8").split()) for file in files)


def help_lines(root: Path, *flags: str) -> int | None:
    """Return the lines that a command prints on the standard output; None where it is refused."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "100"}
    command = [sys.executable, "-m", "limbeck", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return None if done.returncode else len(done.stdout.splitlines())


def verbs(root: Path) -> list[str]:
    """Return the verbs of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    code = "from limbeck.command.verb import schema\nprint(*schema()['verbs'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def pages(root: Path) -> list[Path]:
    """Return the pages that lead a reader through a job."""
    return [p for p in (root / "docs" / "quickstart.md", *(root / "docs" / "guides").glob("*.md")) if p.is_file()]


def page(before: Path, now: Path, commit: str) -> str:
    """Return the Markdown of both trees' counts."""
    one, two = rooms(before), rooms(now)
    parts = [
        "# Counts",
        f"Written by `python scripts/counts.py {commit}`: at commit {commit}, before Limbeck had a Python API,\n"
        "and at the commit of this page.",
        "## Files and lines by room",
        _table(("room", "files before", "lines before", "files now", "lines now"), _rooms(one, two)),
        "## Lines of help by verb",
        _table(("verb", "`--help` before", "`--help` now", "`--help-all` now"), _help(before, now)),
        "## Words",
        _table(
            ("what", "before", "now"),
            [
                ["README", f"{words([before / 'README.md']):,}", f"{words([now / 'README.md']):,}"],
                ["quickstart and guides", f"{words(pages(before)):,}", f"{words(pages(now)):,}"],
                ["names of public classes used twice", _names(before), _names(now)],
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _rooms(one: Mapping[str, tuple[int, ...]], two: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    one, two = ({**counts, "all": tuple(map(sum, zip(*counts.values(), strict=True)))} for counts in (one, two))
    order = [*sorted({*one, *two} - {"all", "modules"}), "modules", "all"]
    numbers = {room: (*one.get(room, (0, 0)), *two.get(room, (0, 0))) for room in order}
    return [[room, *(f"{n:,}" if n else "-" for n in numbers[room])] for room in order]


def _help(before: Path, now: Path) -> list[list[str]]:
    known = verbs(now)
    flags = [(before, "--help"), (now, "--help"), (now, "--help-all")]
    counted = [[verb, *(help_lines(tree, verb, flag) for tree, flag in flags)] for verb in known]
    return [[str(cell) if cell is not None else "-" for cell in row] for row in counted]


def _names(root: Path) -> str:
    names = repeated_classes(root)
    return f"{len(names)}: {', '.join(names)}" if names else "0"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def checkout(commit: str, folder: Path) -> Path:
    """Unpack the files of a commit into a folder."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "counts.md"
    with tempfile.TemporaryDirectory() as place:
        target.write_text(page(checkout(sys.argv[1], Path(place)), ROOT, sys.argv[1]), encoding="utf-8")
