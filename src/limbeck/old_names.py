"""Names that files and flags of earlier versions use, and what they are called now."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["KINDS", "OldNameWarning", "kind_now", "kinds_now", "quiet", "renamed", "warn"]

KINDS: Mapping[str, str] = {"qaft": "qat"}
"""Old kind -> kind, of techniques, tasks and whatever else has a ``kind``."""

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


class OldNameWarning(FutureWarning):
    """A flag, an option or a kind was given by its old name."""


@contextmanager
def quiet() -> Iterator[None]:
    """Accept old names without a warning: what an earlier version wrote is nothing that its reader can mend."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def warn(old: str, new: str) -> None:
    """Warn that ``old`` is now called ``new``, unless within ``quiet``."""
    if not _quiet.get():
        warnings.warn(f"'{old}' is now called '{new}'", OldNameWarning, stacklevel=3)


def kind_now(kind: str) -> str:
    """Return the present name of a kind, with a warning where ``kind`` is an old one."""
    if kind not in KINDS:
        return kind
    warn(kind, KINDS[kind])
    return KINDS[kind]


def renamed(
    values: Mapping[str, Any], names: Mapping[str, str], retired: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return ``values`` with present keys in place of old ones, and present kinds at every depth.

    Args:
        values: of one config, as a file or a caller gave them.
        names: old key -> key.
        retired: key that is read no more -> why; it is left out with a warning.

    Raises:
        ValueError: a key was given by both names.
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        if retired and key in retired:
            if not _quiet.get():
                warnings.warn(f"'{key}' is read no more: {retired[key]}", OldNameWarning, stacklevel=3)
            continue
        now = names.get(key, key) if isinstance(key, str) else key
        if now != key:
            if now in values:
                raise ValueError(f"'{key}' is the old name of '{now}': give one of them")
            warn(key, now)
        out[now] = kinds_now(value)
    return out


def kinds_now(value: Any) -> Any:
    """Return a nested plain value with present kinds in place of old ones."""
    if isinstance(value, dict):
        return {k: kind_now(v) if k == "kind" and isinstance(v, str) else kinds_now(v) for k, v in value.items()}
    return [kinds_now(one) for one in value] if isinstance(value, list) else value
