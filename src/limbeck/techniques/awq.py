"""AWQ (Lin et al. 2023): columns that see large activations are scaled up before rounding, and their inputs down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.packed import dispatch
from limbeck.model.decoder import Block, Decoder
from limbeck.model.taps import taps
from limbeck.techniques.folding import blocks, check_plain, has_bias, set_weight, wide
from limbeck.techniques.grid import Grid, encode
from limbeck.techniques.quantized import Quantizer, deployed_spec_of, matrices, round_all
from limbeck.techniques.quantized_hessian import first_inputs
from limbeck.techniques.technique import Technique

__all__ = ["AWQ", "scale_columns"]

_LEAST = 1e-4  # of an activation's mean size, as published: a column that is never used gets no infinite scale


class AWQ(Quantizer):
    """Scale input columns by their activations to a power, fold the inverse into what comes before, then round.

    For each linear layer s = mean(abs(x))^alpha, normalised by sqrt(max(s) min(s)) (Lin et al. 2023, eq. 5), with the
    alpha between 0 and 1 whose rounding changes the layer's outputs least on the calibration text; alpha 0 is round to
    nearest. The inverse goes into the norm before q, k, v and the feed-forward, into the values before the projection
    (heads that share values share their scales), and into ``up`` before ``down`` where that is gated or its activation
    is ReLU: all else is as it was, so that the function is equal before it is rounded. Embedding and head are rounded
    to nearest.

    >>> import limbeck
    >>> limbeck.AWQ(bits=4).steps
    20
    """

    name: ClassVar[str] = "awq"

    kind: Literal["awq"] = "awq"
    clip: Literal["none", "search"] = Field("none", description="search: choose each range by least squared error")
    steps: int = Field(20, ge=1, le=1000, description="values of alpha that are tried between 0 and 1, 0 included")

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Scale and round in place.

        Args:
            model: in full precision.
            calibration: text like that of use; some thousand tokens do, as only sizes by column are taken from it.

        Raises:
            TechniqueError: no calibration token, weights that are no free matrices any more, or a pattern that matches
                nothing.
        """
        check_plain(model, self.name)
        matrices(model, self)  # refuses before anything is changed
        scale_columns(model, self, calibration, self.steps)
        round_all(model, self, self.clip)
        return model

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return ``model`` and the deployed spec, which says on which grid each weight is."""
        return model, deployed_spec_of(model, self)

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the quantized modules, empty."""
        return self.deployed_skeleton(model)


class _Pair(NamedTuple):
    """A linear layer whose input columns can be scaled, as something before it takes the inverse.

    Attributes:
        name: of the layer in its block.
        layer: the layer.
        before: the norm, or the linear layer, that takes the inverse.
        rows: of a linear layer ``before``, those that take it.
        shared: input columns of ``layer`` are ``(groups, shared, size)``: those along the middle have one scale.
    """

    name: str
    layer: nn.Linear
    before: nn.Module
    rows: slice
    shared: tuple[int, int, int]


def _pairs(block: Block) -> Iterator[_Pair]:
    attention, ffn = block.attention, block.ffn
    c, every = attention.config, slice(None)
    if isinstance(block.attention_norm, nn.LayerNorm | nn.RMSNorm):
        yield _Pair("attention.qkv", attention.qkv, block.attention_norm, every, (1, 1, c.hidden_size))
    grouped = (c.kv_heads, c.heads // c.kv_heads, c.head_dim)
    yield _Pair("attention.out", attention.out, attention.qkv, attention.qkv.rows("v"), grouped)
    if isinstance(block.ffn_norm, nn.LayerNorm | nn.RMSNorm):
        yield _Pair("ffn.up", ffn.up, block.ffn_norm, every, (1, 1, c.hidden_size))
    if ffn.gated or ffn.activation == "relu":  # linear in what ``up`` gives, or at least in its size
        yield _Pair("ffn.down", ffn.down, ffn.up, ffn.up.rows("up"), (1, 1, c.ffn_width))


def scale_columns(model: Decoder, plan: Quantizer, calibration: Sequence[Batch], steps: int) -> dict[str, float]:
    """Scale the input columns of each layer for the grid that ``plan`` has for it; the function stays equal.

    Args:
        model: in full precision, changed in place.
        plan: its ``grid_of`` says for which grid; layers that stay as they are are not scaled.
        calibration: text; the activations are those of the unrounded model.
        steps: how many values of alpha are tried.

    Returns:
        The alpha of each layer by name.

    Raises:
        TechniqueError: there is no calibration token.
    """
    if not any(bool(b.real.any()) for b in calibration):
        raise TechniqueError(f"{plan.name} scales columns by their activations: it needs calibration text")
    chosen: dict[str, float] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), dispatch("reference"):
            inputs = [first_inputs(model, b) for b in calibration]
            reals = [b.real for b in calibration]
            for i, block in enumerate(blocks(model)):
                pairs = [p for p in _pairs(block) if _scaled(plan.grid_of(f"blocks.{i}.{p.name}"))]
                seen = {p.name: _Seen() for p in pairs}
                for at, (x, view) in enumerate(inputs):
                    if not pairs:
                        inputs[at] = block(x, view), view
                        continue
                    real = reals[at]

                    def read(name: str, x: Tensor, seen: dict[str, _Seen] = seen, real: Tensor = real) -> None:
                        seen[name].add(x[real])

                    with taps(block, list(seen), inputs=read):
                        inputs[at] = block(x, view), view
                for p in pairs:
                    grid = plan.grid_of(f"blocks.{i}.{p.name}")
                    assert grid is not None
                    chosen[f"blocks.{i}.{p.name}"] = _scale(p, seen[p.name], grid, steps)
    finally:
        model.train(was_training)
    return chosen


def _scaled(grid: Grid | None) -> bool:
    return grid is not None and grid.granularity != "none"


class _Seen:
    """Sums over the inputs (N, C) of one layer: sizes by column, and products of columns."""

    def __init__(self) -> None:
        self.sizes: Tensor = torch.zeros(())
        self.products: Tensor = torch.zeros(())
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        x = x if x.dtype == torch.float64 else x.float()
        self.sizes, self.products = self.sizes + x.abs().sum(dim=0), self.products + x.T @ x
        self.tokens += x.shape[0]


def _scale(pair: _Pair, seen: _Seen, grid: Grid, steps: int) -> float:
    """Choose the scales of one layer and fold them; returns alpha."""
    weight = pair.layer.weight.detach().to(seen.products.dtype)
    sizes = (seen.sizes / seen.tokens).view(pair.shared).mean(dim=1, keepdim=True).expand(pair.shared).flatten()
    best, scales, least = 0.0, torch.ones_like(sizes), torch.inf
    for step in range(steps):
        alpha = step / steps
        tried = sizes.clamp(min=_LEAST) ** alpha
        tried = tried / (tried.max() * tried.min()).sqrt()
        change = encode(weight * tried, grid).decode(weight.dtype) / tried - weight
        error = float(((change @ seen.products) * change).sum())
        if error < least:
            best, scales, least = alpha, tried, error
    if best:
        _fold(pair, scales.double())
    return best


def _fold(pair: _Pair, scales: Tensor) -> None:
    set_weight(pair.layer.weight, wide(pair.layer.weight) * scales)
    before = pair.before
    groups, shared, size = pair.shared
    inverse = 1 / scales.view(groups, shared, size)[:, 0].flatten()
    if not isinstance(before, nn.Linear):
        for parameter in before.parameters():  # gain, and bias of a LayerNorm
            set_weight(parameter, wide(parameter) * inverse)
        return
    weight = wide(before.weight)
    weight[pair.rows] *= inverse[:, None]
    set_weight(before.weight, weight)
    if has_bias(before):
        bias = wide(before.bias)
        bias[pair.rows] *= inverse
        set_weight(before.bias, bias)
