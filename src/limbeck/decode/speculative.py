"""Speculative decoding: a small draft proposes tokens, the model checks them all in one forward.

Leviathan et al. 2023 (and Chen et al. 2023): a proposal x, drawn from the draft's distribution q, is kept with
probability min(1, p(x) / q(x)) under the model's p; the first that is not is replaced by a draw from the positive part
of p - q, and after a round without one comes a draw from p itself. What is generated has exactly the model's
distribution under the same options, whatever the draft; greedily it is the same text, but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import Generation, OnText, Row, fit_prompts, occurrences
from limbeck.decode.sample import distribution, draw, penalise_repeats, seen_tokens
from limbeck.decode.session import Session, evaluating
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, RunError
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Causal

__all__ = ["Speculation", "speculate"]


@dataclass(slots=True)
class Speculation:
    """What the draft was worth.

    Attributes:
        rounds: forwards of the model, each over the proposals and one token more.
        proposed: tokens that the draft proposed.
        accepted: of them, those that were kept.
        tokens: tokens generated.
        draft_seconds: spent in the draft's steps.
        check_seconds: spent in the model's forwards over proposals.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    tokens: int = 0
    draft_seconds: float = 0.0
    check_seconds: float = 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of the proposals that were kept; None where none was made."""
        return self.accepted / self.proposed if self.proposed else None


def speculate(
    model: Decoder,
    draft: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    proposals: int = 4,
    end_ids: Sequence[int] | None = None,
    on_text: OnText | None = None,
) -> tuple[list[list[Generation]], Speculation]:
    """Continue every prompt, one sequence at a time, as ``generate`` does but with a draft.

    Args:
        model: whose distribution is sampled; put in evaluation mode meanwhile.
        draft: a model of the same vocabulary and on the same device.
        tokenizer: of both.
        prompts: token ids of each.
        decoding: how tokens are chosen; the same seed draws other samples than without a draft.
        proposals: most tokens proposed at once.
        end_ids: tokens that end a text; None: the tokenizer's own.
        on_text: called with each piece of text as soon as it is certain.

    Returns:
        For each prompt its generations, and what the draft was worth.

    Raises:
        DataError: a prompt is empty, or leaves no room for the new tokens.
        ConfigError: beams, models of two vocabularies, a rolling cache, or a draft of too short a context.
        RunError: the model's logits are not finite.
    """
    _check(model, draft, decoding)
    ends = tuple(end_ids) if end_ids is not None else (tokenizer.eos_id,)
    ready = fit_prompts(model, prompts, decoding, tokenizer)
    fit_prompts(draft, ready, decoding, tokenizer)
    worth, before, out = Speculation(), occurrences(prompts), []
    with evaluating(model), evaluating(draft):
        for number, prompt in enumerate(ready):
            some = []
            for sample in range(decoding.samples):
                key = (prompts[number], before[number])
                row = Row(number, sample, prompt, decoding, key, tokenizer, on_text)
                _Writer(model, draft, row, decoding, ends, proposals, worth).run()
                some.append(row.result())
            out.append(some)
    return out, worth


def _check(model: Decoder, draft: Decoder, decoding: Decoding) -> None:
    if decoding.beams > 1:
        raise ConfigError("a draft proposes for sampling and greedy decoding: set beams to 1, or leave it out")
    if model.config.head_rows != draft.config.head_rows:
        raise ConfigError(
            f"the draft has {draft.config.head_rows} tokens and the model {model.config.head_rows}: "
            "take a draft with the model's tokenizer, a distilled student for instance"
        )
    for what, one in (("model", model), ("draft", draft)):
        if not all(isinstance(one.config.pattern_at(i), Causal) for i in range(one.config.layers)):
            raise ConfigError(f"the {what} has a rolling cache, which cannot take back rejected tokens: use no draft")


class _Writer:
    """One sequence: what is certain, and how much of it either cache holds."""

    def __init__(
        self,
        model: Decoder,
        draft: Decoder,
        row: Row,
        decoding: Decoding,
        ends: Sequence[int],
        proposals: int,
        worth: Speculation,
    ) -> None:
        self.row, self.decoding, self.ends, self.proposals, self.worth = row, decoding, ends, proposals, worth
        room = decoding.max_new_tokens + proposals + 1
        self.checker = Session(model, [row.prompt], room, cache=decoding.cache)
        self.drafter = Session(draft, [row.prompt], room, cache=decoding.cache)
        self.reach = min(m.config.context if m.positions is not None else 1 << 62 for m in (model, draft))

    def run(self) -> None:
        """Write until the row stops."""
        self.drafter.start()
        self._take(self._scores(self.checker.start(), 0)[0], None)
        while self.row.stopped is None:
            self._round()
        self.worth.tokens += len(self.row.ids)

    def _round(self) -> None:
        row, held = self.row, len(self.row.prompt) + len(self.row.ids)
        count = max(0, min(self.proposals, row.limit - len(row.ids) - 1, self.reach - held))
        began = time.perf_counter()
        known = self.drafter.lengths[0]
        every = [*row.prompt, *row.ids]
        # what was decided since: the last token, and one more after a round that kept all
        ahead = self.drafter.extend([every[known:]])[:, -1]
        guesses: list[int] = []
        beliefs: list[Tensor] = []
        for i in range(count):
            scores = self._penalised(ahead, [every + guesses])
            q = distribution(scores, self.decoding)[0]
            guesses.append(self._draw(q))
            beliefs.append(q)
            if i + 1 < count:
                ahead = self.drafter.step([guesses[-1]])
        drafted = time.perf_counter()
        logits = self.checker.extend([[row.ids[-1], *guesses]])[0]  # (count + 1, V)
        self.worth.check_seconds += time.perf_counter() - drafted
        self.worth.draft_seconds += drafted - began
        self.worth.rounds += 1
        self.worth.proposed += count
        kept = self._judge(logits, guesses, beliefs)
        # both caches keep what turned out to be certain; its last token they have not read
        certain = len(row.prompt) + len(row.ids) - 1
        self.checker.rewind([certain])
        self.drafter.rewind([min(self.drafter.lengths[0], certain)])
        self.worth.accepted += kept

    def _judge(self, logits: Tensor, guesses: Sequence[int], beliefs: Sequence[Tensor]) -> int:
        """Take the guesses that pass, and one token of the model's own; returns how many passed."""
        scores = self._scores(logits, len(guesses), guesses)
        for i, (guess, q) in enumerate(zip(guesses, beliefs, strict=True)):
            p = distribution(scores[i].scores[None], self.decoding)[0]
            if self._uniform() * float(q[guess]) >= float(p[guess]):
                rest = (p - q).clamp(min=0)
                self._take(scores[i], rest if float(rest.sum()) > 0 else p)
                return i
            self._push(scores[i], guess)
            if self.row.stopped is not None:
                return i + 1
        self._take(scores[-1], None)
        return len(guesses)

    def _take(self, after: _After, weights: Tensor | None) -> None:
        """Draw the next token from ``weights`` (V,), None: from the model's distribution."""
        p = distribution(after.scores[None], self.decoding)[0] if weights is None else weights
        self._push(after, self._draw(p))

    def _push(self, after: _After, token: int) -> None:
        log_prob = float(after.logits[token] - after.logits.logsumexp(dim=-1))
        if not -float("inf") < log_prob < float("inf"):
            raise RunError("the model's logits are not finite: its weights are damaged or its training diverged")
        self.row.push(token, log_prob, self.ends)

    def _draw(self, weights: Tensor) -> int:
        if self.decoding.temperature == 0:
            return int(weights.argmax())
        return int(draw(weights.log()[None], torch.tensor([self._uniform()], dtype=torch.float64)))

    def _uniform(self) -> float:
        return 0.5 if self.row.random is None else self.row.random.random()

    def _scores(self, logits: Tensor, count: int, guesses: Sequence[int] = ()) -> list[_After]:
        """Of each of ``count + 1`` places the logits (V,), and the same with repeats penalised."""
        wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        every = [*self.row.prompt, *self.row.ids]
        scores = self._penalised(wide, [[*every, *guesses[:i]] for i in range(count + 1)])
        return [_After(a, b) for a, b in zip(wide, scores, strict=True)]

    def _penalised(self, logits: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        if self.decoding.repetition_penalty == 1:
            return logits
        seen = seen_tokens(rows, logits.shape[-1], logits.device)
        return penalise_repeats(logits, seen, self.decoding.repetition_penalty)


@dataclass(frozen=True, slots=True)
class _After:
    """What the model says after one place: logits (V,), and scores (V,) to choose by."""

    logits: Tensor
    scores: Tensor
