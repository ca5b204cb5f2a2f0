"""Lines of ``metrics.jsonl`` as tests compare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["same_but_time"]


def same_but_time(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a metrics line without its wall-clock fields (``seconds``, ``..._per_second``, ``mfu`` and the like)."""
    return {k: v for k, v in line.items() if not k.endswith(("seconds", "per_second", "mfu"))}
