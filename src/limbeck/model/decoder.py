"""The decoder: token ids -> hidden states -> logits. It knows no loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.data.batch import Batch
from limbeck.errors import DataError
from limbeck.kernels.activation import activate, activated_linear
from limbeck.kernels.attention import document_spans
from limbeck.kernels.fused_head.divergence import plain_linear
from limbeck.kernels.hooks import hooked
from limbeck.model.attention import Attention, AttentionContext, take, worth_apart
from limbeck.model.cache import KVCache
from limbeck.model.config import DecoderConfig
from limbeck.model.linear import Linear, project
from limbeck.model.positions import Rotary, circled
from limbeck.model.quantized import QuantizedWeight

__all__ = ["Block", "Decoder", "FeedForward"]

R = TypeVar("R")
_BACKEND = "inductor"  # of torch.compile
_FULL = 0.95  # share of real tokens above which padding is computed: moving the others costs as much


def _norm(config: DecoderConfig) -> nn.LayerNorm | nn.RMSNorm:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class FeedForward(nn.Module):
    """``down(f(up(x)))``, or ``down(f(gate(x)) * up(x))`` with gate and up in one matrix (Shazeer 2020)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        f = config.ffn_width
        self.activation, self.gated = config.activation, config.gated
        self.up = Linear(config.hidden_size, {"gate": f, "up": f} if config.gated else {"up": f}, bias=config.ffn_bias)
        self.down = Linear(f, {"down": config.hidden_size}, bias=config.ffn_bias)

    def forward(self, x: Tensor, recompute: Callable[[], Tensor] | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); with ``recompute``, which computes ``x``, the backward does not keep it."""
        y, down = project(self.up, x, recompute), plain_linear(self.down)
        plain = torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling()
        if down is not None and not plain:
            return activated_linear(self.activation, y, *down, gated=self.gated)
        out: Tensor = self.down(activate(self.activation, y, self.gated))
        return out


class Block(nn.Module):
    """Residual block: attention, then feed-forward, or both at once; normalised before, after, or both."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        before, after = config.norm_at != "after", config.norm_at != "before"
        self.attention_norm = _norm(config) if before else nn.Identity()
        self.attention = Attention(config, layer)
        self.ffn_norm = _norm(config) if before else nn.Identity()
        self.ffn = FeedForward(config)
        self.attention_out_norm = _norm(config) if after else None
        self.ffn_out_norm = _norm(config) if after else None
        self.dropout, self.parallel, self.scale = config.dropout, config.parallel, config.residual_scale

    def forward(self, x: Tensor, view: AttentionContext, at: Tensor | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C), or (B, 1, C) of the one token ``at`` (B,) of each row."""
        lean = view.lean and torch.is_grad_enabled()
        y = self.attention(self.attention_norm(x), view, _again(self.attention_norm, x, lean), at)
        kept = x if at is None else take(x, at, 1)
        x = kept + self._branch(y, self.attention_out_norm)
        read = kept if self.parallel else x
        return x + self._branch(self.ffn(self.ffn_norm(read), _again(self.ffn_norm, read, lean)), self.ffn_out_norm)

    def _branch(self, y: Tensor, norm: nn.Module | None) -> Tensor:
        """Return what a branch adds to the residual."""
        y = y if norm is None else norm(y)
        y = y if self.scale == 1.0 else y * self.scale
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


def _again(norm: nn.Module, x: Tensor, lean: bool) -> Callable[[], Tensor] | None:
    """Return what computes ``norm(x)`` once more, where that may be done behind everybody's back."""
    return (lambda: norm(x)) if lean and not hooked(norm) and not isinstance(norm, nn.Identity) else None


class _Bounded(nn.Module):
    """A head with its logits scaled and softly bounded: made for one forward, so that surgery on the head is seen."""

    def __init__(self, head: nn.Module, scale: float, cap: float | None) -> None:
        super().__init__()
        self.head, self.scale, self.cap = head, scale, cap

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., V)."""
        y: Tensor = self.head(x)
        y = y if self.scale == 1.0 else y * self.scale
        return y if self.cap is None else self.cap * torch.tanh(y / self.cap)


class Decoder(nn.Module):
    """GPT-2, Llama and everything between, chosen by a frozen ``DecoderConfig``.

    ``forward(batch)`` returns logits (B, T, V); ``forward(batch, read=fn)`` returns ``fn(hidden, head)`` with the
    final hidden states (B, T, C) and the head module, called inside the forward so that wrappers for many devices
    see one ordinary forward and a fused loss never builds the logits.

    Attributes:
        checkpointing: recompute each block in the backward instead of keeping its activations.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.dropout = config.dropout
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.context, config.hidden_size) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = _norm(config)
        self.head = Linear(config.hidden_size, {"head": config.head_rows}, bias=config.classes is not None)
        if config.tied:
            self.head.weight = self.embed.weight
        ropes = {config.rope_name(i): r for i in range(config.layers) if (r := config.rope_at(i)) is not None}
        self.rotaries = {name: Rotary(r, config.rotary_width, config.context) for name, r in ropes.items()}
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw weights as published for GPT-2 (Radford et al. 2019, 2.3).

        N(0, 0.02), projections into the residual scaled by 1 / sqrt(2 layers), biases 0, gains 1.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, 0.02, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)
        for block in self.modules():
            if isinstance(block, Block):
                for projection in (block.attention.out, block.ffn.down):
                    projection.weight.normal_(0.0, 0.02 / (2 * self.config.layers) ** 0.5, generator=generator)

    @overload
    def forward(self, batch: Batch, *, cache: KVCache | None = None, at: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(
        self,
        batch: Batch,
        *,
        read: Callable[[Tensor, nn.Module], R],
        cache: KVCache | None = None,
        at: Tensor | None = None,
    ) -> R: ...
    def forward(
        self,
        batch: Batch,
        *,
        read: Callable[[Tensor, nn.Module], R] | None = None,
        cache: KVCache | None = None,
        at: Tensor | None = None,
    ) -> Tensor | R:
        """Run the stack over ``batch``.

        Args:
            batch: (B, T) tokens; with a ``cache`` one document a row, whose tokens follow those held.
            read: what to make of the final hidden states and the head; None: the logits.
            cache: keys and values of earlier tokens; it is advanced.
            at: (B,) the one column of each row that is wanted: hidden states and logits are of it alone, (B, 1, ...),
                and the last layer computes no more than they need.

        Raises:
            DataError: a sequence is longer than learned positions reach.
            ValueError: the cache has no room for this call's tokens.
        """
        hidden = self._hidden(batch, cache, at)
        c, head = self.config, self.head
        bounded = c.logit_scale != 1.0 or c.logit_cap is not None
        last: nn.Module = _Bounded(head, c.logit_scale, c.logit_cap).train(self.training) if bounded else head
        return last(hidden) if read is None else read(hidden, last)

    def _hidden(self, batch: Batch, cache: KVCache | None, at: Tensor | None) -> Tensor:
        if cache is not None or not self._pads(batch):
            return self._stack(batch, cache, at)
        joined, places = batch.joined()
        hidden = self._stack(joined, None)[0]
        out = hidden.new_zeros(batch.ids.numel(), hidden.shape[1]).index_copy(0, places, hidden)
        out = out.view(*batch.ids.shape, -1)
        return out if at is None else take(out, at, 1)

    def _pads(self, batch: Batch) -> bool:
        """Is there padding that is better left out: on a CPU, where attention takes documents one by one?

        Not where somebody listens to a part of the model, who expects (B, T, C).
        """
        (b, t), c = batch.ids.shape, self.config
        if batch.ids.device.type != "cpu" or (self.training and self.dropout):
            return False
        real = int(batch.real.sum())
        if not 0 < real <= _FULL * b * t or not all(c.pattern_at(i).is_causal(t) for i in range(c.layers)):
            return False
        narrow = self.dtype == torch.bfloat16
        if not (narrow or worth_apart(len(document_spans(batch.document_ids)), b * c.heads * t * t)):
            return False
        return not any(hooked(m) for m in self.modules())

    def _stack(self, batch: Batch, cache: KVCache | None, at: Tensor | None = None) -> Tensor:
        positions = batch.positions() if cache is None else cache.positions(batch)
        longest = batch.ids.shape[1] + (cache.longest if cache is not None else 0)
        learned = self.learned(positions, longest) if self.positions is not None else positions
        fresh = cache is None or cache.longest == 0
        slots = cache.plan(batch, positions) if cache is not None else {}
        x: Tensor = self.embed(batch.ids)
        if self.config.embed_scale != 1.0:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype, device=x.device)
        if self.positions is not None:
            x = x + self.positions(learned)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        rotaries = self.rotaries.items()
        rotary: dict[str, tuple[Tensor, Tensor]] = {n: r.tables(positions, longest, x.dtype) for n, r in rotaries}
        whole = self.checkpointing and self.training
        nearer = self._sink_rotary(positions, longest, x.dtype)
        view = AttentionContext(
            positions, batch.document_ids, batch.plain, rotary, cache, slots, fresh, not whole, nearer
        )
        for i, block in enumerate(self.blocks):
            # the last layer may leave tokens out, unless somebody listens to it who expects all of them
            last = at is not None and i == len(self.blocks) - 1 and not any(map(hooked, block.modules()))
            given = (view, at) if last else (view,)
            x = checkpoint(block, x, *given, use_reentrant=False) if whole else block(x, *given)
        hidden: Tensor = self.norm(x if at is None or x.shape[1] == 1 else take(x, at, 1))
        return hidden

    @property
    def rotary(self) -> Rotary | None:
        """Rotary tables of the layers without a base of their own; None without rotary positions."""
        return self.rotaries.get("all")

    def learned(self, positions: Tensor, longest: int) -> Tensor:
        """Return the rows of learned positions for ``positions``, all below ``longest``.

        Past the context they go round in a circle, where every layer reads text of any length (``circled``).

        Raises:
            DataError: a position lies beyond them, and some layer cannot.
        """
        c = self.config
        if longest <= c.context or not c.unbounded:
            self.check_reach(positions, longest)
            return positions
        return circled(positions, c.context, max(c.pattern_at(i).sinks for i in range(c.layers)))

    def _sink_rotary(self, positions: Tensor, longest: int, dtype: torch.dtype) -> dict[int, tuple[Tensor, Tensor]]:
        """Tables of the queries as sinks see them, by each pattern's ``sink_reach`` that is shorter than the text."""
        if self.rotary is None:
            return {}
        found = {self.config.pattern_at(i).sink_reach for i in range(self.config.layers)}
        return {r: self.rotary.tables(positions.clamp_max(r), r + 1, dtype) for r in found if 0 < r < longest - 1}

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Run every ``Block`` within the ``with`` under ``torch.compile``, but for attention, which has its own
        kernels.

        Names in the state dict stay; the model must not be copied meanwhile.
        """
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        try:
            for block in blocks:
                block.attention.core = torch.compiler.disable(block.attention.core)  # type: ignore[method-assign,no-untyped-call]
                block.compile(backend=_BACKEND)
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None
                block.attention.__dict__.pop("core", None)

    def switch_off_dropout(self) -> None:
        """Train without dropout from now on; the config, and so a saved model, keeps its rate."""
        for module in self.modules():
            if isinstance(module, Decoder | Block | Attention):
                module.dropout = 0.0

    def check_reach(self, positions: Tensor, longest: int) -> None:
        """Refuse ``positions`` past the learned ones; asks the device only where the width alone cannot tell.

        Raises:
            DataError: a position lies beyond them.
        """
        reach = self.config.context
        if longest > reach and (length := int(positions.max()) + 1) > reach:
            raise DataError(
                f"a sequence of {length} tokens is longer than the model's {reach} learned positions: "
                "shorten or split it, or generate less"
            )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation, that of the final norm."""
        return self.norm.weight.dtype

    def count_parameters(self, trainable: bool = False) -> int:
        """Return the number of parameters, quantized too, a tied head once; with ``trainable`` those that take
        gradients.
        """
        if trainable:
            return sum(p.numel() for p in self.parameters() if p.requires_grad)
        coded = sum(m.layout.rows * m.layout.columns for m in self.modules() if isinstance(m, QuantizedWeight))
        return coded + sum(p.numel() for p in self.parameters())

    def count_bytes(self) -> int:
        """Return bytes of parameters and buffers in memory, a tied head counted once."""
        state = [*self.parameters(), *self.buffers()]
        return sum(x.numel() * x.element_size() for x in state)

    def flops_per_token(self, context: int) -> int:
        """Return floating-point operations of the forward of one token that sees ``context`` positions, 2 a
        multiply-add.

        Matrix products and attention scores only, as usual; training costs three times as much.
        """
        c = self.config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        linear = c.hidden_size * (2 * q + 2 * kv) + c.hidden_size * c.ffn_width * (3 if c.gated else 2)
        seen = [c.pattern_at(i).pairs(context) - c.pattern_at(i).pairs(context - 1) for i in range(c.layers)]
        return 2 * (c.layers * linear + c.hidden_size * c.head_rows + sum(2 * q * s for s in seen))

    def kv_bytes_per_token(self, dtype: torch.dtype | None = None) -> int:
        """Return bytes of the keys and values of one token over all layers; a rolling pattern keeps only so many
        tokens.
        """
        return self.kv_bytes(1, dtype)

    def kv_bytes(self, length: int, dtype: torch.dtype | None = None) -> int:
        """Return bytes of the keys and values kept of ``length`` tokens: of a rolling pattern its window and sinks
        alone.
        """
        c = self.config
        slots = sum(c.pattern_at(i).slots(length) for i in range(c.layers))
        return 2 * slots * c.kv_heads * c.head_dim * (dtype or self.dtype).itemsize
