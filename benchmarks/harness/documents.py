"""Documents of ragged lengths, as a fine-tuning set has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from harness.shapes import Shape

__all__ = ["MEAN", "documents"]

MEAN = 100  # tokens


def documents(shape: Shape, steps: int, each: int, longest: int) -> list[list[Tensor]]:
    """``steps`` batches of ``each`` documents of random ids; log-normal lengths of mean 100 from 8 to ``longest``."""
    import torch

    from harness.shapes import random_ids

    generator = torch.Generator().manual_seed(7)
    mean = min(MEAN, longest / 4)
    draw = torch.randn(steps * each, generator=generator).mul(0.9).exp()
    sizes = (draw * mean / draw.mean()).clamp(8, longest)
    for _ in range(20):  # the cut at the longest took some of the mean away
        sizes = (sizes * mean / sizes.mean()).clamp(8, longest)
    lengths = [int(n) for n in sizes.round()]
    texts = [random_ids(shape, n, seed=i) for i, n in enumerate(lengths)]
    return [texts[i * each : (i + 1) * each] for i in range(steps)]
