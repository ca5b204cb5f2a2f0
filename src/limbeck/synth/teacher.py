"""What a teacher is: one request in, one answer out, from an endpoint or from a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from limbeck.config import Config
from limbeck.data.chat import Message
from limbeck.errors import LimbeckError

__all__ = ["Answer", "Failed", "Prices", "Request", "Sampling", "TextTeacher"]


class Sampling(Config):
    """How a teacher draws its answers."""

    temperature: float = Field(1.0, ge=0, le=2, description="divides the logits; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the smallest set of this probability; 1: all")
    max_tokens: int = Field(512, ge=1, description="most tokens of an answer")


class Prices(Config):
    """Price of a teacher's tokens."""

    input_price: float = Field(0.0, ge=0, description="price of a million prompt tokens")
    output_price: float = Field(0.0, ge=0, description="price of a million answer tokens")
    currency: str = Field("USD", description="currency of the prices and the budget")

    def of(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the price of so many tokens."""
        return (self.input_price * prompt_tokens + self.output_price * answer_tokens) / 1e6


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a teacher; a pure function of the plan and the ordinal.

    Attributes:
        ordinal: its number, from 0.
        id: stable name, which becomes the row's id.
        key: idempotency key: equal for every attempt, so that a server which honours it answers and bills once.
        messages: the conversation to answer.
        sampling: how the answer is drawn.
        seed: of the answer.
    """

    ordinal: int
    id: str
    key: str
    messages: Sequence[Message]
    sampling: Sampling
    seed: int

    @property
    def most_prompt_tokens(self) -> int:
        """Upper bound of the prompt's tokens: one a byte, and a few around each message."""
        return sum(len(m.content.encode()) + len(m.role) + 16 for m in self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher answered.

    Attributes:
        text: of the answer.
        raw: everything that came back, as text.
        prompt_tokens: of the request as the teacher counts them; None: it did not say.
        answer_tokens: of the answer; None: it did not say.
        finish: why it ended: ``stop``, ``length`` or the teacher's own word.
    """

    text: str
    raw: str
    prompt_tokens: int | None
    answer_tokens: int | None
    finish: str


class Failed(LimbeckError):  # noqa: N818 - an attempt failed, which is handled
    """One attempt of a request failed.

    Attributes:
        kind: ``again`` (not answered, not billed: may be sent again), ``unsure`` (it may have been answered and
            billed), ``refused`` (this request can never be answered), ``fatal`` (no request can) or ``unreachable``
            (nothing was sent, nobody listens).
        raw: what came back, as text.
        wait: seconds that the server asks to wait.
    """

    def __init__(self, kind: str, reason: str, raw: str = "", wait: float = 0.0) -> None:
        super().__init__(reason)
        self.kind, self.raw, self.wait = kind, raw, wait


class TextTeacher(Protocol):
    """Answers requests.

    Attributes:
        name: of the model, for the accounting.
        origin: where it answers, without any key.
    """

    name: str
    origin: str

    async def ask(self, request: Request) -> Answer:
        """Answer one request, once.

        Raises:
            Failed: it could not be answered this time.
        """

    async def close(self) -> None:
        """Free what it holds."""
