from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import DataError
from limbeck.tasks.poems import numbered_poems
from limbeck.tasks.sonnets import Sonnets

ROMAN = ("I", "II", "III", "IV", "V", "VI")


def body(i: int, lines: int = 14) -> list[str]:
    return [f"line {k} of the poem of day {i}" for k in range(lines)]


def file(headings: list[str], poems: list[list[str]] | None = None) -> str:
    poems = poems or [body(i) for i in range(len(headings))]
    parts = ["A BOOK\n\nby somebody", *(f"{h}\n\n" + "\n".join(p) for h, p in zip(headings, poems, strict=True))]
    return "\n\n".join(parts)


@pytest.mark.parametrize(
    "headings",
    [
        [str(i) for i in range(1, 7)],
        [str(i) for i in range(132, 138)],
        list(ROMAN),
        [f"{r}." for r in ROMAN],
        [f"Sonnet {i}." for i in range(1, 7)],
        [f"SONNET {r}" for r in ROMAN],
        [f"sonnet {r.lower()}" for r in ROMAN],
        [f"No. {i}" for i in range(1, 7)],
        [f"  {i})" for i in range(1, 7)],
        [str(i) for i in (2, 5, 8, 11, 14, 17)],  # gaps, blank lines around
    ],
)
def test_headings_are_found_and_belong_to_no_poem(headings: list[str]) -> None:
    found = numbered_poems(file(headings), "a.txt")
    assert [text.split() for _, text in found] == [" ".join(body(i)).split() for i in range(6)]
    assert all(b > a for (a, _), (b, _) in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("line", ["1914", "I", "  7", "3", "C"])
def test_a_line_that_only_looks_like_a_heading_belongs_to_its_poem(line: str) -> None:
    poems = [body(i) for i in range(6)]
    poems[2][2] = line
    for headings in ([str(i) for i in range(1, 7)], list(ROMAN), [f"Sonnet {i}." for i in range(1, 7)]):
        found = numbered_poems(file(headings, poems), "a.txt")
        assert len(found) == 6 and line.strip() in [one.strip() for one in found[2][1].split("\n")]


def test_a_heading_out_of_count_between_blank_lines_is_refused_with_its_line() -> None:
    poems = [body(i) for i in range(6)]
    poems[2][4:5] = ["", "1914", ""]
    text = file([str(i) for i in range(1, 7)], poems)
    line = text.split("\n").index("1914") + 1
    with pytest.raises(DataError, match=rf"line {line} of a.txt looks like the heading .*1914.*from 1 to 6"):
        numbered_poems(text, "a.txt")


def test_text_without_headings_is_none(tmp_path: Path) -> None:
    assert numbered_poems("one\ntwo\n\nI\nthree\n", "a.txt") == []
    (tmp_path / "a.txt").write_text("one\ntwo\n<|endoftext|>\nthree\n")
    rows = Sonnets().read(str(tmp_path / "a.txt"), columns={}, limit=None, separator="<|endoftext|>")
    assert [row.fields["text"] for row in rows] == ["one\ntwo", "three"]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("sonnets", 1, 131),
        ("TRUE_sonnets_held_out_dev", 132, 12),
        ("sonnets_held_out_dev", 132, 12),
        ("sonnets_held_out", 145, 12),
    ],
)
def test_the_course_files(real_data: Path, name: str, first: int, count: int) -> None:
    source = str(real_data / "cs224n" / f"{name}.txt")
    rows = Sonnets().read(source, columns={}, limit=None, separator="<|endoftext|>")
    assert [row.id for row in rows] == [f"sonnet:{i}" for i in range(first, first + count)]
