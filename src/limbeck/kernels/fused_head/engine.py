"""The pass that the fused losses are made of: head projection, losses of every row, and gradients, chunk by chunk.

Nothing here knows autograd. The logits exist for one chunk of rows at a time, in one buffer that every chunk reuses
(new memory is slow to touch); within it the softmax arithmetic walks over tiles that stay in cache; a likelihood alone
is one compiled pass on a CPU. A chunk's logits are then overwritten by their gradient, which goes straight into the
matrix products for hidden states and weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.kernels.fused_head.divergence import Dense, TeacherLoss, plain_linear
from limbeck.kernels.fused_head.tiles import (
    compare_dense,
    compare_topk,
    compiled_likelihood,
    likelihood,
    likelihood_in_place,
    scatter_rows,
)
from limbeck.losses.divergence import TopK
from limbeck.losses.likelihood import IGNORE, wide

__all__ = ["Gradients", "Problem", "RowWeights", "chunk_size", "run"]

_CHUNK_BYTES = 64 << 20
# 8 MiB of float32. A quarter would stay in a core's own cache and save 3 % of the arithmetic, but each operation on a
# tile is one meeting of the threads, and where cores are shared it is the meetings that cost.
_TILE_ELEMENTS = 1 << 21


def chunk_size(rows: int, row_bytes: int, budget_bytes: int = _CHUNK_BYTES) -> int:
    """Return rows of each chunk when ``rows`` rows of ``row_bytes`` are to be walked in nearly equal chunks under a
    budget.
    """
    most = max(1, budget_bytes // max(row_bytes, 1))
    chunks = max(1, math.ceil(rows / most))
    return max(1, math.ceil(rows / chunks))


@dataclass(frozen=True, slots=True)
class Problem:
    """Rows to compute losses of.

    Attributes:
        hidden: (N, D).
        weight: (V, D) of the head, already in the dtype of the products.
        bias: (V,) or None.
        labels: (N,) int64 with ``IGNORE``, or None: no likelihood is asked for.
        z: also compute the squared log-partition of rows with a label.
        comparison: a divergence, or None.
        chunk_rows: rows of a chunk; None: by memory.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor | None
    z: bool = False
    comparison: TeacherLoss | None = None
    chunk_rows: int | None = None


@dataclass(frozen=True, slots=True)
class RowWeights:
    """(N,) weight of each row's loss in the scalar whose gradient is formed; None: that loss is not in it."""

    nll: Tensor | None
    z: Tensor | None
    divergence: Tensor | None


@dataclass(slots=True)
class Gradients:
    """What to form a gradient of, and then that gradient: hidden (N, D), weight (V, D), bias (V,)."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


class _WeightGradient:
    """Sum over chunks of ``grad_logits.T @ hidden``, block by block of the vocabulary.

    Products round to the narrow dtype, so their sum is kept in wide arithmetic; of two chunks the second is added to
    the first within its product, which rounds once too.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, chunks: int) -> None:
        self.dtype, self.begun = dtype, False
        narrow = like.dtype != wide(like.dtype)
        self.summed = narrow and not (dtype == like.dtype and chunks <= 2)
        self.sum = torch.empty(like.shape, dtype=wide(like.dtype) if self.summed else like.dtype, device=like.device)
        # An odd number of rows costs CPU kernels a quarter of their speed: whole blocks go alone, then what is left.
        rows = max(64, _TILE_ELEMENTS // max(like.shape[1], 1) // 64 * 64)
        self.rows = like.shape[0] if like.device.type != "cpu" else min(rows, max(64, like.shape[0] // 64 * 64))
        if self.summed:
            self.piece = torch.empty_like(like[: self.rows])
            self.wide_piece = torch.empty_like(self.piece, dtype=self.sum.dtype)

    def add(self, grad_logits: Tensor, hidden: Tensor) -> None:
        for a in range(0, self.sum.shape[0], self.rows):
            into, part = self.sum[a : a + self.rows], grad_logits[:, a : a + self.rows].t()
            if self.summed:
                piece = torch.mm(part, hidden, out=self.piece[: into.shape[0]])
                if self.begun:  # a copy first: three times as fast here as an addition of mixed dtypes
                    into.add_(self.wide_piece[: into.shape[0]].copy_(piece))
                else:
                    into.copy_(piece)
            elif self.begun:
                into.addmm_(part, hidden)
            else:
                torch.mm(part, hidden, out=into)
        self.begun = True

    def result(self) -> Tensor:
        return self.sum.to(self.dtype) if self.begun else torch.zeros_like(self.sum, dtype=self.dtype)


class _Teacher:
    """Teacher logits of one chunk after another."""

    def __init__(self, teacher: Dense, chunk: int, student_rows: int, dtype: torch.dtype) -> None:
        self.teacher, self.student_rows = teacher, student_rows
        self.linear = plain_linear(teacher.head)
        if self.linear is not None:
            weight, bias = self.linear
            # A narrower product than the teacher's own only where the student's is narrower too (autocast).
            self.dtype = dtype if wide(dtype) != dtype else weight.dtype
            self.weight = weight[:student_rows].detach().to(self.dtype)
            self.bias = None if bias is None else bias[:student_rows].detach().to(self.dtype)
            self.buffer = torch.empty((chunk, self.weight.shape[0]), dtype=self.dtype, device=weight.device)

    def logits(self, a: int, b: int) -> Tensor:
        """Return (b - a, V') logits over no more rows than the student has."""
        if self.linear is None:
            return self.teacher.logits(a, b)[:, : self.student_rows]
        hidden = self.teacher.hidden[a:b].detach().to(self.dtype)
        return _project(hidden, self.weight, self.bias, self.buffer[: b - a])


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    torch.mm(hidden, weight.t(), out=out)
    return out if bias is None else out.add_(bias)


@torch.no_grad()
def run(problem: Problem, weights: RowWeights | None, wanted: Gradients | None) -> tuple[RowWeights, Gradients]:
    """Compute every row's losses and, for ``weights``, gradients of their weighted sum.

    Args:
        problem: the rows.
        weights: how much each row's loss weighs; None: losses only.
        wanted: each field that is not None asks for that gradient, in that tensor's dtype.

    Returns:
        The losses, (N,) each and None where not asked for, in wide arithmetic (named as their weights are); and the
        gradients.
    """
    with torch.autocast(problem.hidden.device.type, enabled=False):
        return _Pass(problem, weights, wanted or Gradients()).run()


class _Pass:
    def __init__(self, problem: Problem, weights: RowWeights | None, wanted: Gradients) -> None:
        p, w = problem, problem.weight
        self.problem, self.weights, self.wanted = p, weights, wanted
        self.rows, self.device, self.wide = p.hidden.shape[0], p.hidden.device, wide(w.dtype)
        self.chunk = p.chunk_rows or chunk_size(self.rows, w.shape[0] * w.dtype.itemsize)
        self.chunk = max(1, min(self.chunk, self.rows))
        accelerator = self.device.type != "cpu"
        dense = p.comparison is not None and isinstance(p.comparison.teacher, Dense)
        elements = _TILE_ELEMENTS // 2 if dense else _TILE_ELEMENTS  # more tiles are alive beside a dense teacher's
        self.buffer = torch.empty((self.chunk, w.shape[0]), dtype=w.dtype, device=self.device)
        # With one loss the gradient of a row is found up to a factor, which is applied where rows are short.
        self.deferred = weights is not None and weights.z is None and weights.divergence is None
        alone = p.comparison is None and wanted.bias is None and (weights is None or self.deferred)
        self.compiled = compiled_likelihood(self.buffer) if alone else None
        whole = accelerator or self.compiled is not None
        self.tile = self.chunk if whole else max(1, min(self.chunk, elements // w.shape[0]))
        self.teacher = None
        if p.comparison is not None and isinstance(p.comparison.teacher, Dense):
            self.teacher = _Teacher(p.comparison.teacher, self.chunk, w.shape[0], w.dtype)
        self.losses = RowWeights(
            nll=None if p.labels is None else self._new(self.rows),
            z=self._new(self.rows) if p.z else None,
            divergence=None if p.comparison is None else self._new(self.rows),
        )
        self.factor = self._new(self.rows) if weights is not None else None

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide, device=self.device)

    def run(self) -> tuple[RowWeights, Gradients]:
        p, want = self.problem, self.wanted
        hidden = p.hidden.to(p.weight.dtype)
        grads = Gradients()
        if self.weights is not None:
            grads.hidden = None if want.hidden is None else torch.empty_like(p.hidden)
            grads.bias = None if want.bias is None else self._new(p.weight.shape[0]).zero_()
        weight_grad = None
        if self.weights is not None and want.weight is not None:
            weight_grad = _WeightGradient(p.weight, want.weight.dtype, math.ceil(self.rows / self.chunk))
        for a in range(0, self.rows, self.chunk):
            b = min(a + self.chunk, self.rows)
            logits = _project(hidden[a:b], p.weight, p.bias, self.buffer[: b - a])
            teacher = None if self.teacher is None else self.teacher.logits(a, b)
            for i in range(0, b - a, self.tile):
                self._walk(logits[i : i + self.tile], teacher, a, i, grads.bias)
            if self.factor is None:
                continue
            factor = self.factor[a:b, None]
            if grads.hidden is not None:
                grads.hidden[a:b] = torch.mm(logits, p.weight).to(self.wide).mul_(factor)
            if weight_grad is not None:
                weight_grad.add(logits, (hidden[a:b] * factor).to(p.weight.dtype))
        if weight_grad is not None and want.weight is not None:
            grads.weight = weight_grad.result()
        if grads.bias is not None and want.bias is not None:
            grads.bias = grads.bias.to(want.bias.dtype)
        return self.losses, grads

    def _walk(self, logits: Tensor, teacher: Tensor | None, a: int, i: int, bias_grad: Tensor | None) -> None:
        """Losses of one tile of the chunk that begins at row ``a``; its logits become their gradient."""
        p, start, stop = self.problem, a + i, a + i + logits.shape[0]
        grad: Tensor | None = None
        if p.labels is not None:
            grad = self._likelihood(logits, p.labels[start:stop], start, stop)
        if p.comparison is not None:
            compared = self._compare(logits, None if teacher is None else teacher[i : i + self.tile], start, stop)
            if grad is None:
                grad = compared
            elif compared is not None:
                grad[:, : compared.shape[1]].add_(compared)
        if grad is None or self.factor is None:
            return
        if not self.deferred:
            self.factor[start:stop] = 1
        if grad.shape[1] < logits.shape[1]:
            logits[:, grad.shape[1] :] = 0
        if grad.data_ptr() != logits.data_ptr():
            logits[:, : grad.shape[1]].copy_(grad)
        if bias_grad is not None:
            bias_grad[: grad.shape[1]].addmv_(grad.t(), self.factor[start:stop])

    def _tile(self, logits: Tensor) -> Tensor:
        """Return a wide copy of some logits."""
        return torch.empty(logits.shape, dtype=self.wide, device=self.device).copy_(logits)

    def _likelihood(self, logits: Tensor, labels: Tensor, start: int, stop: int) -> Tensor | None:
        if self.compiled is not None:
            tile, gradient = logits, self.factor is not None
            nll, log_partition, total = likelihood_in_place(self.compiled, logits, labels, gradient)
        else:
            own = logits.dtype == self.wide and self.problem.comparison is None
            tile = logits if own else self._tile(logits)
            nll, log_partition, total = likelihood(tile, labels)
        assert self.losses.nll is not None
        self.losses.nll[start:stop] = nll
        real = (labels != IGNORE).to(self.wide)
        if self.losses.z is not None:
            self.losses.z[start:stop] = log_partition.square() * real
        if self.weights is None or self.factor is None:
            return None
        nll_weight = torch.zeros_like(nll) if self.weights.nll is None else self.weights.nll[start:stop] * real
        if self.deferred:
            if self.compiled is None:
                scatter_rows(tile, labels, total * real)
            self.factor[start:stop] = nll_weight / total
            return tile
        softmax_weight = nll_weight
        if self.weights.z is not None:
            softmax_weight = softmax_weight + 2 * self.weights.z[start:stop] * real * log_partition
        tile.mul_((softmax_weight / total)[:, None])
        scatter_rows(tile, labels, nll_weight)
        return tile

    def _compare(self, logits: Tensor, teacher: Tensor | None, start: int, stop: int) -> Tensor | None:
        comparison = self.problem.comparison
        assert comparison is not None and self.losses.divergence is not None
        counted = None if comparison.mask is None else comparison.mask[start:stop].to(self.wide)
        scale = None
        if self.weights is not None and self.weights.divergence is not None:
            scale = self.weights.divergence[start:stop]
            scale = scale if counted is None else scale * counted
        if teacher is not None:
            tile, target = self._tile(logits[:, : teacher.shape[1]]), self._tile(teacher)
            value = compare_dense(tile, target, scale, comparison)
        else:
            assert isinstance(comparison.teacher, TopK)
            rows = comparison.teacher.check(comparison.temperature, logits.shape[1])
            tile = self._tile(logits[:, :rows])
            value = compare_topk(tile, comparison.teacher.part(start, stop), scale, comparison)
        if comparison.mask is not None:
            value = value.masked_fill(~comparison.mask[start:stop], 0)
        self.losses.divergence[start:stop] = value
        return None if scale is None else tile
