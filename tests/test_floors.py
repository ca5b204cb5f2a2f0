"""The house of docs/architecture.md: imports go down or sideways within a room, never up, never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import limbeck
from limbeck.verbs.table import RECIPES

SOURCE = Path(limbeck.__file__).parent

FLOORS = [
    {"errors", "old_names", "processors"}, {"config"}, {"storage"}, {"run", "losses", "kernels"}, {"data"}, {"model"},
    {"techniques"}, {"formats"}, {"objectives"}, {"decode"}, {"train"}, {"measure"}, {"tasks"}, {"synth"}, {"jobs"},
    {"verbs"}, {"study", "serve"}, {"command"}, {"integrations", "schema"}, {"given", "results"}, {"handle"},
    {"api"}, {"cli"}, {"__main__"},
]  # fmt: skip
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# who | must not import | but may
BANS = [
    ("losses.*", "*", "losses.* kernels.*"),
    ("kernels.*", "*", "losses.* kernels.* processors"),
    ("model.*", "data.*", "data.batch"),
    ("techniques.*", "data.*", "data.batch"),
    ("objectives.*", "techniques.*", ""),
    ("train.*", "objectives.*", "objectives.objective"),
    ("train.*", "techniques.*", "techniques.technique"),
    ("measure.*", "train.*", ""),
    ("tasks.*", "train.*", ""),
    ("*", "cli", ""),
    ("*", "integrations.*", ""),
]


def imports(file: Path) -> Iterator[str]:
    """Modules of the project that a file imports anywhere, also inside functions, without the leading ``limbeck.``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the floors"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name.startswith("limbeck.") and name.removeprefix("limbeck.") not in MODULES:
                name = name.rpartition(".")[0]  # an imported name: the module it stands in
            if name.startswith("limbeck."):
                yield name.removeprefix("limbeck.")


def module(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(f): f for f in sorted(SOURCE.rglob("*.py")) if f != SOURCE / "__init__.py"}
EDGES = {name: set(imports(file)) for name, file in MODULES.items()}


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_a_floor() -> None:
    assert {room(m) for m in MODULES} == FLOOR.keys()


def test_the_table_of_the_architecture_is_these_floors() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (`[^|]+) \|", page, re.MULTILINE)
    told = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)(?:\.py|/)`", names)}
    assert told | {"__main__": len(FLOORS) - 1} == FLOOR


def test_no_import_goes_up() -> None:
    up = [(a, b) for a, seen in EDGES.items() for b in seen if room(a) != room(b) and FLOOR[room(a)] <= FLOOR[room(b)]]
    assert [pair for pair in up if not {room(pair[0]), room(pair[1])} <= {"losses", "kernels"}] == []


def test_no_import_goes_in_a_circle() -> None:
    tuple(TopologicalSorter(EDGES).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize(("who", "banned", "allowed"), BANS, ids=lambda v: v or "-")
def test_bans(who: str, banned: str, allowed: str) -> None:
    broken = [
        f"{a} imports {b}"
        for a, seen in EDGES.items()
        for b in seen
        if fnmatchcase(a, who) and fnmatchcase(b, banned)
        if not any(fnmatchcase(b, one) for one in allowed.split()) and a != "__main__"  # python -m limbeck
        if (room(a), banned) != ("integrations", "integrations.*")  # its own room
    ]
    assert broken == []


def test_no_technique_imports_another() -> None:
    """What techniques share (the protocol, the grid) stands in modules that the table does not name."""
    concrete = EDGES["techniques.table"] - {"techniques.technique"}
    others = {a: seen & concrete for a, seen in EDGES.items() if room(a) == "techniques" and a != "techniques.table"}
    assert {a: seen for a, seen in others.items() if seen} == {}


def test_no_verb_imports_another() -> None:
    """What verbs share stands in ``jobs``; their table names them as text."""
    between = {a: {b for b in seen if room(b) == "verbs"} for a, seen in EDGES.items() if room(a) == "verbs"}
    assert {a: seen for a, seen in between.items() if seen} == {}


def test_every_ban_is_on_rooms_that_exist() -> None:
    patterns = {p for who, banned, allowed in BANS for p in (who, banned, *allowed.split())}
    assert {p for p in patterns if not any(fnmatchcase(name, p) for name in MODULES)} == set()


def test_the_way_from_the_command_to_the_loss_is_what_the_page_says() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    way = re.search(r"goes down through these modules to its loss:\n\n(.*?)\n\n", page, re.DOTALL)
    assert way is not None
    hops = re.findall(r"`([\w.]+)`(?:\s*(->|=>))?", way.group(1))
    assert len(hops) >= 8 and set(name for name, _ in hops) <= set(MODULES)
    for (one, arrow), (two, _) in pairwise(hops):
        named = two in {RECIPES["distill"].partition(":")[0].removeprefix("limbeck.")} and "verbs.table" in EDGES[one]
        assert (two in EDGES[one] or named) == (arrow == "->"), f"{one} {arrow} {two}"
        assert FLOOR[room(two)] <= FLOOR[room(one)] or arrow == "=>" or room(two) == "losses"


def test_the_reading_of_imports_finds_some() -> None:
    assert "errors" in EDGES["config"] and "command.flags" in EDGES["cli"] and "verbs.table" in EDGES["cli"]
    assert EDGES["losses.terms"] == set()
