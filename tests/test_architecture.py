"""The map of the rooms is that of today's imports, and what the scripts count is what there is."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from tests.test_docs import loaded

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    return loaded(ROOT / "scripts" / f"{name}.py")


def test_the_map_is_fresh() -> None:
    """If not: python scripts/rooms.py."""
    drawn = script("rooms").draw()
    assert (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8") == drawn
    texts = [e.text for e in ElementTree.fromstring(drawn).iter() if e.tag.endswith("text")]
    assert {"verbs/", "jobs/", "losses/", "cli.py"} <= set(texts)


def test_floors_and_lines_follow_from_the_imports() -> None:
    rooms = script("rooms")
    graph = {"cli": {"verbs", "errors"}, "verbs": {"errors"}, "errors": set(), "a": {"b"}, "b": {"a", "errors"}}
    assert rooms.floors(graph) == {"cli": 2, "verbs": 1, "errors": 0, "a": 1, "b": 1}
    assert rooms.reduced(graph)["cli"] == {"verbs"}


def test_counts_are_those_of_a_tree(tmp_path: Path) -> None:
    counts = script("counts")
    room = tmp_path / "src" / "limbeck" / "room"
    room.mkdir(parents=True)
    (room / "one.py").write_text("class A:\n    pass\n")
    (room / "two.py").write_text("class A: ...\nclass _B: ...\n")
    (room.parent / "cli.py").write_text("class _B: ...\n")
    assert counts.rooms(tmp_path) == {"room/": (2, 4), "modules": (1, 1)}
    assert counts.repeated_classes(tmp_path) == ["A"]
    (tmp_path / "page.md").write_text("one two\n")
    assert counts.words([tmp_path / "page.md"]) == 2
    assert counts.pages(tmp_path) == []
    rows = counts._rooms({"room/": (2, 4)}, {"room/": (1, 9), "new/": (1, 1)})
    assert rows == [
        ["new/", "-", "-", "1", "1"],
        ["room/", "2", "4", "1", "9"],
        ["modules", *"----"],
        ["all", "2", "4", "2", "10"],
    ]
