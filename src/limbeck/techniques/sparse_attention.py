"""Sparse attention: let some or all layers of a pretrained model see less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.data.batch import Batch
from limbeck.errors import TechniqueError
from limbeck.kernels.fused_head.losses import head_sequence_log_probs
from limbeck.model.config import DecoderConfig
from limbeck.model.decoder import Block, Decoder
from limbeck.model.pattern_cost import total_keys_per_query
from limbeck.model.patterns import AnyPattern, Causal, LogSparse, hybrid_layers
from limbeck.techniques.technique import Technique

__all__ = ["SparseAttention", "layer_sensitivity", "with_patterns"]


class SparseAttention(Technique):
    """Give the layers of a model a sparse attention pattern, or all but some that stay as they are (a hybrid).

    No weight changes. A pretrained model loses by it, and wins back by training: `finetune`, `pretrain`, or `distill`
    from the model as it was. The default pattern sees the 32 nearest positions (the paper's local window is of the
    order of log2 L; 32 holds it for any length that is trained today), distances of powers of two (Li et al. 2019) and
    the first four positions (Xiao et al. 2023, table 2: four sinks suffice, fewer do not).

    Layers that stay as they are: the first, the last, every n-th, those that are named; or as many as ``budget``
    allows, chosen by ``layer_sensitivity`` on the calibration data.
    """

    name: ClassVar[str] = "sparse_attention"
    tolerance: ClassVar[dict[str, float]] = {"float32": 0.0, "float64": 0.0, "bfloat16": 0.0}

    kind: Literal["sparse_attention"] = "sparse_attention"
    pattern: AnyPattern = Field(LogSparse(window=32, sinks=4), description="what the sparse layers see")
    keep_first: int = Field(0, ge=0, description="first layers that stay as they are")
    keep_last: int = Field(0, ge=0, description="last layers that stay as they are")
    keep_every: int = Field(0, ge=0, description="every n-th layer stays as it is; 0: none")
    keep_layers: tuple[int, ...] = Field((), description="layers that stay as they are, counted from 0")
    budget: float | None = Field(
        None, gt=0, le=1, description="share of the keys per query, at the model's context, that may be read: as many "
        "layers stay as they are, the most sensitive ones on the first training rows"
    )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> SparseAttention:
        named = self.keep_first or self.keep_last or self.keep_every or self.keep_layers
        if self.budget is not None and named:
            raise ValueError("a budget chooses the layers that stay: give it without the keep_ options")
        return self

    def choose(self, model: Decoder, calibration: Sequence[Batch] = ()) -> tuple[int, ...]:
        """Return the layers of ``model`` that stay as they are, ascending.

        Raises:
            TechniqueError: a layer that does not exist, or a budget without calibration or below what is possible.
        """
        layers = model.config.layers
        if self.budget is not None:
            count = _affordable(model.config, self.pattern, self.budget)
            if count == 0:
                return ()
            harm = layer_sensitivity(model, self.pattern, calibration)
            return tuple(sorted(sorted(range(layers), key=lambda i: (-harm[i], i))[:count]))
        missing = [i for i in self.keep_layers if not 0 <= i < layers]
        if missing:
            raise TechniqueError(
                f"sparse_attention keeps layer {missing[0]}, but the model's layers are 0 to {layers - 1}"
            )
        chosen = hybrid_layers(layers, self.keep_first, self.keep_last, self.keep_every)
        return tuple(sorted({*chosen, *self.keep_layers}))

    def apply(self, model: Decoder, calibration: Sequence[Batch] = ()) -> Decoder:
        """Set the patterns of ``model``, in place.

        Raises:
            TechniqueError: see ``choose``; or the pattern would hide nothing, or does not fit the model.
        """
        self._check(model)
        return with_patterns(model, self._patterns(model, self.choose(model, calibration)))

    def _check(self, model: Decoder) -> None:
        context = model.config.context
        if self.pattern.is_causal(context):
            raise TechniqueError(
                f"the pattern {self.pattern.kind} hides nothing in the model's context of {context} tokens: "
                "lower its window or its sinks"
            )

    def _patterns(self, model: Decoder, kept: Sequence[int]) -> tuple[AnyPattern, ...]:
        config = model.config
        return tuple(config.pattern_at(i) if i in kept else self.pattern for i in range(config.layers))

    def convert(self, model: Decoder) -> tuple[Decoder, Technique | None]:
        """Return ``model``: its config says all; nothing else is to be saved."""
        return model, None

    def training_skeleton(self, model: Decoder) -> Decoder:
        """Return a model with the tensors of ``apply``'s; with a budget its layers are all sparse, as none can be
        chosen.

        Raises:
            TechniqueError: see ``apply``.
        """
        return self.model_copy(update={"budget": None}).apply(model)

    def stated_bytes(self, model: Decoder) -> int:
        """Return the bytes of ``model``: no weight changes."""
        return model.count_bytes()


def with_patterns(model: Decoder, patterns: Sequence[AnyPattern]) -> Decoder:
    """Set the attention pattern of each layer of ``model``, in place, and return it.

    Raises:
        TechniqueError: there are more or fewer patterns than layers, or one does not fit the model.
    """
    given = {**model.config.model_dump(), "pattern": tuple(patterns)}
    try:
        config = DecoderConfig.model_validate(given)
    except ValueError as error:
        raise TechniqueError(f"these attention patterns do not fit the model: {_reason(error)}") from error
    if len(set(patterns)) == 1:
        config = config.model_copy(update={"pattern": patterns[0]})
    model.config = config
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        block.attention.config, block.attention.pattern = config, config.pattern_at(i)
    return model


def _reason(error: ValueError) -> str:
    return str(error).split("Value error, ")[-1].split(" [type=")[0]


def _affordable(config: DecoderConfig, pattern: AnyPattern, budget: float) -> int:
    """How many layers may stay as they are under a share of dense attention's keys.

    Raises:
        TechniqueError: the pattern alone reads more.
    """
    dense, context = Causal().keys_per_query(config.context), config.context
    sparse = pattern.keys_per_query(context)
    before = total_keys_per_query(config, context)
    if sparse > budget * dense:
        raise TechniqueError(
            f"a budget of {budget:.3f} of dense attention's keys is less than the pattern {pattern.kind} reads in "
            f"every layer, {sparse / dense:.3f} at {context} tokens: raise it, or lower the window"
        )
    if before <= sparse:
        return 0
    return min(config.layers, math.floor(config.layers * (budget * dense - sparse) / (before - sparse) + 1e-9))


@contextmanager
def _restored(model: Decoder) -> Iterator[None]:
    """Put patterns and mode back at the end."""
    patterns = [model.config.pattern_at(i) for i in range(model.config.layers)]
    config, training = model.config, model.training
    try:
        model.eval()
        yield
    finally:
        with_patterns(model, patterns)
        model.config = config
        for block in model.blocks:
            assert isinstance(block, Block)
            block.attention.config = config
        model.train(training)


def layer_sensitivity(model: Decoder, pattern: AnyPattern, calibration: Sequence[Batch]) -> list[float]:
    """Return what each layer's sparsity alone costs: nats per predicted token that ``pattern`` in it adds.

    Args:
        model: measured in evaluation mode; its patterns and mode are restored.
        pattern: of the one layer that is changed; the others stay as they are.
        calibration: batches of typical text, of documents longer than the pattern sees.

    Raises:
        TechniqueError: there is no calibration token, or the pattern hides nothing of any document.
    """
    tokens = sum(int((batch.next_token_labels() >= 0).sum()) for batch in calibration)
    if not tokens:
        raise TechniqueError("sensitivity is measured on data: a budget needs calibration batches")
    longest = max(int(batch.positions().max()) + 1 for batch in calibration)
    if pattern.is_causal(longest):
        raise TechniqueError(
            f"the longest of the calibration texts has {longest} tokens, of which {pattern.kind} hides nothing: "
            "give longer texts, or lower the window"
        )
    patterns = [model.config.pattern_at(i) for i in range(model.config.layers)]
    with _restored(model), torch.no_grad():
        before = _nats(model, calibration)
        found = []
        for i in range(len(patterns)):
            with_patterns(model, [pattern if j == i else p for j, p in enumerate(patterns)])
            found.append((_nats(model, calibration) - before) / tokens)
    return found


def _nats(model: Decoder, batches: Sequence[Batch]) -> float:
    total = 0.0
    for batch in batches:
        here = batch.to(model.device)
        labels = here.next_token_labels()

        def read(hidden: Tensor, head: nn.Module, labels: Tensor = labels) -> Tensor:
            return head_sequence_log_probs(hidden, head, labels)

        total -= float(model(here, read=read).double().sum())
    return total
