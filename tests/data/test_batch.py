from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.batch import IGNORE, Batch, Example, PairBatch, collate

layouts = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4)


def _rows(layout: list[list[int]], label: int | None = None) -> list[list[Example]]:
    rows, count = [], 0
    for lengths in layout:
        row = []
        for n in lengths:
            target = np.array([(count + t) % 3 > 0 for t in range(n)])
            row.append(Example(count, f"r{count}", np.arange(n, dtype=np.int32) + 10 * count, target, count, label))
            count += 1
        rows.append(row)
    return rows


@given(layouts, st.booleans(), st.integers(1, 8))
def test_labels_and_positions_follow_a_loop_over_documents(layout: list[list[int]], left: bool, multiple: int) -> None:
    rows = _rows(layout)
    batch = collate(rows, pad_id=7, multiple=multiple, left=left)
    width = batch.ids.shape[1]
    assert width % multiple == 0 and width - multiple < max(sum(x) for x in layout)
    labels = torch.full_like(batch.ids, IGNORE)
    positions, predicts = torch.zeros_like(batch.ids), torch.zeros_like(batch.real)
    for b, row in enumerate(rows):
        at = width - sum(map(len, row)) if left else 0
        for example in row:
            for t in range(len(example)):
                assert batch.ids[b, at + t] == example.ids[t] and batch.row_ids[b, at + t] == example.row
                assert batch.offsets[b, at + t] == example.offset + t
                positions[b, at + t] = t
                if t + 1 < len(example):
                    predicts[b, at + t] = True
                    if example.target[t + 1]:
                        labels[b, at + t] = int(example.ids[t + 1])
            at += len(example)
    assert torch.equal(batch.next_token_labels(), labels) and torch.equal(batch.positions(), positions)
    assert torch.equal(batch.prediction_mask(), predicts)
    assert int((labels != IGNORE).sum()) == sum(e.predictions for row in rows for e in row)


@pytest.mark.parametrize(
    ("layout", "left", "plain"),
    [([[3], [5]], False, True), ([[3], [5]], True, False), ([[5], [5]], True, True), ([[3, 2], [5]], False, False)],
)
def test_plain_is_said_only_where_a_causal_mask_is_exact(layout: list[list[int]], left: bool, plain: bool) -> None:
    assert collate(_rows(layout), left=left).plain is plain


def test_wrapped_ids_are_all_targets() -> None:
    batch = Batch.of_ids(torch.tensor([[5, 6, 7], [8, 9, 0]]), lengths=[3, 2])
    assert batch.next_token_labels().tolist() == [[6, 7, IGNORE], [9, IGNORE, IGNORE]]
    assert batch.row_ids.tolist() == [[0, 0, 0], [1, 1, -1]] and batch.offsets.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert Batch.of_ids(torch.tensor([[5, 6]])).real.all()


def test_labels_of_rows_are_kept_where_every_row_has_one() -> None:
    labelled = collate(_rows([[3], [5]], label=2))
    assert labelled.labels is not None and labelled.labels.tolist() == [2, 2]
    assert collate(_rows([[3], [5]])).labels is None and collate(_rows([[3, 1]], label=2)).labels is None


def test_moving_keeps_every_field() -> None:
    batch = collate(_rows([[3], [5]], label=1))
    pairs = PairBatch(batch, collate(_rows([[2], [4]])), ("a", "b")).to("meta")
    moved = pairs.chosen
    assert {moved.ids.device.type, moved.labels.device.type, pairs.rejected.ids.device.type} == {"meta"}  # type: ignore[union-attr]
    assert moved.ids.shape == batch.ids.shape and moved.plain and pairs.rejected.labels is None
    assert pairs.keys == ("a", "b") and pairs.pairs == 2
