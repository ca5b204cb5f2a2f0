"""Small finished runs for tests of recipes: seconds, not minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.config import build
from limbeck.jobs.recipe import Display
from limbeck.verbs.table import recipe

ARCHITECTURE = {"preset": "toy", "layers": 2, "hidden_size": 16, "heads": 2, "kv_heads": 1, "context": 64}

PRETRAIN: dict[str, Any] = {
    "data": "toy:stories",
    "limit": 40,
    "vocab_size": 300,
    "context": 64,
    "architecture": ARCHITECTURE,
    "batch_size": 8,
    "dtype": "fp32",
    "train": {"steps": 3, "learning_rate": 3e-3, "log_every": 1},
    "measuring": {"generate": False},
}


def run(verb: str, **values: Any) -> dict[str, Any]:
    """Run one recipe without output and return its report's values."""
    return dict(build(recipe(verb), values).run(Display.silent()).values)


def pretrained(folder: Path, **changes: Any) -> dict[str, Any]:
    """A two-layer decoder after three steps on toy stories, in ``folder``."""
    return run("pretrain", **{**PRETRAIN, "out": str(folder), **changes})
