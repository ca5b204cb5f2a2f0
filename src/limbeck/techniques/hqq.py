"""HQQ (Badri & Shaji 2023): offsets by half-quadratic splitting for few large errors; needs no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.packed_layout import Codes
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid, as_kept, codes_of, encode, means, measure, nearest_codes, numbers_of, stored
from limbeck.techniques.grid import wide as widened
from limbeck.techniques.quantized import Quantizer, deployed_spec_of, install, matrices
from limbeck.techniques.technique import Technique

__all__ = ["HQQ", "half_quadratic"]


class HQQ(Quantizer):
    """Quantize to integers with an offset, which is moved until most errors are small and few are large.

    Minimises the sum of |error|^p, p < 1, over each group's offset: errors are shrunk to E (eq. 5), and the offset
    becomes the mean of W - E - step x code (eq. 6), in turn, while the weight of the quadratic term grows. Steps stay.
    Sizes are relative to the root mean square of the matrix. Grids must be asymmetric integers.

    >>> import limbeck
    >>> limbeck.HQQ(bits=4).grid.symmetric
    False
    """

    name: ClassVar[str] = "hqq"

    kind: Literal["hqq"] = "hqq"
    grid: Annotated[Grid, Field(validate_default=True)] = Grid(format="int4", symmetric=False)
    norm: float = Field(0.7, gt=0, lt=1, description="p of the sum of |error|^p that is minimised")
    beta: float = Field(10.0, gt=0, description="weight of the quadratic term at the start, for weights of unit size")
    growth: float = Field(1.01, ge=1, description="factor on it each iteration")
    iterations: int = Field(20, ge=0, le=1000, description="most iterations; it stops where the error grows")

    @model_validator(mode="before")
    @classmethod
    def _with_offset(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("bits") in range(2, 9) and "grid" not in values:
            return {**values, "grid": {"format": f"int{values['bits']}", "symmetric": False}}
        return values

    @model_validator(mode="after")
    def _asymmetric(self) -> HQQ:
        for grid in (self.grid, *self.overrides.values()):
            if grid is not None and grid.granularity != "none" and grid.symmetric:
                raise ValueError(f"hqq moves offsets, which {grid.format} has not here: set symmetric to false")
        return self

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Replace the weights by codes, in place; ``calibration`` is not read.

        Raises:
            TechniqueError: the model is quantized already, a pattern matches nothing, or a weight is not finite.
        """
        install(model, matrices(model, self), lambda m: half_quadratic(m.module.weight, m.grid, self))
        return model

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return ``model`` and the deployed spec, which says on which grid each weight is."""
        return model, deployed_spec_of(model, self)

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the quantized modules, empty."""
        return self.deployed_skeleton(model)


@torch.no_grad()
def half_quadratic(weight: Tensor, grid: Grid, settings: HQQ) -> Codes:
    """Put ``weight`` (R, C) on an asymmetric ``grid`` by HQQ's iterations from the ranges of its groups.

    Each group keeps its offset of least sum of |error|^p among all iterations.
    """
    if grid.granularity == "none":
        return encode(weight, grid)
    weight = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    layout = grid.layout(*weight.shape)
    now = as_kept(measure(weight, grid), weight.dtype)
    unit = float(weight.square().mean().sqrt()) or 1.0
    beta, best, least = settings.beta, now.zeros, torch.full_like(now.step, torch.inf)
    for i in range(settings.iterations + 1):
        at = widened(now, layout)
        codes = nearest_codes(weight, at, grid)
        error = weight - numbers_of(codes, at, grid)
        size = means(error.abs() ** settings.norm, layout)
        better = size < least
        assert now.zeros is not None and best is not None and now.low is not None
        best, least = torch.where(better, now.zeros, best), torch.minimum(size, least)
        if i == settings.iterations or not bool(better.any()):
            break
        low = now.low + means(error - _shrunk(error / unit, beta, settings.norm) * unit, layout)
        now = stored(now.scales, low.to(now.zeros.dtype), weight.dtype)
        beta *= settings.growth
    assert best is not None
    if not bool(torch.isfinite(best).all()):
        raise TechniqueError(f"an offset is too large for {grid.scale_dtype}: set scale_dtype to fp32")
    return codes_of(weight, grid, stored(now.scales, best, weight.dtype))


def _shrunk(x: Tensor, beta: float, norm: float) -> Tensor:
    """Return the generalised soft threshold: sign(x) relu(|x| - |x|^(p - 1) / beta), 0 at 0."""
    size = x.abs()
    return x.sign() * (size - size.clamp(min=torch.finfo(x.dtype).tiny) ** (norm - 1) / beta).clamp(min=0)
