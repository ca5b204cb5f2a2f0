"""Text of a generation as it grows: what is certain, and where a stop text cuts it."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Sequence

from limbeck.data.tokenizer import TextStream, Tokenizer

__all__ = ["GrowingText", "find_stop", "held_back"]

_CONTEXT = 8  # tokens of the prompt that the spelling of what follows may depend on: a character has at most 4


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where to cut ``text``: the start of the stop text that is complete first, or None.

    Read character by character, so that the cut does not depend on how the text was split into tokens. Of two that
    end together the longer one counts.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of ``text`` that a stop text could still begin with."""
    longest = max((len(s) - 1 for s in stops), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-size:]) for s in stops):
            return size
    return 0


class GrowingText:
    """The text of one row, token by token: what it adds to its prompt, so that prompt + text reads as one.

    Attributes:
        text: all text that is certain; once ``stopped``, cut before the stop text.
        stopped: a stop text was met.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        stops: Sequence[str],
        emit: Callable[[str], None] | None = None,
    ) -> None:
        self._tokenizer, self._stops, self._emit = tokenizer, tuple(stops), emit
        self.text, self.stopped, self._shown = "", False, 0
        self._held: list[int] = []  # tokens whose text the stream does not give out yet
        # The end of the prompt goes first: a Llama tokenizer drops the space before a text's first word.
        start = max(0, len(prompt) - _CONTEXT)
        while start > 0 and prompt[start] in tokenizer.byte_ids:
            start -= 1  # half a run of byte tokens would be read as no text at all
        self._stream, tail = TextStream(tokenizer), prompt[start:]
        told = "".join(self._stream.push(token) for token in tail)
        self._rest = tokenizer.decode(tail)[len(told) :]  # text of the prompt that the stream still holds back

    def push(self, token: int) -> None:
        """Add a token that is not an end token."""
        piece = self._stream.push(token)
        self._held = [] if piece else [*self._held, token]
        self._add(piece)
        if self._held and self._stops and not self.stopped:
            # A run of byte tokens is held back whole, but a stop text in it counts at once.
            run = self._tokenizer.decode(self._held)
            if not run.endswith("\ufffd") and find_stop(self.text + run, self._stops) is not None:
                self._rest = ""
                self._add(run)

    def finish(self) -> str:
        """Release what was held back, as no more tokens come, and return the whole text."""
        if not self.stopped:
            self._add(self._stream.flush())
        self._show(len(self.text))
        return self.text

    def _add(self, piece: str) -> None:
        if piece and self._rest:  # of a character begun in the prompt and ended here nothing was the prompt's yet
            piece, self._rest = piece[len(os.path.commonprefix((piece, self._rest))) :], ""
        self.text += piece
        cut = find_stop(self.text, self._stops)
        if cut is not None:
            self.text, self.stopped = self.text[:cut], True
        self._show(len(self.text) - (0 if self.stopped else held_back(self.text, self._stops)))

    def _show(self, end: int) -> None:
        if self._emit is not None and end > self._shown:
            self._emit(self.text[self._shown : end])
            self._shown = end
