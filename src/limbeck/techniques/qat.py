"""QAT, quantization-aware fine-tuning: train the weights that rounding will leave, then pack exactly those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.packed_layout import DOUBLE, NARROW, Codes, Layout, pack
from limbeck.model.decoder import Decoder
from limbeck.model.linear import Linear
from limbeck.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from limbeck.model.surgery import replace
from limbeck.techniques.grid import Grid, Scales, encode, nearest_codes, numbers_of, search, spread, stored
from limbeck.techniques.quantized import Quantizer, WeightMatrix, deployed_spec_of, matrices
from limbeck.techniques.technique import Technique

__all__ = ["QAT", "FakeEmbedding", "FakeLinear", "FakeWeight"]


class QAT(Quantizer):
    """Fake quantization: forwards see the rounded weights, gradients pass to the weights behind them.

    Rounding is passed straight through (Bengio et al. 2013). Scales follow the weights by round-to-nearest's rule at
    every step, or are learned by LSQ's gradient (Esser et al. 2020, eq. 3) from the ranges of least squared error on.
    Any objective trains it, adapters too. ``convert`` packs the very codes of the last forward (I18).

    >>> import limbeck
    >>> limbeck.QAT(bits=4, learned_scales=True).learned_scales
    True
    """

    name: ClassVar[str] = "qat"
    post_training: ClassVar[bool] = False

    kind: Literal["qat"] = "qat"
    learned_scales: bool = Field(False, description="train the scales (LSQ) instead of taking them from the weights")

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Put fake quantization in place of the weights; ``calibration`` is not read.

        Raises:
            TechniqueError: the model is quantized already, a pattern matches nothing, or scales are to be learned for a
                format that has none.
        """
        return self._install(model, start=True)

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the modules of ``apply`` with scales not yet computed."""
        return self._install(model, start=False)

    def _install(self, model: Decoder, start: bool) -> Decoder:
        chosen = {m.name: m for m in matrices(model, self)}
        tied = model.head.weight is model.embed.weight
        if self.learned_scales:
            for m in chosen.values():
                if m.grid.granularity == "none":
                    raise TechniqueError(
                        f"{m.name} is to be {m.grid.format}, which has no scale: set learned_scales=false"
                    )
                if m.grid.scale_dtype == "double":
                    raise TechniqueError(
                        f"{m.name} is to have scales that are rounded to 8 bits and cannot be learned: "
                        "set scale_dtype to fp16, or learned_scales=false"
                    )

        def build(name: str, module: nn.Module) -> nn.Module:
            weight = FakeWeight(chosen[name], self.learned_scales, start)
            if isinstance(module, nn.Embedding):
                return FakeEmbedding(weight)
            assert isinstance(module, nn.Linear)
            parts = module.parts if isinstance(module, Linear) else {"out": module.out_features}
            return FakeLinear(weight, parts, module.bias)

        replace(model, lambda name, _: name in chosen, build)
        if tied and isinstance(model.embed, FakeEmbedding):
            model.head = FakeLinear(model.embed.fake, model.head.parts, None, borrowed=True)  # type: ignore[assignment]
        return model

    @torch.no_grad()
    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Pack the codes and scales of the fake quantization; the latent weights are dropped.

        Raises:
            TechniqueError: the model is not under this technique.
        """
        packed: dict[int, QuantizedWeight] = {}

        def of(fake: FakeWeight) -> QuantizedWeight:
            if id(fake) not in packed:
                packed[id(fake)] = QuantizedWeight(fake.codes(), fake.latent.dtype)
            return packed[id(fake)]

        def build(name: str, module: nn.Module) -> nn.Module:
            if isinstance(module, FakeEmbedding):
                return QuantizedEmbedding(of(module.fake))
            assert isinstance(module, FakeLinear)
            return QuantizedLinear(of(module.fake), module.parts, module.bias, borrowed=module.borrowed)

        if not replace(model, lambda _, m: isinstance(m, FakeLinear | FakeEmbedding), build):
            raise TechniqueError("the model holds no fake quantization to pack: apply QAT first")
        return model, deployed_spec_of(model, self)


class FakeWeight(nn.Module):
    """A latent matrix (R, C) that is read as its rounding.

    Attributes:
        latent: the weight that gradients change.
        scales, zeros: learned, flat so that weight decay, which is for matrices, leaves them alone; or None.
        grid, layout: what it is rounded to.
    """

    scales: nn.Parameter | None
    zeros: nn.Parameter | None

    def __init__(self, matrix: WeightMatrix, learned: bool, start: bool) -> None:
        super().__init__()
        self.grid = matrix.grid
        self.latent: Tensor = matrix.module.weight
        self.layout: Layout = self.grid.layout(*self.latent.shape)
        scales = zeros = None
        if learned:
            size = self.layout.scale_shape[0] * self.layout.scale_shape[1]
            flat = torch.ones(size, dtype=self.latent.dtype, device=self.latent.device)
            first = search(_wide(self.latent.detach()), self.grid) if start else None
            scales = nn.Parameter(flat if first is None else first.scales.flatten().to(flat.dtype))
            if self.layout.offset:
                low = None if first is None else first.zeros
                zeros = nn.Parameter(torch.zeros_like(flat) if low is None else low.flatten().to(flat.dtype))
        self.register_parameter("scales", scales)
        self.register_parameter("zeros", zeros)

    def _learned(self) -> tuple[Tensor, Tensor | None]:
        """Learned scales and zeros in the shape and dtype in which they are stored."""
        assert self.scales is not None and self.layout.scale_dtype is not None
        shape, dtype = self.layout.scale_shape, self.layout.scale_dtype
        zeros = None if self.zeros is None else self.zeros.detach().view(shape).to(dtype)
        return self.scales.detach().view(shape).to(dtype), zeros

    @torch.no_grad()
    def codes(self) -> Codes:
        """Return what is deployed: the codes and scales of ``value``."""
        if self.scales is None:
            return encode(self.latent, self.grid)
        latent = _wide(self.latent)
        scales = stored(*self._learned(), latent.dtype)
        wide = Scales(scales.scales, scales.zeros, spread(scales.step, self.layout), _spread(scales.low, self.layout))
        codes = nearest_codes(latent, wide, self.grid)
        return Codes(self.layout, pack(codes, self.grid.kind), scales.scales, scales.zeros)

    def value(self) -> Tensor:
        """Return rounded (R, C) weights in the latent's dtype; differentiable in latent, scales and zeros."""
        if self.scales is None:
            return _straight(self.latent, self.codes().decode(self.latent.dtype))
        return self._learned_value(self.latent, spread(self._view(self.scales), self.layout), self._zeros())

    def rows(self, ids: Tensor) -> Tensor:
        """Return (N,) ids -> (N, C) rows of ``value``; only those are rounded, where no scale spans several rows."""
        whole = self.layout.span == 0 or self.layout.scale_dtype == DOUBLE  # scales, or theirs, span rows
        if whole and self.layout.scale_dtype is not None:
            return F.embedding(ids, self.value())
        latent = F.embedding(ids, self.latent)
        if self.scales is None:
            return _straight(latent, encode(latent, self.grid).decode(latent.dtype))
        scales = F.embedding(ids, spread(self._view(self.scales), self.layout))
        zeros = self._zeros()
        return self._learned_value(latent, scales, None if zeros is None else F.embedding(ids, zeros))

    def _view(self, flat: Tensor) -> Tensor:
        return flat.view(self.layout.scale_shape)

    def _zeros(self) -> Tensor | None:
        return None if self.zeros is None else spread(self._view(self.zeros), self.layout)

    def _learned_value(self, latent: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        assert self.layout.scale_dtype is not None
        shared = self.layout.span or self.latent.numel()
        return _LSQ.apply(latent, scales, zeros, self.grid, self.layout.scale_dtype, shared)  # type: ignore[no-any-return,no-untyped-call]


def _spread(x: Tensor | None, layout: Layout) -> Tensor | None:
    return None if x is None else spread(x, layout)


def _wide(weight: Tensor) -> Tensor:
    """At least fp32, in which every grid's arithmetic is done."""
    return weight if weight.dtype == torch.float64 else weight.float()


def _straight(latent: Tensor, value: Tensor) -> Tensor:
    return _Straight.apply(latent, value)  # type: ignore[no-any-return,no-untyped-call]


class _Straight(torch.autograd.Function):
    """``value`` forward, the gradient to ``latent`` backward; adding a detached difference would not be bit-equal."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


_EXTREMES: Mapping[str, tuple[float, float]] = {
    "int8": (-128, 127), "fp8_e4m3": (-448, 448), "fp8_e5m2": (-57344, 57344), "nf4": (-1, 1)
}  # fmt: skip


def _extremes(grid: Grid, offset: bool) -> tuple[float, float]:
    """Return the extreme codes by which a scale is multiplied: narrow ones count from 0 where there is an offset."""
    if grid.kind in _EXTREMES:
        return _EXTREMES[grid.kind]
    least = 0 if offset else -grid.middle
    return least, least + 2**grid.bits - 1


class _LSQ(torch.autograd.Function):
    """``round(clamp((w - z) / s)) s + z`` with LSQ's gradients.

    For w: 1 within the range, 0 beyond (Esser et al. 2020, eq. 5). For s: round(v) - v within, the extreme code beyond
    (eq. 3), and for z: 0 within, 1 beyond, as in LSQ+ (Bhalgat et al. 2020); both times
    1 / sqrt(weights that share the scale x largest code) (section 2.2).
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid, dtype: torch.dtype, shared: int
    ) -> Tensor:
        wide = _wide(latent)
        kept = stored(scales.to(dtype), None if zeros is None else zeros.to(dtype), wide.dtype)
        codes = numbers_of(nearest_codes(wide, kept, grid), Scales(*kept[:2], torch.ones_like(kept.step), None), grid)
        if zeros is not None and grid.kind in NARROW:
            codes = codes + grid.middle  # they count from 0 where there is an offset
        low, high = _extremes(grid, zeros is not None)
        ctx.factor = (shared * high) ** -0.5
        ctx.limits, ctx.shapes = (low, high), (scales.shape, None if zeros is None else zeros.shape)
        ctx.save_for_backward(wide, codes, kept.step, kept.low)
        value = codes * kept.step
        return (value if kept.low is None else value + kept.low).to(latent.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        (g,) = gradients
        wide, codes, step, low = ctx.saved_tensors
        alive = torch.where(step == 0, torch.ones_like(step), step)
        v = (wide if low is None else wide - low) / alive
        least, most = ctx.limits
        inside = (v >= least) & (v <= most)
        slope = torch.where(inside, codes - v, codes)
        shape, zero_shape = ctx.shapes
        d_scale = (g * slope * ctx.factor).sum_to_size(shape).to(g.dtype)
        d_zero = None if zero_shape is None else (g * ~inside * ctx.factor).sum_to_size(zero_shape).to(g.dtype)
        return g * inside, d_scale, d_zero, None, None, None


class FakeLinear(nn.Module):
    """A linear layer on a ``FakeWeight``; no ``nn.Linear``, so that adapters stay beside it and are never merged."""

    bias: nn.Parameter | None

    def __init__(
        self, fake: FakeWeight, parts: Mapping[str, int], bias: nn.Parameter | None, borrowed: bool = False
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = fake.latent.shape
        self.parts, self.borrowed = dict(parts), borrowed
        self.register_parameter("bias", bias)
        self._borrowed: tuple[FakeWeight, ...] = (fake,) if borrowed else ()  # as in QuantizedLinear
        if not borrowed:
            self.own = fake

    @property
    def fake(self) -> FakeWeight:
        """The matrix, its own or a tied embedding's."""
        return self._borrowed[0] if self._borrowed else self.own

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(x, self.fake.value(), self.bias)


class FakeEmbedding(nn.Module):
    """An embedding on a ``FakeWeight``."""

    def __init__(self, fake: FakeWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = fake.latent.shape
        self.fake = fake

    def forward(self, ids: Tensor) -> Tensor:
        """Map (...) ids to (..., C)."""
        return self.fake.rows(ids.reshape(-1)).view(*ids.shape, -1)
