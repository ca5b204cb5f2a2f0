"""Generating text: ragged prompts in batches, on a cache, streamed as it becomes certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.beam import Hypothesis, Stopped, beam_search
from limbeck.decode.pick import Picked, Picker
from limbeck.decode.sample import uniforms
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.settings import Decoding
from limbeck.decode.text import GrowingText
from limbeck.errors import ConfigError, DataError, RunError
from limbeck.model.decoder import Decoder

__all__ = ["Generation", "OnText", "GenerationRow", "fit_prompts", "generate", "occurrences"]

T = TypeVar("T")

OnText = Callable[[int, int, str], None]
"""Receives prompt number, sample (or hypothesis) number, and a piece of text that will not change any more."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation of one prompt.

    Attributes:
        ids: every token generated, an end token included.
        text: what they add to the prompt's text, without the end token, cut before a stop text.
        stopped: "end" (an end token), "stop" (a stop text) or "length".
        log_prob: summed log-probability of ``ids`` under the model itself, in nats: before temperature and filters.
        score: of a beam search, by which its hypotheses are ranked; else ``log_prob``.
    """

    ids: tuple[int, ...]
    text: str
    stopped: Stopped
    log_prob: float
    score: float

    @property
    def tokens(self) -> int:
        """Number of tokens generated."""
        return len(self.ids)


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    batch_size: int = 16,
    end_ids: Sequence[int] | None = None,
    on_text: OnText | None = None,
    kept: list[list[Generation]] | None = None,
) -> list[list[Generation]]:
    """Continue every prompt.

    What is generated for a prompt depends neither on the batch size nor on the other prompts, but for rounding.

    Args:
        model: put in evaluation mode meanwhile.
        tokenizer: spells the text and names the end token.
        prompts: token ids of each, begin token included where the model wants one.
        decoding: how tokens are chosen.
        batch_size: most sequences decoded together; samples and beams count.
        end_ids: tokens that end a text; None: those of the tokenizer.
        on_text: called with each piece of text as soon as it is certain; a beam search calls it at its end.
        kept: an empty list that is filled with what is returned as it is done, so that an interruption loses none.

    Returns:
        For each prompt its ``decoding.outputs`` generations.

    Raises:
        DataError: a prompt is empty, or leaves no room for the new tokens.
        ConfigError: an option that this model cannot follow.
        RunError: the model's logits are not finite.
    """
    ends = tuple(end_ids) if end_ids is not None else tokenizer.end_ids
    ready = fit_prompts(model, prompts, decoding, tokenizer)
    order = sorted(range(len(ready)), key=lambda i: -len(ready[i]))  # near-equal lengths together: little padding
    out: list[list[Generation]] = [] if kept is None else kept
    out += [[] for _ in ready]
    with evaluating(model):
        if decoding.beams > 1:
            for some in _chunks(order, max(1, batch_size // decoding.beams)):
                _search(model, tokenizer, some, ready, decoding, ends, on_text, out)
            return out
        before = occurrences(prompts)
        jobs = [(i, s) for i in order for s in range(decoding.samples)]
        for chunk in _chunks(jobs, max(1, batch_size)):
            rows = [
                GenerationRow(i, s, ready[i], decoding, (prompts[i], before[i]), tokenizer, on_text) for i, s in chunk
            ]
            try:
                _decode(model, tokenizer.pad_id, rows, decoding, ends)
            finally:  # where it is interrupted, those that ended before are done
                for row in rows:
                    if row.stopped is not None:
                        out[row.prompt_number].append(row.result())
    return out


def fit_prompts(
    model: Decoder, prompts: Sequence[Sequence[int]], decoding: Decoding, tokenizer: Tokenizer
) -> list[list[int]]:
    """Check that every prompt leaves room for ``max_new_tokens``, or cut it on the left where that is wanted.

    A begin token at the start stays where it is.

    Raises:
        DataError: a prompt is empty or does not fit.
        ConfigError: the new tokens alone do not fit, learned positions are asked to go beyond their table, or the
            model's head tells classes.
    """
    if model.config.classes is not None:
        raise ConfigError(f"the model's head tells {len(model.config.classes.labels)} classes: it cannot generate text")
    context, new = model.config.context, decoding.max_new_tokens
    learned = model.config.positions == "learned"
    if decoding.beyond_context and learned:
        raise ConfigError(f"beyond_context needs rotary positions: this model has learned ones, for {context} tokens")
    room = context - new
    if room < 1 and not decoding.beyond_context:
        raise ConfigError(f"max_new_tokens {new} leaves no room for a prompt in a context of {context}: lower it")
    out = []
    for number, prompt in enumerate(prompts):
        ids = list(prompt)
        if not ids:
            raise DataError(f"prompt {number} is empty: begin it with the begin or end token")
        if len(ids) > room and not decoding.beyond_context:
            if not decoding.truncate_prompts:
                raise DataError(
                    f"prompt {number} has {len(ids)} tokens and {new} new ones are wanted, more than the model's "
                    f"context of {context}: shorten it, lower max_new_tokens, or set truncate_prompts"
                )
            head = ids[:1] if ids[0] in (tokenizer.bos_id, tokenizer.eos_id) and room > 1 else []
            ids = head + ids[len(ids) - room + len(head) :]
        out.append(ids)
    return out


class GenerationRow:
    """One sequence being generated, as ``generate`` and ``speculate`` write it.

    Attributes:
        prompt_number: place of its prompt among all.
        prompt: token ids it continues.
        limit: most tokens to generate.
        random: uniforms of this sample alone; None where decoding is greedy.
        text: what the tokens spell so far.
        ids: tokens generated.
        log_prob: their summed log-probability, in nats.
        stopped: why it ended; None while it goes on.
    """

    def __init__(
        self,
        prompt_number: int,
        sample: int,
        prompt: list[int],
        decoding: Decoding,
        key: tuple[Sequence[int], int],
        tokenizer: Tokenizer,
        on_text: OnText | None,
    ) -> None:
        self.prompt_number, self.prompt, self.limit = prompt_number, prompt, decoding.max_new_tokens
        self.random: np.random.Generator | None = None
        if decoding.temperature > 0:
            self.random = uniforms(decoding.seed, key[0], key[1], sample)
        emit = None if on_text is None else lambda piece: on_text(prompt_number, sample, piece)
        self.text = GrowingText(tokenizer, prompt, decoding.stop, emit)
        self.ids: list[int] = []
        self.log_prob = 0.0
        self.stopped: Stopped | None = None

    def push(self, token: int, log_prob: float, ends: Sequence[int]) -> None:
        """Take the next token."""
        self.ids.append(token)
        self.log_prob += log_prob
        if token in ends:
            self.stopped = "end"
        else:
            self.text.push(token)
            if self.text.stopped or len(self.ids) == self.limit:
                self.stopped = "stop" if self.text.stopped else "length"
        if self.stopped is not None:
            self.text.finish()
            if self.text.stopped:
                self.stopped = "stop"

    def result(self) -> Generation:
        """Return the finished generation."""
        assert self.stopped is not None
        return Generation(tuple(self.ids), self.text.text, self.stopped, self.log_prob, self.log_prob)


def _decode(
    model: Decoder, pad_id: int, rows: Sequence[GenerationRow], decoding: Decoding, ends: Sequence[int]
) -> None:
    """Generate all ``rows`` together, in place."""
    first = {row.prompt_number: row.prompt for row in rows}
    place = {number: i for i, number in enumerate(first)}
    session = DecodingSession(model, list(first.values()), decoding.max_new_tokens, pad_id, decoding.kv)
    logits = session.start()
    if len(first) < len(rows):  # samples share the forward over their prompt
        repeat = [place[row.prompt_number] for row in rows]
        session.select(repeat)
        logits = logits[repeat]
    held, picker = list(rows), Picker(decoding)
    while True:
        picked = _pick(picker, logits, held, decoding)
        for row, token, log_prob in zip(held, picked.tokens, picked.log_probs, strict=True):
            if row.stopped is None:
                row.push(token, log_prob, ends)
        alive = [row.stopped is None for row in held]
        if not any(alive):
            return
        if sum(alive) <= 0.75 * len(held):  # a copy of the cache pays once a quarter of the rows is idle
            kept = [i for i, live in enumerate(alive) if live]
            session.select(kept)
            held = [held[i] for i in kept]
            alive = [True] * len(held)
        logits = session.step([row.ids[-1] for row in held], None if all(alive) else alive)


def _pick(picker: Picker, logits: Tensor, rows: Sequence[GenerationRow], decoding: Decoding) -> Picked:
    """Choose one token for each row from ``logits`` (B, V).

    Raises:
        RunError: the logits of a row that goes on are not finite.
    """
    uniforms = None
    if decoding.temperature > 0:
        uniforms = [row.random.random() if row.random is not None and row.stopped is None else 0.5 for row in rows]
    seen = [row.prompt + row.ids for row in rows] if decoding.repetition_penalty != 1 else []
    picked = picker(logits, uniforms, seen)
    for row, value in zip(rows, picked.log_probs, strict=True):
        if row.stopped is None and not np.isfinite(value):
            raise RunError("the model's logits are not finite: its weights are damaged or its training diverged")
    return picked


def _search(
    model: Decoder,
    tokenizer: Tokenizer,
    some: Sequence[int],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    ends: Sequence[int],
    on_text: OnText | None,
    out: list[list[Generation]],
) -> None:
    """Run a beam search over the prompts numbered ``some``, and spell out what it finds."""
    chosen = [prompts[i] for i in some]

    def spell(prompt: Sequence[int], ids: Sequence[int]) -> GrowingText:
        text = GrowingText(tokenizer, prompt, decoding.stop)
        for token in ids:
            if token not in ends:
                text.push(token)
        text.finish()
        return text

    def meets_stop(prompt: Sequence[int], ids: Sequence[int]) -> bool:
        return bool(decoding.stop) and spell(prompt, ids).stopped

    found: list[list[Hypothesis]] = beam_search(model, chosen, decoding, ends, meets_stop, tokenizer.pad_id)
    for number, prompt, hypotheses in zip(some, chosen, found, strict=True):
        for rank, h in enumerate(hypotheses):
            text = spell(prompt, h.ids).text
            out[number].append(Generation(h.ids, text, h.stopped, h.log_prob, h.score))
            if on_text is not None and text:
                on_text(number, rank, text)


def occurrences(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return how many equal prompts stand before each."""
    count: dict[tuple[int, ...], int] = {}
    out = []
    for prompt in prompts:
        key = tuple(prompt)
        out.append(count.get(key, 0))
        count[key] = out[-1] + 1
    return out


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
