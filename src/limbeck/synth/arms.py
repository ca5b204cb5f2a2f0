"""Arms of the comparison: plain fine-tuning, two ways to use generated pairs, and self-distillation without a task.

All arms see the same real examples and take equally many optimizer steps on the classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from limbeck.data.batch import Batch, Example, collate
from limbeck.data.batches import Batches, fixed_batches
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.losses.terms import Counts, Terms
from limbeck.measure.held_out import HeldOut
from limbeck.model.decoder import Decoder
from limbeck.objectives.distill import Distillation
from limbeck.objectives.objective import AnyObjective
from limbeck.objectives.teacher import LiveTeacher
from limbeck.synth.proximity import Scorer
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.task import Measuring, Result
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings

__all__ = ["ARMS", "Arm", "ArmResult", "labelled", "own_samples", "train_arm"]

Arm = Literal["plain", "generator", "mix", "soft"]
ARMS: Mapping[Arm, str] = {
    "plain": "fine-tuning on the real pairs alone",
    "generator": "the classifier starts from the generator that was tuned on its own pairs",
    "mix": "generated pairs are mixed into the classifier's training",
    "soft": "the model's own samples as soft targets beside the real pairs: self-distillation without a task",
}
"""Arms by name."""


@dataclass(frozen=True)
class ArmResult:
    """How one arm ended.

    Attributes:
        arm: which.
        steps: optimizer steps of the classifier.
        rows: examples that it learned from.
        epochs: one mapping an evaluation: ``step``, ``epoch``, ``accuracy`` and ``loss`` on the validation rows.
        result: of the final evaluation.
        seconds: of the training.
    """

    arm: Arm
    steps: int
    rows: int
    epochs: tuple[Mapping[str, float], ...]
    result: Result
    seconds: float

    def describe(self) -> dict[str, Any]:
        """Return plain values; the scores are elsewhere."""
        return {
            "arm": self.arm,
            "steps": self.steps,
            "rows": self.rows,
            "seconds": self.seconds,
            "epochs": [dict(one) for one in self.epochs],
        }


def labelled(pairs: Rows, scorer: Scorer) -> Rows:
    """Return generated pairs as positives, and beside each a negative with the nearest other restatement.

    A negative pairs a sentence with the restatement of the context whose pooled states are nearest among the other
    contexts: words in common then do not give the answer away. With one context alone there is no negative.
    """
    rows = [Row(f"{row.id}:1", {**_sides(row), "is_duplicate": 1}) for row in pairs]
    contexts = [str(row.fields.get("context", row.fields["sentence1"])) for row in pairs]
    names = list(dict.fromkeys(contexts))
    if len(names) > 1:
        states = torch.from_numpy(scorer.states(names))
        states = torch.nn.functional.normalize(states - states.mean(dim=0), dim=1)
        near = states @ states.T
        near.fill_diagonal_(-2)
        of = {name: [row for row, context in zip(pairs, contexts, strict=True) if context == name] for name in names}
        for row, context in zip(pairs, contexts, strict=True):
            other = of[names[int(near[names.index(context)].argmax())]][0]
            sides = {"sentence1": row.fields["sentence1"], "sentence2": other.fields["sentence2"]}
            rows.append(Row(f"{row.id}:0", {**sides, "is_duplicate": 0}))
    return Rows.of(rows, "self-distilled pairs")


def _sides(row: Row) -> dict[str, Any]:
    return {"sentence1": row.fields["sentence1"], "sentence2": row.fields["sentence2"]}


def own_samples(model: Decoder, tokenizer: Tokenizer, count: int, tokens: int, seed: int) -> list[Example]:
    """Return ``count`` texts that ``model`` writes from nothing; every token but the first is a target."""
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    decoding = Decoding(max_new_tokens=tokens, temperature=1.0, samples=count, seed=seed + 1)
    (found,) = generate(model, tokenizer, [[first]], decoding, batch_size=32)
    out = []
    for i, one in enumerate(found):
        ids = np.array([first, *one.ids], dtype=np.int32)
        out.append(Example(i, f"sample:{i}", ids, np.ones(len(ids), dtype=np.bool_)))
    return out


@dataclass(frozen=True, slots=True)
class _Both:
    """Micro-batches of two streams in turn; those of the second have data rows from ``_SECOND`` on."""

    first: Batches
    second: Batches

    @property
    def per_epoch(self) -> int:
        return 2 * self.first.per_epoch

    def at(self, index: int) -> Batch:
        batch: Batch = (self.second if index % 2 else self.first).at(index // 2)
        return replace(batch, row_ids=torch.where(batch.row_ids < 0, -1, batch.row_ids + _SECOND * (index % 2)))


_SECOND = 1 << 40


@dataclass(frozen=True)
class _TaskAndSoft:
    """The task's own loss on its batches, the divergence from the first model on samples."""

    task: AnyObjective
    soft: Distillation

    def _own(self, batch: Batch) -> AnyObjective:
        return self.soft if int(batch.row_ids.max()) >= _SECOND else self.task

    def counts(self, batch: Batch) -> Counts:
        return self._own(batch).counts(batch)

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> Terms:
        return self._own(batch)(model, batch, counts)


class _ByEpoch:
    """Accuracy and loss on the validation rows, as an evaluation of the loop that also keeps what it found."""

    def __init__(
        self, task: Paraphrase, tokenizer: Tokenizer, valid: Rows, measuring: Measuring, loss: HeldOut, per_epoch: float
    ) -> None:
        self.task, self.tokenizer, self.valid, self.measuring = task, tokenizer, valid, measuring
        self.loss, self.per_epoch, self.found = loss, per_epoch, list[Mapping[str, float]]()

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, float]:
        assert isinstance(model, Decoder)
        result = self.task.evaluate(model, self.tokenizer, self.valid, self.measuring, self.task.decoding())
        accuracy = float(self.task.statistics(result.scores.columns)[0].value(result.scores))
        loss = self.loss(model, step)["valid/nll"]
        self.found.append({"step": step, "epoch": step / self.per_epoch, "accuracy": accuracy, "loss": loss})
        return {"valid/accuracy": accuracy, "valid/nll": loss}


def train_arm(
    arm: Arm,
    start: Decoder,
    tokenizer: Tokenizer,
    task: Paraphrase,
    real: Rows,
    valid: Rows,
    final: Rows,
    settings: TrainSettings,
    *,
    made: Rows | None = None,
    samples: Sequence[Example] = (),
    soft_weight: float = 1.0,
    batch_size: int = 16,
    measuring: Measuring | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> ArmResult:
    """Train a classifier in one arm and measure it; ``start`` is left as it is.

    Args:
        arm: which.
        start: the model to start from (of arm ``generator``, the tuned generator).
        tokenizer: of the model.
        task: cloze or with a head.
        real: real pairs.
        valid: rows measured each epoch.
        final: rows of the final evaluation.
        settings: of the training; its epochs count passes over the real pairs, in every arm.
        made: labelled generated pairs, for arm ``mix``.
        samples: the model's own texts, for arm ``soft``.
        soft_weight: weight of the divergence in arm ``soft``.
        batch_size: rows of a step; arm ``soft`` adds as many samples.
        measuring: of the evaluations.
        seed: of order and dropout.
        say: receives a line an evaluation.
    """
    measuring = measuring or Measuring()
    model = copy.deepcopy(start)
    teacher = copy.deepcopy(start) if arm == "soft" else None
    model = task.prepare(model)
    context = model.config.context
    rows = Rows.of([*real, *(made or ())], real.source) if arm == "mix" else real
    examples, _ = task.encode(rows, tokenizer, context)
    per_epoch = Batches(
        task.encode(real, tokenizer, context)[0], batch_size=batch_size, context=context, pad_id=tokenizer.pad_id,
        bucketing=True, seed=seed,
    ).per_epoch  # fmt: skip
    stream: Any = Batches(
        examples, batch_size=batch_size, context=context, pad_id=tokenizer.pad_id, bucketing=True, seed=seed
    )
    objective = task.objective()
    steps = settings.total_steps(per_epoch)
    plain = settings.model_copy(
        update={"steps": steps, "epochs": None, "evaluate_every": settings.evaluate_every or per_epoch, "monitor": ""}
    )
    if arm == "soft":
        assert teacher is not None
        own = Batches(samples, batch_size=batch_size, context=context, pad_id=tokenizer.pad_id, seed=seed)
        stream = _Both(stream, own)
        objective = _TaskAndSoft(objective, Distillation(LiveTeacher(teacher), alpha=0.0, beta=soft_weight))
        plain = plain.model_copy(update={"accumulation": 2})
    held, _ = task.encode(valid, tokenizer, context)
    loss = HeldOut(task.objective(), fixed_batches(held, 2 * batch_size, context, tokenizer.pad_id, collate), "valid")
    watch = _ByEpoch(task, tokenizer, valid, measuring, loss, per_epoch)
    trained = train(model, objective, stream, plain, evaluations=[watch], seed=seed, progress=False)
    result = task.evaluate(model.eval(), tokenizer, final, measuring, task.decoding())
    last = watch.found[-1]
    say(f"{arm}: accuracy {last['accuracy']:.3f}, loss {last['loss']:.3f} on the validation rows after {steps} steps")
    return ArmResult(arm, trained.steps, len(rows), tuple(watch.found), result, trained.seconds)
