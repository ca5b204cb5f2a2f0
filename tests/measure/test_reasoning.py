"""Scorers of worked answers have tests of their own: what must not be credited is here."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from limbeck.measure.reasoning import flexible_answer, gold_answer, same_number, strict_answer


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("so it is 5.\n#### 18", "18"),
        ("#### -1,234.50 dollars", "-1234.50"),
        ("####$18", "18"),
        ("#### 5 and then #### 6", "5"),
        ("the answer is 18", None),
        ("#### eighteen", None),
        ("### 18", None),
        ("#### \u22127", "-7"),
        ("#### 18km", "18"),
        ("#### 18. That is all", "18"),
        ("#### 1,2345", None),  # the 1,234 in it is no answer, nor are the first digits of what follows
        ("#### 1,5", None),
        ("#### 1/2", None),
        ("#### 1e3", None),
        ("#### 3.14.15", None),
        ("#### 10:30", None),
        ("#### 2+3", None),
        ("#### 1,2345 or #### 1", None),
        ("", None),
        ("#### 1 000", "1000"),
        ("#### 9{,}500", "9500"),
        ("#### 1'000", "1000"),
        ("#### 1\u2019000\u2019000.5", "1000000.5"),
        ("#### 1\u00a0000", "1000"),
        ("#### 12\u202f345", "12345"),
        ("#### 1\\,000", "1000"),
        ("#### \\$1,000", "1000"),
        ("#### 1 00", None),  # neither 1 nor 100
        ("#### 9{,}50", None),
        ("#### 1'0000", None),
        ("#### 1 000,000", None),  # two kinds of marks
        ("#### 1_000", None),
    ],
)
def test_strict_is_the_number_after_the_mark(text: str, wanted: str | None) -> None:
    assert strict_answer(text) == (None if wanted is None else Decimal(wanted))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("she has 3 and 4, so 7.", "7"),
        ("it costs $1,234.", "1234"),
        ("the sum is -7.", "-7"),
        ("5-3", "3"),  # a difference, not minus three
        ("12 - 5 = 7 apples", "7"),
        ("(5)-3", "3"),
        ("it fell to \u22127", "-7"),
        ("1,2345", "2345"),
        ("0.5 litres", "0.5"),
        ("10,11", "11"),
        ("no number", None),
        ("so 1 000", "1000"),
        ("so 9{,}500", "9500"),
        ("so 1'000 apples", "1000"),
    ],
)
def test_flexible_is_the_last_number(text: str, wanted: str | None) -> None:
    assert flexible_answer(text) == (None if wanted is None else Decimal(wanted))


def test_numbers_are_compared_as_numbers_and_not_as_text() -> None:
    assert same_number(Decimal("18.0"), Decimal("18"))
    assert not same_number(flexible_answer("the answer is 180"), Decimal("18"))  # 18 is within it
    assert not same_number(flexible_answer("18 at first, then 20"), Decimal("18"))
    assert not same_number(strict_answer("#### 118"), Decimal("18"))
    assert not same_number(None, Decimal("18"))


def test_a_reference_is_a_solution_or_a_number() -> None:
    assert gold_answer("2+2=4\n#### 4") == Decimal(4)
    assert gold_answer(" 72 ") == Decimal(72)
    assert gold_answer("seventy") is None
    for solution, wanted in (("1 000", 1000), ("9{,}500", 9500), ("1'000", 1000), ("$1,000.50", "1000.50")):
        assert gold_answer(solution) == gold_answer(f"a sum\n#### {solution}") == Decimal(wanted)


@pytest.mark.parametrize(
    "solution",
    ["1 00", "1,5", "1e3", "1_000", "nan", "Infinity", "#### 1,5", "#### 5 #### 6", "5 or 6", "#### 7 x #### "],
)
def test_an_unclear_reference_is_none(solution: str) -> None:
    assert gold_answer(solution) is None


@pytest.mark.realdata
def test_every_reference_of_gsm8k_has_an_answer_that_both_ways_find(real_data: Path) -> None:
    lines = (real_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1319
    for line in lines:
        solution = json.loads(line)["answer"]
        wanted = gold_answer(solution)
        assert wanted is not None
        assert same_number(strict_answer(solution), wanted) and same_number(flexible_answer(solution), wanted)
