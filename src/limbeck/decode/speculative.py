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
from limbeck.decode.generate import Generation, GenerationRow, OnText, fit_prompts, occurrences
from limbeck.decode.pick import Picked, Picker
from limbeck.decode.sample import distribution, invert, penalise_repeats, seen_tokens
from limbeck.decode.session import DecodingSession, evaluating
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, RunError
from limbeck.model.decoder import Decoder
from limbeck.model.patterns import Causal

__all__ = ["Speculation", "SpeculativeRow", "check_draft", "speculate"]


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
        end_ids: tokens that end a text; None: those of the tokenizer.
        on_text: called with each piece of text as soon as it is certain.

    Returns:
        For each prompt its generations, and what the draft was worth.

    Raises:
        DataError: a prompt is empty, or leaves no room for the new tokens.
        ConfigError: beams, models of two vocabularies, a rolling cache, or a draft of too short a context.
        RunError: the model's logits are not finite.
    """
    check_draft(model, draft, decoding)
    ends = tuple(end_ids) if end_ids is not None else tokenizer.end_ids
    ready = fit_prompts(model, prompts, decoding, tokenizer)
    fit_prompts(draft, ready, decoding, tokenizer)
    worth, before, out = Speculation(), occurrences(prompts), []
    with evaluating(model), evaluating(draft):
        for number, prompt in enumerate(ready):
            some = []
            for sample in range(decoding.samples):
                key = (prompts[number], before[number])
                row = GenerationRow(number, sample, prompt, decoding, key, tokenizer, on_text)
                SpeculativeRow(model, draft, row, decoding, ends, proposals, worth).run()
                some.append(row.result())
            out.append(some)
    return out, worth


def check_draft(model: Decoder, draft: Decoder, decoding: Decoding) -> None:
    """Refuse a draft that cannot propose for ``model``.

    Raises:
        ConfigError: beams, models of two vocabularies, or a rolling cache.
    """
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


class SpeculativeRow:
    """One sequence that a model and its draft write: what is certain, and how much of it either cache holds.

    ``start`` reads the prompt, and each ``advance`` is one round, until ``row.stopped``; both models are in evaluation
    mode meanwhile, gradients off.
    """

    def __init__(
        self,
        model: Decoder,
        draft: Decoder,
        row: GenerationRow,
        decoding: Decoding,
        ends: Sequence[int],
        proposals: int,
        worth: Speculation,
    ) -> None:
        self.row, self.decoding, self.ends, self.proposals, self.worth = row, decoding, ends, proposals, worth
        room = decoding.max_new_tokens + proposals + 1
        self.checker = DecodingSession(model, [row.prompt], room, cache=decoding.kv)
        self.drafter = DecodingSession(draft, [row.prompt], room, cache=decoding.kv)
        self.greedy, self.picker = decoding.temperature == 0, Picker(decoding)
        self.reach = min(m.config.context if m.positions is not None else 1 << 62 for m in (model, draft))

    def run(self) -> None:
        """Write until the row stops."""
        self.start()
        while self.row.stopped is None:
            self.advance()
        self.worth.tokens += len(self.row.ids)

    def start(self) -> None:
        """Read the prompt and choose the first token.

        Raises:
            RunError: the model's logits are not finite.
        """
        self.drafter.start()
        self._judge(self.checker.start(), [], [])

    def advance(self) -> None:
        """Let the draft propose, and keep what passes and one token of the model's own.

        Raises:
            RunError: the model's logits are not finite.
        """
        row, held = self.row, len(self.row.prompt) + len(self.row.ids)
        count = max(0, min(self.proposals, row.limit - len(row.ids) - 1, self.reach - held))
        began = time.perf_counter()
        known = self.drafter.lengths[0]
        every = [*row.prompt, *row.ids]
        # what was decided since: the last token, and one more after a round that kept all
        ahead = self.drafter.extend([every[known:]])[:, -1]
        guesses: list[int] = []
        beliefs: list[Tensor] = []  # logits (1, V) of each; none where the likeliest is taken
        for i in range(count):
            if not self.greedy:
                beliefs.append(ahead.clone())
            guesses += self._picked(ahead, [every + guesses]).tokens
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
        """Take the guesses that pass, and one token of the model's own; returns how many passed.

        Args:
            logits: (guesses + 1, V) of the model, at the place of each guess and behind the last.
            guesses: what the draft proposed.
            beliefs: its logits (1, V) that they were drawn from; none where the likeliest was taken.
        """
        every = [*self.row.prompt, *self.row.ids]
        behind = [[*every, *guesses[:i]] for i in range(len(guesses) + 1)]
        chosen = self._chosen(logits, guesses, beliefs, behind)
        for i, (token, log_prob) in enumerate(zip(*chosen, strict=True)):
            self._push(log_prob, token)
            if self.row.stopped is not None:
                return min(i + 1, len(chosen.tokens) - 1)
        return len(chosen.tokens) - 1

    def _chosen(
        self, logits: Tensor, guesses: Sequence[int], beliefs: Sequence[Tensor], behind: Sequence[Sequence[int]]
    ) -> Picked:
        """Return the guesses that pass and one token of the model's own; ``behind``: the ids before each place."""
        if self.greedy:
            best = self._picked(logits, behind)
            kept = next((i for i, guess in enumerate(guesses) if guess != best.tokens[i]), len(guesses))
            return Picked(best.tokens[: kept + 1], best.log_probs[: kept + 1])
        tokens: list[int] = []
        for i, guess in enumerate(guesses):
            p, q = (self._distribution(x, behind[i]) for x in (logits[i : i + 1], beliefs[i]))
            if self._uniform() * float(q[guess]) >= float(p[guess]):
                rest = (p - q).clamp(min=0)
                weights = rest if float(rest.sum()) > 0 else p
                tokens.append(int(invert(weights[None], torch.tensor([self._uniform()], dtype=torch.float64))))
                break
            tokens.append(guess)
        else:
            tokens += self._picked(logits[-1:], behind[-1:]).tokens
        told = self._wide(logits[: len(tokens)]).log_softmax(dim=-1)
        return Picked(tokens, told.gather(1, torch.tensor(tokens, device=told.device)[:, None]).squeeze(1).tolist())

    def _picked(self, logits: Tensor, behind: Sequence[Sequence[int]]) -> Picked:
        """One token a row of ``logits`` (B, V): the likeliest, or drawn."""
        return self.picker(logits, None if self.greedy else [self._uniform() for _ in behind], behind)

    def _distribution(self, logits: Tensor, behind: Sequence[int]) -> Tensor:
        """(V,) fp64 from which ``_picked`` draws behind these ids, by ``logits`` (1, V)."""
        scores = self._wide(logits)
        if self.decoding.repetition_penalty != 1:
            seen = seen_tokens([behind], logits.shape[-1], logits.device)
            scores = penalise_repeats(scores, seen, self.decoding.repetition_penalty)
        return distribution(scores, self.decoding)[0]

    @staticmethod
    def _wide(logits: Tensor) -> Tensor:
        return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)

    def _push(self, log_prob: float, token: int) -> None:
        if not -float("inf") < log_prob < float("inf"):
            raise RunError("the model's logits are not finite: its weights are damaged or its training diverged")
        self.row.push(token, log_prob, self.ends)

    def _uniform(self) -> float:
        assert self.row.random is not None
        return self.row.random.random()
