"""On-policy distillation: micro-batches whose answers the student itself has just written.

The loss is that of ``objectives.distill``: a divergence from the teacher on the answer tokens. With a share this is
generalised knowledge distillation (Agarwal et al. 2024, GKD, algorithm 1); the adaptive share and the replay buffer are
those of DistiLLM (Ko et al. 2024, sections 3.2 and 3.3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from limbeck.config import Config
from limbeck.data.batch import Batch, Example, collate
from limbeck.data.batches import Batches
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError
from limbeck.model.decoder import Decoder
from limbeck.storage import write_text, writing
from limbeck.train.stream import derive

__all__ = ["LossHistory", "Mixing", "OnPolicy", "Replay", "answered", "check_mixing", "keep_rows", "prompt_of"]


class Mixing(Config):
    """How much of what is learned from the student writes itself."""

    share: float = Field(
        0.0, ge=0, le=1, description="share of micro-batches whose answers the student writes; 0: none"
    )
    schedule: Literal["constant", "adaptive"] = Field(
        "constant", description="adaptive: the share grows whenever the validation loss has risen (DistiLLM)"
    )
    rise: float = Field(0.1, gt=0, le=1, description="by how much an adaptive share grows each time")
    replay: float = Field(0.0, ge=0, le=1, description="share of those micro-batches taken from earlier answers")
    capacity: int = Field(1000, ge=1, description="newest answers that may be taken again")
    max_new_tokens: int = Field(64, ge=1, description="most tokens the student writes for a prompt")
    temperature: float = Field(1.0, ge=0, description="of the student's samples; 0: greedy")

    @model_validator(mode="after")
    def _agrees(self) -> Mixing:
        if self.schedule == "constant" and "rise" in self.model_fields_set:
            raise ValueError("rise belongs to the adaptive schedule: set schedule to adaptive")
        if self.share == 0 and self.schedule == "constant" and self.replay:
            raise ValueError("replay needs answers that the student wrote: set a share above 0")
        return self

    @property
    def on(self) -> bool:
        """Whether the student ever writes."""
        return self.share > 0 or self.schedule == "adaptive"

    def at(self, losses: Sequence[float]) -> float:
        """Return the share after the validation ``losses`` so far, in order."""
        if self.schedule == "constant":
            return self.share
        risen = sum(b > a for a, b in zip(losses, losses[1:], strict=False))
        return min(1.0, self.share + self.rise * risen)


@dataclass(frozen=True, slots=True)
class LossHistory:
    """Validation losses that a run has logged; a pure function of its ``metrics.jsonl``, so a resume finds them again.

    Attributes:
        file: the metrics; None: there are none.
        name: of the loss.
    """

    file: Path | None
    name: str = "valid/nll"

    def read(self) -> list[float]:
        """Return the losses in order."""
        if self.file is None or not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        values = [json.loads(line).get(self.name) for line in lines if f'"{self.name}"' in line]
        return [float(value) for value in values if value is not None]


def prompt_of(example: Example) -> list[int]:
    """Return the tokens before the first target; the first token where everything is one."""
    targets = np.flatnonzero(example.target[1:])
    ids: list[int] = example.ids[: int(targets[0]) + 1 if targets.size else len(example)].tolist()
    return ids


def answered(row: int, prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Return data row ``row`` with another answer, which is what is learned."""
    ids = np.array([*prompt, *answer], dtype=np.int32)
    return Example(row, f"row {row}", ids, np.arange(len(ids)) >= len(prompt))


def keep_rows(rows: Sequence[Sequence[Example]], pad_id: int) -> list[Example]:
    """Lay out nothing: the ``collate_fn`` of a stream whose batches ``OnPolicy`` makes."""
    return [example for row in rows for example in row]


class Replay:
    """Answers that the student wrote, by the micro-batch they were written for.

    A run keeps them in a file, one JSON line a micro-batch, so that a resumed training finds the same ones: of those
    that were written at or after the micro-batch it goes on with, none is used.

    Args:
        file: where they are kept; None: in memory alone.
        capacity: newest answers that ``draw`` takes from.
    """

    def __init__(self, file: Path | None, capacity: int) -> None:
        self._file, self._capacity = file, capacity
        self._written: dict[int, list[tuple[int, list[int], list[int]]]] = {}
        if file is not None and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            for line in lines:
                if line.endswith("\n"):  # a kill may have torn the last one
                    index, answers = json.loads(line)
                    self._written[index] = [(row, prompt, answer) for row, prompt, answer in answers]
            if lines and not lines[-1].endswith("\n"):
                self._rewrite()

    def add(self, index: int, answers: list[tuple[int, list[int], list[int]]]) -> None:
        """Keep the answers of micro-batch ``index``: row, prompt and answer of each; later ones are forgotten."""
        late = [i for i in self._written if i >= index]
        if late == [index] and self._written[index] == answers:
            return
        for i in late:
            del self._written[i]
        self._written[index] = answers
        if late:
            self._rewrite()
        elif self._file is not None:
            with writing(self._file), self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps([index, answers]) + "\n")

    def _rewrite(self) -> None:
        if self._file is not None:
            lines = (json.dumps([i, some]) + "\n" for i, some in sorted(self._written.items()))
            write_text(self._file, "".join(lines))

    def draw(self, index: int, count: int, random: np.random.Generator) -> list[tuple[int, list[int], list[int]]]:
        """Return ``count`` different answers of micro-batches before ``index``; none where there are too few."""
        newest = [answer for i in sorted(self._written) if i < index for answer in self._written[i]][-self._capacity :]
        if len(newest) < count:
            return []
        return [newest[i] for i in random.choice(len(newest), count, replace=False)]


class OnPolicy:
    """A stream that lets the student answer some micro-batches' prompts.

    Micro-batch ``i`` is a function of ``i``, of the student's weights and of what was logged before: a resumed training
    has all three again. It must not be made ahead of its step (``live``).

    Args:
        given: micro-batches with the data's answers, made with ``lay=keep_rows``.
        student: the model in training, of which no gradient is taken here.
        tokenizer: names the end and padding tokens.
        mixing: shares, sampling, replay.
        context: most tokens of prompt and answer; None: the student's context.
        history: validation losses so far.
        replay: earlier answers.
        seed: of all draws.
    """

    live = True

    def __init__(
        self,
        given: Batches,
        student: Decoder,
        tokenizer: Tokenizer,
        mixing: Mixing,
        *,
        context: int | None = None,
        history: LossHistory | None = None,
        replay: Replay | None = None,
        seed: int = 0,
    ) -> None:
        self.given, self.student, self.tokenizer, self.mixing = given, student, tokenizer, mixing
        self.context = min(context or student.config.context, student.config.context)
        self.history = history or LossHistory(None)
        self.replay = replay or Replay(None, mixing.capacity)
        self.seed, self.written_tokens = seed, 0

    @property
    def per_epoch(self) -> int:
        """Micro-batches in one pass over the prompts."""
        return self.given.per_epoch

    def describe(self) -> dict[str, Any]:
        """Return counts of one epoch of the given rows."""
        return self.given.describe()

    def at(self, index: int) -> Batch:
        """Return micro-batch ``index``: the data's answers, new answers of the student, or earlier ones."""
        rows: list[Example] = self.given.at(index)
        random = np.random.default_rng(derive(self.seed, "on-policy", index))
        own, again = random.random(2)
        if own >= self.mixing.at(self.history.read()):
            return self._collate_fn(rows)
        if again < self.mixing.replay and (old := self.replay.draw(index, len(rows), random)):
            return self._collate_fn([answered(*one) for one in old])
        return self._collate_fn(self._write(index, rows))

    def _write(self, index: int, rows: Sequence[Example]) -> list[Example]:
        m = self.mixing
        reach = self.context
        prompts = [prompt_of(e)[-(reach - 1) :] for e in rows]
        room = max(1, min(m.max_new_tokens, reach - max(map(len, prompts))))
        decoding = Decoding(
            max_new_tokens=room,
            temperature=m.temperature,
            seed=derive(self.seed, "answer", index),
            truncate_prompts=True,
        )
        out = generate(self.student, self.tokenizer, prompts, decoding, batch_size=len(rows))
        answers = [list(some[0].ids) for some in out]
        self.written_tokens += sum(map(len, answers))
        self.replay.add(index, [(e.row, p, a) for e, p, a in zip(rows, prompts, answers, strict=True)])
        return [answered(e.row, p, a) for e, p, a in zip(rows, prompts, answers, strict=True)]

    def _collate_fn(self, rows: Sequence[Example]) -> Batch:
        return collate([[e] for e in rows], self.tokenizer.pad_id)


def check_mixing(mixing: Mixing, *, packing: bool, shard: bool) -> None:
    """Refuse what on-policy distillation cannot do.

    Raises:
        ConfigError: packed rows, or weights split over ranks.
    """
    if mixing.on and packing:
        raise ConfigError("on-policy distillation answers one prompt a row: leave packing out")
    if mixing.on and shard:
        raise ConfigError("on-policy distillation generates on every rank: leave train.shard out")
