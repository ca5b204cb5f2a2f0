"""The class objective: sums over rows, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.data.batch import collate
from limbeck.errors import ConfigError
from limbeck.losses.terms import total
from limbeck.model.config import Classes
from limbeck.model.heads import class_logits, with_classes
from limbeck.objectives.classify import Classify
from limbeck.tasks.classification import encode_texts
from tests.reference.task_models import class_rows, small, tokenizer

TEXTS = ["good", "the plot of this film was not good at all", "a dull show", "fine"]


def _examples(labels: list[int]) -> list:
    return encode_texts(class_rows(labels), TEXTS[: len(labels)], labels, tokenizer(), 64)[0]


@pytest.mark.parametrize("how", ["last", "mean"])
def test_the_mean_is_cross_entropy_over_rows(how: str) -> None:
    model = with_classes(small(), Classes(labels=("x", "y", "z"), pool=how)).double()  # type: ignore[arg-type]
    batch = collate([[e] for e in _examples([0, 2, 1, 1])])
    objective = Classify(how)  # type: ignore[arg-type]
    terms, counts = objective(model, batch), objective.counts(batch)
    assert counts == {"nll": 4.0} == {"nll": terms["nll"].count}
    expected = F.cross_entropy(class_logits(model, batch, how), torch.tensor([0, 2, 1, 1]))  # type: ignore[arg-type]
    assert torch.allclose(total(terms, counts), expected, atol=1e-12)


def test_micro_batches_give_the_gradient_of_one_batch() -> None:
    examples = _examples([0, 2, 1, 1])
    gradients = []
    for sizes in ((4,), (1, 3)):
        model = with_classes(small(), Classes(labels=("x", "y", "z"))).double()
        torch.nn.init.ones_(model.head.weight)
        at = 0
        for size in sizes:
            batch = collate([[e] for e in examples[at : at + size]])
            total(Classify()(model, batch), {"nll": 4.0}).backward()
            at += size
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-10)


def test_packed_rows_are_refused() -> None:
    packed = collate([_examples([0, 1])])
    with pytest.raises(ConfigError, match="cannot be packed"):
        Classify().counts(packed)
