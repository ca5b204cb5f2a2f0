"""Attention: one ``attend`` for every pattern, with and without a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.kernels.attention import Span, document_attention, document_spans
from limbeck.kernels.flex import BlockMask, block_mask, flex_attend, serves
from limbeck.kernels.sparse import compiled, sparse_attention
from limbeck.model.cache import KVCache, Slots
from limbeck.model.config import DecoderConfig
from limbeck.model.linear import Linear, project
from limbeck.model.patterns import AnyPattern
from limbeck.model.positions import rotate

__all__ = ["Attention", "AttentionContext", "attend", "attend_apart", "take", "worth_apart"]

_SCORES_A_SPAN = 1 << 16  # of a dense mask: below, a handful of small operations a document costs more than the mask


@dataclass(slots=True)
class AttentionContext:
    """Everything one forward knows about who sees whom; made once, read by every layer.

    Attributes:
        positions: (B, T) absolute position of each query.
        documents: (B, T) document of each query, 0 for padding.
        plain: one document a row from column 0: the causal mask alone is exact.
        rotary: cos and sin (B, 1, T, R/2) of each kind of rotary positions in the model, by its name.
        sink_rotary: the same as sinks see the queries, by a pattern's ``sink_reach``; only where that differs.
        cache: the cache to write and read, or None.
        slots: the cache's plan for this call, by pattern.
        fresh: the cache held nothing before this call, so its own tokens are all there is to see.
        lean: the backward computes norms again; not where it computes whole blocks again, as both would be kept.
    """

    positions: Tensor
    documents: Tensor
    plain: bool
    rotary: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    cache: KVCache | None = None
    slots: dict[AnyPattern, Slots] = field(default_factory=dict)
    fresh: bool = True
    lean: bool = False
    sink_rotary: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _own: dict[AnyPattern, Tensor] = field(default_factory=dict)
    _held: dict[AnyPattern, Tensor] = field(default_factory=dict)
    _listed: dict[AnyPattern, Tensor | None] = field(default_factory=dict)
    _blocks: dict[AnyPattern, BlockMask] = field(default_factory=dict)
    _spans: tuple[Span, ...] | None = None

    def spans(self, pattern: AnyPattern, heads: int, narrow: bool) -> tuple[Span, ...] | None:
        """Return documents to attend one by one in ``kernels.attention``; None where torch's own kernel serves better.

        So it does on other devices, under a pattern that hides more than the future, without a mask in arithmetic that
        is not ``narrow`` (bf16, where its softmax is slow), and where documents are many and short.
        """
        b, t = self.documents.shape
        if self.documents.device.type != "cpu" or (self.plain and not narrow):
            return None
        spans, longest = self._documents()
        worth = self.plain or worth_apart(len(spans), b * heads * t * t)
        return spans if worth and pattern.is_causal(longest) else None

    def sparse_spans(self, pattern: AnyPattern, q: Tensor) -> tuple[Span, ...] | None:
        """Return documents to attend in ``kernels.sparse`` with queries like ``q``; None where a mask serves.

        So it does where the pattern hides nothing, on other devices, and without a compiler where documents are many
        and short. Sinks that appear nearer than they are cannot be told by a mask.
        """
        nearer = bool(pattern.sink_reach)
        (b, t), device = self.documents.shape, self.documents.device.type
        if pattern.is_causal(t) or (device != "cpu" and not nearer):
            return None
        spans, longest = self._documents()
        if pattern.is_causal(longest):
            return None
        worth = nearer or compiled(q) is not None or worth_apart(len(spans), b * q.shape[1] * t * t)
        return spans if worth else None

    def _documents(self) -> tuple[tuple[Span, ...], int]:
        """Spans of the documents, and the tokens of the longest."""
        b, t = self.documents.shape
        if self._spans is None:
            self._spans = (Span(0, b, 0, t),) if self.plain else document_spans(self.documents)
        return self._spans, max((s.stop - s.start for s in self._spans), default=0)

    def mask(self, pattern: AnyPattern) -> Tensor | None:
        """Return (B, 1, T, T) bool: document borders and ``pattern`` over this call's own tokens; every token sees
        itself.

        None where the causal mask alone says the same, so that no mask is built.
        """
        if self.plain and pattern.is_causal(self.positions.shape[1]):
            return None
        return self.dense_mask(pattern)

    def dense_mask(self, pattern: AnyPattern) -> Tensor:
        """Return (B, 1, T, T) bool, as ``mask``, always built."""
        if pattern not in self._own:
            query, key = self.positions[:, :, None], self.positions[:, None, :]
            same = self.documents[:, :, None] == self.documents[:, None, :]
            itself = torch.eye(self.positions.shape[1], dtype=torch.bool, device=self.positions.device)
            self._own[pattern] = ((same & pattern.allows(query, key)) | itself).unsqueeze(1)
        return self._own[pattern]

    def blocks(self, pattern: AnyPattern) -> BlockMask | None:
        """Return the mask of ``dense_mask`` for FlexAttention, on a GPU; None where the causal mask alone says the
        same.
        """
        if self.documents.device.type != "cuda" or (self.plain and pattern.is_causal(self.positions.shape[1])):
            return None
        if pattern not in self._blocks:
            self._blocks[pattern] = block_mask(self.documents, self.positions, pattern.allows)
        return self._blocks[pattern]

    def held_mask(self, pattern: AnyPattern, held: Tensor) -> Tensor:
        """Return (B, 1, T, S) bool over cache slots that hold positions ``held`` (B, S), -1 where empty."""
        if pattern not in self._held:
            allowed = (held[:, None, :] >= 0) & pattern.allows(self.positions[:, :, None], held[:, None, :])
            self._held[pattern] = allowed.unsqueeze(1)
        return self._held[pattern]

    def listed(self, pattern: AnyPattern, capacity: int) -> Tensor | None:
        """Return (B, n) cache slots that the one query of each row reads, -1 for none; None: all that are filled."""
        if pattern not in self._listed:
            self._listed[pattern] = pattern.key_slots(self.positions[:, 0], capacity)
        return self._listed[pattern]


def worth_apart(documents: int, scores: int) -> bool:
    """Return whether attending documents one by one is cheaper than the ``scores`` of a dense mask."""
    return scores >= _SCORES_A_SPAN * documents


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Return scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped keys and values.

    Args:
        q: (B, H, T, D) queries.
        k: (B, KV, S, D) keys, H a multiple of KV.
        v: (B, KV, S, D) values.
        mask: broadcastable to (B, H, T, S) bool, true where seen; None: causal, T equal to S.
        dropout: on the attention weights.
        scale: factor on the scores; None: D**-0.5.
        cap: bound scores softly, cap * tanh(score / cap) (Gemma 2); it needs a mask.

    Returns:
        (B, H, T, D).
    """
    if cap is not None:
        assert mask is not None
        return _capped(q, k, v, mask, dropout, q.shape[-1] ** -0.5 if scale is None else scale, cap)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scale: float, cap: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) * (scale / cap))
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return F.dropout(weights.to(q.dtype), dropout) @ v


def attend_apart(
    q: Tensor,
    sink_q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    sinks: Tensor,
    dropout: float = 0.0,
    cap: float | None = None,
) -> Tensor:
    """Return ``attend`` where keys that are ``sinks`` (B, 1, 1, S) bool meet other queries ``sink_q`` than the rest."""
    b, h, t, d = q.shape
    shape = (b, k.shape[1], h // k.shape[1], t, d)
    near, far = (x.view(shape) @ k[:, :, None].mT for x in (q, sink_q))
    scores = torch.where(sinks[:, :, None], far, near) * d**-0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~mask[:, :, None], float("-inf")).softmax(dim=-1)
    return (F.dropout(weights, dropout) @ v[:, :, None]).view(b, h, t, d)


def take(x: Tensor, at: Tensor, dim: int) -> Tensor:
    """Select position ``at`` (B,) along ``dim`` from each row of ``x`` (B, ...); keep the dimension, of size 1."""
    return x.gather(dim, at.view(-1, *[1] * (x.ndim - 1)).expand(*x.shape[:dim], 1, *x.shape[dim + 1 :]))


class Attention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.config, self.layer, self.pattern = config, layer, config.pattern_at(layer)
        self.sizes, self.dropout = [q, kv, kv], config.dropout
        self.rope = config.rope_name(layer) if config.rope_at(layer) is not None else None
        # a scale other than D**-0.5 is put into the queries, so that every kernel serves
        self.query_factor = (config.attention_scale or config.head_dim**-0.5) * config.head_dim**0.5
        self.qkv = Linear(config.hidden_size, {"q": q, "k": kv, "v": kv}, bias=config.qkv_bias)
        self.out = Linear(q, {"out": config.hidden_size}, bias=config.out_bias)
        if config.qk_norm != "none":
            of_heads = config.qk_norm == "head"
            self.q_norm = nn.RMSNorm(config.head_dim if of_heads else q, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim if of_heads else kv, eps=config.norm_eps)

    def forward(
        self, x: Tensor, view: AttentionContext, recompute: Callable[[], Tensor] | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C), or (B, 1, C) of the one token ``at`` (B,) of each row.

        With ``recompute``, which computes ``x``, the backward does not keep it.
        """
        c, (b, t, _) = self.config, x.shape
        # The layer's own sizes, not ``qkv.parts``: an adapter or a packed layer in its place need not have any.
        q, k, v = torch.split(project(self.qkv, x, recompute), self.sizes, dim=-1)
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(b, t, c.heads, c.head_dim).transpose(1, 2)
        k = k.view(b, t, c.kv_heads, c.head_dim).transpose(1, 2)
        v = v.view(b, t, c.kv_heads, c.head_dim).transpose(1, 2)
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if c.attention_scale is not None:
            q = q * self.query_factor
        sink_q = None
        if self.rope is not None:
            near = view.sink_rotary.get(self.pattern.sink_reach) if self.rope == "all" else None
            sink_q = None if near is None else rotate(q, *near)
            q, k = rotate(q, *view.rotary[self.rope]), rotate(k, *view.rotary[self.rope])
        y = self.core(q, k, v, view, at, sink_q)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def core(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        view: AttentionContext,
        at: Tensor | None = None,
        sink_q: Tensor | None = None,
    ) -> Tensor:
        """Return (B, H, T, D), (B, KV, T, D) twice -> (B, H, T, D): what has kernels of its own, and no parameters.

        With ``at`` (B,) -> (B, H, 1, D), of that query of each row. ``sink_q``: the queries as sinks see them.
        """
        if view.cache is not None and not view.fresh:
            y = self._behind(q, k, v, view, view.cache, sink_q)
            return y if at is None else take(y, at, 2)
        if at is None:
            y = self._among(q, k, v, view, sink_q)
        else:
            y = self._last(take(q, at, 2), k, v, view, at, None if sink_q is None else take(sink_q, at, 2))
        if view.cache is not None:
            view.cache.write(self.layer, view.slots[self.pattern], k, v)
        return y

    def _among(self, q: Tensor, k: Tensor, v: Tensor, view: AttentionContext, sink_q: Tensor | None) -> Tensor:
        """Attend to this call's own tokens, (B, H, T, D)."""
        dropout, cap = self.dropout if self.training else 0.0, self.config.score_cap
        if cap is not None and sink_q is None:
            return attend(q, k, v, view.dense_mask(self.pattern), dropout=dropout, cap=cap)
        if cap is not None and sink_q is not None:
            sinks = (view.positions < self.pattern.sinks)[:, None, None]
            return attend_apart(q, sink_q, k, v, view.dense_mask(self.pattern), sinks, dropout, cap)
        spans = None if dropout else view.spans(self.pattern, q.shape[1], q.dtype == torch.bfloat16)
        if spans is not None:
            return document_attention(q, k, v, spans)
        spans = None if dropout else view.sparse_spans(self.pattern, q)
        if spans is not None:
            reach = self.pattern.reach(q.shape[2])
            return sparse_attention(q, k, v, spans, reach, sink_queries=sink_q)[0]
        blocks = view.blocks(self.pattern) if not dropout and serves(q) else None
        if blocks is not None:
            return flex_attend(q, k, v, blocks)
        if sink_q is not None:
            sinks = (view.positions < self.pattern.sinks)[:, None, None]
            return attend_apart(q, sink_q, k, v, view.dense_mask(self.pattern), sinks, dropout)
        return attend(q, k, v, view.mask(self.pattern), dropout=dropout)

    def _last(
        self, q: Tensor, k: Tensor, v: Tensor, view: AttentionContext, at: Tensor, sink_q: Tensor | None
    ) -> Tensor:
        """Attend with one query (B, H, 1, D) a row, that of column ``at``, to this call's own tokens."""
        column = torch.arange(k.shape[2], device=k.device)
        same = view.documents == take(view.documents, at, 1)
        seen = same & self.pattern.allows(take(view.positions, at, 1), view.positions)
        mask = (seen | (column == at[:, None]))[:, None, None]
        dropout, cap = self.dropout if self.training else 0.0, self.config.score_cap
        if sink_q is not None:
            sinks = (view.positions < self.pattern.sinks)[:, None, None]
            return attend_apart(q, sink_q, k, v, mask, sinks, dropout, cap)
        return attend(q, k, v, mask, dropout=dropout, cap=cap)

    def _behind(
        self, q: Tensor, k: Tensor, v: Tensor, view: AttentionContext, cache: KVCache, sink_q: Tensor | None
    ) -> Tensor:
        """Attend to what the cache holds and to this call's own tokens, (B, H, T, D)."""
        slots, pattern = view.slots[self.pattern], self.pattern
        if q.shape[2] > 1 and pattern.rolls:
            # Several tokens into a ring: later ones may overwrite what earlier ones see, so read the old ring first.
            mask = torch.cat((view.held_mask(pattern, slots.before), view.dense_mask(pattern)), dim=-1)
            held = torch.cat((slots.before, view.positions), dim=-1)
            old_keys, old_values = cache.read(self.layer, slots.before.shape[1])
            k_all, v_all = torch.cat((old_keys, k), dim=2), torch.cat((old_values, v), dim=2)
            y = self._masked(q, k_all, v_all, mask, held, sink_q)
            cache.write(self.layer, slots, k, v)
            return y
        # What one token overwrites it can no longer see, so writing first is exact; a full cache never overwrites.
        cache.write(self.layer, slots, k, v)
        listed = view.listed(pattern, cache.capacity) if q.shape[2] == 1 else None
        if listed is not None:
            mask = (listed >= 0)[:, None, None]
            return attend(q, *cache.read_slots(self.layer, listed.clamp_min(0)), mask, cap=self.config.score_cap)
        live = min(cache.longest, slots.positions.shape[1] - 1)
        held = slots.positions[:, :live]
        mask = view.held_mask(pattern, held)
        mask = mask | ~mask.any(dim=-1, keepdim=True)  # a padded row sees something, so that no NaN arises
        return self._masked(q, *cache.read(self.layer, live), mask, held, sink_q)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, held: Tensor, sink_q: Tensor | None) -> Tensor:
        """``attend`` under a mask, to keys of positions ``held`` (B, S), of which sinks may see other queries."""
        if sink_q is None:
            return attend(q, k, v, mask, cap=self.config.score_cap)
        sinks = (held < self.pattern.sinks)[:, None, None]
        return attend_apart(q, sink_q, k, v, mask, sinks, cap=self.config.score_cap)
