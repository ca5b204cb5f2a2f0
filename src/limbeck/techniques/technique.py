"""What a technique is: a frozen value that turns a model into another model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from limbeck.config import Config, Constructed
from limbeck.data.batch import Batch
from limbeck.model.decoder import Decoder

__all__ = [
    "Technique",
    "TrainableShare",
    "apply_all",
    "deployed",
    "convert_all",
    "train_everything",
    "train_only",
    "trainable_share",
    "training",
]


class Technique(Config, metaclass=Constructed):
    """Base of every technique: a config that carries its own handler.

    Several compose as a tuple, applied first to last and converted last to first: QLoRA is ``(RTN(bits=4), LoRA(8))``.

    A module that replaces a ``Linear`` keeps ``in_features``, ``out_features`` and ``parts``. Where its weight is not
    free to change (codes on a grid, or a weight that will be rounded to one) it is no ``nn.Linear``, or has an
    attribute ``quantized`` that is true: a technique above it then leaves its own tensors beside it rather than merging
    them in (I17).

    Attributes:
        name: how it is called on the command line and in the table; each subclass also has it as the literal field
            ``kind``, the tag by which a YAML mapping finds its class.
        identity: ``apply`` changes no logit (I16).
        tolerance: largest relative change of the logits that ``convert`` may make, by ``torch.dtype`` name, where what
            was trained is of the weights' size: rounding is in proportion to it (a LoRA of alpha / rank 64 has more).
        rounds: ``convert`` leaves weights on a grid; of such techniques a model takes one.
        post_training: ``apply`` alone does the work, without a training: ``limbeck quantize`` offers it.
    """

    name: ClassVar[str]
    identity: ClassVar[bool] = False
    tolerance: ClassVar[dict[str, float]] = {"float32": 1e-5, "float64": 1e-12}
    rounds: ClassVar[bool] = False
    post_training: ClassVar[bool] = False

    @abstractmethod
    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Return the model to train or measure, often ``model`` itself, changed in place.

        Raises:
            TechniqueError: it does not fit this model.
        """

    @abstractmethod
    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return the model to deploy and its deployed spec.

        The deployed spec is the technique value whose ``deployed_skeleton`` rebuilds that model's structure for its
        saved tensors; None where the model is a plain decoder of its own config.
        """

    @abstractmethod
    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return a model with the keys and shapes of ``apply``'s, its values to be loaded; asks for no calibration."""

    def deployed_skeleton(self, model: Decoder) -> Decoder:
        """Return a model with the keys and shapes of ``convert``'s, its values to be loaded.

        A technique that leaves a deployed spec implements it.
        """
        raise TypeError(f"{self.name} leaves no deployed spec: there is nothing to rebuild")

    def trained(self, model: Decoder) -> frozenset[str]:
        """Return names of the parameters of ``apply``'s ``model`` that take gradients; here those that did before."""
        return frozenset(name for name, p in model.named_parameters() if p.requires_grad)

    def stated_bytes(self, model: Decoder) -> int | None:
        """Return the most bytes that the tensors of ``convert``'s model may take, computed from ``model`` before; None:
        no promise.
        """
        return None


def apply_all(techniques: Iterable[Technique], model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
    """Apply first to last."""
    for technique in techniques:
        model = technique.apply(model, calibration)
    return model


def convert_all(techniques: Sequence[Technique], model: Decoder) -> tuple[Decoder, tuple[Technique, ...]]:
    """Convert last to first; the deployed specs come back in the order in which they must be rebuilt."""
    deployed_specs: list[Technique] = []
    for technique in reversed(techniques):
        model, deployed_spec = technique.convert(model)
        if deployed_spec is not None:
            deployed_specs.insert(0, deployed_spec)
    return model, tuple(deployed_specs)


def training(techniques: Iterable[Technique], model: Decoder) -> Decoder:
    """Rebuild the training structure on a plain model, to load a training checkpoint into."""
    for technique in techniques:
        model = technique.training_skeleton(model)
    return model


def deployed(deployed_specs: Iterable[Technique], model: Decoder) -> Decoder:
    """Rebuild the deployed structure on a plain model, to load a saved model into."""
    for deployed_spec in deployed_specs:
        model = deployed_spec.deployed_skeleton(model)
    return model


def train_only(model: nn.Module, names: Collection[str]) -> None:
    """Let exactly the parameters called ``names`` take gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def train_everything(model: nn.Module) -> None:
    """Let every floating-point parameter take gradients, as in a model that no technique has touched."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


@dataclass(frozen=True, slots=True)
class TrainableShare:
    """How much of a model is trained.

    Attributes:
        trainable: parameters that take gradients.
        total: all parameters, those that a technique added included, a tied head counted once.
    """

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable part, 0 to 1."""
        return self.trainable / self.total

    def describe(self) -> dict[str, Any]:
        """Return numbers for a report."""
        return {"trainable_parameters": self.trainable, "parameters": self.total, "trainable_share": self.share}

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({self.share:.3%})"


def trainable_share(model: Decoder) -> TrainableShare:
    """Count the parameters of ``model`` and those that take gradients."""
    return TrainableShare(model.count_parameters(trainable=True), model.count_parameters())
