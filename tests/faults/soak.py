"""Train, checkpoint, evaluate and generate in a loop in one process; memory, handles and threads must stay flat.

usage: python tests/faults/soak.py [--minutes 120] [--out curve.jsonl]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = ["check", "measure", "soak"]

_GROWTH = 0.05  # share by which the last quarter may lie above the second
_SLACK_BYTES = 16 << 20


def measure() -> dict[str, int]:
    """Resident bytes, open handles, threads and living objects of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "handles": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
    }


def soak(minutes: float, out: Path | None = None) -> list[dict[str, float]]:
    """Go round for ``minutes`` and return one line a round."""
    from limbeck import cli
    from tests.faults.kills import _prepare

    lines: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        _prepare(base)
        start, data, run = str(base / "start"), str(base / "rows.jsonl"), base / "run"
        fast = ["--quiet", "--probes", "off"]
        rounds = [
            ["finetune", "--model", start, "--data", data, "--task", "text", "--out", str(run), "--batch-size", "4",
             "--context", "32", "--steps", "6", "--checkpoint-every", "2", "--dtype", "fp32", "--audit", "off",
             "--no-generate", *fast],
            ["evaluate", str(run), "--data", data, "--task", "text", "--no-generate", *fast],
            ["generate", str(run), "the sun", "--max-new-tokens", "16", "--samples", "4", "--temperature", "1",
             "--quiet"],
        ]  # fmt: skip
        began = time.monotonic()
        while time.monotonic() - began < minutes * 60:
            for argv in rounds:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                    code = cli.main(argv)
                assert code == 0, said.getvalue()
            shutil.rmtree(run)
            lines.append({"round": len(lines), "seconds": round(time.monotonic() - began, 1), **measure()})
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    return lines


def check(lines: Sequence[dict[str, float]]) -> list[str]:
    """What is not flat: the last quarter's median lies above the second quarter's by more than a share."""
    quarter = max(len(lines) // 4, 1)
    early, late = lines[quarter : 2 * quarter] or lines[:1], lines[-quarter:]
    bad = []
    for name in ("resident_bytes", "handles", "threads", "tasks"):
        before, after = (statistics.median(line[name] for line in part) for part in (early, late))
        slack = _SLACK_BYTES if name == "resident_bytes" else 0
        if after > before * (1 + (_GROWTH if name == "resident_bytes" else 0)) + slack:
            bad.append(f"{name} grows from {before:,.0f} to {after:,.0f}")
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    curve = soak(asked.minutes, asked.out)
    grown = check(curve)
    first, last = curve[0], curve[-1]
    print(json.dumps({"rounds": len(curve), "first": first, "last": last, "grows": grown}))
    sys.exit(bool(grown))
