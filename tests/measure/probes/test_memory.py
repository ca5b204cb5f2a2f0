"""The index of training tokens against a slow reference, and the alarms on planted copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.batch import Example
from limbeck.measure.alarm import Continuation, Subject
from limbeck.measure.probes.memory import CopiedRun, Memorised, TrainingIndex
from tests.reference.slow_audit import longest_copied

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=10), max_size=4)


def examples(texts: list[list[int]]) -> list[Example]:
    return [Example(i, str(i), np.array(t, np.int32), np.ones(len(t), np.bool_)) for i, t in enumerate(texts)]


@given(TEXTS, st.lists(st.integers(0, 2), max_size=10))
def test_known_runs_and_the_longest_are_those_of_loops(texts: list[list[int]], ids: list[int]) -> None:
    index = TrainingIndex.of(examples(texts), order=3)
    runs = {tuple(t[i : i + 3]) for t in texts for i in range(len(t) - 2)}
    assert index.known(ids).tolist() == [tuple(ids[i : i + 3]) in runs for i in range(len(ids) - 2)]
    slow = longest_copied(ids, texts)
    assert index.longest_run(ids) == (slow if slow >= 3 else 0)


def test_no_run_crosses_from_one_text_into_the_next() -> None:
    index = TrainingIndex.of(examples([[1, 2, 3], [4, 5, 6]]), order=2)
    assert index.known([3, 4]).tolist() == [False] and index.longest_run([1, 2, 3, 4, 5, 6]) == 3


def test_a_patchwork_of_short_runs_is_no_long_copy() -> None:
    """Every 3-gram is known, but no text holds more than four tokens in a row."""
    index = TrainingIndex.of(examples([[1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6], [4, 5, 6, 7]]), order=3)
    ids = [1, 2, 3, 4, 5, 6, 7]
    assert index.known(ids).all() and index.longest_run(ids) == 4


def test_the_limit_leaves_out_whole_texts_and_says_so() -> None:
    index = TrainingIndex.of(examples([[1] * 5, [2] * 5, [3] * 5]), order=3, limit_tokens=10)
    assert (index.texts, index.left_out) == (2, 1)
    assert index.known([3, 3, 3]).tolist() == [False]
    told = Memorised(index)(Subject(written=[Continuation((0,), (1,) * 5)]))
    assert told is not None and told.sentence.endswith("; 1 training texts were not looked at")


def test_copies_ring_and_new_text_does_not() -> None:
    text = list(range(100, 180))
    index = TrainingIndex.of(examples([text]))
    copied = Subject(written=[Continuation((1,), tuple(text[5:70]), tuple(range(60)))])
    share, run = Memorised(index)(copied), CopiedRun(index)(copied)
    assert share is not None and run is not None
    assert (share.value, share.fired, run.value, run.fired) == (1.0, True, 65.0, True)
    fresh = Subject(written=[Continuation((1,), tuple(range(60)), tuple(text[:40]))])
    share, run = Memorised(index)(fresh), CopiedRun(index)(fresh)
    assert share is not None and run is not None
    assert (share.value, share.fired, run.value, run.fired) == (-1.0, False, 0.0, False)


def test_copying_as_much_as_the_references_do_is_the_task() -> None:
    text = list(range(100, 180))
    index = TrainingIndex.of(examples([text]))
    same = Subject(written=[Continuation((1,), tuple(text[:60]), tuple(text[:60]))])
    for probe in (Memorised(index), CopiedRun(index)):
        told = probe(same)
        assert told is not None and not told.fired


@pytest.mark.parametrize("written", [(), (Continuation((1,), (1, 2, 3)),)])
def test_nothing_to_judge_is_silence(written: tuple[Continuation, ...]) -> None:
    index = TrainingIndex.of(examples([[1] * 20]))
    assert Memorised(index)(Subject(written=written)) is None
    assert CopiedRun(index)(Subject()) is None
    empty = TrainingIndex.of([])
    assert not empty.known([1] * 9).any() and empty.longest_run([1] * 9) == 0
