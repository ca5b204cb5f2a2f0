"""The next token of every row and its log-probability: in one compiled pass on a CPU, else by torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.decode.sample import choose, penalise_repeats, seen_tokens
from limbeck.decode.settings import Decoding
from limbeck.kernels import native

__all__ = ["Picked", "Picker"]


class Picked(NamedTuple):
    """Of each row the token and its log-probability under the model itself: before penalty, temperature and filters."""

    tokens: list[int]
    log_probs: list[float]


class Picker:
    """Chooses tokens by one ``Decoding``; what it needs of memory it keeps from token to token.

    The compiled pass (``kernels/native/choose.c``) follows the rules of ``decode/sample.py`` in fp64 and sorts no more
    of the vocabulary than it must; it serves fp32, bf16 and fp16 logits on a CPU, torch the rest.
    """

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._scratch = torch.empty(0, dtype=torch.float64)

    def __call__(self, logits: Tensor, uniforms: Sequence[float] | None, seen: Sequence[Sequence[int]]) -> Picked:
        """Choose one token a row.

        Args:
            logits: (B, V).
            uniforms: B numbers in [0, 1); None: greedy.
            seen: ids of each row's prompt and continuation; read where repeats are penalised.

        Returns:
            A log-probability that is not finite where the row's logits are not.
        """
        library = native.load() if logits.device.type == "cpu" and logits.dtype != torch.float64 else None
        if library is None:
            return self._by_torch(logits, uniforms, seen)
        x, (rows, size) = logits.float().contiguous(), logits.shape
        if self._scratch.numel() < 2 * rows * size:
            self._scratch = torch.empty(2 * rows * size, dtype=torch.float64)
        d = self.decoding
        drawn = None if uniforms is None else np.asarray(uniforms, dtype=np.float64)
        ids = starts = None
        if d.repetition_penalty != 1:
            each = [np.unique(np.asarray(row, dtype=np.int64)) for row in seen]
            ids, starts = np.concatenate(each), np.cumsum([0, *map(len, each)], dtype=np.int64)
        tokens, log_probs = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float64)
        library.limbeck_choose(
            x.data_ptr(), rows, size, _at(ids), _at(starts), d.repetition_penalty, d.temperature, d.top_k, d.top_p,
            d.min_p, _at(drawn), self._scratch.data_ptr(), _at(tokens), _at(log_probs),
        )  # fmt: skip
        return Picked(tokens.tolist(), log_probs.tolist())

    def _by_torch(self, logits: Tensor, uniforms: Sequence[float] | None, seen: Sequence[Sequence[int]]) -> Picked:
        logits = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        scores = logits
        if self.decoding.repetition_penalty != 1:
            marked = seen_tokens(seen, logits.shape[-1], logits.device)
            scores = penalise_repeats(logits, marked, self.decoding.repetition_penalty)
        uniform = None
        if uniforms is not None:
            uniform = torch.tensor(list(uniforms), dtype=torch.float64, device=logits.device)
        tokens = choose(scores, self.decoding, uniform)
        log_probs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
        return Picked(tokens.tolist(), log_probs.tolist())


def _at(x: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None) -> int | None:
    return None if x is None else x.ctypes.data
