"""A hosted teacher: any endpoint that answers OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
import math
import os
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urlsplit

from limbeck.errors import ConfigError
from limbeck.synth.teacher import Answer, Failed, Request

__all__ = ["Endpoint", "key_from_environment"]

_MOST_BYTES = 8 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_WAIT = 300.0


def key_from_environment(variable: str, base_url: str) -> str:
    """Return the API key; empty for a server on this machine where none is set.

    Raises:
        ConfigError: the variable is not set and the server is another machine, or the key cannot stand in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not key and urlsplit(base_url).hostname not in _LOOPBACK:
        raise ConfigError(f"the environment variable {variable} holds no key for {base_url}: set it, or name another")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the key in {variable} has characters that no key has: copy it again")
    return key


class Endpoint:
    """An OpenAI-compatible server.

    Args:
        base_url: such as ``https://host/v1``; ``/chat/completions`` is added.
        model: name of the model there.
        key: sent as a bearer; never stored, and struck out of every answer.
        timeout: seconds that one attempt may take.
        limit_field: how the server calls the most tokens of an answer.

    Raises:
        ConfigError: the address is no http address, or holds a password or a query, which would be stored with it.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str = "",
        timeout: float = 120.0,
        limit_field: str = "max_tokens",
    ) -> None:
        import httpx2  # a tenth of a second, wanted only here

        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"'{base_url}' is no address of a server: write https://host/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError("the server's address holds a password or a query, which would be stored: leave it out")
        self.name, self.origin = model, base_url.rstrip("/")
        self._key, self._timeout, self._limit_field = key, timeout, limit_field
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=httpx2.Timeout(timeout, connect=min(0.8 * timeout, 15.0)), limits=limits,
            follow_redirects=False,
        )  # fmt: skip

    def body(self, request: Request) -> dict[str, Any]:
        """Return what is sent."""
        return {
            "model": self.name,
            "messages": [m.plain() for m in request.messages],
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            self._limit_field: request.sampling.max_tokens,
            "seed": request.seed,
        }

    async def ask(self, request: Request) -> Answer:
        """Send one request and read its answer.

        Raises:
            Failed: says whether it may be sent again, and whether it may have been billed.
        """
        import httpx2

        try:
            async with asyncio.timeout(self._timeout):
                status, headers, text = await self._post(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol) as error:
            raise Failed("unreachable", f"{self.origin} cannot be reached: {self._clean(str(error))}") from None
        except (TimeoutError, httpx2.TimeoutException):
            raise Failed("unsure", f"no answer within {self._timeout:g} seconds") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            reason = self._clean(str(error)) or type(error).__name__
            raise Failed("unsure", f"the connection was cut: {reason}") from None
        if status != 200:
            raise self._refusal(status, headers, text)
        return self._read(text)

    async def _post(self, request: Request) -> tuple[int, Any, str]:
        address = f"{self.origin}/chat/completions"
        headers = {"Idempotency-Key": request.key}
        async with self._client.stream("POST", address, json=self.body(request), headers=headers) as answer:
            got = bytearray()
            async for piece in answer.aiter_bytes():
                got += piece
                if len(got) > _MOST_BYTES:
                    raise Failed("unsure", f"the answer is longer than {_MOST_BYTES >> 20} MB")
            return answer.status_code, answer.headers, self._clean(got.decode("utf-8", "replace"))

    def _clean(self, text: str) -> str:
        """Strike the key out: some servers repeat it in their errors."""
        return text.replace(self._key, "(key)") if self._key else text

    def _refusal(self, status: int, headers: Any, text: str) -> Failed:
        said = f"status {status}: {_message(text)}"
        if status in (401, 403):
            return Failed("fatal", f"{self.origin} refuses the key ({said}): set another", text)
        if status in (404, 405) or 300 <= status < 400:
            return Failed("fatal", f"{self.origin} does not serve model '{self.name}' ({said}): check both", text)
        if status in (408, 409, 425, 429) or status >= 500:
            return Failed("again", said, text, _wait(headers.get("retry-after", "")))
        return Failed("refused", said, text)

    def _read(self, text: str) -> Answer:
        try:
            whole = json.loads(text)
            choice = whole["choices"][0]
            said = choice["message"]["content"]
            if not isinstance(said, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Failed("unsure", f"the answer is no chat completion: {text[:80]!r}", text) from None
        usage = whole.get("usage")
        finish = choice.get("finish_reason")
        return Answer(
            said, text, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"),
            finish if isinstance(finish, str) else "unknown",
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _message(text: str) -> str:
    """Return the server's own sentence, on one line."""
    try:
        found = json.loads(text)["error"]
        said = found["message"] if isinstance(found, dict) else found
    except (ValueError, LookupError, TypeError, RecursionError):
        said = text
    return " ".join(str(said).split())[:200] or "no reason given"


def _wait(header: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0
