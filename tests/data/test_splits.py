from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.rows import Row, Rows
from limbeck.data.splits import normalise, split_rows
from limbeck.data.toy.table import toy_rows
from limbeck.errors import DataError

PARTS = {"train": 0.5, "valid": 0.25, "test": 0.25}
ANCHORS = [f"anchor {i}" for i in range(40)]  # enough that no part is empty


def _rows(questions: list[str], source: str = "made") -> Rows:
    return Rows.of((Row(f"r{i}", {"question": q, "answer": str(i)}) for i, q in enumerate(questions)), source)


def _part_of(parts: dict[str, Rows]) -> dict[str, str]:
    """Part of every row id; fails where a row is in two."""
    found: dict[str, str] = {}
    for name, rows in parts.items():
        for row in rows:
            assert row.id not in found
            found[row.id] = name
    return found


questions = st.lists(st.text(max_size=12), max_size=30)


@given(questions)
def test_every_row_is_in_one_part_and_no_question_in_two(given_questions: list[str]) -> None:
    rows = _rows(ANCHORS + given_questions)
    parts = split_rows(rows, "question", PARTS)
    assert sorted(_part_of(parts)) == sorted(row.id for row in rows)
    keys = [{normalise(row.fields["question"]) for row in part} for part in parts.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


@given(questions, st.randoms(use_true_random=False), st.integers(0, 30))
def test_a_row_keeps_its_part_when_others_come_go_or_move(
    given_questions: list[str], shuffler: random.Random, cut: int
) -> None:
    all_rows = list(_rows(ANCHORS + given_questions))
    whole = _part_of(split_rows(Rows.of(all_rows, "x"), "question", PARTS))
    moved = all_rows[: len(ANCHORS) + cut]
    shuffler.shuffle(moved)
    for row, part in _part_of(split_rows(Rows.of(moved, "y"), "question", PARTS)).items():
        assert whole[row] == part


@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=20))
def test_spelling_of_case_and_space_does_not_move_a_question(text: str) -> None:
    variants = [text, text.upper(), text.lower(), f"  {text}\n", text]
    rows = _rows(ANCHORS + variants)
    found = _part_of(split_rows(rows, "question", PARTS))
    assert len({found[f"r{len(ANCHORS) + i}"] for i in range(len(variants))}) == 1


def test_normalising() -> None:
    assert normalise("  What IS\tthe\n Straße? ") == "what is the strasse?"
    assert normalise("caf\u00e9") == normalise("cafe\u0301") and normalise(7) == "7"


def test_parts_keep_order_and_sizes_near_the_shares() -> None:
    rows = _rows([f"question {i}" for i in range(4000)])
    parts = split_rows(rows, "question", {"train": 0.7, "valid": 0.15, "test": 0.15})
    assert [abs(len(parts[n]) / 4000 - s) < 0.03 for n, s in (("train", 0.7), ("valid", 0.15), ("test", 0.15))] == [
        True
    ] * 3
    places = [int(row.id[1:]) for row in parts["train"]]
    assert places == sorted(places)
    assert parts["train"].source == "made[train]" and parts["train"].hash != parts["test"].hash


def test_the_cut_is_the_same_for_everyone_and_depends_on_the_salt() -> None:
    rows = _rows(ANCHORS)
    student, teacher = (split_rows(rows, "question", PARTS) for _ in range(2))
    assert _part_of(student) == _part_of(teacher)
    assert _part_of(split_rows(rows, "question", PARTS, salt="other")) != _part_of(student)
    percent = {"train": 50, "valid": 25, "test": 25}
    assert _part_of(split_rows(rows, "question", percent)) == _part_of(student)
    # pinned: a change of the hash would move test questions into training data
    assert [row.id for row in student["test"]][:4] == PINNED


PINNED = ["r0", "r1", "r6", "r10"]


def test_no_toy_question_leaks_under_another_spelling() -> None:
    rows = toy_rows("qa")
    by_id = split_rows(rows, None, PARTS)
    parts = split_rows(rows, "question", PARTS)

    def leaks(parts: dict[str, Rows], key: Callable[[str], str]) -> int:
        seen = {key(row.fields["question"]) for row in parts["train"]}
        return sum(key(row.fields["question"]) in seen for row in parts["test"])

    assert leaks(parts, normalise) == 0
    assert leaks(by_id, normalise) == 0, "answers are equal where questions are"
    plain = {name: Rows.of(list(rows)[i::2], name) for i, name in enumerate(("train", "test"))}
    assert leaks(plain, normalise) > 10, "a split by place does leak, so the check above can fail"


def test_without_a_column_all_fields_count_but_not_the_id() -> None:
    ones = [Row(f"x{i}", {"id": f"x{i}", "q": f"A {i}", "a": "b"}) for i in range(60)]
    twos = [Row(f"y{i}", {"a": "B ", "q": f"a  {i}", "id": f"y{i}"}) for i in range(60)]
    found = _part_of(split_rows(Rows.of([*ones, *twos], "made"), None, PARTS))
    assert all(found[f"x{i}"] == found[f"y{i}"] for i in range(60))
    other = [Row(f"z{i}", {"q": f"A {i}", "a": "c"}) for i in range(60)]
    moved = _part_of(split_rows(Rows.of(other, "made"), None, PARTS))
    assert any(found[f"x{i}"] != moved[f"z{i}"] for i in range(60)), "another answer is another row"


@pytest.mark.parametrize(
    ("by", "fractions", "words"),
    [
        ("qestion", PARTS, "no column 'qestion' to split by, only question, answer; did you mean 'question'"),
        ("question", {"train": 0.8, "test": 0.1}, "add up to 1 or 100, not train 0.8, test 0.1"),
        ("question", {"train": 1.5, "test": -0.5}, "must be positive"),
        ("question", {"train": 1.0, "test": 0.0}, "must be positive"),
        ("question", {"train": float("nan")}, "must be positive"),
        ("question", {}, "must be positive"),
        ("question", {"train": 0.999999, "test": 0.000001}, r"the part 'test' \(0%\) of made got none of its 40 rows"),
    ],
)
def test_bad_splits_are_refused(by: str, fractions: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        split_rows(_rows(ANCHORS), by, fractions)


def test_a_row_without_a_question_is_named() -> None:
    rows = Rows.of([*_rows(ANCHORS), Row("bad", {"question": None})], "made")
    with pytest.raises(DataError, match="row bad of made has nothing in its field 'question'"):
        split_rows(rows, "question", PARTS)
