"""Every technique by name: the line that registers it here enrols it in the shared laws of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from limbeck.techniques.awq import AWQ
from limbeck.techniques.depth import Depth
from limbeck.techniques.freeze import Freeze
from limbeck.techniques.gptq import GPTQ
from limbeck.techniques.hqq import HQQ
from limbeck.techniques.lora import LoRA
from limbeck.techniques.mixed import Mixed
from limbeck.techniques.qat import QAT
from limbeck.techniques.rotate import Rotate
from limbeck.techniques.rtn import RTN
from limbeck.techniques.sparse_attention import SparseAttention
from limbeck.techniques.technique import Technique

__all__ = ["POST_TRAINING", "TECHNIQUES", "AnyPostTraining", "AnyTechnique", "describe"]

TECHNIQUES: dict[str, type[Technique]] = {
    AWQ.name: AWQ,
    Depth.name: Depth,
    Freeze.name: Freeze,
    GPTQ.name: GPTQ,
    HQQ.name: HQQ,
    LoRA.name: LoRA,
    Mixed.name: Mixed,
    QAT.name: QAT,
    Rotate.name: Rotate,
    RTN.name: RTN,
    SparseAttention.name: SparseAttention,
}
"""Name -> class."""

POST_TRAINING: dict[str, type[Technique]] = {name: kind for name, kind in TECHNIQUES.items() if kind.post_training}
"""Those of ``TECHNIQUES`` that need no training."""

if TYPE_CHECKING:
    AnyTechnique = Technique
    AnyPostTraining = Technique
else:
    AnyTechnique = Annotated[Union[tuple(TECHNIQUES.values())], Field(discriminator="kind")]  # noqa: UP007
    AnyPostTraining = Annotated[Union[tuple(POST_TRAINING.values())], Field(discriminator="kind")]  # noqa: UP007


def describe() -> dict[str, str]:
    """Name -> the first line of what each technique says of itself."""
    return {name: (kind.__doc__ or "").strip().partition("\n")[0] for name, kind in TECHNIQUES.items()}
