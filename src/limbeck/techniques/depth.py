"""Depth: a shallower model from some of a model's blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.model.decoder import Block, Decoder
from limbeck.model.taps import taps
from limbeck.techniques.technique import Technique

__all__ = ["Depth", "block_influence"]


class Depth(Technique):
    """Keep some of the blocks: a student for distillation, or a pruned model.

    The result is a plain decoder of fewer layers with copies of the weights; the given model is left as it is, so that
    it can go on to teach. Rules for a count n of L layers:

    - ``uniform``: evenly spaced from first to last, ``round(i (L - 1) / (n - 1))``: 6 of 12 gives 0, 2, 4, 7, 9, 11,
      the layers that the published preparation of DistilGPT-2 takes of GPT-2 (transformers,
      ``examples/research_projects/distillation/scripts/extract.py``; the DistilBERT paper says one layer out of two);
    - ``first_last``: the first ceil(n / 2) and the last floor(n / 2);
    - ``importance``: the n of greatest block influence on the calibration data (Men et al. 2024, ShortGPT, eq. 1).

    >>> import limbeck
    >>> limbeck.Depth(layers=6).layers
    6
    """

    name: ClassVar[str] = "depth"
    tolerance: ClassVar[dict[str, float]] = {"float32": 0.0, "float64": 0.0}

    kind: Literal["depth"] = "depth"
    layers: int | tuple[int, ...] = Field(description="how many layers to keep, or which, counted from 0")
    rule: Literal["uniform", "first_last", "importance"] | None = Field(
        None, description="how a count is chosen; none: uniform"
    )

    @model_validator(mode="after")
    def _fits(self) -> Depth:
        if isinstance(self.layers, int):
            if self.layers < 1:
                raise ValueError(f"{self.layers} layers make no model")
            return self
        if self.rule is not None:
            raise ValueError("a rule goes with a count of layers; here the layers are named")
        if not self.layers:
            raise ValueError("no layer is named")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must stand once each and in their order, not as {list(self.layers)}")
        return self

    def choose(self, model: Decoder, calibration: Sequence[Batch] = ()) -> tuple[int, ...]:
        """Return which layers of ``model`` are kept.

        Raises:
            TechniqueError: a layer that does not exist, more layers than there are, or importance without calibration.
        """
        have = model.config.layers
        if isinstance(self.layers, tuple):
            missing = [i for i in self.layers if not 0 <= i < have]
            if missing:
                raise TechniqueError(f"depth keeps layer {missing[0]}, but the model's layers are 0 to {have - 1}")
            return self.layers
        n = self.layers
        if n > have:
            raise TechniqueError(f"depth keeps {n} layers, but the model has {have}")
        if self.rule == "first_last":
            first = (n + 1) // 2
            return (*range(first), *range(have - (n - first), have))
        if self.rule == "importance":
            self._check_patterns(model)
            influence = block_influence(model, calibration)
            return tuple(sorted(sorted(range(have), key=lambda i: (-influence[i], i))[:n]))
        return _uniform(n, have)

    def _check_patterns(self, model: Decoder) -> None:
        # A training checkpoint is rebuilt without calibration, and could not tell which patterns were kept.
        if len({model.config.pattern_at(i) for i in range(model.config.layers)}) > 1:
            raise TechniqueError(
                "depth by importance needs layers of one attention pattern; name the layers to keep instead"
            )

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Return a new decoder of copies of the chosen blocks; ``model`` keeps its own.

        Raises:
            TechniqueError: see ``choose``.
        """
        return _keep(model, self.choose(model, calibration))

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return ``model``: its config already says all; no deployed spec."""
        return model, None

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return a decoder of as many layers; by importance any of them, since all have one shape.

        Raises:
            TechniqueError: see ``choose``.
        """
        if self.rule != "importance":
            return self.apply(model)
        self._check_patterns(model)
        return self.model_copy(update={"rule": "uniform"}).apply(model)

    def stated_bytes(self, model: Decoder) -> int:
        """Return bytes of ``model`` without the largest set of blocks that may have to stay."""
        sizes = [_bytes(block) for block in model.blocks]
        if isinstance(self.layers, tuple):
            kept = sum(sizes[i] for i in self.choose(model))
        else:
            kept = sum(sorted(sizes, reverse=True)[: self.layers])
        return model.count_bytes() - sum(sizes) + kept


def _bytes(module: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def _uniform(n: int, have: int) -> tuple[int, ...]:
    """Round halves up, in integers; steps are at least 1, so no layer comes twice."""
    if n == 1:
        return (0,)
    return tuple((2 * i * (have - 1) + n - 1) // (2 * (n - 1)) for i in range(n))


def _keep(model: Decoder, layers: tuple[int, ...]) -> Decoder:
    """Copy ``model`` with these blocks alone; what other techniques put into them is copied too."""
    memo: dict[int, object] = {}
    blocks = nn.ModuleList(copy.deepcopy(model.blocks[i], memo) for i in layers)
    memo[id(model.blocks)] = blocks  # so that the blocks left out are not copied first
    student = copy.deepcopy(model, memo)
    student.config = model.config.with_layers(layers)
    for i, block in enumerate(student.blocks):
        attention = cast(Block, block).attention
        attention.config, attention.layer = student.config, i  # its place in a key/value cache
    return student


def block_influence(model: Decoder, calibration: Sequence[Batch]) -> list[float]:
    """Return how much each block turns its input: 1 - E[cos(x_in, x_out)] over real tokens (Men et al. 2024, eq. 1).

    Args:
        model: measured in evaluation mode; its mode is restored.
        calibration: batches of typical text.

    Returns:
        One number a block, 0 (it does nothing) to 2.

    Raises:
        TechniqueError: there is no calibration token.
    """
    if not any(bool(batch.real.any()) for batch in calibration):
        raise TechniqueError("importance is measured on data: depth by importance needs calibration batches")
    names = [f"blocks.{i}" for i in range(model.config.layers)]
    sums = dict.fromkeys(names, 0.0)
    came_in: dict[str, Tensor] = {}
    tokens, was_training = 0, model.training
    model.eval()
    try:
        for batch in calibration:
            here = batch.to(model.device)
            real = here.real

            def read(name: str, out: Tensor, real: Tensor = real) -> None:
                into, out = came_in.pop(name)[real].double(), out[real].double()
                sums[name] += float(torch.cosine_similarity(into, out, dim=-1).sum())

            with torch.no_grad(), taps(model, names, inputs=came_in.__setitem__, outputs=read):
                model(here, read=lambda hidden, head: None)
            tokens += int(real.sum())
    finally:
        model.train(was_training)
    return [1.0 - sums[name] / tokens for name in names]
