"""Freezing: train a part of the model, keep the rest as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError, nearest
from limbeck.model.decoder import Decoder
from limbeck.model.surgery import matches
from limbeck.techniques.technique import Technique, train_everything, train_only

__all__ = ["Freeze"]

_NAMED = ("last_layer", "half", "no_embeddings")


def _patterns(value: Any) -> Any:
    """Return what is meant: a word of ours, alone or in a list of one, stays that word; everything else is patterns."""
    if isinstance(value, str):
        return value if value in _NAMED else (value,)
    if isinstance(value, list | tuple) and (word := next((v for v in value if v in _NAMED), None)) is not None:
        if len(value) > 1:
            raise ValueError(f"'{word}' stands alone: give it without patterns beside it")
        return word
    return value


class Freeze(Technique):
    """Train only the last blocks, the upper half, all but the embeddings, or what patterns name.

    ``last_layer`` and ``half`` train the final norm too, and the head where it is not the embedding; a tied head stays
    frozen with the embedding that it is. Which parameters are trained is all that it says: the model that comes out of
    training has nothing of it left.

    >>> import limbeck
    >>> limbeck.Freeze(train=("blocks.1",)).train
    ('blocks.1',)
    """

    name: ClassVar[str] = "freeze"
    identity: ClassVar[bool] = True
    tolerance: ClassVar[dict[str, float]] = {"float32": 0.0, "float64": 0.0}

    kind: Literal["freeze"] = "freeze"
    train: Annotated[Literal["last_layer", "half", "no_embeddings"] | tuple[str, ...], BeforeValidator(_patterns)] = (
        Field(
            "last_layer",
            description="last_layer: the last 'count' blocks; half: the upper half of the blocks, rounded up; "
            "no_embeddings: everything else; or patterns of parameter or module names, such as blocks.3 or *.bias",
        )
    )
    count: int = Field(1, ge=1, description="blocks that last_layer trains")

    @model_validator(mode="after")
    def _fits(self) -> Freeze:
        if self.count != 1 and self.train != "last_layer":
            raise ValueError("count belongs to train=last_layer")
        if self.train == ():
            raise ValueError("train names no parameter")
        return self

    def trained(self, model: Decoder) -> frozenset[str]:
        """Return names of the parameters that take gradients.

        Raises:
            TechniqueError: more blocks than there are, or a pattern that matches no parameter.
        """
        names = [name for name, _ in model.named_parameters()]
        if isinstance(self.train, tuple):
            return self._named(model, self.train)
        if self.train == "no_embeddings":
            return frozenset(n for n in names if n.split(".")[0] not in ("embed", "positions"))
        layers = model.config.layers
        if self.count > layers:
            raise TechniqueError(f"freeze is to train the last {self.count} blocks, but the model has {layers}")
        first = layers - self.count if self.train == "last_layer" else layers // 2
        kept = {"norm", "head", *(f"blocks.{i}" for i in range(first, layers))}
        return frozenset(n for n in names if n.split(".")[0] in kept or ".".join(n.split(".")[:2]) in kept)

    def _named(self, model: Decoder, patterns: tuple[str, ...]) -> frozenset[str]:
        # A tied matrix answers to both of its names and is trained under its first.
        first: dict[int, str] = {}
        every = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            every[name] = first.setdefault(id(parameter), name)
        chosen: set[str] = set()
        for pattern in patterns:
            hit = {own for name, own in every.items() if matches(name, (pattern, f"{pattern}.*"))}
            if not hit:
                raise TechniqueError(
                    f"freeze: the pattern '{pattern}' matches no parameter{nearest(pattern, (*_NAMED, *every))}; "
                    "give names such as blocks.0, embed or *.bias"
                )
            chosen |= hit
        return frozenset(chosen)

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Set which parameters take gradients, in place; applied again, the last one holds.

        Raises:
            TechniqueError: see ``trained``.
        """
        train_only(model, self.trained(model))
        return model

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Let every parameter take gradients again; no deployed spec."""
        train_everything(model)
        return model, None

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return what ``apply`` does: it adds no tensor."""
        return self.apply(model)

    def stated_bytes(self, model: Decoder) -> int:
        """Return the bytes of ``model``: no tensor is added."""
        return model.count_bytes()
