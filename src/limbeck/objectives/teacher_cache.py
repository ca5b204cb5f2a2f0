"""A teacher's top-k distributions on disk, found by data row and place in it.

A cache is a folder::

    cache.json      key (what it was made from), number of chunks and tokens
    chunks.bin      (chunks, 3) int64: data row, offset in it, length; in the order of the tokens below
    tokens.bin      (tokens,) uint32 ids of the text itself
    ids.bin         (tokens, k) uint16, or uint32 above 65,536 rows: the likeliest next tokens
    log_probs.bin   (tokens, k + 1) float16: their log-probabilities, and last the tail's log-mass
    progress.json   chunks written and synced; the writer's resume marker

float16 keeps 11 bits: a log-probability is off by at most 1 part in 2,048 of itself, so by little where the probability
is large. What is read is renormalised over its k + 1 buckets; ``loss_difference`` says what is left of the error. The
tail has its own number since 1 minus the rounded rest would drown it.

A teacher's distribution depends on all that stands before a token in its chunk. So a batch is served only if its
documents begin where the cache's chunks begin and hold the same ids: documents are never split or joined under a cache.
Chunks of one row may overlap (a later one may repeat the last token of the one before); no two begin at one place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.config import Config, build
from limbeck.data.batch import Batch
from limbeck.errors import CheckpointError, ConfigError, DataError
from limbeck.losses.divergence import Divergence, ForwardKL, TopK
from limbeck.objectives.distill import Distillation
from limbeck.objectives.teacher import Teacher

__all__ = ["CacheDifference", "CacheKey", "CachedTeacher", "CacheHeader", "check_fresh", "loss_difference", "read_json"]

_ROW_BITS = 32  # a chunk's place is row << 32 | offset


class CacheKey(Config):
    """What a cache was made from; any difference makes it stale."""

    teacher: str = Field(description="fingerprint of the teacher's weights")
    data: str = Field(description="hash of the data set")
    template: str = Field(description="hash of template and tokenisation")
    k: int = Field(ge=1, description="tokens kept at each position")
    temperature: float = Field(gt=0, description="the logits were divided by it")
    rows: int = Field(ge=1, description="vocabulary rows that share out the probability")

    @model_validator(mode="after")
    def _fits(self) -> CacheKey:
        if self.k > self.rows:
            raise ValueError(f"k is {self.k}, more than the {self.rows} rows of the vocabulary")
        return self

    def difference(self, other: CacheKey) -> str:
        """Say which fields differ, as "temperature is 0.7, not 1.0"; empty where none does."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(f"{name} is {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name])


class CacheHeader(Config):
    """What ``cache.json`` holds."""

    format: Literal["limbeck-teacher-cache"] = "limbeck-teacher-cache"
    version: Literal[1] = 1
    key: CacheKey
    text: str = Field(description="sha256 of every chunk's row, offset and ids")
    chunks: int = Field(ge=1)
    tokens: int = Field(ge=1)

    @property
    def id_dtype(self) -> type[np.unsignedinteger[Any]]:
        """Dtype of ``ids.bin``."""
        return np.uint16 if self.key.rows <= 1 << 16 else np.uint32

    def bytes_per_token(self) -> dict[str, int]:
        """Return bytes of one token in each file that grows."""
        k = self.key.k
        return {"tokens.bin": 4, "ids.bin": k * np.dtype(self.id_dtype).itemsize, "log_probs.bin": 2 * (k + 1)}

    @staticmethod
    def read(folder: Path) -> CacheHeader:
        """Read ``cache.json``.

        Raises:
            CheckpointError: it is missing, is no JSON, or does not say what a header says.
        """
        try:
            return build(CacheHeader, read_json(folder / "cache.json"), f"{folder / 'cache.json'}")
        except ConfigError as error:
            raise CheckpointError(f"{folder} is no usable teacher cache: {error}; build it again") from None


def check_fresh(folder: Path, key: CacheKey) -> None:
    """Refuse a cache that was made from something else than ``key``, before anything is spent on it.

    Raises:
        DataError: it is stale; the message says in what.
        CheckpointError: its header is damaged.
    """
    if said := CacheHeader.read(folder).key.difference(key):
        raise DataError(
            f"{folder} holds a teacher cache of something else: its {said}; remove it or name another folder"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON mapping.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: {file.parent} is no teacher cache, so build one there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): build the teacher cache again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds no mapping: build the teacher cache again")
    return values


class CachedTeacher:
    """A teacher whose signal lies on disk, memory-mapped.

    Args:
        folder: of a finished cache.
        key: what the caller would make a cache from now; None: take the cache as it is.

    Raises:
        DataError: the cache is stale: it was made from something else, and the message says what.
        CheckpointError: it is unfinished, or a file is missing, truncated or oversized.
    """

    def __init__(self, folder: Path, key: CacheKey | None = None) -> None:
        self.folder, self.header = folder, CacheHeader.read(folder)
        if key is not None and (said := self.header.key.difference(key)):
            raise DataError(f"the teacher cache in {folder} is stale: its {said}; build it anew or name another folder")
        h = self.header
        done = read_json(folder / "progress.json").get("chunks")
        if done != h.chunks:
            raise CheckpointError(
                f"the teacher cache in {folder} is unfinished: {done} of {h.chunks} chunks; build it again to resume"
            )
        self.chunks = np.array(self._open("chunks.bin", np.int64, (h.chunks, 3)))
        row, offset, length = self.chunks.T
        limit = 1 << 31
        if (self.chunks < 0).any() or (self.chunks >= limit).any() or (length < 1).any() or length.sum() != h.tokens:
            raise CheckpointError(f"{folder / 'chunks.bin'} is damaged: build the teacher cache again")
        self.order = np.argsort((row << _ROW_BITS) | offset)
        self.places = ((row << _ROW_BITS) | offset)[self.order]
        self.starts = np.concatenate(([0], np.cumsum(length)[:-1]))
        k = h.key.k
        self.tokens = self._open("tokens.bin", np.uint32, (h.tokens,))
        self.ids = self._open("ids.bin", h.id_dtype, (h.tokens, k))
        self.log_probs = self._open("log_probs.bin", np.float16, (h.tokens, k + 1))

    @property
    def temperature(self) -> float:
        """Temperature at which the signal was made."""
        return self.header.key.temperature

    def _open(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        file, wanted = self.folder / name, int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            held = file.stat().st_size
        except OSError:
            raise CheckpointError(f"{file} is missing: build the teacher cache again") from None
        if held != wanted:
            raise CheckpointError(f"{file} holds {held} bytes instead of {wanted}: build the teacher cache again")
        return np.memmap(file, dtype=dtype, mode="r", shape=shape)

    def signal(self, batch: Batch) -> TopK:
        """Return the top tokens (B, T, k) at every position; on padding those of some other position.

        Raises:
            DataError: a token is not in the cache, or its document is cut differently or reads differently there.
            CheckpointError: what the files hold is no distribution.
        """
        b, t = batch.ids.shape
        real = batch.real.cpu().numpy().reshape(-1)
        at = np.zeros(b * t, dtype=np.int64)
        at[real] = self._locate(batch, real)
        k = self.header.key.k
        ids, log_probs = self.ids[at].astype(np.int64), self.log_probs[at].astype(np.float32)
        if ids.max() >= self.header.key.rows or not (log_probs <= 0).all():  # NaN is not <= 0 either
            raise CheckpointError(f"the teacher cache in {self.folder} is damaged: build it again")
        device = batch.ids.device
        normal = torch.log_softmax(torch.from_numpy(log_probs), dim=1).reshape(b, t, k + 1).to(device)
        found = torch.from_numpy(ids).reshape(b, t, k).to(device)
        return TopK(normal[..., :k], found, self.temperature, self.header.key.rows, normal[..., k])

    def _locate(self, batch: Batch, real: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Place in the files of every real token of ``batch``, in order."""

        def flat(x: Tensor) -> NDArray[np.int64]:
            return x.cpu().numpy().reshape(-1)[real].astype(np.int64)

        row, offset, within = flat(batch.row_ids), flat(batch.offsets), flat(batch.positions())
        # A document is looked up by where it begins: chunks that repeat a few tokens of the one before are told apart.
        place = (row << _ROW_BITS) | (offset - within)
        found = np.minimum(np.searchsorted(self.places, place), len(self.places) - 1)
        chunk = self.order[found]
        unknown = self.places[found] != place
        longer = ~unknown & (within >= self.chunks[chunk, 2])
        at: NDArray[np.int64] = self.starts[chunk] + np.where(unknown | longer, 0, within)
        problems = (
            (unknown, "is in a document that begins nowhere in it"),
            (longer, "lies behind the end of its document there"),
            (self.tokens[at] != flat(batch.ids), "is another token there"),
        )
        for wrong, said in problems:
            if wrong.any():
                i = int(np.argmax(wrong))
                raise DataError(
                    f"the teacher cache in {self.folder} does not fit the data: token {offset[i]} of row {row[i]}"
                    f" {said}; build it from the same rows, template and context"
                )
        return at


@dataclass(frozen=True, slots=True)
class CacheDifference:
    """Mean divergence of one student to one teacher, asked live and from disk.

    Attributes:
        live: nats per token to the whole distribution.
        cached: nats per token over the top-k partition; below ``live`` but for rounding.
        tokens: how many were compared.
    """

    live: float
    cached: float
    tokens: int

    @property
    def difference(self) -> float:
        """``cached - live``, nats per token."""
        return self.cached - self.live


@torch.no_grad()
def loss_difference(
    cached: CachedTeacher,
    live: Teacher,
    student: nn.Module,
    batches: Iterable[Batch],
    divergence: Divergence = ForwardKL(),  # noqa: B008 - an immutable value
) -> CacheDifference:
    """Measure what the cache loses, on a sample: the divergence term against ``cached`` and against ``live``.

    Raises:
        DataError: the sample holds no token to compare.
    """
    sums, tokens = [0.0, 0.0], 0.0
    for batch in batches:
        for i, teacher in enumerate((live, cached)):
            objective = Distillation(
                teacher, alpha=0.0, beta=1.0, temperature=cached.temperature, divergence=divergence
            )
            sums[i] += float(objective(student, batch)["kl"].sum)
        tokens += objective.counts(batch)["kl"]
    if tokens == 0:
        raise DataError("the sample to compare cached and live teacher on holds no token: give at least one batch")
    return CacheDifference(sums[0] / tokens, sums[1] / tokens, int(tokens))
