"""How a verb's report ends: the size before and after, the page, and the command to give next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from limbeck.formats.load import locate
from limbeck.formats.stored import stored_dtypes
from limbeck.measure.cost import disk_bytes

__all__ = ["described_base", "next_steps", "size_sentence"]


def described_base(name: str, made: Path) -> dict[str, Any]:
    """Return the size and the stored dtypes of the base called ``name``, and the dtypes of the model in ``made``."""
    folder, _ = locate(name)
    return {
        "name": name,
        "disk_bytes": disk_bytes(folder),
        "stored_dtypes": stored_dtypes(folder),
        "made_dtypes": stored_dtypes(made),
    }


def size_sentence(made_bytes: int, base: Mapping[str, Any]) -> str:
    """Return the size on disk of a model and of its base, each with its dtypes.

    Args:
        made_bytes: of the model's weights.
        base: as ``described_base`` returns it.
    """
    made, before = (", ".join(base[key]) for key in ("made_dtypes", "stored_dtypes"))
    ratio = made_bytes / base["disk_bytes"]
    sizes = f"{made_bytes / 1e6:,.2f} MB ({made}) after, {base['disk_bytes'] / 1e6:,.2f} MB ({before}) before"
    wider = ratio > 1 and base["made_dtypes"] != base["stored_dtypes"]
    return f"{sizes}: {ratio:.3f}{', larger because it is stored in a wider dtype' if wider else ''}"


def next_steps(verb: str, run: str) -> list[RenderableType]:
    """Return where the page of a run is written, and a command that goes on from it, for people.

    Args:
        verb: that made the run.
        run: its folder.
    """
    named = shlex.quote(run)
    lines = [f"page: limbeck report {named} writes {Path(run) / 'report.html'}"]
    command = _NEXT.get(verb)
    return [Text(line) for line in [*lines, *([f"next: {command.format(run=named)}"] if command else [])]]


_NEXT = {
    "pretrain": 'limbeck generate {run} "Once upon a time" shows what it writes',
    "finetune": "limbeck quantize {run} --technique rtn --rtn.bits 8 --out {run}-int8 makes it smaller",
    "distill": "limbeck quantize {run} --technique rtn --rtn.bits 8 --out {run}-int8 makes it smaller still",
    "dpo": 'limbeck generate {run} --chat "Hello" shows how it answers',
    "quantize": 'limbeck generate {run} "Once upon a time" shows what it writes',
    "evaluate": "limbeck compare {run} OTHER compares it item by item with another run measured on the same rows",
}
"""Verb -> a command to copy, and what it does."""
