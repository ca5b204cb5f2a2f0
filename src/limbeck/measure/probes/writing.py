"""Probes of what a model writes: does it end, how long is it, does it loop, repeat itself, or echo its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import numpy as np

from limbeck.data.batch import Example
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.measure.alarm import Alarm, Continuation, Subject
from limbeck.measure.classes import collapse
from limbeck.measure.probes.text import common_run, loop_tokens, repeated_share
from limbeck.model.decoder import Decoder

__all__ = ["Collapsed", "Echo", "Ending", "Length", "Looping", "Repetition", "cut_example", "write"]

_GIVEN_TOKENS = 16
_LEAST = 4  # generations below which nothing is said of shares among them


def cut_example(example: Example) -> tuple[list[int], list[int]]:
    """Return the prompt and true continuation of an example.

    Where nearly all is learned, as of plain text, the first quarter is given (16 tokens at most); else what stands
    before the first learned token.
    """
    ids = example.ids.tolist()
    learned = np.flatnonzero(example.target)
    first = int(learned[0]) if learned.size else len(ids)
    if first <= 1:
        first = max(1, min(_GIVEN_TOKENS, len(ids) // 4))
    return ids[:first], ids[first:]


def write(
    model: Decoder, tokenizer: Tokenizer, examples: Sequence[Example], decoding: Decoding, *, batch_size: int = 16
) -> list[Continuation]:
    """Let ``model`` continue the prompts of ``examples``, for at most twice the longest reference and 8 tokens.

    Args:
        model: a decoder whose head tells tokens; one that tells classes writes nothing.
        tokenizer: its tokenizer.
        examples: of a task; those with nothing to continue are left out.
        decoding: how it writes; its limit holds too, and half of the context.
        batch_size: sequences at once.
    """
    pairs = [cut_example(e) for e in examples]
    pairs = [(prompt, reference) for prompt, reference in pairs if prompt and reference]
    if model.config.classes is not None or not pairs:
        return []
    longest = 2 * max(len(reference) for _, reference in pairs) + 8
    room = min(longest, decoding.max_new_tokens, model.config.context // 2)
    fitting = decoding.model_copy(update={"max_new_tokens": room, "truncate_prompts": True})
    out = generate(model, tokenizer, [prompt for prompt, _ in pairs], fitting, batch_size=batch_size)
    end = tokenizer.eos_id
    written = []
    for (prompt, reference), some in zip(pairs, out, strict=True):
        ids, ended = some[0].ids, some[0].stopped == "end"
        ends = reference[-1] == end
        truth = tuple(reference[:-1] if ends else reference)
        own = ids[:-1] if ended else ids
        told = tokenizer.decode(truth)
        written.append(
            Continuation(tuple(prompt), own, truth, ended, ends and len(reference) <= room, some[0].text, told)
        )
    return written


@dataclass(frozen=True, slots=True)
class Ending:
    """Share of generations that close with an end token, among those whose reference does within the limit."""

    threshold: float = 0.5
    name: ClassVar[str] = "end-token"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class."""
        could = [w for w in subject.written if w.may_end]
        if len(could) < _LEAST:
            return None
        rate = sum(w.ended for w in could) / len(could)
        return Alarm(
            self.name,
            rate,
            self.threshold,
            rate < self.threshold,
            f"{rate:.0%} of {len(could)} generations end by themselves where the reference does; "
            f"at least {self.threshold:.0%} are expected",
        )


@dataclass(frozen=True, slots=True)
class Length:
    """Median length of generations against that of their references, in tokens."""

    threshold: float = 2.0
    least_tokens: int = 4
    name: ClassVar[str] = "length"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class; silent where references are so short that a token more or less decides."""
        could = [w for w in subject.written if w.may_end]
        if len(could) < _LEAST:
            return None
        ours, truth = median(len(w.ids) for w in could), median(len(w.reference) for w in could)
        if truth < self.least_tokens:
            return None
        ratio = ours / truth
        return Alarm(
            self.name,
            ratio,
            self.threshold,
            not 1 / self.threshold <= ratio < self.threshold,
            f"generations have {ours:g} tokens in the median and references {truth:g}, {ratio:.2f} times as many; "
            f"between {1 / self.threshold:g} and {self.threshold:g} times is expected",
        )


@dataclass(frozen=True, slots=True)
class Looping:
    """Share of generations whose end repeats one period over and over, where the reference's does not."""

    threshold: float = 0.1
    least_tokens: int = 20
    name: ClassVar[str] = "loops"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class."""
        if len(subject.written) < _LEAST:
            return None
        loops = sum(
            loop_tokens(w.ids) >= self.least_tokens and loop_tokens(w.reference) < self.least_tokens
            for w in subject.written
        )
        share = loops / len(subject.written)
        return Alarm(
            self.name,
            share,
            self.threshold,
            share > self.threshold,
            f"{loops} of {len(subject.written)} generations end in a loop of {self.least_tokens} tokens or more; "
            f"up to {self.threshold:.0%} are expected",
        )


@dataclass(frozen=True, slots=True)
class Repetition:
    """Repeated 4-grams within a generation, above those of the references: 1 - distinct-4."""

    threshold: float = 0.2
    least_grams: int = 20
    name: ClassVar[str] = "repetition"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class."""
        ours, grams = repeated_share([w.ids for w in subject.written])
        truth, _ = repeated_share([w.reference for w in subject.written])
        if grams < self.least_grams:
            return None
        return Alarm(
            self.name,
            ours - truth,
            self.threshold,
            ours - truth > self.threshold,
            f"{ours:.1%} of {grams} generated 4-token runs repeat one of the same text, {truth:.1%} in the references; "
            f"a difference up to {self.threshold:.0%} is expected",
        )


@dataclass(frozen=True, slots=True)
class Echo:
    """Share of generations that hand back a run of their own prompt, where the reference does not.

    A run is ``run_tokens`` long, or the whole prompt where that is shorter but at least half as long: a word that
    question and answer share is none.
    """

    threshold: float = 0.1
    run_tokens: int = 12
    name: ClassVar[str] = "echo"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class."""
        judged = [w for w in subject.written if 2 * len(w.prompt) >= self.run_tokens]
        if len(judged) < _LEAST:
            return None
        echoes = sum(self._echoed(w.prompt, w.ids) and not self._echoed(w.prompt, w.reference) for w in judged)
        share = echoes / len(judged)
        return Alarm(
            self.name,
            share,
            self.threshold,
            share > self.threshold,
            f"{echoes} of {len(judged)} generations hand back {self.run_tokens} tokens of their prompt or all of it; "
            f"up to {self.threshold:.0%} are expected",
        )

    def _echoed(self, prompt: Sequence[int], ids: Sequence[int]) -> bool:
        return common_run(prompt, ids) >= min(self.run_tokens, len(prompt))


@dataclass(frozen=True, slots=True)
class Collapsed:
    """Share of the commonest generation: one text for every prompt, where the references differ."""

    threshold: float = 0.95
    name: ClassVar[str] = "one-answer"

    def __call__(self, subject: Subject) -> Alarm | None:
        """See the class."""
        if len(subject.written) < 2 * _LEAST:
            return None
        texts = Counter(w.text.strip() for w in subject.written)
        truths = Counter(w.truth.strip() for w in subject.written)
        answer, count = texts.most_common(1)[0]
        share = count / len(subject.written)
        told = collapse(truths, texts, share=self.threshold)
        return Alarm(
            self.name,
            share,
            self.threshold,
            told is not None,
            f"{count} of {len(subject.written)} generations are '{answer[:40]}', and the references are "
            f"{len(truths)} different texts; fewer than {self.threshold:.0%} alike are expected",
        )
