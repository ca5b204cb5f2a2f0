"""One sequence that the engine decodes for a request: what it is made from, and what it says while it grows."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.data.token_bytes import TokenBytes
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import GenerationRow
from limbeck.decode.settings import Decoding
from limbeck.errors import LimbeckError

__all__ = ["Ended", "Event", "TextPiece", "ServedSequence", "TokenScore"]


_CHOICE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token with its log-probability under the model itself, before temperature and filters.

    Attributes:
        id: the token.
        log_prob: in nats; None for the first token of a prompt.
        top: the likeliest tokens of this place with theirs, likeliest first.
        offset: characters of the text before it.
    """

    id: int
    log_prob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text that will not change any more, and the tokens that were chosen since the last piece, if they are wanted."""

    text: str
    tokens: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a sequence.

    Attributes:
        reason: ``stop`` (an end token or a stop text), ``length``, or ``error``.
        tokens: number of tokens generated.
        error: what went wrong, where the reason is ``error``.
    """

    reason: str
    tokens: int
    error: LimbeckError | None = None


Event = TextPiece | Ended


class ServedSequence:
    """A prompt, how it is continued, and who hears of it.

    Attributes:
        prompt: token ids.
        new_tokens: most tokens to generate; 0: the prompt is only read.
        decoding: how tokens are chosen.
        choice: what of it the choice of a token reads: rows that choose alike are chosen for together.
        top: how many of the likeliest tokens to tell at each place; None: no log-probabilities.
        echo: whether the prompt's text and tokens are told first.
        row: the text and tokens so far.
        cancelled: nobody listens any more; may be set from any thread.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        decoding: Decoding,
        tokenizer: Tokenizer,
        emit: Callable[[Event], None],
        *,
        new_tokens: int,
        occurrence: int = 0,
        sample: int = 0,
        top: int | None = None,
        echo: str | None = None,
        spell: TokenBytes | None = None,
    ) -> None:
        """Take a prompt.

        Args:
            prompt: token ids, none empty.
            decoding: options; ``max_new_tokens`` is ``new_tokens`` where that is not 0.
            tokenizer: of the model.
            emit: called with each event, in the engine's thread; it must not raise.
            new_tokens: most tokens to generate.
            occurrence: number of equal prompts before this one in its request.
            sample: number of this sample of the prompt.
            top: see the class.
            echo: text of the prompt to tell first; None: it is not told.
            spell: the bytes of tokens; needed with ``top``.
        """
        self.prompt, self.decoding, self.new_tokens, self.top = list(prompt), decoding, new_tokens, top
        self.echo, self.cancelled = echo, False
        self.choice = Decoding(**{name: getattr(decoding, name) for name in _CHOICE})
        self._emit, self._spell, self._text, self._special = emit, spell, "", tokenizer.special_ids
        self._tokens: list[TokenScore] = []
        self._utf8, self._characters = codecs.getincrementaldecoder("utf-8")("replace"), 0
        self.row = GenerationRow(0, sample, self.prompt, decoding, (prompt, occurrence), tokenizer, self._take)

    @property
    def ended(self) -> bool:
        """Has all been generated?"""
        return self.row.stopped is not None

    def show_prompt(self, scores: Sequence[tuple[int, float | None, tuple[tuple[int, float], ...]]]) -> None:
        """Tell the prompt's text and, where they are wanted, its tokens with their log-probabilities."""
        assert self.echo is not None
        for token, log_prob, top in scores:
            self._tokens.append(self._scored(token, log_prob, top))
        self._text = self.echo
        self._tell()

    def push(
        self, token: int, log_prob: float, told: tuple[float, tuple[tuple[int, float], ...]] | None, ends: Sequence[int]
    ) -> None:
        """Take the next token, and its log-probability and the likeliest tokens as they are to be ``told``."""
        if told is not None:
            self._tokens.append(self._scored(token, *told))
        self.row.push(token, log_prob, ends)

    def settle(self) -> None:
        """Tell what became certain since, and the end where it was reached."""
        if self.row.stopped == "stop" and self._tokens:  # tokens behind the cut are no part of the text
            end = len(self.row.text.text) + len(self.echo or "")
            self._tokens = [one for one in self._tokens if one.offset < end]
        if self._text or (self.ended and self._tokens):
            self._tell()
        if self.row.stopped is not None:
            reason = "length" if self.row.stopped == "length" else "stop"
            self._emit(Ended(reason, len(self.row.ids)))

    def finish_empty(self) -> None:
        """End a sequence of which only the prompt was wanted."""
        self._emit(Ended("length", 0))

    def fail(self, error: LimbeckError) -> None:
        """End it with an error."""
        self._emit(Ended("error", len(self.row.ids), error))

    def _take(self, prompt: int, sample: int, text: str) -> None:
        self._text += text

    def _tell(self) -> None:
        self._emit(TextPiece(self._text, tuple(self._tokens)))
        self._text, self._tokens = "", []

    def _scored(self, token: int, log_prob: float | None, top: tuple[tuple[int, float], ...]) -> TokenScore:
        assert self._spell is not None
        offset = self._characters
        if token not in self._special:  # which no text shows
            self._characters += len(self._utf8.decode(self._spell(token)))
        return TokenScore(token, log_prob, top, offset)
