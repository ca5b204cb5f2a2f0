"""GPTQ's arithmetic (Frantar et al. 2022): columns rounded one after another, the rest correcting each one's error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.packed import dispatch
from limbeck.kernels.packed_layout import Codes, pack
from limbeck.model.attention import AttentionContext
from limbeck.model.decoder import Decoder
from limbeck.techniques.grid import Grid, Scales, as_kept, encode, measure, nearest_codes, numbers_of, search, spread
from limbeck.techniques.quantized import WeightMatrix, install

__all__ = ["GPTQSettings", "first_inputs", "inverse_factor", "quantize_by_inputs", "solve"]


@dataclass(frozen=True, slots=True)
class GPTQSettings:
    """How GPTQ rounds; see the fields of ``GPTQ``."""

    act_order: bool = True
    damping: float = 0.01
    block: int = 128
    clip: Literal["none", "search"] = "none"


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the inverse of ``hessian`` (C, C) + damping x mean diagonal x identity.

    Where that is not positive definite in floating point the damping grows tenfold, up to the mean diagonal itself.

    Raises:
        TechniqueError: it is not even then.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1  # an input that was always zero: its weights are rounded and correct nothing
    mean = float(diagonal.mean())
    while True:
        damped = hessian + damping * mean * torch.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper
        if damping >= 1:
            raise TechniqueError(
                "the inputs of a layer are not finite or too alike for GPTQ: give other calibration text"
            )
        damping = min(1.0, 10 * max(damping, 1e-4))


@torch.no_grad()
def solve(weight: Tensor, hessian: Tensor, grid: Grid, settings: GPTQSettings) -> Codes:
    """Quantize ``weight`` (R, C) so that its outputs on the inputs behind ``hessian`` (C, C) change little.

    Scales are those of round-to-nearest on the original weight (static groups), so that columns may be taken in any
    order: with ``act_order`` those of the largest inputs first. What lies behind a block of columns is corrected once a
    block (Frantar et al. 2022, algorithm 1).
    """
    if grid.granularity == "none":
        return encode(weight, grid)
    w = weight.detach().clone() if weight.dtype == torch.float64 else weight.detach().float().clone()
    layout = grid.layout(*w.shape)
    chosen = search(w, grid) if settings.clip == "search" else measure(w, grid)
    scales = as_kept(chosen, w.dtype)
    step = spread(scales.step, layout).expand_as(w)
    low = None if scales.low is None else spread(scales.low, layout).expand_as(w)
    order = torch.arange(w.shape[1], device=w.device)
    if settings.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order], settings.damping).to(w.dtype)
    w, step, low = w[:, order], step[:, order], None if low is None else low[:, order]
    taken: list[Tensor] = []
    for start in range(0, w.shape[1], settings.block):
        end = min(start + settings.block, w.shape[1])
        errors = torch.zeros(w.shape[0], end - start, dtype=w.dtype, device=w.device)
        for j in range(start, end):
            at = slice(j, j + 1)
            here = Scales(scales.scales, scales.zeros, step[:, at], None if low is None else low[:, at])
            codes = nearest_codes(w[:, at], here, grid)
            taken.append(codes)
            error = (w[:, at] - numbers_of(codes, here, grid)) / upper[j, j]
            w[:, j:end] -= error * upper[j, j:end]
            errors[:, j - start] = error[:, 0]
        w[:, end:] -= errors @ upper[start:end, end:]
    back = torch.argsort(order)
    joined = torch.cat([c.view(torch.uint8) for c in taken], dim=1)[:, back].contiguous().view(taken[0].dtype)
    return Codes(layout, pack(joined, grid.kind), scales.scales, scales.zeros, scales.second)


class _Enough(Exception):  # noqa: N818 - it stops a forward, nothing is wrong
    pass


def quantize_by_inputs(
    model: Decoder, chosen: list[WeightMatrix], calibration: Sequence[Batch], settings: GPTQSettings
) -> None:
    """Quantize in place: embeddings by rounding, then each linear layer by GPTQ in the order of the forward.

    Every layer is solved on the inputs that it will really get, those of the already quantized layers before it.

    Raises:
        TechniqueError: the calibration text has fewer tokens than the widest layer has inputs.
    """
    linear = [m for m in chosen if isinstance(m.module, nn.Linear)]
    tables = [m for m in chosen if isinstance(m.module, nn.Embedding)]
    tokens = sum(int(b.real.sum()) for b in calibration)
    needed = max((int(m.module.weight.shape[1]) for m in linear), default=0)
    if tokens < needed:
        raise TechniqueError(f"GPTQ needs at least {needed} tokens of calibration text here, not {tokens}: give more")
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), dispatch("reference"):
            install(model, tables, lambda m: encode(m.module.weight, m.grid, settings.clip))
            _walk(model, linear, calibration, settings)
    finally:
        model.train(training)


def _walk(model: Decoder, linear: list[WeightMatrix], calibration: Sequence[Batch], settings: GPTQSettings) -> None:
    reals = [b.real for b in calibration]
    inputs = [first_inputs(model, batch) for batch in calibration]
    for i, block in enumerate(model.blocks):
        for matrix in (m for m in linear if m.name.startswith(f"blocks.{i}.")):
            _solve_one(model, matrix, reals, lambda k, block=block, inputs=inputs: block(*inputs[k]), settings)  # type: ignore[misc]
        inputs = [(block(x, view), view) for x, view in inputs]
    for matrix in (m for m in linear if m.module is model.head):
        _solve_one(model, matrix, reals, lambda k: model.head(model.norm(inputs[k][0])), settings)


def _solve_one(
    model: Decoder, matrix: WeightMatrix, reals: Sequence[Tensor], run: Callable[[int], object], settings: GPTQSettings
) -> None:
    codes = solve(matrix.module.weight, _hessian(matrix.module, reals, run), matrix.grid, settings)
    install(model, [matrix], lambda _: codes)


def first_inputs(model: Decoder, batch: Batch) -> tuple[Tensor, AttentionContext]:
    """Return what the first block is called with for ``batch``."""
    held: list[tuple[Tensor, AttentionContext]] = []

    def stop(_: nn.Module, arguments: tuple[Tensor, AttentionContext]) -> None:
        held.append(arguments)
        raise _Enough

    hook = model.blocks[0].register_forward_pre_hook(stop)
    try:
        model(batch)
    except _Enough:
        pass
    finally:
        hook.remove()
    return held[0]


def _hessian(module: nn.Module, reals: Sequence[Tensor], run: Callable[[int], object]) -> Tensor:
    """(C, C) float64 mean of x x^T over the real tokens that enter ``module`` while ``run(k)`` forwards batch k."""
    total: list[Tensor] = []
    now = 0

    def add(_: nn.Module, arguments: tuple[Tensor]) -> None:
        x = arguments[0][reals[now]].double()
        total.append(x.t() @ x) if not total else total[0].add_(x.t() @ x)

    hook = module.register_forward_pre_hook(add)
    try:
        for now in range(len(reals)):
            run(now)
    finally:
        hook.remove()
    return total[0] / sum(int(r.sum()) for r in reals)
