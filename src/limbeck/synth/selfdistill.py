"""Self-distillation of a paraphrase classifier: rounds, arms, seeds, and what the comparison shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from limbeck.config import Config
from limbeck.data.rows import Rows
from limbeck.errors import DataError
from limbeck.formats.load import Bundle
from limbeck.measure.scores import Scores
from limbeck.measure.stats import adjust, compare, interval, items_needed, verdict
from limbeck.model.decoder import Decoder
from limbeck.storage import plain, write_json
from limbeck.synth.arms import ARMS, Arm, ArmResult, labelled, own_samples, train_arm
from limbeck.synth.proximity import Scorer
from limbeck.synth.rounds import Rounds, RoundsResult, make_rounds
from limbeck.tasks.classification import labels_of
from limbeck.tasks.paraphrase import Paraphrase
from limbeck.tasks.task import Measuring
from limbeck.train.settings import TrainSettings

__all__ = ["SelfDistilled", "SelfDistilling", "self_distill"]


_SHORT: Mapping[Arm, str] = {
    "plain": "plain fine-tuning",
    "generator": "from the generator",
    "mix": "pairs mixed in",
    "soft": "soft targets",
}


class SelfDistilling(Config):
    """What a comparison of self-distillation is made of."""

    arms: tuple[Arm, ...] = Field(
        ("plain", "generator", "mix", "soft"),
        description="plain fine-tuning, classifier from the tuned generator, generated pairs mixed in, own samples as "
        "soft targets; plain is always among them",
    )
    seeds: int = Field(1, ge=1, le=16, description="runs of every arm, each with its own rounds, samples and order")
    rounds: Rounds = Field(default_factory=Rounds, description="how pairs are generated")
    soft_samples: int = Field(200, ge=1, description="own samples of the arm soft")
    soft_tokens: int = Field(48, ge=1, description="tokens of each")
    soft_weight: float = Field(1.0, ge=0, description="weight of their divergence from the first model")

    @field_validator("arms")
    @classmethod
    def _plain_first(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        return tuple(dict.fromkeys(("plain", *arms)))


@dataclass(frozen=True)
class SelfDistilled:
    """What was found.

    Attributes:
        values: plain values for a report.
        pairs: kept pairs of the first seed.
        scores: arm -> one evaluation a seed.
        generator: of the first seed; None where no arm needs one.
    """

    values: Mapping[str, Any]
    pairs: Rows
    scores: Mapping[Arm, Sequence[Scores]]
    generator: Decoder | None = field(repr=False, default=None)


def self_distill(
    bundle: Bundle,
    task: Paraphrase,
    real: Rows,
    valid: Rows,
    final: Rows,
    settings: SelfDistilling,
    training: TrainSettings,
    generator_training: TrainSettings,
    *,
    batch_size: int = 16,
    measuring: Measuring | None = None,
    seed: int = 0,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SelfDistilled:
    """Run every arm for every seed and compare each with plain fine-tuning.

    Args:
        bundle: the model, left as it is; the only one there is.
        task: paraphrase detection.
        real: real pairs, the same for all arms.
        valid: rows measured by epoch, and whose paraphrases tell the generator's gain; nothing made may repeat them.
        final: rows of the final evaluation; nothing generated may repeat them.
        settings: of rounds and arms.
        training: of the classifiers.
        generator_training: of the generator.
        batch_size: rows of a step.
        measuring: of the evaluations.
        seed: the first.
        folder: where scores and pairs go; None: nothing is written.
        say: receives a line a step.

    Raises:
        DataError: no real pair is a paraphrase, or a split is empty.
    """
    measuring = measuring or Measuring()
    positives = _positives(real)
    if not len(positives):
        raise DataError(f"no pair of {real.source} is a paraphrase: the generator has nothing to learn from")
    against = {"valid": valid} if valid is final else {"valid": valid, "test": final}
    contexts = [row.text("sentence1", real.source) for row in real]
    arms: dict[Arm, list[ArmResult]] = {arm: [] for arm in settings.arms}
    made: list[RoundsResult | None] = []
    needs_pairs = bool({"generator", "mix"} & set(settings.arms))
    for number in range(seed, seed + settings.seeds):
        rounds = None
        if needs_pairs:
            rounds = make_rounds(
                bundle.model, bundle.tokenizer, positives, settings.rounds, generator_training, contexts=contexts,
                held_out=_positives(valid), against=against, batch_size=batch_size, seed=number, say=say,
            )  # fmt: skip
        made.append(rounds)
        for arm in settings.arms:
            found = _arm(
                arm, bundle, task, real, valid, final, settings, training, rounds, batch_size, measuring, number, say
            )
            arms[arm].append(found)
            if folder is not None:
                found.result.scores.write(folder / "scores" / f"{arm}-{number}.jsonl")
    if folder is not None and made[0] is not None:
        write_json(folder / "pairs.json", [dict(row.fields) | {"id": row.id} for row in made[0].pairs])
    values = _values(task, arms, made, measuring, final)
    pairs = made[0].pairs if made[0] is not None else Rows.of([], "self-distilled pairs")
    scores = {arm: [one.result.scores for one in some] for arm, some in arms.items()}
    return SelfDistilled(values, pairs, scores, None if made[0] is None else made[0].generator)


def _positives(rows: Rows) -> Rows:
    classes = labels_of(rows, "is_duplicate", ("0", "1"))
    return Rows.of((r for r, c in zip(rows, classes, strict=True) if c == 1), rows.source)


def _arm(
    arm: Arm, bundle: Bundle, task: Paraphrase, real: Rows, valid: Rows, final: Rows, settings: SelfDistilling,
    training: TrainSettings, rounds: RoundsResult | None, batch_size: int, measuring: Measuring, seed: int,
    say: Callable[[str], None],
) -> ArmResult:  # fmt: skip
    start, pairs, samples = bundle.model, None, []
    if arm == "generator":
        assert rounds is not None
        start = rounds.generator
    if arm == "mix":
        assert rounds is not None
        pairs = labelled(rounds.pairs, Scorer(bundle.model, bundle.tokenizer))
    if arm == "soft":
        samples = own_samples(bundle.model, bundle.tokenizer, settings.soft_samples, settings.soft_tokens, seed)
    return train_arm(
        arm, start, bundle.tokenizer, task, real, valid, final, training, made=pairs, samples=samples,
        soft_weight=settings.soft_weight, batch_size=batch_size, measuring=measuring, seed=seed, say=say,
    )  # fmt: skip


def _values(
    task: Paraphrase, arms: Mapping[Arm, list[ArmResult]], made: list[RoundsResult | None], measuring: Measuring,
    final: Rows,
) -> dict[str, Any]:  # fmt: skip
    scores = {arm: [one.result.scores for one in some] for arm, some in arms.items()}
    main = task.statistics(scores["plain"][0].columns)[0]
    against = adjust(
        {
            arm: compare(scores["plain"], some, main, level=measuring.level)
            for arm, some in scores.items()
            if arm != "plain"
        }
    )
    table = {}
    for arm, some in scores.items():
        figure = interval(some, main, level=measuring.level)
        row: dict[str, Any] = {
            "about": ARMS[arm],
            "figure": main.name,
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "level": figure.level,
            "items": figure.items,
            "seeds": figure.seeds,
            "steps": arms[arm][0].steps,
            "rows": [one.rows for one in arms[arm]],
            "notes": list(arms[arm][0].result.notes["told"]),
        }
        if arm != "plain":
            found = against[arm]
            row["against_plain"] = {
                **found.to_json(),
                "verdict": verdict(found, ("plain fine-tuning", _SHORT[arm])),
                "items_needed": items_needed(found) if found.difference and found.items > 1 else None,
            }
        table[arm] = row
    rounds = [
        None
        if one is None
        else {
            "rounds": [r.describe() for r in one.rounds],
            "stopped": one.stopped,
            "generator_losses": list(one.losses),
            "generator_steps": one.steps,
            "pairs": len(one.pairs),
        }
        for one in made
    ]
    out = {
        "table": table,
        "rounds": rounds,
        "by_epoch": {arm: [one.describe() for one in some] for arm, some in arms.items()},
        "evaluated": {"source": final.source, "rows": len(final)},
    }
    found_values: dict[str, Any] = plain(out)
    return found_values
