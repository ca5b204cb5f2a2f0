"""What lm-evaluation-harness asks of a model, answered by a decoder; lm-eval itself is not needed here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from limbeck.config import build
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ConfigError, DataError
from limbeck.measure.choice import fit_prompt
from limbeck.measure.continuation import score_continuations
from limbeck.model.decoder import Decoder

__all__ = ["Answers", "decoding_of", "rolling_windows"]

Keep = Callable[[str, Sequence[Any], Any], None]
"""Receives kind, arguments and answer of each request as it is done, for a cache."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_RENAMED = {"num_beams": "beams"}
_DECODING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty")
_FILTERS = ("top_k", "top_p", "min_p")
_NEW_TOKENS = 256  # lm-eval's own, where a task states none


def rolling_windows(ids: Sequence[int], prefix: int, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text so that each of its tokens is scored once, the model reading ``longest`` tokens at most.

    As lm-eval does: a window begins with the last token of the one before (the first with ``prefix``), but the last
    one reaches back as far as it can.

    Yields:
        Context and the tokens to score after it; the model reads all of both but the last token.
    """
    whole = [prefix, *ids]
    at = 1
    while at < len(whole):
        end = min(at + longest, len(whole))
        yield whole[max(0, end - 1 - longest) : at], whole[at:end]
        at = end


def decoding_of(asked: Mapping[str, Any], seed: int = 0) -> Decoding:
    """Return the decoding that a task's ``generation_kwargs`` ask for, under lm-eval's rules.

    ``do_sample`` false is greedy whatever the temperature; without it, a temperature above 0 samples. The end token
    always ends a text.

    Raises:
        ConfigError: an option that is not known here, or that has no effect with the others.
    """
    known = {"until", "do_sample", *_LENGTHS, *_DECODING}
    strange = [name for name in asked if name not in known]
    if strange:
        raise ConfigError(f"a task asks for '{strange[0]}' when generating, which is not supported: leave it out")
    stops = asked.get("until") or []
    length = next((asked[name] for name in _LENGTHS if asked.get(name) is not None), _NEW_TOKENS)
    given = {name: asked[name] for name in _DECODING if asked.get(name) is not None}
    sampled = asked.get("do_sample")
    if not (float(given.get("temperature", 0)) > 0 if sampled is None else sampled):
        given = {name: value for name, value in given.items() if name not in ("temperature", *_FILTERS)}
    elif "temperature" not in given:
        given["temperature"] = 1.0
    values = {_RENAMED.get(name, name): value for name, value in given.items()} | {
        "stop": [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop],
        "max_new_tokens": int(length),
        "seed": seed,
    }
    return build(Decoding, values, "a task's generation_kwargs")


class Answers:
    """A decoder as lm-eval sees one: text in, text and log-likelihoods out.

    Attributes:
        longest: most tokens that the model reads at once.
        prefix: token that stands before a text that nothing stands before: the begin token, else the end token.
        counts: what had to give way, by kind: ``requests``, ``contexts_cut`` (left of a context lost),
            ``generations_shortened`` (fewer new tokens than asked for), ``borders_merged`` (context and continuation
            share a token, so they were tokenised apart).
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 16,
        longest: int | None = None,
        seed: int = 0,
        specials: bool = False,
        keep: Keep = lambda kind, arguments, answer: None,
    ) -> None:
        """Wrap a model.

        Args:
            model: put in evaluation mode while it works.
            tokenizer: its tokenizer.
            batch_size: sequences at once; no answer depends on it, but for rounding.
            longest: most tokens to read at once; None: the model's context.
            seed: of sampled generations.
            specials: read special-token strings in a text as those tokens, as a rendered chat needs.
            keep: called with every answer.

        Raises:
            ConfigError: the head tells classes, or ``longest`` is not from 2 to the context.
        """
        context = model.config.context
        if model.config.classes is not None:
            raise ConfigError("the model has a classification head, and the harness needs one of next tokens")
        if longest is not None and not 2 <= longest <= context:
            raise ConfigError(f"the harness can read 2 to {context} tokens of this model at once, not {longest}")
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._seed, self._specials, self._keep = seed, specials, keep
        self.longest = longest or context
        self.prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self.counts: Counter[str] = Counter()

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood in nats of each continuation after its context, and whether greedy decoding would
        write it.

        Raises:
            DataError: a continuation is empty, or longer than the model can read.
        """
        cut = [self._fitted(*self._pair(context, continuation)) for context, continuation in pairs]
        self.counts["requests"] += len(pairs)
        found = score_continuations(self._model, cut, batch_size=self._batch_size, pad_id=self._tokenizer.pad_id)
        answers = list(zip(found.log_probs.tolist(), found.greedy.tolist(), strict=True))
        for pair, answer in zip(pairs, answers, strict=True):
            self._keep("loglikelihood", pair, answer)
        return answers

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Return the log-likelihood in nats of each text after the prefix token, in windows; 0 for an empty one."""
        pairs, owners = [], []
        for number, text in enumerate(texts):
            for pair in rolling_windows(self._encode(text), self.prefix, self.longest):
                pairs.append(pair)
                owners.append(number)
        self.counts["requests"] += len(texts)
        found = score_continuations(self._model, pairs, batch_size=self._batch_size, pad_id=self._tokenizer.pad_id)
        sums = [0.0] * len(texts)
        for number, value in zip(owners, found.log_probs.tolist(), strict=True):
            sums[number] += value
        for text, total in zip(texts, sums, strict=True):
            self._keep("loglikelihood_rolling", (text,), total)
        return sums

    def generate_until(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Continue each context under its task's ``generation_kwargs``; the text ends before a stop text.

        Raises:
            ConfigError: options that cannot be followed.
        """
        groups: dict[str, list[int]] = {}
        for number, (_, options) in enumerate(asked):
            groups.setdefault(json.dumps(options, sort_keys=True, default=str), []).append(number)
        self.counts["requests"] += len(asked)
        texts = [""] * len(asked)
        for numbers in groups.values():
            decoding = decoding_of(asked[numbers[0]][1], self._seed)
            new = min(decoding.max_new_tokens, self.longest // 2)
            self.counts["generations_shortened"] += len(numbers) * (new < decoding.max_new_tokens)
            prompts = [self._cut(self._context(asked[n][0]), self.longest - new) for n in numbers]
            fitting = decoding.model_copy(update={"max_new_tokens": new})
            out = generate(self._model, self._tokenizer, prompts, fitting, batch_size=self._batch_size)
            for n, some in zip(numbers, out, strict=True):
                texts[n] = some[0].text
                self._keep("generate_until", asked[n], texts[n])
        return texts

    def told(self) -> list[str]:
        """Return a sentence for each thing that was changed against what was asked."""
        total = self.counts["requests"]
        sentences = {
            "contexts_cut": f"contexts were longer than {self.longest} tokens allow and lost their beginning",
            "generations_shortened": f"generations had room for {self.longest // 2} tokens, fewer than the task asks",
            "borders_merged": "continuations share a token with their context and were tokenised apart from it",
        }
        return [f"{self.counts[k]} of {total} {told}" for k, told in sentences.items() if self.counts[k]]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, specials=self._specials)

    def _context(self, text: str) -> list[int]:
        """Ids of a context, begin token first where the tokenizer wants one and the text has none; never empty."""
        return self._tokenizer.with_begin(self._encode(text))

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both; spaces at the end of the context go to the continuation, where tokenizers want them."""
        if not continuation:
            raise DataError("a task asks for the likelihood of an empty continuation, which is no answer: check it")
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        given = self._context(bare)
        if not bare:
            ids = self._encode(continuation)
            return ([self.prefix], ids[1:]) if ids[0] == self.prefix and len(ids) > 1 else (given, ids)
        whole = self._context(bare + continuation)
        if whole[: len(given)] == given and len(whole) > len(given):
            return given, whole[len(given) :]
        self.counts["borders_merged"] += 1
        return given, self._tokenizer.encode(continuation, specials=self._specials, continues=True)

    def _fitted(self, given: list[int], wanted: list[int]) -> tuple[list[int], list[int]]:
        if len(wanted) > self.longest:
            raise DataError(f"a continuation has {len(wanted)} tokens, more than the {self.longest} that can be read")
        return self._cut(given, self.longest + 1 - len(wanted)), wanted

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """At most ``room`` tokens from the right; a begin token stays where there is room for it and another."""
        if len(ids) <= room:
            return ids
        self.counts["contexts_cut"] += 1
        return fit_prompt(ids, room, int(room > 1 and ids[0] == self._tokenizer.bos_id and self._begins))

    @property
    def _begins(self) -> bool:
        return self._tokenizer.begins_with_bos
