"""Connect to a server that speaks OpenAI's API; imports no torch."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from limbeck.errors import ConfigError

__all__ = ["connected"]


def connected(url: str, key: str, timeout: Any) -> tuple[str, Any]:
    """Return a server's address without the last slash, and an HTTP client that sends the key.

    Args:
        url: such as ``http://127.0.0.1:8000/v1``.
        key: sent as a bearer; empty: none.
        timeout: seconds, or httpx's ``Timeout``.

    Raises:
        ConfigError: the address is no http address.
    """
    import httpx2  # a tenth of a second, wanted only here

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{url}' is no address of a server: write http://127.0.0.1:8000/v1")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return url.rstrip("/"), httpx2.Client(headers=headers, timeout=timeout)
