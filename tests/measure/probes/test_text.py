"""Scorers of token sequences against what they must and must not see."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from limbeck.measure.probes.text import common_run, loop_tokens, repeated_share
from tests.reference.slow_audit import longest_copied

IDS = st.lists(st.integers(0, 3), max_size=12)


@given(IDS, IDS)
def test_the_common_run_is_that_of_three_loops(a: list[int], b: list[int]) -> None:
    assert common_run(a, b) == longest_copied(a, [b])


def test_a_loop_is_a_tail_of_whole_periods() -> None:
    assert loop_tokens([9, 8, 1, 2, 3, 1, 2, 3, 1, 2, 3]) == 9
    assert loop_tokens([9, 8, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1]) == 10  # a period begun counts
    assert loop_tokens([5] * 7) == 7
    assert loop_tokens([1, 2, 3, 1, 2, 3]) == 0  # twice is no loop
    assert loop_tokens([5, 5, 5, 5, 1]) == 0  # it got out again
    assert loop_tokens([]) == loop_tokens([1]) == 0
    assert loop_tokens([1, 2, 3, 4] * 3, longest_period=3) == 0


@given(IDS, st.integers(1, 4), st.integers(3, 5))
def test_every_planted_loop_is_found(before: list[int], period: int, times: int) -> None:
    assert loop_tokens(before + list(range(10, 10 + period)) * times) >= period * times


def test_repeated_runs_are_counted_within_a_text_only() -> None:
    assert repeated_share([[1, 2, 3, 4], [1, 2, 3, 4]]) == (0.0, 2)
    assert repeated_share([[1, 1, 1, 1, 1, 1]]) == (1 - 1 / 3, 3)
    assert repeated_share([[1, 2]]) == (0.0, 0)
