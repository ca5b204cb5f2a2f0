"""Attention that reads only what a sparse pattern shows, exact, forward and backward.

A pattern is a few first positions (sinks) and bands of distances. Wide bands are products of a block of queries with
the keys of its band; single distances are products of two slices shifted against each other. Nothing of the size of a
sequence's square exists: work and memory grow with the pairs that are seen. On a CPU in float32 (and bf16, computed in
float32) one compiled pass serves (``native/sparse.c``), else torch's operations on any device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from limbeck.kernels import native
from limbeck.kernels.attention import Span
from limbeck.kernels.scratch import kept
from limbeck.losses.likelihood import wide

__all__ = ["Reach", "compiled", "sparse_attention"]

_UNIT = 16  # columns to which the compiled pass wants heads padded
_NARROW = 16  # a band of fewer distances is taken one distance at a time
_BLOCK = 128  # most queries of a block of a wide band in torch's form
_i64, _pointer = ctypes.c_int64, ctypes.c_void_p


class Reach(NamedTuple):
    """What a query sees: the first ``sinks`` positions, and distances back in ``bands`` [low, high) from it on.

    ``sink_reach`` is not read here: it says at which largest distance sinks appear (0: the true one), and so how
    ``sink_queries`` were made.
    """

    sinks: int
    bands: tuple[tuple[int, int], ...]
    sink_reach: int = 0


class _Problem(ctypes.Structure):
    """``problem`` of ``sparse.c``."""

    _fields_ = (
        *((name, _i64) for name in ("heads", "kv_heads", "length", "width")),
        *((f"{name}_{axis}", _i64) for name in "qkvs" for axis in ("row", "head", "token")),
        *((name, _pointer) for name in ("q", "k", "v", "s", "out", "sums")),
        ("scale", ctypes.c_double),
        *((name, _i64) for name in ("sinks", "bands")),
        ("band", ctypes.POINTER(_i64)),
    )


class _Gradients(ctypes.Structure):
    """``gradients`` of ``sparse.c``."""

    _fields_ = (
        *((name, _i64) for name in ("row", "head", "token")),
        *((name, _pointer) for name in ("out", "sums", "dq", "dk", "dv", "ds")),
    )


class _Document(ctypes.Structure):
    """``document`` of ``sparse.c``."""

    _fields_ = tuple((name, _i64) for name in ("row", "start", "stop"))


def compiled(x: Tensor) -> ctypes.CDLL | None:
    """Return the library whose pass serves tensors like ``x``, or None."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    library = native.load()
    return None if library is None else _declared(library)


@cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    problem, documents = ctypes.POINTER(_Problem), ctypes.POINTER(_Document)
    library.limbeck_sparse_room.argtypes = (problem, _i64)
    library.limbeck_sparse_room.restype = _i64
    library.limbeck_sparse.argtypes = (problem, _i64, documents, _pointer, _i64)
    library.limbeck_sparse.restype = None
    library.limbeck_sparse_backward.argtypes = (
        problem, ctypes.POINTER(_Gradients), _i64, documents, _pointer, _i64,
    )  # fmt: skip
    library.limbeck_sparse_backward.restype = None
    return library


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Sequence[Span],
    reach: Reach,
    scale: float | None = None,
    sink_queries: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend within each span to what ``reach`` shows; 0 outside of all spans.

    Args:
        q: (B, H, T, D) queries.
        k: (B, KV, T, D) keys, H a multiple of KV.
        v: (B, KV, T, D) values.
        spans: which tokens are a document; they do not overlap.
        reach: what a query sees; distance 0 is among its bands.
        scale: factor on the scores; None: D**-0.5.
        sink_queries: (B, H, T, D) queries as they meet the sinks; None: ``q``.

    Returns:
        (B, H, T, D), and (B, H, T) log of the sum of exponentials of each query's scores, at least float32.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if not spans or not q.numel():
        nothing = q.sum() * 0 + k.sum() * 0 + v.sum() * 0
        return torch.zeros_like(q) + nothing, q.new_zeros(q.shape[:3], dtype=wide(q.dtype))
    longest = max(s.stop - s.start for s in spans)
    reach = _within(reach, longest)
    s = sink_queries if reach.sinks else None
    if compiled(q) is None:
        return _in_torch(q, k, v, s, spans, reach, factor)
    made = _Compiled.apply(q, k, v, s, tuple(spans), reach, factor)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], made)


def _within(reach: Reach, length: int) -> Reach:
    bands = tuple((low, min(high, length)) for low, high in reach.bands if low < length)
    return Reach(min(reach.sinks, length), bands, reach.sink_reach)


def _in_torch(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor | None, spans: Sequence[Span], reach: Reach, scale: float
) -> tuple[Tensor, Tensor]:
    """``sparse_attention`` by torch's operations, whose backward is autograd's."""
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    sums = q.new_zeros(q.shape[:3], dtype=wide(q.dtype))
    for span in spans:
        rows, at = slice(span.first, span.last), slice(span.start, span.stop)
        queries = None if s is None else s[rows, :, at]
        parts = _Parts(q[rows, :, at], k[rows, :, at], v[rows, :, at], queries, scale)
        made = parts.attend(_within(reach, span.stop - span.start))
        out[rows, :, at], sums[rows, :, at] = made
    return out, sums


class _Parts:
    """One document in each of a few rows: scores of each part of a pattern, and what is read by their weights."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, s: Tensor | None, scale: float) -> None:
        r, h, self.length, d = q.shape
        self.kv, self.dtype, self.scale = k.shape[1], q.dtype, scale
        self.shape = (r, self.kv, h // self.kv, self.length, d)
        self.q, self.k, self.v = q.reshape(self.shape), k, v
        self.s = self.q if s is None else s.reshape(self.shape)
        self.position = torch.arange(self.length, device=q.device)

    def attend(self, reach: Reach) -> tuple[Tensor, Tensor]:
        """Return (R, H, L, D) what each query reads, and (R, H, L) its log-sum."""
        scores: list[Tensor] = []
        reads: list[Callable[[Tensor], Tensor]] = []
        if reach.sinks:
            hidden = self.position[: reach.sinks] > self.position[:, None]
            scores.append((self.s @ self.k[:, :, None, : reach.sinks].mT).masked_fill(hidden, float("-inf")))
            reads.append(partial(self._first, reach.sinks))
        for low, high in reach.bands:
            if high - low >= _NARROW:
                band = _Band(self, low, high, reach.sinks)
                scores.append(band.scores())
                reads.append(band.read)
                continue
            for d in range(low, high):
                if self.length - d > reach.sinks:
                    scores.append(self._diagonal(d, reach.sinks))
                    reads.append(partial(self._shifted, d))
        x = torch.cat(scores, dim=-1).to(wide(self.dtype)) * self.scale
        weights = torch.split(x.softmax(dim=-1).to(self.dtype), [part.shape[-1] for part in scores], dim=-1)
        out = reads[0](weights[0])
        for read, w in zip(reads[1:], weights[1:], strict=True):
            out = out + read(w)
        r, kv, group, length, d = self.shape
        return out.reshape(r, kv * group, length, d), x.logsumexp(dim=-1).reshape(r, kv * group, length)

    def _diagonal(self, d: int, sinks: int) -> Tensor:
        """(R, KV, G, L, 1) score of each query and the key ``d`` behind it."""
        seen = (self.q[..., d + sinks :, :] * self.k[:, :, None, sinks : self.length - d]).sum(dim=-1, keepdim=True)
        return F.pad(seen, (0, 0, d + sinks, 0), value=float("-inf"))

    def _first(self, sinks: int, weights: Tensor) -> Tensor:
        return weights @ self.v[:, :, None, :sinks]

    def _shifted(self, d: int, weights: Tensor) -> Tensor:
        return F.pad(weights[..., d:, :] * self.v[:, :, None, : self.length - d], (0, 0, d, 0))


class _Band:
    """Distances [low, high) of blocks of queries: each block beside its own stretch of keys."""

    def __init__(self, parts: _Parts, low: int, high: int, sinks: int) -> None:
        self.parts, self.block = parts, max(_NARROW, min(_BLOCK, high - low))
        self.blocks = -(-parts.length // self.block)
        self.width = self.block + high - low - 1
        end = (self.blocks - 1) * self.block + self.width  # of the padded keys
        self.pads = (0, 0, high - 1, max(0, end - (high - 1) - parts.length))
        query = torch.arange(self.block, device=parts.q.device)[:, None]
        slot = torch.arange(self.width, device=parts.q.device)
        key = torch.arange(self.blocks, device=parts.q.device)[:, None, None] * self.block + slot - (high - 1)
        distance = query - slot + high - 1
        self.seen = (distance >= low) & (distance < high) & (key >= sinks)  # (blocks, block, width)

    def _stretches(self, x: Tensor) -> Tensor:
        """(R, KV, 1, blocks, width, D) of keys or values (R, KV, L, D)."""
        made: Tensor = F.pad(x, self.pads).unfold(2, self.width, self.block)[:, :, None, : self.blocks].mT
        return made

    def scores(self) -> Tensor:
        """Return (R, KV, G, L, width), -inf where not seen."""
        p = self.parts
        q = self._cut(p.q)
        found = (q @ self._stretches(p.k).mT).masked_fill(~self.seen, float("-inf"))
        return found.flatten(3, 4)[..., : p.length, :]

    def read(self, weights: Tensor) -> Tensor:
        """Turn (R, KV, G, L, width) shares into (R, KV, G, L, D) of what is read."""
        found = self._cut(weights) @ self._stretches(self.parts.v)
        return found.flatten(3, 4)[..., : self.parts.length, :]

    def _cut(self, x: Tensor) -> Tensor:
        """(R, KV, G, L, n) -> (R, KV, G, blocks, block, n)."""
        padded = F.pad(x, (0, 0, 0, self.blocks * self.block - self.parts.length))
        return padded.view(*x.shape[:3], self.blocks, self.block, x.shape[-1])


class _Compiled(torch.autograd.Function):
    """(q, k, v, sink queries or None) -> what each query reads, and its log-sum."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, s: Tensor | None, spans: tuple[Span, ...], reach: Reach, scale: float
    ) -> tuple[Tensor, Tensor]:
        call = _Call(q, k, v, s, spans, reach, scale)
        out, sums = call.forward()
        out = out[..., : q.shape[-1]].to(q.dtype)
        ctx.save_for_backward(q, k, v, s, out, sums)
        ctx.told = (spans, reach, scale)
        ctx.set_materialize_grads(False)
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
        q, k, v, s, out, sums = cast(FunctionCtx, ctx).saved_tensors  # type: ignore[attr-defined]
        if grad is None:
            grad = torch.zeros_like(out)
        call = _Call(q, k, v, s, *ctx.told)
        found = call.backward(grad, grad_sums, out, sums)
        given = zip((q, k, v, s), found, strict=True)
        cut = (None if x is None or g is None else g[..., : x.shape[-1]].to(x.dtype) for x, g in given)
        return *cut, None, None, None


class _Call:
    """The compiled passes over one call's tensors."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, s: Tensor | None, spans: Sequence[Span], reach: Reach, scale: float
    ) -> None:
        library = compiled(q)
        assert library is not None
        self.native, self.threads = library, torch.get_num_threads()
        # kept as long as the description points into them
        self.q, self.k, self.v = _ready(q), _ready(k), _ready(v)
        self.s = None if s is None else _ready(s)
        self.band = (_i64 * (2 * len(reach.bands)))(*(x for pair in reach.bands for x in pair))
        documents = [_Document(row, x.start, x.stop) for x in spans for row in range(x.first, x.last)]
        self.count, self.documents = len(documents), (_Document * len(documents))(*documents)
        self.whole = sum((x.last - x.first) * (x.stop - x.start) for x in spans) == q.shape[0] * q.shape[2]
        self.problem = _Problem(
            q.shape[1], k.shape[1], q.shape[2], self.q.shape[-1],
            *self.q.stride()[:3], *self.k.stride()[:3], *self.v.stride()[:3],
            *((0, 0, 0) if self.s is None else self.s.stride()[:3]),
            self.q.data_ptr(), self.k.data_ptr(), self.v.data_ptr(), None if self.s is None else self.s.data_ptr(),
            None, None, scale, reach.sinks, len(reach.bands), self.band,
        )  # fmt: skip
        self.room = kept(library.limbeck_sparse_room(self.problem, self.threads), torch.float32, q.device)

    def _like(self, x: Tensor, zero: bool) -> Tensor:
        """Return a tensor of the shape of ``x`` (B, H, T, D), laid out as (B, T, H, D)."""
        b, h, t, d = x.shape
        return (x.new_zeros if zero else x.new_empty)(b, t, h, d).transpose(1, 2)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return (B, H, T, D) and (B, H, T), 0 outside of documents."""
        out = self._like(self.q, not self.whole)
        sums = (torch.empty if self.whole else torch.zeros)(self.q.shape[:3], dtype=torch.float32)
        self.problem.out, self.problem.sums = out.data_ptr(), sums.data_ptr()
        self.native.limbeck_sparse(self.problem, self.count, self.documents, self.room.data_ptr(), self.threads)
        return out, sums

    def backward(
        self, grad: Tensor, grad_sums: Tensor | None, out: Tensor, sums: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return gradients of queries, keys, values and sink queries."""
        grad, out = _ready(grad), _ready(out).transpose(1, 2).contiguous()
        grad_sums = None if grad_sums is None else grad_sums.float().contiguous()
        self.problem.out, self.problem.sums = out.data_ptr(), sums.data_ptr()
        dq, dk, dv = self._like(self.q, not self.whole), self._like(self.k, True), self._like(self.v, True)
        ds = None if self.s is None else self._like(self.s, not self.whole)
        wanted = _Gradients(
            *grad.stride()[:3], grad.data_ptr(), None if grad_sums is None else grad_sums.data_ptr(),
            dq.data_ptr(), dk.data_ptr(), dv.data_ptr(), None if ds is None else ds.data_ptr(),
        )  # fmt: skip
        self.native.limbeck_sparse_backward(
            self.problem, wanted, self.count, self.documents, self.room.data_ptr(), self.threads
        )
        return dq, dk, dv, ds


def _ready(x: Tensor) -> Tensor:
    """``x`` in float32, its last dimension contiguous and a multiple of the kernel's unit: itself where it is so."""
    x = x.detach().float()
    more = -x.shape[-1] % _UNIT
    if more:
        return F.pad(x, (0, more))
    return x if x.stride(-1) == 1 else x.contiguous()
