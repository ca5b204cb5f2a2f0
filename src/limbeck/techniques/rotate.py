"""Rotation (Ashkboos et al. 2024, QuaRot, folded into weights): the same function, with weights that round better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.model.decoder import Decoder
from limbeck.techniques.folding import (
    blocks,
    check_plain,
    fold_norm,
    has_bias,
    readers,
    set_weight,
    shift_of,
    untie,
    wide,
)
from limbeck.techniques.hadamard import mean_keeping, randomized
from limbeck.techniques.technique import Technique

__all__ = ["Rotate"]


class Rotate(Technique):
    """Rotate the residual stream and the values of each head, before a quantizer: same logits, no outlying columns.

    Gains of norms are folded into what reads them; then what writes the residual is multiplied by one orthogonal Q and
    what reads it by its inverse, which an RMS norm does not see (Ashkboos et al. 2024, SliceGPT, eq. 2 to 5). Q is a
    Hadamard matrix after random signs. Models with LayerNorm keep it: the mean, which it takes away, is folded out of
    the weights too, and Q leaves the vector of ones as it is. Everything is folded, in float64: nothing is computed
    at run time, and the result is a plain model of the same family. Inputs of the feed-forward's second
    layer are not rotated, as that would need a product at run time.

    >>> import limbeck
    >>> (limbeck.Rotate(untie=True), limbeck.RTN(bits=4))[0].seed
    0
    """

    name: ClassVar[str] = "rotate"
    tolerance: ClassVar[dict[str, float]] = {"float32": 0.0, "float64": 0.0, "bfloat16": 0.0}

    kind: Literal["rotate"] = "rotate"
    seed: int = Field(0, ge=0, description="of the signs")
    untie: bool = Field(False, description="give a tied head a weight of its own, which the gain of the norm needs")
    values: bool = Field(True, description="rotate the values of each attention head too")

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Rotate in place; ``calibration`` is not read.

        Raises:
            TechniqueError: weights that are no free matrices any more, a tied head without ``untie``, norms of the
                branches' outputs, or a gain that cannot be folded.
        """
        self._check(model)
        untie(model)
        generator = torch.Generator().manual_seed(self.seed)
        centred = model.config.norm == "layer"
        turn = (mean_keeping if centred else randomized)(model.config.hidden_size, generator).to(model.device)
        for reader in readers(model):
            free = fold_norm(reader)  # what is read has no mean, so that of a row of weights counts for nothing
            if isinstance(reader.norm, nn.LayerNorm):
                set_weight(reader.norm.bias, wide(reader.norm.bias) @ turn)
            set_weight(reader.layer.weight, _centred(wide(reader.layer.weight), centred and free) @ turn)
        for table in (model.embed, model.positions):
            if table is not None:
                set_weight(table.weight, _centred(wide(table.weight), centred) @ turn)
        for block in blocks(model):
            for writer in (block.attention.out, block.ffn.down):
                _turn_output(writer, turn, centred)
        if self.values:
            _turn_values(model, generator)
        return model

    def _check(self, model: Decoder) -> None:
        check_plain(model, self.name)
        if model.config.tied and not self.untie:
            raise TechniqueError(
                "the head is tied to the embedding, and cannot take the gain of the last norm: "
                "set untie=true to give it a weight of its own"
            )
        if model.config.norm_at != "before":
            raise TechniqueError(
                "rotate needs norms before the branches alone: this model normalises what they add, "
                "and gains there cannot be folded into a rotated stream"
            )
        for reader in readers(model):
            shift_of(reader)

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return ``model``: it is plain; no deployed spec."""
        return model, None

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the model itself, its head untied.

        Raises:
            TechniqueError: see ``apply``.
        """
        self._check(model)
        untie(model)
        return model

    def stated_bytes(self, model: Decoder) -> int:
        """Return the bytes of ``model`` and of a head that is untied."""
        head = model.embed.weight.numel() * model.embed.weight.element_size() if model.config.tied else 0
        return model.count_bytes() + head


def _centred(rows: Tensor, wanted: bool) -> Tensor:
    """Return (N, C) without the mean of each row, which a LayerNorm takes away in any case."""
    return rows - rows.mean(dim=1, keepdim=True) if wanted else rows


def _turn_output(layer: nn.Linear, turn: Tensor, centred: bool) -> None:
    set_weight(layer.weight, (_centred(wide(layer.weight).T, centred) @ turn).T)
    if has_bias(layer):
        set_weight(layer.bias, (_centred(wide(layer.bias)[None], centred) @ turn)[0])


def _turn_values(model: Decoder, generator: torch.Generator) -> None:
    """Rotate what each head's values hold, and back in the projection that reads them."""
    c = model.config
    for block in blocks(model):
        turn = randomized(c.head_dim, generator).to(model.device)
        qkv, out = block.attention.qkv, block.attention.out
        rows, weight = qkv.rows("v"), wide(qkv.weight)
        weight[rows] = torch.einsum("kdc,de->kec", weight[rows].view(c.kv_heads, c.head_dim, -1), turn).flatten(0, 1)
        set_weight(qkv.weight, weight)
        if has_bias(qkv):
            bias = wide(qkv.bias)
            bias[rows] = (bias[rows].view(c.kv_heads, c.head_dim) @ turn).flatten()
            set_weight(qkv.bias, bias)
        heads = wide(out.weight).view(-1, c.heads, c.head_dim)
        set_weight(out.weight, (heads @ turn).flatten(1))
