"""A batch of sequences that grow together, token by token, on one cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.decode.step import MOST_ROWS, CompiledStep
from limbeck.model.cache import KVCache, KVKinds
from limbeck.model.decoder import Decoder

__all__ = ["DecodingSession", "evaluating"]


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


class DecodingSession:
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
        cache: KVKinds = "model",
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
        logits: Tensor = self.model(batch, at=last, cache=self._cache)
        return logits[:, 0]

    def step(self, tokens: Sequence[int], alive: Sequence[bool] | None = None) -> Tensor:
        """Append one token to every row that is ``alive`` (None: all); returns the next logits (B, V).

        The logits of a row that is not alive mean nothing; those of the others hold until the next step.
        """
        ids = torch.tensor(list(tokens), device=self.model.device)[:, None]
        compiled = self._step_for(1)
        if compiled is not None:
            return compiled.run(ids, None if alive is None else torch.tensor(list(alive)))[:, 0]
        lengths = None if alive is None else [int(a) for a in alive]
        logits: Tensor = self.model(Batch.of_ids(ids, lengths), cache=self._cache)
        return logits[:, -1]

    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append equally many tokens to every row; returns the logits (B, T, V) after each, until the next call."""
        ids = torch.tensor([list(row) for row in tokens], device=self.model.device)
        compiled = self._step_for(ids.shape[1])
        if compiled is not None:
            return compiled.run(ids)
        logits: Tensor = self.model(Batch.of_ids(ids), cache=self._cache)
        return logits

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget all but the first ``lengths`` tokens of each row.

        Raises:
            ValueError: a rolling pattern has overwritten what would have to come back.
        """
        self._cache.rewind(torch.tensor(list(lengths), device=self.model.device))

    @property
    def lengths(self) -> list[int]:
        """Tokens held of each row."""
        out: list[int] = self._cache.lengths.tolist()
        return out

    def _step_for(self, each: int) -> CompiledStep | None:
        """Return the compiled step, where it serves ``each`` tokens of every row."""
        if not self._asked:
            self._compiled, self._asked = CompiledStep.of(self.model, self._cache), True
        if self._compiled is None or each * self.rows > MOST_ROWS:
            return None
        return self._compiled if each == 1 or self._cache.causal else None

    def select(self, rows: Sequence[int]) -> None:
        """Keep, repeat or reorder rows of the cache; ``rows`` index the present ones."""
        self._cache.select(torch.tensor(list(rows), device=self.model.device))
        if len(rows) != self.rows:
            self._compiled, self._asked, self.rows = None, False, len(rows)
        elif self._compiled is not None:
            self._compiled.bind()
