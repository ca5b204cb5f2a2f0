"""Ten kills and a short soak; ``make kills`` and ``make soak`` do the long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.soak import check

HERE = Path(__file__).parent


def test_ten_kills_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, HERE / "kills.py", "10"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "LIMBECK_NATIVE": os.environ.get("LIMBECK_NATIVE", "off")},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert sum(one["kills"] for one in found.values()) >= 10 and not any(one["lost"] for one in found.values())


def test_a_soak_rings_where_something_grows() -> None:
    flat = [{"resident_bytes": 5e8 + i % 3 * 1e5, "handles": 9, "threads": 1, "tasks": 4} for i in range(40)]
    assert check(flat) == []
    for name, step in (("resident_bytes", 4e6), ("handles", 1), ("threads", 1), ("tasks", 1)):
        grown = [{**line, name: line[name] + i * step} for i, line in enumerate(flat)]
        assert len(check(grown)) == 1 and name in check(grown)[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_a_short_soak_is_flat() -> None:
    done = subprocess.run(
        [sys.executable, HERE / "soak.py", "--minutes", os.environ.get("SOAK_MINUTES", "0.3")],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
