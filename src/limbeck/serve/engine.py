"""Continuous batching: requests join a batch and leave it between the steps (Yu et al. 2022, "Orca")."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.pick import Picker
from limbeck.decode.pool import DecodingPool
from limbeck.decode.session import evaluating
from limbeck.decode.settings import Decoding
from limbeck.decode.speculative import Speculation, SpeculativeRow, check_draft
from limbeck.errors import LimbeckError, RunError
from limbeck.model.cache import KVKinds
from limbeck.model.decoder import Decoder
from limbeck.serve.sequence import ServedSequence

__all__ = ["Engine", "QueueFullError", "StoppingError"]

_CHUNK = 64  # places of a prompt whose logits are held at once
_LEAST = -9999.0  # what OpenAI's API tells of a token that cannot be
_DAMAGED = "the model's logits are not finite: its weights are damaged"
Top = tuple[tuple[int, float], ...]


class QueueFullError(LimbeckError):
    """Every row of the pool is taken and no more requests may wait."""


class StoppingError(LimbeckError):
    """The server stops: it takes no new requests, or had no time left to finish one."""


class Engine:
    """Decodes many sequences on one pool of caches; one thread computes, any thread may submit and cancel.

    A step reads the prompt of at most one waiting sequence, so that those under way wait for one prompt at most, and
    appends one token to every sequence. With a draft a greedy sequence that finds the engine idle is decoded
    speculatively, alone and on caches of its own; others are batched meanwhile. Sampled ones never are, because a draft
    draws other samples and the text of a seed would depend on who else is there.

    Attributes:
        tokenizer: of the model.
        capacity: most tokens of a sequence, prompt and answer together.
        pool: the caches.
        worth: what the draft was worth so far.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        rows: int = 8,
        capacity: int | None = None,
        queue: int = 64,
        cache: KVKinds = "model",
        draft: Decoder | None = None,
        proposals: int = 4,
    ) -> None:
        """Allocate the pool.

        Args:
            model: the decoder.
            tokenizer: its tokenizer.
            rows: most sequences decoded together.
            capacity: most tokens of a sequence; None: the model's context.
            queue: most sequences that may wait.
            cache: what keys and values are kept in.
            draft: small model that proposes tokens to a sequence that is alone.
            proposals: most tokens that it proposes at once.

        Raises:
            ConfigError: the draft cannot propose for the model.
        """
        if draft is not None:
            check_draft(model, draft, Decoding())
        self.model, self.tokenizer, self.draft, self.proposals = model, tokenizer, draft, proposals
        self.capacity, self.queue, self.worth = capacity or model.config.context, queue, Speculation()
        self.pool = DecodingPool(model, rows, self.capacity, cache)
        self._ends = tokenizer.end_ids
        self._changed = threading.Condition()
        self._waiting: deque[ServedSequence] = deque()
        self._active: list[ServedSequence] = []  # in the order of the pool's rows
        self._alone: tuple[ServedSequence, SpeculativeRow] | None = None
        self._pickers: dict[Decoding, Picker] = {}
        self._held = 0  # sequences that have not ended
        self._closed = False
        self._answers = self._tokens = 0  # done
        self._thread: threading.Thread | None = None

    @property
    def load(self) -> tuple[int, int]:
        """Sequences under way, and those that wait."""
        with self._changed:
            return self._held - len(self._waiting), len(self._waiting)

    @property
    def idle(self) -> bool:
        """Has every sequence ended?"""
        return self._held == 0

    def counted(self) -> dict[str, Any]:
        """Return the number of answers that were completed, of their tokens, and what the draft was worth."""
        told: dict[str, Any] = {"answers": self._answers, "tokens": self._tokens}
        if self.draft is not None:
            told["speculation"] = {**asdict(self.worth), "acceptance": self.worth.acceptance}
        return told

    def submit(self, sequences: Sequence[ServedSequence]) -> None:
        """Let sequences wait for a row: all of them, or none.

        Raises:
            QueueFullError: they are more than may wait.
            StoppingError: the engine was closed.
        """
        with self._changed:
            if self._closed:
                raise StoppingError("the server is stopping: ask again when it is back")
            if self._held + len(sequences) > self.pool.rows + self.queue:
                raise QueueFullError(
                    f"all {self.pool.rows} rows of the cache pool are taken and {len(self._waiting)} of at most "
                    f"{self.queue} sequences wait: ask again later"
                )
            self._held += len(sequences)
            self._waiting.extend(sequences)
            self._changed.notify()

    def cancel(self, sequences: Iterable[ServedSequence]) -> None:
        """Free the rows of sequences that nobody waits for any more; ended ones are left as they are."""
        with self._changed:
            for sequence in sequences:
                sequence.cancelled = True
            self._changed.notify()

    def start(self) -> None:
        """Begin to work in a thread of its own."""
        self._thread = threading.Thread(target=self._work, name="limbeck-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take nothing new, end what is under way with an error, and let the thread end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        with evaluating(self.model):
            while self._wait():
                self._step()
            self._fail_all(StoppingError("the server stopped before this answer was complete"))

    def _wait(self) -> bool:
        """Wait for work; False: the engine was closed."""
        with self._changed:
            while not (self._waiting or self._active or self._alone or self._closed):
                self._changed.wait()
            return not self._closed

    def step(self) -> bool:
        """Do one step in this thread, where no thread of the engine's own was started; returns whether any is left."""
        with evaluating(self.model):
            self._step()
        return not self.idle

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        self._append()
        self._speculate()

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self._active))):
            if self._active[row].cancelled:
                self._leave(row)
        if self._alone is not None and self._alone[0].cancelled:
            self._alone = None
            self._count_out()
        with self._changed:
            before = len(self._waiting)
            self._waiting = deque(s for s in self._waiting if not s.cancelled)
            self._held -= before - len(self._waiting)

    def _admit(self) -> None:
        """Read the prompt of the sequence that waits longest, if there is a row for it."""
        with self._changed:
            if not self._waiting or self.pool.used == self.pool.rows:
                return
            sequence, is_alone = self._waiting.popleft(), self._held == 1
        try:
            if is_alone and self.draft is not None and _may_speculate(sequence):
                self._begin_alone(sequence, self.draft)
            else:
                self._join(sequence)
        except Exception as error:  # whatever it is, it is this sequence's, and the others go on
            while self.pool.used > len(self._active):
                self.pool.leave(self.pool.used - 1)
            self._count_out()
            sequence.fail(_known(error))

    def _begin_alone(self, sequence: ServedSequence, draft: Decoder) -> None:
        row = SpeculativeRow(self.model, draft, sequence.row, sequence.decoding, self._ends, self.proposals, self.worth)
        row.start()
        self._alone = (sequence, row)
        self._settle_alone(sequence)

    def _settle_alone(self, sequence: ServedSequence) -> None:
        if sequence.ended:
            self._alone = None
            self.worth.tokens += len(sequence.row.ids)
            self._complete(sequence)
            self._count_out()
        sequence.settle()

    def _complete(self, sequence: ServedSequence) -> None:
        self._answers += 1
        self._tokens += len(sequence.row.ids)

    def _join(self, sequence: ServedSequence) -> None:
        scores: list[tuple[int, float | None, Top]] = []
        if sequence.echo is not None and sequence.top is not None:
            most = sequence.top
            read = lambda hidden, head: _prompt_scores(hidden, head, sequence.prompt, most)  # noqa: E731
            logits, scores = self.pool.join_reading(sequence.prompt, read)
        else:
            logits = self.pool.join(sequence.prompt)
        if sequence.echo is not None:
            sequence.show_prompt(scores)
        self._active.append(sequence)
        if sequence.new_tokens == 0:
            self._complete(sequence)
            self._leave(len(self._active) - 1)
            sequence.finish_empty()
            return
        try:
            self._choose(logits[None], [len(self._active) - 1])
        except Exception:
            self._active.pop()
            raise

    def _append(self) -> None:
        if not self._active:
            return
        try:
            logits = self.pool.step([s.row.ids[-1] for s in self._active])
            self._choose(logits, list(range(len(self._active))))
        except Exception as error:
            for row in reversed(range(len(self._active))):
                sequence = self._active[row]
                self._leave(row)
                sequence.fail(_known(error))

    def _choose(self, logits: Tensor, rows: Sequence[int]) -> None:
        """Choose a token for each of the pool's ``rows`` from ``logits`` (B, V); those that end leave."""
        groups: dict[Decoding, list[int]] = {}
        for at, row in enumerate(rows):
            groups.setdefault(self._active[row].choice, []).append(at)
        chosen: dict[int, tuple[int, float]] = {}
        for decoding, places in groups.items():
            some = [self._active[rows[at]].row for at in places]
            uniforms = [row.random.random() for row in some if row.random is not None] or None
            seen = [row.prompt + row.ids for row in some] if decoding.repetition_penalty != 1 else []
            each = logits if len(places) == len(rows) else logits[places]
            picked = self._picker(decoding)(each, uniforms, seen)
            chosen |= dict(zip(places, zip(picked.tokens, picked.log_probs, strict=True), strict=True))
        for at, row in reversed(list(enumerate(rows))):  # from the last: where one leaves, a later one moves in
            self._take(row, *chosen[at], logits[at])

    def _take(self, row: int, token: int, log_prob: float, logits: Tensor) -> None:
        """Give the sequence of a row its token, chosen from ``logits`` (V,)."""
        sequence = self._active[row]
        if not -float("inf") < log_prob < float("inf"):
            self._leave(row)
            sequence.fail(RunError(_DAMAGED))
            return
        told = None if sequence.top is None else _score(logits, token, sequence.top)
        sequence.push(token, log_prob, told, self._ends)
        if sequence.ended:
            self._complete(sequence)
            self._leave(row)
        sequence.settle()

    def _speculate(self) -> None:
        if self._alone is None:
            return
        sequence, row = self._alone
        try:
            row.advance()
        except Exception as error:
            self._alone = None
            self._count_out()
            sequence.fail(_known(error))
            return
        self._settle_alone(sequence)

    def _leave(self, row: int) -> None:
        """Free a row; the last sequence moves into its place, as in the pool."""
        self.pool.leave(row)
        last = self._active.pop()
        if row < len(self._active):
            self._active[row] = last
        self._count_out()

    def _count_out(self) -> None:
        with self._changed:
            self._held -= 1

    def _fail_all(self, error: LimbeckError) -> None:
        with self._changed:
            some = [*self._active, *self._waiting, *([self._alone[0]] if self._alone else [])]
            self._waiting.clear()
        while self._active:
            self._leave(len(self._active) - 1)
        self._alone = None
        with self._changed:
            self._held = 0
        for sequence in some:
            sequence.fail(error)

    def _picker(self, decoding: Decoding) -> Picker:
        if len(self._pickers) > 64:  # each holds memory of the size of the logits
            self._pickers.clear()
        return self._pickers.setdefault(decoding, Picker(decoding))


def _may_speculate(sequence: ServedSequence) -> bool:
    return sequence.decoding.greedy and sequence.top is None and sequence.echo is None and sequence.new_tokens > 0


def _score(logits: Tensor, token: int, count: int) -> tuple[float, Top]:
    """Log-probability of a token by logits (V,), and the likeliest ones with theirs, of one rounding."""
    log_probs = _log_probs(logits)
    values, ids = log_probs.topk(min(count, len(logits)))
    return float(log_probs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities, none so small that JSON could not hold it.

    Raises:
        RunError: the logits are not numbers.
    """
    found = logits.float().log_softmax(dim=-1).clamp_min(_LEAST)
    if bool(found.isnan().any()):
        raise RunError(_DAMAGED)
    return found


def _prompt_scores(
    hidden: Tensor, head: nn.Module, prompt: Sequence[int], most: int
) -> tuple[Tensor, list[tuple[int, float | None, Top]]]:
    """Return the logits (V,) after a prompt, and of each of its tokens the log-probability and the likeliest ones.

    Args:
        hidden: (1, T, C).
        head: of the model.
        prompt: T token ids.
        most: how many of the likeliest tokens.
    """
    scores: list[tuple[int, float | None, Top]] = [(prompt[0], None, ())]
    logits = hidden
    for at in range(0, len(prompt), _CHUNK):
        logits = head(hidden[0, at : at + _CHUNK]).float()
        log_probs = _log_probs(logits)
        following = torch.tensor(prompt[at + 1 : at + 1 + len(log_probs)], dtype=torch.int64, device=logits.device)
        of_tokens = log_probs[: len(following)].gather(-1, following[:, None])[:, 0].tolist()
        values, ids = log_probs[: len(following)].topk(min(most, log_probs.shape[-1]), dim=-1)
        for token, log_prob, v, i in zip(following.tolist(), of_tokens, values.tolist(), ids.tolist(), strict=True):
            scores.append((token, log_prob, tuple(zip(i, v, strict=True))))
    return logits[-1], scores


def _known(error: Exception) -> LimbeckError:
    """Return an error with a message that may be shown."""
    return error if isinstance(error, LimbeckError) else RunError(f"decoding failed: {type(error).__name__}: {error}")
