"""Causal attention over documents on a CPU, exact, without a mask and without what a mask would hide.

torch's own CPU kernel takes its softmax apart into small steps, and with a dense mask it computes what the mask hides.
Here each document of a packed row is attended alone, a block of queries at a time against the keys up to the block's
end: in fp32, and in bf16 where the processor multiplies it, by one compiled pass (``native/attend.c``), else as batched
matrix products with one softmax between. The backward computes the probabilities again, so that nothing but queries,
keys and values is kept, and the compiled pass's result and log-sums (Dao et al. 2022 keep as little).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from limbeck.kernels import native
from limbeck.kernels.scratch import kept
from limbeck.losses.likelihood import wide

__all__ = ["Span", "document_attention", "document_spans"]

_BLOCK = 128  # queries: half of a block's own square is hidden, and still computed
_TILE = 64  # keys that the compiled pass lays out together
_LAID_OUT = 1 << 25  # bytes of keys and values laid out at a time
_SCORE_ELEMENTS = 1 << 22  # of a block over several rows: 8 MiB in bf16, about what a shared cache holds


class Span(NamedTuple):
    """Tokens ``start`` to ``stop`` of rows ``first`` to ``last`` (ends left out): one document in each row."""

    first: int
    last: int
    start: int
    stop: int


def document_spans(document_ids: Tensor) -> tuple[Span, ...]:
    """Return documents of each row, padding (0) left out; waits for the device.

    Args:
        document_ids: (B, T), equal neighbours are one document.
    """
    walled = F.pad(document_ids, (1, 1), value=-1)
    borders = (walled[:, 1:] != walled[:, :-1]).nonzero().tolist()  # the first is column 0, the last column T
    held = document_ids.tolist()
    return tuple(
        Span(row, row + 1, start, stop)
        for (row, start), (same, stop) in pairwise(borders)
        if row == same and held[row][start]
    )


def document_attention(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float | None = None) -> Tensor:
    """Return causal attention within each span, and 0 outside of all.

    Scores are rounded to the inputs' dtype, as matrix products round them (the compiled pass does not); the softmax's
    own arithmetic is float32 or wider, and so are the sums of key and value gradients over blocks.

    Args:
        q: (B, H, T, D) queries.
        k: (B, KV, T, D) keys, H a multiple of KV.
        v: (B, KV, T, D) values.
        spans: which tokens are a document; they do not overlap.
        scale: factor on the scores; None: D**-0.5.

    Returns:
        (B, H, T, D), laid out as (B, T, H, D).
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    return cast(Tensor, _DocumentAttention.apply(q, k, v, tuple(spans), factor))  # type: ignore[no-untyped-call]


class _DocumentAttention(torch.autograd.Function):
    """(q, k, v) -> what each query reads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: tuple[Span, ...], scale: float) -> Tensor:
        out = _beside(q, spans)
        ctx.spans, ctx.scale = spans, scale
        compiled = _Compiled.of(q, k, v, spans, scale)
        ctx.compiled = compiled is not None
        if compiled is not None:
            sums = q.new_empty(q.shape[:3], dtype=torch.float32) if any(ctx.needs_input_grad) else None
            compiled.forward(out, sums)
            ctx.save_for_backward(q, k, v, out, sums)
            return out
        ctx.save_for_backward(q, k, v)
        for s in spans:
            for rows in _row_groups(s, q.shape[1]):
                part = _Part(q, k, v, rows, s, scale)
                for a, stop in part.blocks():
                    read = torch.bmm(part.probabilities(a, stop), part.v[:, :stop])
                    part.put(out, read, a, stop)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, *rest = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        if ctx.compiled:
            compiled = _Compiled.of(q, k, v, ctx.spans, ctx.scale)
            assert compiled is not None
            return *compiled.backward(grad, *rest), None, None
        dq, dk, dv = (_beside(x, ctx.spans) for x in (q, k, v))
        for s in ctx.spans:
            for rows in _row_groups(s, q.shape[1]):
                part = _Part(q, k, v, rows, s, ctx.scale)
                keys, values = _Sum(), _Sum()
                for a, stop in reversed(part.blocks()):
                    p = part.probabilities(a, stop)
                    incoming, queries = part.take(grad, a, stop), part.queries(a, stop)
                    values.add(torch.bmm(p.transpose(1, 2), incoming))
                    slope = torch.bmm(incoming, part.v[:, :stop].transpose(1, 2))
                    slope = torch._softmax_backward_data(slope, p, -1, p.dtype)
                    keys.add(torch.bmm(slope.transpose(1, 2), queries))
                    part.put(dq, torch.bmm(slope, part.k[:, :stop]).mul_(ctx.scale), a, stop)
                part.put(dk, keys.total, 0, part.length)
                part.put(dv, values.total, 0, part.length)
        return dq, dk, dv, None, None


class _Compiled:
    """The compiled passes over one call's queries, keys and values."""

    def __init__(
        self, library: ctypes.CDLL, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float
    ) -> None:
        self.kernels, self.spans, self.threads = library, spans, torch.get_num_threads()
        # kept as long as the description points into them
        self.q, self.k, self.v = (_columns_together(x) for x in (q, k, v))
        self.heads = native.Heads(
            q.dtype == torch.bfloat16, q.shape[1], k.shape[1], q.shape[2], q.shape[3],
            *self.q.stride()[:3], *self.k.stride()[:3], *self.v.stride()[:3],
            self.q.data_ptr(), self.k.data_ptr(), self.v.data_ptr(), None, None, scale,
        )  # fmt: skip

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float) -> _Compiled | None:
        """Return none where there are none for these numbers here."""
        if q.dtype not in (torch.float32, torch.bfloat16) or q.device.type != "cpu" or not spans or not q.numel():
            return None
        if q.dtype == torch.bfloat16 and q.shape[-1] % 2 or any(x.dtype != q.dtype for x in (k, v)):
            return None
        library = native.load()
        if library is None:
            return None
        made = cls(library, q, k, v, spans, scale)
        return made if library.limbeck_attend_room(made.heads, 1, 1) else None

    def forward(self, out: Tensor, sums: Tensor | None) -> None:
        """Fill ``out``, laid out (B, T, H, D), and the log-sums (B, H, T)."""
        heads, kernels = self.heads, self.kernels
        heads.out, heads.sums = out.data_ptr(), None if sums is None else sums.data_ptr()
        most = max(1, _LAID_OUT // kernels.limbeck_attend_room(heads, 1, 0))
        for documents, tiles in _documents(self.spans, most):
            room = kept(kernels.limbeck_attend_room(heads, tiles, self.threads), torch.uint8, out.device)
            listed = (native.Document * len(documents))(*documents)
            kernels.limbeck_attend(heads, len(documents), listed, room.data_ptr(), self.threads)

    def backward(self, grad: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of queries, keys and values, laid out (B, T, heads, D)."""
        heads, kernels, grad = self.heads, self.kernels, _columns_together(grad)
        heads.out, heads.sums = out.data_ptr(), sums.data_ptr()
        dq, dk, dv = (_beside(x, self.spans) for x in (self.q, self.k, self.v))
        wanted = native.HeadGradients(*grad.stride()[:3], grad.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr())
        ((documents, _),) = _documents(self.spans, 1 << 62)
        longest = max(d.stop - d.start for d in documents)
        room = kept(kernels.limbeck_attend_backward_room(heads, longest, self.threads), torch.uint8, grad.device)
        listed = (native.Document * len(documents))(*documents)
        kernels.limbeck_attend_backward(heads, wanted, len(documents), listed, longest, room.data_ptr(), self.threads)
        return dq, dk, dv


def _columns_together(x: Tensor) -> Tensor:
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


def _documents(spans: Sequence[Span], most: int) -> Iterator[tuple[list[native.Document], int]]:
    """Yield the spans' documents one row each, with the tiles of their keys, as many at once as have ``most`` tiles."""
    group: list[native.Document] = []
    tiles = 0
    for s in spans:
        each = -(-(s.stop - s.start) // _TILE)
        for row in range(s.first, s.last):
            if group and tiles + each > most:
                yield group, tiles
                group, tiles = [], 0
            group.append(native.Document(row, s.start, s.stop, tiles))
            tiles += each
    yield group, tiles


class _Sum:
    """Gradient of a span's keys or values: the last block, which sees them all, then the earlier ones, in wide sums."""

    total: Tensor

    def __init__(self) -> None:
        self.begun = False

    def add(self, piece: Tensor) -> None:
        if not self.begun:
            self.total, self.begun = piece, True
            return
        self.total = self.total.to(wide(piece.dtype))
        self.total[:, : piece.shape[1]] += piece


def _beside(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """Return a tensor of the shape of ``x`` (B, H, T, D), laid out as (B, T, H, D), 0 where no span is."""
    b, h, t, d = x.shape
    whole = sum((s.last - s.first) * (s.stop - s.start) for s in spans) == b * t
    return (x.new_empty if whole else x.new_zeros)(b, t, h, d).transpose(1, 2)


def _row_groups(span: Span, heads: int) -> Iterator[slice]:
    """Rows of a span, as many at once as keep a block's scores in cache."""
    length = span.stop - span.start
    most = max(1, _SCORE_ELEMENTS // (heads * min(length, _BLOCK) * length))
    for a in range(span.first, span.last, most):
        yield slice(a, min(a + most, span.last))


class _Part:
    """One document in each of a few rows: n = rows x KV matrices, the G query heads of a key head side by side."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, rows: slice, span: Span, scale: float) -> None:
        self.rows, self.start, self.length = rows, span.start, span.stop - span.start
        self.count, self.kv, self.group = rows.stop - rows.start, k.shape[1], q.shape[1] // k.shape[1]
        self.q, self.scale = q, scale
        at = slice(span.start, span.stop)
        self.k, self.v = (x[rows, :, at].reshape(self.count * self.kv, self.length, -1) for x in (k, v))
        side = min(self.length, _BLOCK)
        self.hidden = torch.ones(side, side, dtype=torch.bool).triu_(1)

    def blocks(self) -> list[tuple[int, int]]:
        """Return queries from one place to another; they see the keys up to the second."""
        return [(a, min(a + _BLOCK, self.length)) for a in range(0, self.length, _BLOCK)]

    def take(self, x: Tensor, a: int, stop: int) -> Tensor:
        """Return rows of a block of ``x`` (B, H, T, D), (n, G * block, D)."""
        block = x[self.rows, :, self.start + a : self.start + stop]
        return block.reshape(self.count * self.kv, self.group * (stop - a), -1)

    def put(self, x: Tensor, block: Tensor, a: int, stop: int) -> None:
        """Write (n, ..., D) over a block of ``x`` (B, H or KV, T, D)."""
        into = x[self.rows, :, self.start + a : self.start + stop]
        into.copy_(block.view(into.shape))

    def queries(self, a: int, stop: int) -> Tensor:
        """Return queries of a block times the scale, (n, G * block, D)."""
        return self.take(self.q, a, stop) * self.scale

    def probabilities(self, a: int, stop: int) -> Tensor:
        """Return (n, G * block, stop) what each query takes of each key."""
        scores = torch.bmm(self.queries(a, stop), self.k[:, :stop].transpose(1, 2))
        size = stop - a
        square = scores.view(-1, self.group, size, stop)[..., a:]
        square.masked_fill_(self.hidden[:size, :size], float("-inf"))  # a sum would keep what is not a number
        return torch.softmax(scores, dim=-1)
