"""Equal rows found while rows go by, against a slow reference."""

from __future__ import annotations

import random

import pytest

from limbeck.data.audit.find import IndexedRows
from limbeck.data.audit.repeats import Repeat, Repeats
from limbeck.data.rows import Row
from tests.reference.slow_audit import letters, words


def slow(rows: list[tuple[str, ...]]) -> list[Repeat]:
    """Every row with all earlier ones."""
    out: list[Repeat] = []
    for i, row in enumerate(rows):
        if sum(len(words(text)) for text in row) < 3:
            continue
        same = [j for j in range(i) if rows[j] == row]
        alike = [j for j in range(i) if sorted(map(letters, rows[j])) == sorted(map(letters, row))]
        if same:
            out.append(("exact", i, same[0], len(same)))
        elif alike:
            out.append(("normalised", i, alike[0], len(alike)))
    return out


@pytest.mark.parametrize("block", [1, 3, 50, 400])
@pytest.mark.parametrize("fields", [("a",), ("a", "b")])
def test_repeats_are_those_of_the_slow_reference(fields: tuple[str, ...], block: int) -> None:
    draw = random.Random(0)
    spelled = ["one two", "One, two!", "zwei drei", "Zwei  Drei", "ü", "", "four five six", "four five six seven"]
    rows = [tuple(" ".join(draw.choices(spelled, k=3)) for _ in fields) for _ in range(160)]
    rows += [tuple(reversed(draw.choice(rows))) for _ in range(40)] + [("ü",) * len(fields)] * 3
    seen, found = Repeats(), list[Repeat]()
    for at in range(0, len(rows), block):
        some = rows[at : at + block]
        named = [Row(f"id {at + i} é", dict(zip(fields, row, strict=True))) for i, row in enumerate(some)]
        found += seen.find(IndexedRows.of(named, fields, 3))
    assert found == slow(rows) and {kind for kind, *_ in found} == {"exact", "normalised"}
    assert len(seen) == len(rows) and seen.id_of(0) == "id 0 é" and seen.id_of(202) == "id 202 é"
