"""Round to nearest: every weight takes the nearest number of its grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from limbeck.data.batch import Batch
from limbeck.model.decoder import Decoder
from limbeck.techniques.quantized import Quantizer, deployed_spec_of, round_all
from limbeck.techniques.technique import Technique

__all__ = ["RTN"]


class RTN(Quantizer):
    """Quantize linear layers, embedding and head by rounding; needs no data. It is its own deployed spec.

    What it makes can be a frozen base for adapters (QLoRA, Dettmers et al. 2023: ``(RTN(bits=4), LoRA(rank=8))``);
    merging an adapter into it is refused, as there is no weight to merge into.

    >>> import limbeck
    >>> limbeck.RTN(bits=8).bits
    8
    """

    name: ClassVar[str] = "rtn"

    kind: Literal["rtn"] = "rtn"
    clip: Literal["none", "search"] = Field("none", description="search: choose each range by least squared error")

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Replace the weights by codes, in place; ``calibration`` is not read.

        Raises:
            TechniqueError: the model is quantized already, a pattern matches nothing, or a weight is not finite.
        """
        round_all(model, self, self.clip)
        return model

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return the model as it is; the deployed spec says on which grid each weight is."""
        return model, deployed_spec_of(model, self)

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the quantized modules, empty."""
        return self.deployed_skeleton(model)
