"""Mixed precision: each weight gets the grid that its measured sensitivity deserves, under a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, gcd
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.data.batch import IGNORE, Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.packed import dispatch
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.quantized import Quantizer, WeightMatrix, deployed_spec_of, matrices, round_all
from limbeck.techniques.quantized_hessian import GPTQSettings, quantize_by_inputs
from limbeck.techniques.technique import Technique

__all__ = ["Mixed", "allocate", "sensitivities"]

_TABLE = 1 << 15


class Mixed(Quantizer):
    """Choose a grid for each weight, then quantize by rounding or GPTQ.

    What a grid costs a weight is measured: the growth of the calibration text's NLL, or the KL divergence from the full
    model, when that weight alone is on it. The costs are added up (their interactions are neglected) and the sum is
    minimised exactly under the budget, a knapsack with one choice a weight. ``overrides`` fix grids beforehand; the
    deployed spec has every chosen grid as an override, so that nothing is measured again.

    >>> import limbeck
    >>> limbeck.Mixed(average_bits=5).average_bits
    5.0
    """

    name: ClassVar[str] = "mixed"

    kind: Literal["mixed"] = "mixed"
    candidates: tuple[Grid, ...] = Field(
        (Grid(format="int4"), Grid(format="int8")), min_length=1, description="grids to choose among"
    )
    byte_budget: int | None = Field(None, gt=0, description="bytes of the whole model, what is not quantized included")
    average_bits: float | None = Field(None, gt=0, description="or bits a quantized weight, scales included")
    cost: Literal["kl", "nll"] = Field("kl", description="what is measured, in nats a token")
    method: Literal["rtn", "gptq"] = Field("rtn", description="how the chosen grids are filled")
    clip: Literal["none", "search"] = Field("none", description="search: choose each range by least squared error")

    @model_validator(mode="after")
    def _one_budget(self) -> Mixed:
        if (self.byte_budget is None) == (self.average_bits is None):
            raise ValueError("give byte_budget or average_bits, one of them")
        return self

    def grid_of(self, name: str) -> Grid | None:
        """Return the grid by an override; the first candidate stands for what is still to be chosen."""
        grid = super().grid_of(name)
        return self.candidates[0] if grid is self.grid else grid

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Measure, choose and quantize, in place.

        Raises:
            TechniqueError: no calibration text, a budget below the smallest choice, a model that is quantized already.
        """
        chosen = self._choose(model, calibration)
        plan = self.model_copy(update={"overrides": {**chosen, **self.overrides}})
        if self.method == "gptq":
            quantize_by_inputs(model, matrices(model, plan), calibration, GPTQSettings(clip=self.clip))
        else:
            round_all(model, plan, self.clip)
        return model

    def _choose(self, model: Decoder, calibration: Sequence[Batch]) -> dict[str, Grid]:
        every = matrices(model, self)
        free = [m for m in every if self._is_free(m.name)]
        if not free:
            return {}
        if not calibration:
            raise TechniqueError("mixed precision measures sensitivity on calibration text: give some")
        sizes = [[g.layout(*m.module.weight.shape).bytes for g in self.candidates] for m in free]
        fixed = sum(m.bytes for m in every if not self._is_free(m.name))
        budget = self._budget(model, every) - fixed
        least = sum(min(s) for s in sizes)
        if least > budget:
            raise TechniqueError(
                f"the budget of mixed precision is {least - budget} bytes too small for the smallest candidates: "
                "raise it or add a smaller candidate"
            )
        costs = sensitivities(model, free, self.candidates, calibration, self.cost, self.clip)
        picks = allocate(costs, sizes, budget)
        return {m.name: self.candidates[k] for m, k in zip(free, picks, strict=True)}

    def _budget(self, model: Decoder, every: Sequence[WeightMatrix]) -> int:
        """Return the bytes that all quantized weights together may take."""
        if self.average_bits is not None:
            return int(self.average_bits / 8 * sum(m.module.weight.numel() for m in every))
        assert self.byte_budget is not None
        dense = sum(m.module.weight.numel() * m.module.weight.itemsize for m in every)
        return self.byte_budget - (model.count_bytes() - dense)

    def stated_bytes(self, model: Decoder) -> int:
        """Return exact bytes where every grid is fixed, else the most that the budget allows."""
        every = matrices(model, self)
        if len(self.candidates) == 1 or not any(self._is_free(m.name) for m in every):
            return super().stated_bytes(model)
        dense = sum(m.module.weight.numel() * m.module.weight.itemsize for m in every)
        return model.count_bytes() - dense + self._budget(model, every)

    def _is_free(self, name: str) -> bool:
        return super().grid_of(name) is self.grid

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return the model as it is; the deployed spec names the grid of every weight, read from the model itself."""
        return model, deployed_spec_of(model, self, self.candidates, always=True)

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the quantized modules, empty.

        Raises:
            TechniqueError: the grids are not chosen yet.
        """
        return self.deployed_skeleton(model)

    def deployed_skeleton(self, model: Decoder) -> Decoder:
        """Return the quantized modules, empty.

        Raises:
            TechniqueError: the grids are not chosen yet.
        """
        if len(self.candidates) > 1 and any(self._is_free(m.name) for m in matrices(model, self)):
            raise TechniqueError(
                "mixed grids are not chosen yet: rebuild from the deployed spec of the quantized model"
            )
        return super().deployed_skeleton(model)


@contextmanager
def _alone(matrix: WeightMatrix, grid: Grid, clip: Literal["none", "search"]) -> Iterator[None]:
    """Inside, one weight of the full model is on ``grid``."""
    weight = matrix.module.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(encode(before, grid, clip).decode(weight.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


@torch.no_grad()
def sensitivities(
    model: Decoder,
    weights: Sequence[WeightMatrix],
    candidates: Sequence[Grid],
    calibration: Sequence[Batch],
    cost: Literal["kl", "nll"],
    clip: Literal["none", "search"] = "none",
) -> list[list[float]]:
    """Return nats a predicted token that each candidate costs each weight when it alone is quantized.

    Returns:
        A row a weight, a column a candidate; a growth of NLL may be negative.
    """
    training = model.training
    model.eval()
    costs = torch.zeros(len(weights), len(candidates), dtype=torch.float64)
    tokens = 0
    with dispatch("reference"):
        for batch in calibration:
            labels = batch.next_token_labels()
            keep = labels != IGNORE
            full = F.log_softmax(model(batch)[keep].float(), dim=-1)
            tokens += int(keep.sum())
            for i, matrix in enumerate(weights):
                for k, grid in enumerate(candidates):
                    with _alone(matrix, grid, clip):
                        quantized = F.log_softmax(model(batch)[keep].float(), dim=-1)
                    costs[i, k] += _cost(full, quantized, labels[keep], cost)
    model.train(training)
    if not tokens:
        raise TechniqueError("the calibration text of mixed precision predicts no token: give longer rows")
    return [[float(c) / tokens for c in row] for row in costs]


def _cost(full: Tensor, quantized: Tensor, labels: Tensor, cost: str) -> float:
    """Sum over tokens of KL(full || quantized), or of the growth of NLL; log-probabilities (N, V), labels (N,)."""
    if cost == "kl":
        return float((full.exp() * (full - quantized)).sum())
    return float((full - quantized).gather(1, labels[:, None]).sum())


def allocate(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """Return one choice a row of least total cost whose sizes sum to at most ``budget``, by dynamic programming over
    bytes.

    Exact where the bytes to spare, in units of their common divisor, make at most 32,768 steps; beyond that sizes are
    rounded up to a step, so that the budget holds and at most one step a row of it stays unused.

    Args:
        costs: (rows, choices).
        sizes: (rows, choices) bytes.
        budget: at least the sum of each row's smallest size.
    """
    extra = [[s - min(row) for s in row] for row in sizes]
    spare = min(budget - sum(min(row) for row in sizes), sum(max(row) for row in extra))
    unit = max(gcd(*(e for row in extra for e in row)), ceil(spare / _TABLE), 1)
    room = spare // unit
    best = torch.zeros(room + 1, dtype=torch.float64)
    picks: list[Tensor] = []
    for row, more in zip(costs, extra, strict=True):
        options = torch.full((len(row), room + 1), torch.inf, dtype=torch.float64)
        for k, (c, e) in enumerate(zip(row, more, strict=True)):
            step = ceil(e / unit)
            if step <= room:
                options[k, step:] = best[: room + 1 - step] + c
        best, pick = options.min(dim=0)
        picks.append(pick)
    out: list[int] = []
    at = room
    for pick, more in zip(reversed(picks), reversed(extra), strict=True):
        k = int(pick[at])
        out.insert(0, k)
        at -= ceil(more[k] / unit)
    return out
