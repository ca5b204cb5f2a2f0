"""GPTQ (Frantar et al. 2022): rounding that corrects its own errors, by second-order statistics of calibration text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from limbeck.data.batch import Batch
from limbeck.model.decoder import Decoder
from limbeck.techniques.quantized import Quantizer, deployed_spec_of, matrices
from limbeck.techniques.quantized_hessian import GPTQSettings, quantize_by_inputs
from limbeck.techniques.technique import Technique

__all__ = ["GPTQ"]


class GPTQ(Quantizer):
    """Quantize linear layers one after another, each on the inputs that the quantized layers before it give.

    Embedding and tied head are rounded to nearest (or left, by ``embeddings=False``). Scales are fixed before a layer
    is solved, by round-to-nearest's rule ("static groups"), so that any order of columns suits any granularity.

    >>> import limbeck
    >>> limbeck.GPTQ(bits=4).damping
    0.01
    """

    name: ClassVar[str] = "gptq"

    kind: Literal["gptq"] = "gptq"
    clip: Literal["none", "search"] = Field("none", description="search: choose ranges by least squared error")
    act_order: bool = Field(True, description="round the columns with the largest inputs first")
    damping: float = Field(0.01, gt=0, le=1, description="added to the Hessian's diagonal, as a share of its mean")
    block: int = Field(128, ge=1, description="columns corrected at once; a matter of speed alone")

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Replace the weights by codes, in place.

        Args:
            model: in full precision.
            calibration: text like that of use; more tokens than the widest layer has inputs, better 100,000.

        Raises:
            TechniqueError: too few tokens, a model that is quantized already, a pattern that matches nothing.
        """
        settings = GPTQSettings(act_order=self.act_order, damping=self.damping, block=self.block, clip=self.clip)
        quantize_by_inputs(model, matrices(model, self), calibration, settings)
        return model

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return the model as it is; the deployed spec says on which grid each weight is."""
        return model, deployed_spec_of(model, self)

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return the quantized modules, empty."""
        return self.deployed_skeleton(model)
