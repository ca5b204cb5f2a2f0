"""What a technique is: a frozen value that turns a model into another model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from limbeck.config import Config
from limbeck.data.batch import Batch
from limbeck.model.decoder import Decoder

__all__ = ["Technique", "apply_all", "deployed", "finish_all", "training"]


class Technique(Config):
    """Base of every technique: a config that carries its own handler.

    Several compose as a tuple, applied first to last and finished last to first: QLoRA is ``(RTN(bits=4), LoRA(8))``.

    Attributes:
        name: how it is called on the command line and in the table; each subclass also has it as the literal field
            ``kind``, the tag by which a YAML mapping finds its class.
        identity: ``apply`` changes no logit (I16).
        tolerance: largest relative change of the logits that ``finish`` may make, by ``torch.dtype`` name.
    """

    name: ClassVar[str]
    identity: ClassVar[bool] = False
    tolerance: ClassVar[dict[str, float]] = {"float32": 1e-5, "float64": 1e-12}

    @abstractmethod
    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Return the model to train or measure, often ``model`` itself, changed in place.

        Raises:
            TechniqueError: it does not fit this model.
        """

    @abstractmethod
    def finish(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return the model to deploy and its residue: the technique value (None: nothing) whose ``deployed_skeleton``
        rebuilds that model's structure for its saved tensors."""

    @abstractmethod
    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return a model with the keys and shapes of ``apply``'s, its values to be loaded; asks for no calibration."""

    def deployed_skeleton(self, model: Decoder) -> Decoder:
        """Return a model with the keys and shapes of ``finish``'s, its values to be loaded. A residue implements it."""
        raise TypeError(f"{self.name} leaves no residue: there is nothing to rebuild")


def apply_all(techniques: Iterable[Technique], model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
    """Apply first to last."""
    for technique in techniques:
        model = technique.apply(model, calibration)
    return model


def finish_all(techniques: Sequence[Technique], model: Decoder) -> tuple[Decoder, tuple[Technique, ...]]:
    """Finish last to first; the residues come back in the order in which they must be rebuilt."""
    residues: list[Technique] = []
    for technique in reversed(techniques):
        model, residue = technique.finish(model)
        if residue is not None:
            residues.insert(0, residue)
    return model, tuple(residues)


def training(techniques: Iterable[Technique], model: Decoder) -> Decoder:
    """Rebuild the training structure on a plain model, to load a training checkpoint into."""
    for technique in techniques:
        model = technique.training_skeleton(model)
    return model


def deployed(residues: Iterable[Technique], model: Decoder) -> Decoder:
    """Rebuild the deployed structure on a plain model, to load a saved model into."""
    for residue in residues:
        model = residue.deployed_skeleton(model)
    return model
