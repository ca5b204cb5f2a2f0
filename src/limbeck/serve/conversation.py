"""A conversation in a terminal: turns, commands, and an answer that Ctrl-C stops."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, TextIO

from limbeck.data.chat import Message
from limbeck.errors import InputError, LimbeckError
from limbeck.storage import write_text

__all__ = ["HELP", "Answerer", "Conversation", "TooLongError", "terminal_reader"]

HELP = (
    "/reset forgets the conversation; /system TEXT says what the system says first (empty: nothing); "
    "/save FILE writes the conversation as a row for training; /exit or Ctrl-D leaves; Ctrl-C stops an answer"
)


class TooLongError(InputError):
    """A conversation that does not fit into the model's context."""


class Answerer(Protocol):
    """Answers conversations."""

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the pieces of the next answer; stopping is closing the iterator.

        Raises:
            LimbeckError: there is none; a ``TooLongError`` where the conversation does not fit.
        """
        ...


class Conversation:
    """What was said, and the loop that goes on with it.

    Attributes:
        turns: user's and assistant's, in order.
        system: what the system says first; empty: nothing.
    """

    def __init__(
        self,
        answerer: Answerer,
        out: TextIO,
        note: Callable[[str], None],
        read: Callable[[], str],
        system: str = "",
    ) -> None:
        """Take the two sides.

        Args:
            answerer: the model.
            out: where answers are written, piece by piece.
            note: takes a line about the conversation.
            read: returns the next line of the user; raises EOFError at the end.
            system: what the system says first.
        """
        self.turns: list[Message] = []
        self.system = system
        self._answerer, self._out, self._note, self._read = answerer, out, note, read

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the system's turn first."""
        return [*([Message("system", self.system)] if self.system else []), *self.turns]

    def run(self) -> None:
        """Read and answer until the user leaves; a Ctrl-C where nothing is being answered drops the line."""
        while True:
            try:
                line = self._read()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._note("nothing is being answered: /exit leaves")
                continue
            if line.strip() == "/exit":
                return
            if line.startswith("/"):
                self._command(line.strip())
            elif line.strip():
                self._say(line)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/reset":
            self.turns.clear()
            self._note("forgotten")
        elif name == "/system":
            self.system = rest
            self._note("the system says that from now on" if rest else "the system says nothing")
        elif name == "/save":
            self._save(rest)
        else:
            self._note(HELP if name == "/help" else f"there is no {name}: {HELP}")

    def _save(self, name: str) -> None:
        if not name:
            self._note("say where: /save FILE")
            return
        file = Path(name).expanduser()
        if file.exists():
            self._note(f"{name} exists: choose another name")
            return
        try:
            told = {"messages": [m.plain() for m in self.messages]}
            rows = told if file.suffix == ".jsonl" else [told]  # as the readers have it
            write_text(file, json.dumps(rows, ensure_ascii=False) + "\n")
        except (LimbeckError, OSError, ValueError) as error:
            self._note(str(error))
            return
        self._note(f"{len(self.turns)} turns are in {name}")

    def _say(self, line: str) -> None:
        """Answer one turn; what Ctrl-C leaves of the answer is kept, and a turn that fails is taken back."""
        self.turns.append(Message("user", line))
        said: list[str] = []
        try:
            with closing(self._pieces()) as pieces:
                for piece in pieces:
                    said.append(piece)
                    self._out.write(piece)
                    self._out.flush()
        except KeyboardInterrupt:
            self._out.write("\n")
            self._note("stopped")
            self.turns.append(Message("assistant", "".join(said)))
            return
        except LimbeckError as error:
            self._out.write("\n" if said else "")
            self._note(str(error))
            self.turns.pop()
            return
        self._out.write("\n")
        self._out.flush()
        self.turns.append(Message("assistant", "".join(said)))

    def _pieces(self) -> Generator[str]:
        """Pieces of the answer; where the conversation is too long, its oldest turns are forgotten first."""
        while True:
            try:
                yield from self._answerer.answer(self.messages)
                return
            except TooLongError:
                if len(self.turns) < 3:
                    raise
                self.turns = self.turns[2:]
                self._note("the conversation fills the context: its oldest question and answer are forgotten")


def terminal_reader() -> Callable[[], str]:
    """Return what reads the user's lines: with a prompt and line editing in a terminal, plainly from a pipe."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - input() edits lines by it

        return lambda: input("> ")

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read
