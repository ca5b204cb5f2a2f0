"""GPTQ as its paper derives it (Frantar et al. 2022, section 3): optimal brain quantization, one column at a time.

The inverse Hessian of the columns still free is kept explicitly and shrunk by Gaussian elimination (eq. 3); no Cholesky
factor, no blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["slow_ggml", "slow_gptq"]


def slow_gptq(
    weight: Tensor, hessian: Tensor, step: Tensor, low: int, high: int, damping: float, order: list[int]
) -> Tensor:
    """(R, C) float64 rounded weight; ``step`` (R, C) is the scale of each weight, codes go from ``low`` to ``high``."""
    w, h = weight.double().clone(), hessian.double().clone()
    mean = h.diagonal().mean()
    inverse = torch.linalg.inv(h + damping * mean * torch.eye(len(h), dtype=torch.float64))
    out = torch.zeros_like(w)
    for j in order:
        code = (w[:, j] / step[:, j]).round().clamp(low, high)
        out[:, j] = code * step[:, j]
        error = (w[:, j] - out[:, j]) / inverse[j, j]
        w -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


def slow_ggml(name: str, block: list[float]) -> tuple[float, float, list[int]]:
    """(d, m, codes) of 32 floats as quantize_row_q8_0_ref and its like in ggml-quants.c, step by step in fp32."""
    import numpy as np

    f = np.float32
    x = [f(v) for v in block]
    if name == "q8_0":
        amax = max(abs(v) for v in x)
        d = f(amax / f(127))
        inverse = f(1) / d if d else f(0)
        codes = []
        for v in x:
            y = f(v * inverse)
            codes.append(int(np.sign(y)) * int(np.floor(float(abs(y)) + 0.5)))
        return float(np.float16(d)), 0.0, codes
    if name == "q4_0":
        amax, top = f(0), f(0)
        for v in x:
            if amax < abs(v):
                amax, top = abs(v), v
        d = f(top / f(-8))
        inverse = f(1) / d if d else f(0)
        return float(np.float16(d)), 0.0, [min(15, int(f(f(v * inverse) + f(8.5)))) for v in x]
    least, most = min(x), max(x)
    d = f(f(most - least) / f(15))
    inverse = f(1) / d if d else f(0)
    codes = [min(15, int(f(f(f(v - least) * inverse) + f(0.5)))) for v in x]
    return float(np.float16(d)), float(np.float16(least)), codes
