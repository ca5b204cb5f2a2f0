"""Impossible distillation: rounds of generate, filter, train and measure on the model itself (Jung et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import Field

from limbeck.config import Config
from limbeck.data.audit.report import AuditSettings
from limbeck.data.batch import Example, collate
from limbeck.data.batches import Batches, fixed_batches
from limbeck.data.prompts import Template, encode_rows
from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.measure.held_out import HeldOut
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.synth.candidates import Way, candidates
from limbeck.synth.collapse import Variety, collapsed, variety
from limbeck.synth.filters import EditDistance, Filter, KeepsNames, KeepsNumbers, LengthFilter, LengthRatio
from limbeck.synth.proximity import MutualLikelihood, PooledStates, Scorer
from limbeck.synth.repeats import Duplicates, Overlap
from limbeck.synth.yields import Yield, sift
from limbeck.train.loop import train
from limbeck.train.settings import TrainSettings

__all__ = [
    "Drawing",
    "EarlierRounds",
    "Proximity",
    "Round",
    "Rounds",
    "RoundsResult",
    "make_rounds",
    "proximity_filters",
    "tune_generator",
]

_PAIR: tuple[str, str] = ("sentence1", "sentence2")


class Proximity(Config):
    """When two generated sentences count as paraphrases."""

    mutual: float = Field(0.38, description="least nats a token by which each sentence makes the other likelier")
    cosine: float = Field(0.46, ge=-1, le=1, description="least cosine of the model's own pooled states, centred")
    length_ratio: float = Field(0.5, ge=0, le=1, description="least words of the shorter sentence by the longer's")
    edit_least: float = Field(0.15, ge=0, le=1, description="least edit distance in words; nearer is a copy")
    edit_most: float = Field(0.8, ge=0, le=1, description="largest edit distance in words")
    least_words: int = Field(3, ge=1, description="drop sentences of fewer words")
    most_words: int = Field(60, ge=1, description="drop sentences of more words")


class Drawing(Config):
    """How candidates are sampled."""

    samples: int = Field(4, ge=1, description="candidates a sentence")
    temperature: float = Field(1.0, gt=0, description="divides the logits")
    top_p: float = Field(0.9, gt=0, le=1, description="sample from the smallest set of this probability; 1: all")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: tokens seen before lose; 1: off")
    max_new_tokens: int = Field(32, ge=1, description="most tokens of a candidate")

    def decoding(self, seed: int) -> Decoding:
        """Return the same for ``decode``, with a seed."""
        return Decoding(**self.model_dump(), seed=seed)


class Rounds(Config):
    """How pairs are generated, round after round."""

    rounds: int = Field(2, ge=1, description="most rounds")
    contexts: int = Field(200, ge=1, description="sentences that a round begins from")
    way: Way = Field("restate", description="restate each sentence, or pair two continuations of it")
    bridge: str = Field(
        "\nIn other words:", description="text between a sentence and its restatement",
        json_schema_extra={"verbatim": True},
    )  # fmt: skip
    warm_epochs: float = Field(
        1.0, ge=0, description="passes over the real paraphrases before the first round; 0: the model as it comes"
    )
    tuning_epochs: float = Field(
        1.0, gt=0, description="passes over a round's pairs when the generator is tuned on them"
    )
    drawing: Drawing = Field(default_factory=Drawing, description="how candidates are sampled")
    proximity: Proximity = Field(default_factory=Proximity, description="when two sentences count as paraphrases")
    least_yield: float = Field(
        0.01, ge=0, le=1, description="stop when a round keeps a smaller share of its candidates"
    )
    least_gain: float = Field(
        0.0, description="stop when a round lowers the loss on real paraphrases by less, in nats a token"
    )


@dataclass(frozen=True, slots=True)
class Round:
    """What one round made.

    Attributes:
        number: from 1.
        found: the yield by filter.
        written: variety of all candidates.
        kept: variety of those kept.
        collapse: sentences about what collapsed since the first round.
        loss: of the tuned generator on real paraphrases it does not train on, in nats a token; None without such.
    """

    number: int
    found: Yield
    written: Variety
    kept: Variety
    collapse: tuple[str, ...]
    loss: float | None

    def describe(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "round": self.number,
            **self.found.describe(),
            "written": self.written.describe(),
            "varied": self.kept.describe(),
            "collapse": list(self.collapse),
            "loss": self.loss,
        }


@dataclass(frozen=True)
class RoundsResult:
    """What all rounds made.

    Attributes:
        rounds: one a round.
        pairs: kept over all rounds, none of them twice.
        generator: the model as the last round left it.
        stopped: why no more rounds were made.
        losses: of the generator on real paraphrases: as it came, warmed up, after each round.
        steps: optimizer steps that the generator took in all.
    """

    rounds: tuple[Round, ...]
    pairs: Rows
    generator: Decoder = field(repr=False)
    stopped: str
    losses: tuple[float, ...]
    steps: int


def proximity_filters(scorer: Scorer, proximity: Proximity, against: Mapping[str, Rows], earlier: Rows) -> list[Filter]:
    """Return the filters of a round, cheap ones first.

    Args:
        scorer: the model that judges.
        proximity: bounds.
        against: name -> evaluation rows that nothing may be shared with.
        earlier: pairs of earlier rounds.
    """
    settings = AuditSettings(kinds=("exact", "normalised", "near"), jaccard=0.9, least_words=1)
    out: list[Filter] = [
        LengthFilter(_PAIR, proximity.least_words, proximity.most_words),
        LengthRatio(_PAIR, proximity.length_ratio),
        EditDistance(_PAIR, proximity.edit_least, proximity.edit_most),
        KeepsNumbers(_PAIR),
        KeepsNames(_PAIR),
        Duplicates(_PAIR, settings),
    ]
    if len(earlier):
        out.append(EarlierRounds({"earlier rounds": earlier}, _PAIR, settings))
    if against:
        kinds = AuditSettings(kinds=("exact", "normalised", "field", "ngram"), least_words=3)
        out.append(Overlap(against, _PAIR, kinds))
    return [*out, PooledStates(scorer, proximity.cosine), MutualLikelihood(scorer, proximity.mutual)]


class EarlierRounds(Overlap):
    """Drop pairs that repeat one of an earlier round."""

    name = "earlier rounds"


def tune_generator(
    model: Decoder,
    tokenizer: Tokenizer,
    pairs: Rows,
    bridge: str,
    settings: TrainSettings,
    *,
    batch_size: int,
    seed: int,
    progress: bool = False,
) -> int:
    """Train ``model`` in place to write the second sentence of each pair after the first; return the steps taken."""
    examples, _ = encode_rows(
        pairs, tokenizer, model.config.context, template=_template(bridge), bos=_begins(tokenizer)
    )
    stream = Batches(
        examples,
        batch_size=batch_size,
        context=model.config.context,
        pad_id=tokenizer.pad_id,
        bucketing=True,
        seed=seed,
    )
    plain = settings.model_copy(update={"monitor": "", "evaluate_every": 0, "patience": 0})
    return train(model, NextToken(), stream, plain, seed=seed, progress=progress).steps


def _template(bridge: str) -> Template:
    plain = bridge.replace("{", "{{").replace("}", "}}")
    return Template(prompt="{sentence1}" + plain, answer=" {sentence2}")


def _begins(tokenizer: Tokenizer) -> bool | None:
    return True if tokenizer.bos_id is not None else None


def make_rounds(
    model: Decoder,
    tokenizer: Tokenizer,
    real: Rows,
    settings: Rounds,
    training: TrainSettings,
    *,
    contexts: Sequence[str],
    held_out: Rows | None = None,
    against: Mapping[str, Rows] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> RoundsResult:
    """Generate pairs in rounds; the model given is left as it is and judges every round.

    Args:
        model: that generates, judges and learns.
        tokenizer: of the model.
        real: real paraphrases to warm the generator up on; may be empty without ``warm_epochs``.
        settings: of the rounds.
        training: learning rate and the like of each tuning; its length comes from ``settings``.
        contexts: sentences to begin from; each round takes the next ones, and begins anew at their end.
        held_out: real paraphrases on which the generator's loss is measured.
        against: name -> evaluation rows that nothing may be shared with.
        batch_size: sequences at once.
        seed: of sampling and order.
        say: receives a line a round.

    Raises:
        DataError: there is no context, or nothing to warm up on.
    """
    if not contexts:
        raise DataError("there is no sentence to begin a round from: give data with sentences")
    if settings.warm_epochs and not len(real):
        raise DataError("there is no real paraphrase to warm the generator up on: set warm_epochs to 0")
    return _Maker(model, tokenizer, settings, training, against or {}, batch_size, seed, say).go(
        real, list(dict.fromkeys(contexts)), held_out
    )


class _Maker:
    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, settings: Rounds, training: TrainSettings,
        against: Mapping[str, Rows], batch_size: int, seed: int, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.tokenizer, self.settings, self.training = tokenizer, settings, training
        self.against, self.batch_size, self.seed, self.say = against, batch_size, seed, say
        self.judge = Scorer(model, tokenizer, settings.bridge, 2 * batch_size)
        self.generator, self.steps = copy.deepcopy(model), 0
        self.measured: HeldOut | None = None

    def go(self, real: Rows, contexts: list[str], held_out: Rows | None) -> RoundsResult:
        self.judge = self.judge.centred(contexts[:500])
        self.measured = self._measure(held_out)
        losses = [loss for loss in [self._loss()] if loss is not None]
        if self.settings.warm_epochs:
            self._tune(real, self.settings.warm_epochs, 0)
            losses += [loss for loss in [self._loss()] if loss is not None]
        rounds, kept, first = list[Round](), list[Row](), list[str]()
        stopped = "rounds"
        for number in range(1, self.settings.rounds + 1):
            one, rows = self._round(number, contexts, Rows.of(kept, "earlier rounds"), first)
            rounds.append(one)
            self.say(f"round {number}: kept {one.found.total.describe()}")
            kept += one.found.kept
            first = first or [str(row.fields["sentence2"]) for row in rows]
            if one.found.total.value < self.settings.least_yield or not len(one.found.kept):
                stopped = "yield"
                break
            self._tune(one.found.kept, self.settings.tuning_epochs, number)
            loss = self._loss()
            rounds[-1] = replace(one, loss=loss)
            if loss is not None:
                losses.append(loss)
                if losses[-2] - loss < self.settings.least_gain:
                    stopped = "gain"
                    break
        pairs = Rows.of(kept, "self-distilled pairs")
        return RoundsResult(tuple(rounds), pairs, self.generator, stopped, tuple(losses), self.steps)

    def _round(self, number: int, contexts: list[str], earlier: Rows, first: list[str]) -> tuple[Round, Rows]:
        size = self.settings.contexts
        chosen = [contexts[i % len(contexts)] for i in range((number - 1) * size, number * size)]
        rows = candidates(
            self.generator, self.tokenizer, list(dict.fromkeys(chosen)),
            self.settings.drawing.decoding(self.seed * 1000 + number),
            way=self.settings.way, bridge=self.settings.bridge, batch_size=2 * self.batch_size, name=f"round{number}",
        )  # fmt: skip
        filters = proximity_filters(self.judge, self.settings.proximity, self.against, earlier)
        found = sift(rows, filters)
        written = [str(row.fields["sentence2"]) for row in rows]
        kept = [str(row.fields["sentence2"]) for row in found.kept]
        gone = tuple(collapsed(written, first)) if first else ()
        return Round(number, found, variety(written), variety(kept), gone, None), rows

    def _tune(self, pairs: Rows, epochs: float, number: int) -> None:
        settings = self.training.model_copy(update={"epochs": epochs, "steps": None})
        self.steps += tune_generator(
            self.generator, self.tokenizer, pairs, self.settings.bridge, settings,
            batch_size=self.batch_size, seed=self.seed * 1000 + number,
        )  # fmt: skip

    def _measure(self, held_out: Rows | None) -> HeldOut | None:
        if held_out is None or not len(held_out):
            return None
        context = self.generator.config.context
        examples: list[Example]
        template, begins = _template(self.settings.bridge), _begins(self.tokenizer)
        examples, _ = encode_rows(held_out, self.tokenizer, context, template=template, bos=begins)
        batches = fixed_batches(examples, 2 * self.batch_size, context, self.tokenizer.pad_id, collate)
        return HeldOut(NextToken(), batches, "real")

    def _loss(self) -> float | None:
        if self.measured is None:
            return None
        with torch.no_grad():
            return float(self.measured(self.generator.eval(), 0)["real/nll"])
