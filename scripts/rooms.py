"""Draw the rooms of the source, from their imports, into docs/architecture.md: ``python scripts/rooms.py``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "limbeck"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: drawn by scripts/rooms.py -->", "<!-- end of rooms -->"
GROUND = {"errors", "old_names", "config", "storage"}
"""Rooms that nearly every other one imports: left out of the drawing."""


def imported(file: Path) -> Iterable[str]:
    """Yield the room of every import of the project in ``file``, also of those within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("limbeck."))


def rooms() -> dict[str, set[str]]:
    """Return the rooms that each room imports, itself and the ground left out."""
    held = {p.name if p.is_dir() else p.stem for p in SOURCE.iterdir() if p.is_dir() or p.suffix == ".py"}
    held -= {"__init__", "__main__", "__pycache__"}
    out: dict[str, set[str]] = {room: set() for room in sorted(held - GROUND)}
    for file in SOURCE.rglob("*.py"):
        room = file.relative_to(SOURCE).with_suffix("").parts[0]
        if room in out:
            out[room] |= {other for other in imported(file) if other in out} - {room}
    return out


def reduced(edges: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return ``edges`` without those that a longer way replaces; rooms that import each other keep theirs."""

    def below(room: str, seen: frozenset[str]) -> set[str]:
        return {room}.union(*(below(b, seen | {room}) for b in edges[room] if b not in seen))

    return {
        a: {b for b in down if not any(b in below(c, frozenset({a})) for c in down - {b} if a not in edges[c])}
        for a, down in edges.items()
    }


def drawn() -> str:
    """Return the drawing, a Mermaid graph."""
    arrows = [f"  {a} --> {b}" for a, down in reduced(rooms()).items() for b in sorted(down)]
    return "\n".join([BEGIN, "", "```mermaid", "graph TD", *arrows, "```", "", END])


def main() -> None:
    """Rewrite the drawing in the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: drawn(), page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
