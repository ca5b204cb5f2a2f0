from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.packing import pack
from tests.reference.packing import best_fit_decreasing

lengths_of = st.lists(st.integers(1, 32), min_size=1, max_size=80)


@given(lengths_of, st.integers(1, 100), st.randoms(use_true_random=False))
def test_each_document_is_in_one_row_and_rows_fit(lengths: list[int], window: int, shuffler: object) -> None:
    order = list(range(len(lengths)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    rows = pack(np.array(lengths), order, 32, window)
    assert sorted(d for row in rows for d in row) == sorted(order)
    assert all(1 <= sum(lengths[d] for d in row) <= 32 for row in rows)


@given(lengths_of)
def test_rows_are_filled_as_the_slow_reference_fills_them(lengths: list[int]) -> None:
    rows = pack(np.array(lengths), list(range(len(lengths))), 32, len(lengths))
    filled = sorted(sum(lengths[d] for d in row) for row in rows)  # among equally full rows either may be chosen
    assert filled == sorted(sum(row) for row in best_fit_decreasing(lengths, 32))


@given(lengths_of)
def test_no_two_rows_of_a_window_could_be_one(lengths: list[int]) -> None:
    rows = pack(np.array(lengths), list(range(len(lengths))), 32, len(lengths))
    sums = sorted(sum(lengths[d] for d in row) for row in rows)
    assert len(sums) < 2 or sums[0] + sums[1] > 32


def test_windows_keep_far_documents_apart() -> None:
    rows = pack(np.full(8, 4), np.arange(8), 8, 2)
    assert rows == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_document_may_fill_a_row_exactly() -> None:
    assert pack(np.array([8, 8, 3, 5]), [0, 1, 2, 3], 8, 4) == [[0], [1], [3, 2]]
