"""Beam search over ragged prompts, with the scores and the stopping rule of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.decode.sample import penalise_repeats, seen_tokens
from limbeck.decode.session import DecodingSession
from limbeck.decode.settings import Decoding
from limbeck.errors import RunError
from limbeck.model.decoder import Decoder

__all__ = ["Hypothesis", "beam_search"]

Stopped = Literal["end", "stop", "length"]


class Hypothesis(NamedTuple):
    """A finished beam.

    Attributes:
        ids: generated tokens, the end token included.
        score: ``total / len(ids) ** length_penalty``, by which beams are ranked.
        log_prob: summed log-probability under the model, in nats.
        stopped: why it ended.
    """

    ids: tuple[int, ...]
    score: float
    log_prob: float
    stopped: Stopped


class _Beam(NamedTuple):
    row: int  # place in the session
    ids: tuple[int, ...]
    total: float  # sum of log-probabilities, repeats penalised
    log_prob: float


_Judge = Callable[[Sequence[int], _Beam], Stopped | None]


@dataclass(slots=True)
class _Search:
    """The state of one prompt's search."""

    prompt: Sequence[int]
    running: list[_Beam]
    finished: list[Hypothesis] = field(default_factory=list)

    def advance(self, candidates: list[_Beam], stopped: _Judge, decoding: Decoding) -> None:
        """Take the best candidates, sorted best first: the first ``beams`` may finish, others only go on."""
        width, penalty = decoding.beams, decoding.length_penalty
        self.running = []
        for rank, beam in enumerate(candidates):
            why = stopped(self.prompt, beam)
            if why is None:
                self.running.append(beam)
            elif rank < width:
                score = beam.total / len(beam.ids) ** penalty
                self.finished.append(Hypothesis(beam.ids, score, beam.log_prob, why))
        self.running = self.running[:width]
        self.finished = sorted(self.finished, key=lambda h: -h.score)[:width]

    def done(self, decoding: Decoding) -> bool:
        """Return whether no running beam is better, at its present length, than the worst of a full set of finished
        ones.

        This is transformers' ``early_stopping=False``: with a penalty above 0 a longer beam could still overtake.
        """
        if not self.running:
            return True
        best = self.running[0]
        full = len(self.finished) == decoding.beams
        return full and best.total / len(best.ids) ** decoding.length_penalty <= self.finished[-1].score


def beam_search(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    end_ids: Sequence[int],
    meets_stop: Callable[[Sequence[int], Sequence[int]], bool],
    pad_id: int = 0,
) -> list[list[Hypothesis]]:
    """Search each prompt's ``decoding.beams`` best continuations; all prompts advance in one batch.

    Each step keeps the ``(end ids + 1) x beams`` best of all one-token continuations, so that enough unfinished ones
    are left. A penalty on repeats acts on log-probabilities here, as in transformers.

    Args:
        model: in evaluation mode, gradients off.
        prompts: token ids, none empty.
        decoding: the options of the search.
        end_ids: tokens that end a hypothesis.
        meets_stop: does a prompt's continuation by these tokens spell a stop text?
        pad_id: any valid id.

    Returns:
        For each prompt at most ``n_best`` hypotheses, best first.

    Raises:
        RunError: the model's logits are not finite.
    """
    ends = frozenset(end_ids)
    keep = max(2, 1 + len(ends)) * decoding.beams
    session = DecodingSession(model, prompts, decoding.max_new_tokens, pad_id, decoding.kv)
    searches = [_Search(p, [_Beam(row, (), 0.0, 0.0)]) for row, p in enumerate(prompts)]
    active = list(searches)
    logits = session.start()

    def stopped(prompt: Sequence[int], beam: _Beam) -> Stopped | None:
        if beam.ids[-1] in ends:
            return "end"
        if meets_stop(prompt, beam.ids):
            return "stop"
        return "length" if len(beam.ids) == decoding.max_new_tokens else None

    while True:
        for search, candidates in zip(active, _expand(logits, active, decoding, keep), strict=True):
            search.advance(candidates, stopped, decoding)
        active = [s for s in active if not s.done(decoding)]
        if not active:
            return [s.finished[: decoding.n_best] for s in searches]
        beams = [b for s in active for b in s.running]
        session.select([b.row for b in beams])
        _renumber(active)
        logits = session.step([b.ids[-1] for b in beams])


def _renumber(active: list[_Search]) -> None:
    """Rows of the session are now the running beams in order."""
    row = 0
    for search in active:
        search.running = [b._replace(row=row + i) for i, b in enumerate(search.running)]
        row += len(search.running)


def _expand(logits: Tensor, active: list[_Search], decoding: Decoding, keep: int) -> list[list[_Beam]]:
    """Return ``keep`` best one-token continuations of each search, best first; ``logits`` (rows, V) in beam order."""
    raw = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).log_softmax(dim=-1)
    if not bool(raw.isfinite().all()):
        raise RunError("the model's logits are not finite: its weights are damaged or its training diverged")
    scores = raw
    if decoding.repetition_penalty != 1:
        held = [(*s.prompt, *b.ids) for s in active for b in s.running]
        scores = penalise_repeats(raw, seen_tokens(held, raw.shape[-1], raw.device), decoding.repetition_penalty)
    best, ids = scores.topk(min(keep, scores.shape[-1]), dim=-1)
    table = list(zip(best.tolist(), raw.gather(-1, ids).tolist(), ids.tolist(), strict=True))
    out, row = [], 0
    for search in active:
        candidates = []
        for beam in search.running:
            for score, log_prob, token in zip(*table[row], strict=True):
                candidates.append(_Beam(beam.row, (*beam.ids, token), beam.total + score, beam.log_prob + log_prob))
            row += 1
        out.append(sorted(candidates, key=lambda b: -b.total)[:keep])
    return out
