"""I4: padding, on either side, changes no logit, no loss and no gradient. (Generated tokens: with decoding's tests.)"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.batch import Batch, Example, collate
from limbeck.model.patterns import Sliding
from tests.reference.families import family, gradients, nll

LENGTHS = (7, 12, 3)


def _examples() -> list[Example]:
    random = np.random.default_rng(0)
    made = []
    for i, n in enumerate(LENGTHS):
        target = np.arange(n) >= n // 2
        made.append(Example(i, f"r{i}", random.integers(0, 300, n, dtype=np.int32), target))
    return made


def _padded(left: bool, multiple: int, pad_id: int = 0) -> Batch:
    return collate([[e] for e in _examples()], pad_id=pad_id, multiple=multiple, left=left)


CASES = [(False, 1), (False, 20), (True, 1), (True, 20)]
MODELS = [("gpt2", {}), ("llama", {}), ("llama", {"pattern": Sliding(window=4, sinks=1)})]


@pytest.mark.parametrize(("left", "multiple"), CASES)
@pytest.mark.parametrize(("name", "over"), MODELS)
def test_logits_and_losses_are_those_of_the_rows_alone(
    name: str, over: dict[str, object], left: bool, multiple: int
) -> None:
    model, batch = family(name, **over), _padded(left, multiple)
    with torch.no_grad():
        logits = model(batch)
        losses = nll(logits, batch)
        for b, example in enumerate(_examples()):
            alone = collate([[example]])
            expected = model(alone)[0]
            torch.testing.assert_close(logits[b][batch.real[b]], expected, rtol=1e-10, atol=1e-10)
            ours = losses[b].sum()
            torch.testing.assert_close(ours, nll(expected[None], alone).sum(), rtol=1e-10, atol=1e-10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("left", "multiple"), CASES)
@pytest.mark.parametrize(("name", "over"), MODELS)
def test_gradients_are_those_of_the_rows_alone(name: str, over: dict[str, object], left: bool, multiple: int) -> None:
    model = family(name, **over)
    alone = gradients(model, [collate([[e]]) for e in _examples()])
    padded = gradients(model, [_padded(left, multiple)])
    assert alone.keys() == padded.keys()
    for key in alone:
        torch.testing.assert_close(padded[key], alone[key], rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("left", [False, True])
def test_the_id_written_on_padding_is_never_read(left: bool) -> None:
    model = family("gpt2")
    zero, other = (gradients(model, [_padded(left, 20, pad_id)]) for pad_id in (0, 299))
    assert all(torch.equal(zero[key], other[key]) for key in zero)
    assert _padded(left, 20).next_token_labels().ne(-100).sum() == sum(e.predictions for e in _examples())
