"""A batch of sequences that grow together, token by token, on one cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.decode.step import CompiledStep
from limbeck.model.cache import KVCache, KVKind
from limbeck.model.decoder import Decoder

__all__ = ["Session", "evaluating"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off and gradients off; put the model back as it was.

    Not ``inference_mode``: the rotary tables made inside would be unusable in a later training step.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class Session:
    """Ragged sequences on a KV cache.

    Attributes:
        rows: how many sequences it holds.
    """

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        pad_id: int = 0,
        cache: KVKind = "model",
    ) -> None:
        self.model, self.pad_id, self.rows = model, pad_id, len(prompts)
        self._prompts = [list(p) for p in prompts]
        width = max(len(p) for p in self._prompts)
        self._cache = KVCache(model.config, len(prompts), width + new_tokens, model.dtype, model.device, cache)
        self._compiled: CompiledStep | None = None
        self._asked = False  # whether the compiled step was asked for, for these rows

    def start(self) -> Tensor:
        """Run the prompts, padded on the right, in one forward; returns the logits (B, V) after each last token."""
        lengths = [len(p) for p in self._prompts]
        width = max(lengths)
        padded = [p + [self.pad_id] * (width - len(p)) for p in self._prompts]
        batch = Batch.of_ids(torch.tensor(padded, device=self.model.device), lengths)
        last = torch.tensor(lengths, device=self.model.device) - 1
        rows = torch.arange(self.rows, device=self.model.device)

        def read(hidden: Tensor, head: nn.Module) -> Tensor:
            at_last: Tensor = head(hidden[rows, last])  # the head is the dearest layer: only where it is needed
            return at_last

        logits: Tensor = self.model(batch, read=read, cache=self._cache)
        return logits

    def step(self, tokens: Sequence[int], alive: Sequence[bool] | None = None) -> Tensor:
        """Append one token to every row that is ``alive`` (None: all); returns the next logits (B, V).

        The logits of a row that is not alive mean nothing; those of the others hold until the next step.
        """
        ids = torch.tensor(list(tokens), device=self.model.device)
        if not self._asked:
            self._compiled, self._asked = CompiledStep.of(self.model, self._cache), True
        if self._compiled is not None:
            return self._compiled.run(ids, None if alive is None else torch.tensor(list(alive)))
        lengths = None if alive is None else [int(a) for a in alive]
        logits: Tensor = self.model(Batch.of_ids(ids[:, None], lengths), cache=self._cache)
        return logits[:, -1]

    def select(self, rows: Sequence[int]) -> None:
        """Keep, repeat or reorder rows of the cache; ``rows`` index the present ones."""
        self._cache.select(torch.tensor(list(rows), device=self.model.device))
        if len(rows) != self.rows:
            self._compiled, self._asked, self.rows = None, False, len(rows)
        elif self._compiled is not None:
            self._compiled.bind()
