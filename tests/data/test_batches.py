from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.batch import Batch, Example
from limbeck.data.batches import Batches
from limbeck.errors import DataError

CONTEXT = 16


def _examples(lengths: list[int]) -> list[Example]:
    made = []
    for i, n in enumerate(lengths):
        target = np.arange(n) % 3 != 1
        made.append(Example(i, f"r{i}", np.arange(n, dtype=np.int32) + 100 * i, target, offset=i % 5))
    return made


def _documents(batch: Batch) -> list[tuple[int, list[int], list[bool], int]]:
    """(row, ids, targets, offset) of every document in the batch, read back from the tensors."""
    found = []
    for b in range(batch.ids.shape[0]):
        for d in range(1, int(batch.document_ids[b].max()) + 1):
            here = batch.document_ids[b] == d
            rows = batch.row_ids[b][here].unique().tolist()
            assert len(rows) == 1, "a document comes from one row"
            place = here.nonzero().flatten()
            assert place.tolist() == list(range(int(place[0]), int(place[-1]) + 1)), "and lies in one piece"
            offsets = batch.offsets[b][here]
            assert (offsets - offsets[0]).tolist() == list(range(len(place)))
            found.append((rows[0], batch.ids[b][here].tolist(), batch.target_mask[b][here].tolist(), int(offsets[0])))
    return found


def _equal(a: Batch, b: Batch) -> bool:
    names = ("ids", "target_mask", "document_ids", "row_ids", "offsets")
    return a.plain == b.plain and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


options = st.fixed_dictionaries(
    {"packing": st.booleans(), "bucketing": st.booleans(), "shuffle": st.booleans(), "seed": st.integers(0, 5)}
)
lengths_of = st.lists(st.integers(1, CONTEXT), min_size=1, max_size=40)


@given(lengths_of, st.integers(1, 7), st.integers(0, 3), options)
def test_every_example_comes_once_an_epoch_with_its_masks(
    lengths: list[int], size: int, epoch: int, how: dict[str, object]
) -> None:
    examples = _examples(lengths)
    stream = Batches(examples, batch_size=size, context=CONTEXT, pad_id=9, **how)  # type: ignore[arg-type]
    found = []
    for i in range(stream.per_epoch):
        batch = stream.at(epoch * stream.per_epoch + i)
        assert 1 <= batch.ids.shape[0] <= size and batch.ids.shape[1] <= CONTEXT
        padding = ~batch.real
        assert (batch.ids[padding] == 9).all() and not batch.target_mask[padding].any()
        assert (batch.row_ids[padding] == -1).all() and (batch.offsets[padding] == 0).all()
        assert not padding[:, 0].any(), "padding is on the right, and no row is empty"
        found += _documents(batch)
    expected = [(e.row, e.ids.tolist(), e.target.tolist(), e.offset) for e in examples]
    assert sorted(found) == sorted(expected)


@given(lengths_of, st.integers(1, 7), options, st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_a_batch_depends_on_its_index_alone(
    lengths: list[int], size: int, how: dict[str, object], calls: list[int]
) -> None:
    one = Batches(_examples(lengths), batch_size=size, context=CONTEXT, pad_id=0, **how)  # type: ignore[arg-type]
    seen = {i: one.at(i) for i in calls}
    two = Batches(_examples(lengths), batch_size=size, context=CONTEXT, pad_id=0, **how)  # type: ignore[arg-type]
    for i in sorted(calls, reverse=True):
        assert _equal(two.at(i), seen[i]) and _equal(one.at(i), seen[i])


def _order(stream: Batches, epoch: int) -> list[int]:
    batches = (stream.at(epoch * stream.per_epoch + i) for i in range(stream.per_epoch))
    return [row for batch in batches for row, *_ in _documents(batch)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("bucketing", [False, True])
def test_epochs_and_seeds_differ_when_shuffled_and_only_then(packing: bool, bucketing: bool) -> None:
    examples = _examples([i % 13 + 1 for i in range(60)])
    make = {"batch_size": 4, "context": CONTEXT, "pad_id": 0, "packing": packing, "bucketing": bucketing}
    stream = Batches(examples, **make)  # type: ignore[arg-type]
    orders = [tuple(_order(stream, e)) for e in range(4)]
    assert len(set(orders)) == 4
    assert orders[0] != tuple(_order(Batches(examples, seed=1, **make), 0))  # type: ignore[arg-type]
    still = Batches(examples, shuffle=False, **make)  # type: ignore[arg-type]
    assert _order(still, 0) == _order(still, 3)


def test_without_shuffling_the_order_is_the_examples() -> None:
    examples = _examples([5, 9, 2, 7, 14, 1, 3])
    assert _order(Batches(examples, batch_size=2, context=CONTEXT, pad_id=0, shuffle=False), 1) == list(range(7))
    packed = Batches(examples, batch_size=2, context=CONTEXT, pad_id=0, shuffle=False, packing=True)
    firsts = [_documents(packed.at(i))[0][0] for i in range(packed.per_epoch)]
    assert firsts == sorted(firsts) and firsts[0] == 0


def test_the_last_batch_of_an_epoch_is_smaller() -> None:
    stream = Batches(_examples([4] * 7), batch_size=3, context=CONTEXT, pad_id=0)
    assert stream.per_epoch == 3
    assert [stream.at(i).ids.shape[0] for i in range(6)] == [3, 3, 1, 3, 3, 1]
    bucketed = Batches(_examples([4] * 7), batch_size=3, context=CONTEXT, pad_id=0, bucketing=True)
    assert sorted(bucketed.at(i).ids.shape[0] for i in range(3)) == [1, 3, 3]


def test_bucketing_and_packing_save_padding() -> None:
    examples = _examples([i * 7 % 16 + 1 for i in range(200)])
    make = {"batch_size": 8, "context": CONTEXT, "pad_id": 0}
    plain, bucketed, packed = (
        Batches(examples, **make, **how).describe()  # type: ignore[arg-type]
        for how in ({}, {"bucketing": True}, {"packing": True})
    )
    assert plain["padding_share"] > 0.3 > 0.1 > bucketed["padding_share"] and packed["padding_share"] < 0.03
    assert packed["rows_per_epoch"] < bucketed["rows_per_epoch"] == 200


def test_batches_of_like_length_come_in_random_order() -> None:
    examples = _examples([i % 16 + 1 for i in range(160)])
    widths = {}
    for shuffle in (False, True):
        stream = Batches(examples, batch_size=8, context=CONTEXT, pad_id=0, bucketing=True, shuffle=shuffle)
        widths[shuffle] = [stream.at(i).ids.shape[1] for i in range(stream.per_epoch)]
    assert widths[False] == sorted(widths[False]) == sorted(widths[True]) != widths[True]


@pytest.mark.parametrize("how", [{}, {"bucketing": True}, {"packing": True}])
def test_describe_tells_what_an_epoch_holds(how: dict[str, bool]) -> None:
    examples = _examples([i % 11 + 1 for i in range(50)])
    stream = Batches(examples, batch_size=4, context=CONTEXT, pad_id=0, seed=3, **how)
    told = stream.describe()
    batches = [stream.at(i) for i in range(stream.per_epoch)]
    real = sum(int(b.real.sum()) for b in batches)
    cells = sum(b.ids.numel() for b in batches)
    assert told["examples"] == 50 and told["tokens"] == real and told["longest_tokens"] == 11
    assert told["target_tokens"] == sum(int((b.next_token_labels() >= 0).sum()) for b in batches)
    assert told["rows_per_epoch"] == sum(b.ids.shape[0] for b in batches)
    assert told["batches_per_epoch"] == stream.per_epoch == len(batches)
    assert told["padding_share"] == pytest.approx(1 - real / cells)


def test_shuffling_is_fair() -> None:
    stream = Batches(_examples([1] * 4), batch_size=1, context=CONTEXT, pad_id=0)
    first = Counter(int(stream.at(4 * epoch).row_ids[0, 0]) for epoch in range(400))
    assert all(60 < first[i] < 140 for i in range(4))


def test_the_order_is_the_same_on_every_machine() -> None:
    stream = Batches(_examples([1] * 8), batch_size=8, context=CONTEXT, pad_id=0, seed=7)
    assert _order(stream, 0) == PINNED


PINNED = [6, 3, 1, 0, 2, 4, 7, 5]


def test_a_hundred_thousand_examples_take_a_moment() -> None:
    ids, target = np.zeros(64, dtype=np.int32), np.ones(64, dtype=np.bool_)
    examples = [Example(i, "x", ids[: i % 64 + 1], target[: i % 64 + 1]) for i in range(100_000)]
    start = time.perf_counter()
    Batches(examples, batch_size=32, context=64, pad_id=0, packing=True, bucketing=True).at(0)
    assert time.perf_counter() - start < 5  # 0.2 s where measured; a quadratic packer would take minutes


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        Batches([], batch_size=1, context=4, pad_id=0)
    with pytest.raises(DataError, match="row r1 has 5 tokens for a context of 4"):
        Batches(_examples([4, 5]), batch_size=1, context=4, pad_id=0, packing=True)
    with pytest.raises(DataError, match="batch_size must be at least 1 and the seed at least 0, not 0 and 0"):
        Batches(_examples([4]), batch_size=0, context=4, pad_id=0)
    with pytest.raises(DataError, match="not 1 and -1"):
        Batches(_examples([4]), batch_size=1, context=4, pad_id=0, seed=-1)
    with pytest.raises(IndexError, match="begins at 0, not -1"):
        Batches(_examples([4]), batch_size=1, context=4, pad_id=0).at(-1)
