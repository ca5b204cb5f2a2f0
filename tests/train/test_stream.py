"""Names of rows, counts of tokens, seeds."""

from __future__ import annotations

import torch

from limbeck.data.batch import Batch, PairBatch
from limbeck.train.stream import derive, name_rows, parts, tokens


def batch(rows: int, first: int = 0) -> Batch:
    one = Batch.of_ids(torch.ones(rows, 4, dtype=torch.int64), [4, 2, 3][:rows] + [4] * (rows - 3))
    ids = torch.where(one.real, one.row_ids + first, -1)
    return Batch(one.ids, one.target_mask, one.document_ids, ids, one.offsets, plain=True)


def test_rows_in_words() -> None:
    assert name_rows([]) == "no row"
    assert name_rows([batch(1, 5)]) == "row 5"
    assert name_rows([batch(2, 5), batch(2, 6)]) == "rows 5, 6 and 7"
    assert name_rows([batch(20)], most=3) == "rows 0, 1, 2 and 17 more"


def test_pairs_have_two_parts() -> None:
    pair = PairBatch(batch(2), batch(3, 7), ("a", "b"))
    assert parts(pair) == (pair.chosen, pair.rejected)
    assert name_rows([pair]) == "rows 0, 1, 7, 8 and 9"
    assert tokens(pair) == (6 + 9, 4 + 6)
    assert tokens(batch(2)) == (6, 4)


def test_seeds_are_stable_and_apart() -> None:
    assert derive(1, "dropout", 2) == derive(1, "dropout", 2) == 6175434376661844309
    seeds = {derive(s, what, i) for s in range(10) for what in ("dropout", "evaluate") for i in range(100)}
    assert len(seeds) == 2000 and all(0 <= s < 2**63 for s in seeds)
