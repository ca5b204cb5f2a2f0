"""Draw the rooms of the source and their imports as a picture: docs/rooms.svg.

Usage: python scripts/rooms.py [docs/rooms.svg]

A room is a folder or a module directly below src/limbeck. A line leads from a room down to one that it imports; imports
that follow from others are left out (the transitive reduction), so that the lines show the order of the floors.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "limbeck"
WIDTH, BOX, HEIGHT, GAP, MARGIN = 1200, 150, 34, 34, 24


def imports() -> dict[str, set[str]]:
    """Return room -> the rooms that it imports, anywhere in its files."""
    found: dict[str, set[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            found.setdefault(room, set()).update(_imported(ast.parse(file.read_text(encoding="utf-8"))))
    return {room: (used & found.keys()) - {room} for room, used in found.items()}


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "limbeck":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            yield from (n.split(".")[1] for n in names if n.startswith("limbeck."))
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("limbeck."))


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return room -> floor: one above the highest room that it imports; rooms of the ground import none.

    Rooms that import each other (losses and kernels) share a floor.
    """
    below = {room: {u for u in used if room not in graph[u]} for room, used in graph.items()}
    level: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in level:
            level[room] = max((of(used) + 1 for used in below[room]), default=0)
        return level[room]

    for room in below:
        of(room)
    for room, used in graph.items():
        for other in used:
            if room in graph[other]:
                level[room] = level[other] = max(level[room], level[other])
    return level


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph without imports that follow from others."""
    reach: dict[str, set[str]] = {}

    def beyond(room: str, seen: frozenset[str]) -> set[str]:
        if room not in reach:
            further = (beyond(u, seen | {room}) | {u} for u in graph[room] if u not in seen)
            reach[room] = set().union(*further)
        return reach[room]

    for room in graph:
        beyond(room, frozenset())
    return {
        room: {u for u in used if not any(u in reach[other] and other != u for other in used if u not in graph[other])}
        - {u for other in used for u in graph[other] if u in used and other not in graph[u]}
        for room, used in graph.items()
    }


def draw() -> str:
    """Return the map as SVG, the ground at the bottom."""
    graph = imports()
    level, lines = floors(graph), reduced(graph)
    top = max(level.values())
    rows = [sorted(room for room, floor in level.items() if floor == top - row) for row in range(top + 1)]
    rows = [row for row in rows if row]
    places = {
        room: ((WIDTH - len(row) * BOX - (len(row) - 1) * GAP) / 2 + at * (BOX + GAP), MARGIN + number * (HEIGHT + GAP))
        for number, row in enumerate(rows)
        for at, room in enumerate(row)
    }
    height = 2 * MARGIN + len(rows) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Rooms of the source and their imports" font-family="sans-serif" font-size="15">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for room, used in lines.items():
        for other in sorted(used):
            (x1, y1), (x2, y2) = places[room], places[other]
            a, b, c, d = x1 + BOX / 2, y1 + HEIGHT, x2 + BOX / 2, y2
            bend = (d - b) / 2 if d > b else -HEIGHT
            path = f"M{a:g} {b:g} C{a:g} {b + bend:g} {c:g} {d - bend:g} {c:g} {d:g}"
            parts.append(f'<path d="{path}" fill="none" stroke="#7a9a97" stroke-width="1.4"/>')
    for room, (x, y) in places.items():
        folder = (SOURCE / room).is_dir()
        fill = "#d9efec" if folder else "#f4f4f4"
        box = f'x="{x:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="5" fill="{fill}" stroke="#00796b"'
        name = escape(f"{room}/" if folder else f"{room}.py")
        text = f'x="{x + BOX / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle" fill="#1a2b2a"'
        parts.append(f"<rect {box}/><text {text}>{name}</text>")
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "rooms.svg"
    target.write_text(draw(), encoding="utf-8")
