"""One token of every sequence by the compiled kernels: what a session runs in place of the decoder's own forward.

The compiled step (``kernels/native/step.c``) reads weights where they lie, in fp32, bf16, fp16 or the neutral layout of
quantized matrices, and allocates nothing. Activations are fp32, but rounded to int8 in blocks of 32 for a product with
int8 or int4 codes where the processor multiplies eight-bit integers, as in ``kernels/packed.py``. It serves decoders
made of plain or quantized linear layers on a CPU; anything else (adapters not merged, fake quantization, fp64, other
devices, autocast, a pinned dispatch) runs through torch.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.kernels import native, packed
from limbeck.kernels.hooks import hooked
from limbeck.kernels.packed_layout import Layout
from limbeck.model.attention import Attention
from limbeck.model.cache import KVCache
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Block, Decoder, FeedForward
from limbeck.model.linear import Linear
from limbeck.model.patterns import AnyPattern
from limbeck.model.positions import Rotary
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight

__all__ = ["MOST_ROWS", "CompiledStep"]

MOST_ROWS = 16
"""Most sequences for which the compiled step is taken: beyond, torch's matrix products win (lab notes)."""

_UNIT = 32  # columns to which the C source wants rows of activations padded
_CASTS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}
_ACTIVATIONS = ("gelu_tanh", "gelu", "silu", "relu")


class CompiledStep:
    """A decoder and a cache, described to the compiled kernels."""

    def __init__(self, library: ctypes.CDLL, model: Decoder, cache: KVCache) -> None:
        self._library, self.model, self.cache = library, model, cache
        self._held: list[Any] = []  # what the descriptions point into
        self._patterns: dict[AnyPattern, _Places] = {}
        c = model.config
        self._layers = (native.Layer * c.layers)(*(self._layer(b) for b in model.blocks if isinstance(b, Block)))
        gain, shift = self._norm(model.norm)
        assert cache.stored is not None
        self._model = native.Model(
            layers=c.layers, width=c.hidden_size, heads=c.heads, kv_heads=c.kv_heads, head_width=c.head_dim,
            ffn=c.ffn_width, gated=c.gated, activation=_ACTIVATIONS.index(c.activation), rms=c.norm == "rms",
            cache_kind=native.KINDS[_CASTS[cache.stored]], rotary=model.rotary is not None, eps=c.norm_eps,
            layer=self._layers, gain=gain, shift=shift, head=self._matrix(model.head), embed=self._table(model.embed),
            positions=native.Matrix() if model.positions is None else self._table(model.positions),
        )  # fmt: skip
        self._rooms: dict[int, _Room] = {}
        self.bind()

    @classmethod
    def of(cls, model: Decoder, cache: KVCache) -> CompiledStep | None:
        """Return the compiled step for this model and cache, or None where torch has to serve."""
        if not 0 < cache.lengths.shape[0] <= MOST_ROWS or not _serves(model, cache):
            return None
        library = native.load()
        return None if library is None else cls(library, model, cache)

    def bind(self) -> None:
        """Take up the cache's tensors as they are now: after rows were selected."""
        for i, layer in enumerate(self._layers):
            slots = self.cache.keys[i].shape[2]
            places = self._places(self.model.config.pattern_at(i), slots)
            layer.keys, layer.values = self.cache.keys[i].data_ptr(), self.cache.values[i].data_ptr()
            layer.slots = slots
            layer.write, layer.count, layer.seen, layer.most = places.pointers
            layer.sinks, layer.sink_cosines, layer.sink_sines = places.sink_pointers
            if self.cache.key_scales:
                layer.key_scales = self.cache.key_scales[i].data_ptr()
                layer.value_scales = self.cache.value_scales[i].data_ptr()

    def run(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Append ``tokens`` (B, T) to the rows that are ``real`` (B,) bool, None: all; returns logits (B, T, V), fp32.

        The result is this step's own buffer: the next step of as many tokens overwrites it.

        Args:
            tokens: at most ``MOST_ROWS`` in all; several a row only where every layer is causal.
            real: None where T is more than 1.

        Raises:
            DataError: a sequence is longer than learned positions reach.
            ValueError: the cache is full.
        """
        model, cache, rows, each = self.model, self.cache, tokens.numel(), tokens.shape[1]
        positions, writes = cache.append(real, each)
        flat = positions.flatten()
        cosines = sines = None
        learned = flat if model.positions is None else model.learned(flat, cache.longest)
        if model.rotary is not None:
            cosines, sines = model.rotary.tables(flat[:, None], cache.longest, torch.float32)
        for pattern, write in writes.items():
            self._patterns[pattern].take(pattern, write.flatten(), flat, cache, model.rotary)
        room = self._room(rows)
        self._library.limbeck_step(
            ctypes.byref(self._model), rows, each, tokens.data_ptr(), learned.data_ptr(), room.x.data_ptr(),
            _at(cosines), _at(sines), room.logits.data_ptr(), room.scratch.data_ptr(), room.slots, room.threads,
        )  # fmt: skip
        return room.logits.view(-1, each, room.logits.shape[1])

    def _room(self, rows: int) -> _Room:
        """Memory for a step of ``rows`` tokens, kept for the next."""
        if rows not in self._rooms:
            c, threads = self.model.config, torch.get_num_threads()
            slots = max(k.shape[2] for k in self.cache.keys)
            size = self._library.limbeck_scratch(ctypes.byref(self._model), rows, slots, threads)
            x = torch.zeros(rows, -(-c.hidden_size // _UNIT) * _UNIT)
            self._rooms[rows] = _Room(x, torch.empty(rows, c.head_rows), torch.zeros(size), slots, threads)
        return self._rooms[rows]

    def _places(self, pattern: AnyPattern, slots: int) -> _Places:
        if pattern not in self._patterns:
            write, count = (torch.zeros(MOST_ROWS, dtype=torch.int64) for _ in range(2))
            listed = pattern.key_slots(write, self.cache.capacity)
            near = None
            if pattern.sink_reach and self.model.rotary is not None:
                near = torch.ones(2, MOST_ROWS, self.model.config.head_dim // 2)
            self._patterns[pattern] = _Places(write, count, listed, near, pattern.sinks)
        return self._patterns[pattern]

    def _layer(self, block: Block) -> native.Layer:
        attention_gain, attention_shift = self._norm(block.attention_norm)
        ffn_gain, ffn_shift = self._norm(block.ffn_norm)
        return native.Layer(
            qkv=self._matrix(block.attention.qkv), out=self._matrix(block.attention.out),
            up=self._matrix(block.ffn.up), down=self._matrix(block.ffn.down),
            attention_gain=attention_gain, attention_shift=attention_shift, ffn_gain=ffn_gain, ffn_shift=ffn_shift,
        )  # fmt: skip

    def _norm(self, norm: nn.Module) -> tuple[int | None, int | None]:
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)  # ``_known_block``
        return self._wide(norm.weight), self._wide(norm.bias if isinstance(norm, nn.LayerNorm) else None)

    def _matrix(self, linear: nn.Module) -> native.Matrix:
        assert isinstance(linear, Linear | QuantizedLinear)
        made = self._codes(linear.quantized) if isinstance(linear, QuantizedLinear) else self._plain(linear.weight)
        made.bias = self._wide(linear.bias)
        return made

    def _table(self, embedding: nn.Module) -> native.Matrix:
        assert isinstance(embedding, nn.Embedding | QuantizedEmbedding)
        if isinstance(embedding, QuantizedEmbedding):
            return self._codes(embedding.quantized)
        return self._plain(embedding.weight)

    def _plain(self, weight: Tensor) -> native.Matrix:
        self._held.append(weight)
        kind = native.KINDS[_CASTS[weight.dtype]]
        return native.Matrix(kind=kind, rows=weight.shape[0], columns=weight.shape[1], span=-1, codes=weight.data_ptr())

    def _codes(self, quantized: QuantizedWeight) -> native.Matrix:
        codes = quantized.value()
        self._held.append(codes)
        return native.matrix(codes)

    def _wide(self, x: Tensor | None) -> int | None:
        """Address of a contiguous fp32 copy (or of ``x`` itself), kept alive."""
        if x is None:
            return None
        wide = x.detach().float().contiguous()
        self._held.append(wide)
        return wide.data_ptr()


@dataclass(frozen=True, slots=True)
class _Room:
    """Memory of steps of one size: (rows, width) padded, (rows, V), scratch made for so many slots and threads."""

    x: Tensor
    logits: Tensor
    scratch: Tensor
    slots: int
    threads: int


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the layers of one pattern write and look.

    Attributes:
        write: (rows,) slot of the new token.
        count: (rows,) slots to look at.
        seen: (rows, n) which, -1 for none; None: from the first on.
        near: (2, rows, D / 2) cosines and sines of the queries as sinks see them; None: as all keys do.
        sinks: how many slots are sinks.
    """

    write: Tensor
    count: Tensor
    seen: Tensor | None
    near: Tensor | None
    sinks: int

    @property
    def pointers(self) -> tuple[int, int, int | None, int]:
        most = 0 if self.seen is None else self.seen.shape[1]
        return self.write.data_ptr(), self.count.data_ptr(), _at(self.seen), most

    @property
    def sink_pointers(self) -> tuple[int, int | None, int | None]:
        if self.near is None:
            return 0, None, None
        return self.sinks, self.near[0].data_ptr(), self.near[1].data_ptr()

    def take(
        self, pattern: AnyPattern, write: Tensor, positions: Tensor, cache: KVCache, rotary: Rotary | None
    ) -> None:
        rows = write.shape[0]
        self.write[:rows] = write
        if self.near is not None and rotary is not None:
            reach = pattern.sink_reach
            tables = rotary.tables(positions.clamp_max(reach)[:, None], reach + 1, torch.float32)
            for into, table in zip(self.near, tables, strict=True):
                into[:rows] = table.view(rows, -1)
        if self.seen is None:  # a ring fills from its first slot on, and then holds what is seen
            torch.clamp(positions + 1, max=cache.held(pattern).shape[1] - 1, out=self.count[:rows])
            return
        listed = pattern.key_slots(positions, cache.capacity)
        assert listed is not None
        self.count[:rows] = listed.shape[1]
        self.seen[:rows] = listed


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _serves(model: Decoder, cache: KVCache) -> bool:
    """Is this a decoder of which the compiled step knows every part, here and now?"""
    if model.device.type != "cpu" or model.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if packed.current() not in ("auto", "packed") or model.config.classes is not None or cache.stored not in _CASTS:
        return False
    if not _says(model.config):
        return False
    if model.dtype not in _CASTS or any(hooked(m) for m in model.modules()):
        return False  # whoever listens to a module wants it called
    if type(model) is not Decoder or not _known_table(model.embed):
        return False
    if model.positions is not None and not _known_table(model.positions):
        return False
    return _known(model.head) and all(_known_block(block) for block in model.blocks)


def _says(c: DecoderConfig) -> bool:
    """Return whether the compiled step knows every setting of the decoder."""
    plain = (c.norm_at, c.qk_norm, c.parallel, c.rotary_width, c.unrotated, c.rope_local)
    scales = (c.embed_scale, c.residual_scale, c.logit_scale, c.attention_scale, c.score_cap, c.logit_cap)
    return plain == ("before", "none", False, c.head_dim, (), None) and scales == (1.0, 1.0, 1.0, None, None, None)


def _known_block(block: nn.Module) -> bool:
    if type(block) is not Block or type(block.attention) is not Attention or type(block.ffn) is not FeedForward:
        return False
    norms = all(type(n) in (nn.LayerNorm, nn.RMSNorm) for n in (block.attention_norm, block.ffn_norm))
    return norms and all(_known(x) for x in (block.attention.qkv, block.attention.out, block.ffn.up, block.ffn.down))


def _known(linear: nn.Module) -> bool:
    if type(linear) is Linear:
        return _known_weight(linear.weight)
    return type(linear) is QuantizedLinear and _known_layout(linear.quantized.layout)


def _known_table(table: nn.Module) -> bool:
    if type(table) is nn.Embedding:
        return table.max_norm is None and _known_weight(table.weight)
    return type(table) is QuantizedEmbedding and _known_layout(table.quantized.layout)


def _known_weight(weight: Tensor) -> bool:
    return weight.dtype in _CASTS and weight.is_contiguous()


def _known_layout(layout: Layout) -> bool:
    one_scale = layout.span == 0 or layout.span >= layout.columns or layout.scale_dtype is None
    scales = layout.scale_dtype in (None, torch.float32, torch.float16)
    return layout.kind in native.KINDS and scales and (one_scale or layout.span % _UNIT == 0)
