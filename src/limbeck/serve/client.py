"""A conversation's answers from an OpenAI-compatible server, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from limbeck.data.chat import Message
from limbeck.errors import ConfigError, LimbeckError, RunError
from limbeck.measure.server import connected
from limbeck.serve.conversation import TooLongError

__all__ = ["ChatServer"]


class ChatServer:
    """A server that answers conversations.

    Args:
        url: such as ``http://127.0.0.1:8000/v1``.
        model: as the server calls it; None: the first that it lists.
        key: sent as a bearer; empty: none.
        timeout: seconds that the server may be silent.

    Raises:
        ConfigError: the address is no http address, or the server lists no model.
        RunError: it cannot be reached, or refuses.
    """

    def __init__(self, url: str, model: str | None = None, key: str = "", timeout: float = 300.0) -> None:
        import httpx2  # a tenth of a second, wanted only here

        self._key = key
        self.url, self._client = connected(url, key, httpx2.Timeout(timeout, connect=10.0))
        self.model = model or self._first_model()

    def answer(self, messages: Sequence[Message], options: dict[str, Any]) -> Iterator[str]:
        """Yield the pieces of the next answer; closing the iterator closes the connection, and so stops the server.

        Args:
            messages: the conversation.
            options: further fields of the request, such as ``max_tokens``.

        Raises:
            TooLongError: the conversation does not fit.
            RunError: the server cannot be reached, refuses, or breaks off.
        """
        import httpx2

        body = {"model": self.model, "messages": [m.plain() for m in messages], "stream": True, **options}
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise self._refused(answer.status_code, answer.text)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        said = line.removeprefix("data:").strip()
                        if said == "[DONE]":
                            return
                        yield self._piece(said)
        except httpx2.HTTPError as error:
            raise RunError(f"{self.url} cannot be reached: {self._clean(error)}") from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _first_model(self) -> str:
        import httpx2

        try:
            answer = self._client.get(f"{self.url}/models")
        except httpx2.HTTPError as error:
            raise RunError(f"{self.url} cannot be reached: {self._clean(error)}") from None
        if answer.status_code != 200:
            raise self._refused(answer.status_code, answer.text)
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{self.url} lists no model: name one") from None

    def _piece(self, line: str) -> str:
        try:
            told = json.loads(line)
            if "error" in told:
                raise RunError(f"{self.url} broke off: {self._clean(told['error'].get('message'))}")
            choices = told["choices"]
            return str(choices[0]["delta"].get("content") or "") if choices else ""
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RunError(f"{self.url} sends what is no chat completion: {self._clean(line[:80])}") from None

    def _refused(self, status: int, text: str) -> LimbeckError:
        said, code = text[:200], None
        try:
            error = json.loads(text)["error"]
            said, code = error["message"], error.get("code")
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        told = f"{self.url} refuses (status {status}): {self._clean(said)}"
        return TooLongError(told) if code == "context_length_exceeded" else RunError(told)

    def _clean(self, said: object) -> str:
        """One line, the key struck out: some servers repeat it."""
        text = " ".join(str(said).split()) or type(said).__name__
        return text.replace(self._key, "(key)") if self._key else text
