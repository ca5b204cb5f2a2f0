from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.mixture import Mixture
from limbeck.data.shards import Corpus, build_shards, shard_key
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError, DataError

CONTEXT = 16


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    texts = {
        name: [f"{name} {i} " + "abc " * (i % 9) for i in range(count)]
        for name, count in (("a", 90), ("b", 40), ("c", 25))
    }
    tokenizer = Tokenizer.train(texts["a"], 270)
    out = []
    for name, many in texts.items():
        folder = tmp_path_factory.mktemp("shards") / name
        key = shard_key(name, tokenizer, begin=True, end=True)
        build_shards(folder, key, many, tokenizer, begin=True, end=True, shard_bytes=400)
        out.append(Corpus(name, folder, key))
    return out


def mixture(
    corpora: list[Corpus], weights: tuple[float, ...] = (5, 3, 2), batch_size: int = 4, seed: int = 0
) -> Mixture:
    return Mixture(corpora, weights, batch_size=batch_size, context=CONTEXT, pad_id=0, seed=seed)


def test_weights_are_kept_to_within_a_row_at_every_block(corpora: list[Corpus]) -> None:
    weights = (0.613, 0.3, 0.087)
    stream = mixture(corpora, weights)
    seen = np.zeros(3)
    for k in range(4 * 1024):
        seen[stream.place(k)[0]] += 1
        if (k + 1) % 1024 == 0:
            assert np.abs(seen - (k + 1) * np.array(weights)).max() <= 1


def test_every_row_of_a_corpus_comes_once_an_epoch_and_every_token_is_predicted_once(corpora: list[Corpus]) -> None:
    stream = mixture(corpora[:1], (1,), batch_size=1)
    count = stream.rows[0]
    epochs = [[stream.place(k)[1] for k in range(e * count, (e + 1) * count)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count)) and epochs[0] != epochs[1]
    predicted: list[tuple[int, int, int]] = []
    for k in range(count):
        batch = stream.at(k)
        assert batch.ids.shape == (1, CONTEXT) and bool(batch.real.all())
        learned = (batch.next_token_labels() != -100)[0]
        for t in learned.nonzero().flatten().tolist():
            predicted.append((int(batch.row_ids[0, t + 1]), int(batch.offsets[0, t + 1]), int(batch.ids[0, t + 1])))
    seen = count * (CONTEXT - 1) + 1
    expected = [
        (d, at + j, int(i)) for d, at, ids in corpora[0].spans(0, seen) for j, i in enumerate(ids) if at + j > 0
    ]
    assert sorted(predicted) == expected


def test_a_batch_is_a_function_of_its_index_alone(corpora: list[Corpus]) -> None:
    one, two = mixture(corpora), mixture(corpora)
    forwards = [one.at(i).ids for i in range(8)]
    backwards = [two.at(i).ids for i in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not torch.equal(mixture(corpora, seed=1).at(0).ids, forwards[0])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_one_order(corpora: list[Corpus], ranks: int) -> None:
    """Rank r of R takes micro-batch (step K + j) R + r, as the loop does: the step's rows do not depend on R."""
    stream, per_step = mixture(corpora), 4
    for step in range(3):
        accumulation = per_step // ranks
        taken = [
            row
            for rank in range(ranks)
            for j in range(accumulation)
            for row in stream.at((step * accumulation + j) * ranks + rank).ids.tolist()
        ]
        alone = [row for j in range(per_step) for row in stream.at(step * per_step + j).ids.tolist()]
        assert sorted(taken) == sorted(alone)


def test_what_cannot_be_mixed_is_refused(corpora: list[Corpus]) -> None:
    with pytest.raises(ConfigError, match="'b' has weight 0"):
        mixture(corpora, (1, 0, 1))
    with pytest.raises(ConfigError, match="1/256"):
        mixture(corpora, (1, 1, 0.001))
    with pytest.raises(DataError, match="fewer than a row"):
        Mixture(corpora, (1, 1, 1), batch_size=1, context=100_000, pad_id=0)
    with pytest.raises(IndexError):
        mixture(corpora).at(-1)
