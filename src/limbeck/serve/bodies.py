"""Bodies of requests, as OpenAI's API has them; what the sampler does not have is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.data.chat import Message
from limbeck.decode.settings import Decoding
from limbeck.model.cache import KVKind
from limbeck.serve.errors import APIError

__all__ = ["Body", "ChatBody", "ChatMessage", "CompletionBody", "ContentPart", "StreamOptions", "read_body"]

_MOST_STOPS, _LONGEST_STOP = 16, 1000
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "suffix": ("",), "best_of": (),
    "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},), "functions": ([],), "modalities": (["text"],), "store": (False,),
    "service_tier": ("auto", "default"), "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip
"""Fields of the API that this server has nothing for, with the values (beside null) that ask for nothing."""

_IGNORED = ("user", "metadata", "prompt_cache_key", "safety_identifier")
"""Fields that only name who asks."""

Text = Annotated[str, Field(max_length=1 << 24)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
B = TypeVar("B", bound="Body")


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class Body(BaseModel):
    """What both kinds of requests hold."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    model: Text
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    n: int | None = Field(None, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if name in _IGNORED and name not in cls.model_fields:
                continue
            if name in _NEUTRAL and name not in cls.model_fields:
                if value is not None and value not in _NEUTRAL[name]:
                    raise APIError(400, f"'{name}' is not supported by this server: leave it out", param=name)
                continue
            kept[name] = value
        return kept

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts.

        Raises:
            APIError: one is empty or very long, or they are too many.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > _MOST_STOPS or any(not 0 < len(s) <= _LONGEST_STOP for s in stops):
            wanted = f"at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters"
            raise APIError(400, f"'stop' must be {wanted}", param="stop")
        return stops

    def decoding(self, new_tokens: int, seed: int, cache: KVKind) -> Decoding:
        """Return how tokens are chosen, by the API's defaults: temperature 1, no filters.

        Args:
            new_tokens: most tokens to generate.
            seed: taken where the request names none.
            cache: what the pool keeps keys and values in.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        filters: dict[str, Any] = {}
        if temperature > 0:  # at 0 they have nothing to choose from
            given = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
            filters = {name: value for name, value in given.items() if value is not None}
        return Decoding(
            max_new_tokens=max(1, new_tokens),
            temperature=temperature,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=seed if self.seed is None else self.seed % 2**63,
            stop=self.stops,
            cache=cache,
            **filters,
        )


class CompletionBody(Body):
    """A request for completions."""

    prompt: Text | list[Text] | list[Id] | list[list[Id]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None

    @model_validator(mode="after")
    def _one_of_the_best(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != self.choices:
            raise APIError(400, "'best_of' must equal 'n' here: every answer is returned", param="best_of")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Every prompt, all texts or all token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class ContentPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """A turn; what else it may hold is not read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.tool_calls:
            raise APIError(400, "'tool_calls' are not supported by this server", param="messages")
        if self.content is None and self.role != "assistant":
            raise APIError(400, f"a message of the {self.role} has no content", param="messages")
        return self

    @property
    def turn(self) -> Message:
        """As templates have it; a developer speaks as the system, and parts stand one after the other."""
        parts = self.content
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts or ())
        return Message(_ROLES[self.role], content)


class ChatBody(Body):
    """A request for the next answer of a conversation."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _agrees(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise APIError(400, "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return self

    @property
    def turns(self) -> list[Message]:
        """The conversation."""
        return [message.turn for message in self.messages]

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer; None: what the context leaves."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def read_body(kind: type[B], raw: bytes) -> B:
    """Read a request.

    Raises:
        APIError: it is no JSON object, or a field is wrong.
    """
    try:
        values = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(values, dict):
        raise APIError(400, f"the body must be a JSON object, not a {type(values).__name__}")
    if _halves(values):
        raise APIError(400, "the body holds half of a surrogate pair, which no text can: send whole characters")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _told(error) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _halves(values: Any) -> bool:
    """Return whether a text in it holds half of a surrogate pair."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            return True
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
    return False


def _told(error: ValidationError) -> APIError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in first["loc"]]
    name = place[0] if place else None
    if first["type"] == "missing" and len(place) == 1:
        return APIError(400, f"you must provide '{name}'", param=name)
    if first["type"] == "extra_forbidden":
        return APIError(400, f"unrecognized request argument supplied: {name}", param=name)
    where = f"'{name}'" if name else "the body"
    return APIError(400, f"{where} is wrong: {first['msg']}"[:300], param=name)
