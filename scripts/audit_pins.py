"""Audit the pinned dependencies with pip-audit: fail on a known weakness, say what could not be looked up.

usage: python scripts/audit_pins.py [constraints.txt]

Exit code 1 where a pin has a known weakness; 0 where none has, or where no database can be reached, which is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "verdict"]


def verdict(found: dict[str, Any]) -> tuple[int, list[str]]:
    """Return exit code and sentences for pip-audit's JSON."""
    pins = found["dependencies"]
    weak = [
        f"{pin['name']} {pin['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for pin in pins
        for flaw in pin.get("vulns", [])
    ]
    skipped = sum("skip_reason" in pin for pin in pins)
    told = [f"pip-audit: {len(pins) - skipped} of {len(pins)} pins looked up, {len(weak)} known weaknesses"]
    if skipped:
        told.append(f"pip-audit: {skipped} pins are unknown to the database that could be reached: not audited")
    return int(bool(weak)), [*told, *weak]


def main(file: Path) -> int:
    """Run pip-audit over ``file`` and return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(file), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        code, told = verdict(json.loads(done.stdout))
    except json.JSONDecodeError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        code, told = 0, [f"pip-audit: no database can be reached, nothing was audited ({reason})"]
    print(*told, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "constraints.txt")))
