"""The index finds exactly the pairs that share a hash; MinHash estimates Jaccard, and its bands miss no near one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.audit.match import BANDS, ROWS, HashIndex, bands, jaccard, signatures
from limbeck.data.audit.text import mix

SETS = st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=6)


def laid_out(sets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    hashes = mix(np.array([x for one in sets for x in one], dtype=np.uint64))
    return hashes, np.array([i for i, one in enumerate(sets) for _ in one], dtype=np.int64)


@given(SETS, SETS)
def test_pairs_and_counts_are_those_of_set_intersection(ours: list[list[int]], theirs: list[list[int]]) -> None:
    found = HashIndex(*laid_out(theirs)).pairs(*laid_out(ours))
    got = {(a, b): n for a, b, n in zip(found.left, found.right, found.count, strict=True)}
    expected = {(i, j): len(set(a) & set(b)) for i, a in enumerate(ours) for j, b in enumerate(theirs)}
    assert got == {pair: n for pair, n in expected.items() if n}


def test_a_hash_that_many_hold_is_paired_with_the_first() -> None:
    one = np.full(10, 7, dtype=np.uint64)
    found = HashIndex(one, np.arange(10), holders=3).pairs(one[:1], np.array([5]))
    assert found.right.tolist() == [0, 1, 2]


def test_minhash_estimates_jaccard_without_bias() -> None:
    random = np.random.default_rng(0)
    values = mix(random.integers(0, 1 << 62, 400).astype(np.uint64))
    for overlap in (0, 50, 100, 150, 200):  # sets of 200, Jaccard overlap / (400 - overlap)
        a, b = values[:200], values[200 - overlap : 400 - overlap]
        owner = np.repeat([0, 1], 200)
        signature = signatures(np.concatenate([a, b]), owner, 2)
        true = jaccard(a, b)
        assert true == pytest.approx(overlap / (400 - overlap))
        sigma = np.sqrt(true * (1 - true) / (BANDS * ROWS))
        assert abs(float((signature[0] == signature[1]).mean()) - true) <= 4 * sigma


def test_bands_find_pairs_at_the_stated_similarity_and_few_unlike_ones() -> None:
    random = np.random.default_rng(1)
    near = far = 0
    for _ in range(150):
        values = mix(random.integers(0, 1 << 62, 150).astype(np.uint64))
        shared = np.concatenate([values[:86], values[86:104], values[:86], values[104:122]])  # 86 / 122 = 0.705
        apart = np.concatenate([values[:20], values[20:85], values[:20], values[85:150]])  # 20 / 150 = 0.133
        for kind, some in (("near", shared), ("far", apart)):
            owner = np.repeat([0, 1], len(some) // 2)
            hashes, owners = bands(signatures(some, owner, 2), np.arange(2))
            met = len(np.intersect1d(hashes[owners == 0], hashes[owners == 1])) > 0
            near, far = near + (met and kind == "near"), far + (met and kind == "far")
    assert near == 150  # 0.9998 each
    assert far <= 10  # 0.01 each


def test_nothing_has_a_signature_of_its_own() -> None:
    empty = signatures(np.zeros(0, np.uint64), np.zeros(0, np.int64), 2)
    assert (empty == np.iinfo(np.uint64).max).all() and empty.shape == (2, BANDS * ROWS)
    assert jaccard(np.zeros(0, np.uint64), np.zeros(0, np.uint64)) == 0
