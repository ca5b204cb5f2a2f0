"""How many processors a process may use: affinity and quotas of control groups, both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck import processors


def group(tmp_path: Path, line: str, files: dict[str, str]) -> float | None:
    (tmp_path / "cgroup").write_text(line + "\n", encoding="utf-8")
    for name, text in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return processors.quota(tmp_path / "fs", tmp_path / "cgroup")


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000", "a/cpu.max": "150000 100000\n", "a/b/cpu.max": "400000 100000\n"}
    assert group(tmp_path, "0::/a/b", files) == 1.5
    assert group(tmp_path, "0::/", files) is None
    assert group(tmp_path, "0::/", {"cpu.max": "50000 100000"}) == 0.5  # a container's own group is the mount


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path: Path, mount: str) -> None:
    files = {f"{mount}/d/cpu.cfs_quota_us": "250000\n", f"{mount}/d/cpu.cfs_period_us": "100000\n"}
    files |= {f"{mount}/cpu.cfs_quota_us": "-1\n", f"{mount}/cpu.cfs_period_us": "100000\n"}
    assert group(tmp_path, "4:cpu,cpuacct:/d", files) == 2.5
    assert group(tmp_path, "4:cpu,cpuacct:/", files) is None


@pytest.mark.parametrize(
    ("line", "text"),
    [("", ""), ("0::/", ""), ("0::/", "some text"), ("0::/", "5 0"), ("junk", "1 1"), ("3:memory:/", "1 1")],
)
def test_what_cannot_be_read_is_no_quota(tmp_path: Path, line: str, text: str) -> None:
    assert group(tmp_path, line, {"cpu.max": text}) is None
    assert processors.quota(tmp_path, tmp_path / "nothing") is None


@pytest.mark.parametrize(("share", "wanted"), [(None, 4), (1.5, 2), (0.2, 1), (9.0, 4)])
def test_affinity_and_quota_together(monkeypatch: pytest.MonkeyPatch, share: float | None, wanted: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(processors, "quota", lambda: share)
    assert processors.usable() == wanted
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processors.limit_threads()
    assert os.environ.get("OMP_NUM_THREADS") == (None if share is None else str(wanted))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    processors.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_on_one_core_runs_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import limbeck, torch; print(torch.get_num_threads())"
    )
    here = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
