from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.batch import Batch, Example
from limbeck.errors import DataError
from limbeck.measure.agreement import KL_PER_TOKEN, TOP_AGREEMENT, agreement
from tests.reference.small_model import decoder


def examples() -> list[Example]:
    random = np.random.default_rng(0)
    out = []
    for row, length in ((0, 9), (0, 5), (1, 12), (2, 2), (3, 1)):
        ids = random.integers(0, 280, length).astype(np.int32)
        target = np.ones(length, np.bool_)
        target[: length // 3] = False
        out.append(Example(row, f"r{row}", ids, target))
    return out


def test_against_the_obvious_loop() -> None:
    a, b = decoder().double(), decoder().double()
    sums: dict[str, list[float]] = {}
    for e in examples():
        ids = torch.from_numpy(e.ids).long()[None]
        with torch.no_grad():
            p, q = (m(Batch.of_ids(ids))[0].log_softmax(-1) for m in (a, b))
        for t in range(1, len(e)):
            if e.target[t]:
                found = sums.setdefault(e.id, [0.0, 0.0, 0.0])
                found[0] += float((p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum())
                found[1] += float(p[t - 1].argmax() == q[t - 1].argmax())
                found[2] += 1
    for batch_size in (1, 2, 16):
        scores = agreement(a, b, examples(), batch_size)
        assert scores.ids == tuple(sums)  # in the rows' order; what predicts nothing is left out
        for k, column in enumerate(("kl", "agree", "tokens")):
            np.testing.assert_allclose(scores[column], [s[k] for s in sums.values()], rtol=1e-10)
    table = np.array(list(sums.values()))
    assert KL_PER_TOKEN.value(scores) == pytest.approx(table[:, 0].sum() / table[:, 2].sum())
    assert TOP_AGREEMENT.value(scores) == pytest.approx(table[:, 1].sum() / table[:, 2].sum())


def test_a_model_agrees_with_itself() -> None:
    model = decoder()
    scores = agreement(model, model, examples())
    assert KL_PER_TOKEN.value(scores) == pytest.approx(0, abs=1e-6) and TOP_AGREEMENT.value(scores) == 1


def test_nothing_to_predict_is_refused() -> None:
    model = decoder()
    with pytest.raises(DataError, match="no token of these texts can be predicted"):
        agreement(model, model, [e for e in examples() if e.id == "r3"])
