"""Likelihood of the targets of examples, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.data.batch import Example, collate
from limbeck.decode.session import evaluating
from limbeck.kernels.fused_head.losses import head_sequence_log_probs
from limbeck.model.decoder import Decoder

__all__ = ["nll_sums"]


def nll_sums(model: Decoder, examples: Sequence[Example], batch_size: int = 16) -> NDArray[np.float64]:
    """Return (n,) summed nats of each example's targets; near-equal lengths share a batch, which changes only rounding.

    Args:
        model: put in evaluation mode meanwhile.
        examples: tokens with their targets; an example without any has 0 nats.
        batch_size: examples at once.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    out: NDArray[Any] = np.zeros(len(examples))
    with evaluating(model):
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            batch = collate([[examples[i]] for i in chosen]).to(model.device)
            labels = batch.next_token_labels()

            def read(hidden: Tensor, head: nn.Module, labels: Tensor = labels) -> Tensor:
                return head_sequence_log_probs(hidden, head, labels)

            out[chosen] = -model(batch, read=read).double().cpu().numpy()
    return out
