"""What a figure was made on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["stamp"]

_PACKAGES = ("torch", "numpy", "transformers", "peft", "trl")


def stamp() -> dict[str, Any]:
    """Machine, versions, load, commit and command; no name of a host, a user or a path outside the repository."""
    from limbeck.run import machine

    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain", "--", "../../src"], capture_output=True, text=True).stdout
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    words = sys.argv[1:]
    if "--json" in words:  # where the figures went is no part of how they were made
        at = words.index("--json")
        words = words[:at] + words[at + 2 :]
    return {
        **machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))),
        "load": [round(x, 2) for x in os.getloadavg()],
        "versions": {p: metadata.version(p) for p in _PACKAGES if p in installed},
        "python": sys.version.split()[0],
        "commit": commit + (" with changes" if dirty.strip() else ""),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
    }
