"""What a command said, for tests that run the command line in their own process (fixture ``limbeck``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Limbeck", "Said", "refused"]


@dataclass
class Said:
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """The errors told."""
        return [line for line in self.err.splitlines() if line.startswith("limbeck: error: ")]


Limbeck = Callable[..., Said]


def refused(said: Said, *parts: str) -> None:
    """One sentence that holds ``parts``, exit code 2, no traceback."""
    assert (said.code, len(said.sentences)) == (2, 1), said.err
    assert all(part in said.sentences[0] for part in parts), said.sentences[0]
    assert "Traceback" not in said.err
