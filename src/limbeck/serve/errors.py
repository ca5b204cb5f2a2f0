"""Errors as OpenAI's API tells them: a status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.errors import InputError, LimbeckError
from limbeck.serve.engine import QueueFullError, StoppingError

__all__ = ["APIError", "api_error"]

_RETRY_SECONDS = 1


class APIError(LimbeckError):
    """An error for the client.

    Attributes:
        status: of the answer.
        kind: the ``type`` of the error's body.
        param: field of the request that is wrong.
        code: short name.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        told = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


def api_error(error: LimbeckError) -> APIError:
    """Return what a client hears of an error."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFullError):
        wait = {"Retry-After": str(_RETRY_SECONDS)}
        return APIError(429, str(error), kind="rate_limit_error", code="queue_full", headers=wait)
    if isinstance(error, StoppingError):
        wait = {"Retry-After": str(_RETRY_SECONDS)}
        return APIError(503, str(error), kind="server_error", code="server_stopping", headers=wait)
    if isinstance(error, InputError):
        return APIError(400, str(error))
    return APIError(500, str(error), kind="server_error", code="server_error")
