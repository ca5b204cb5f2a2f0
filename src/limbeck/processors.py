"""Return how many processors this process may use: by its affinity and by the quotas of its control groups.

A container often sees all cores of its machine and may use two: one thread a core then waits for the others' turns at
every barrier. Quotas are those of Linux control groups, version 2 (``cpu.max``) or 1 (``cpu.cfs_quota_us``).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["limit_threads", "quota", "usable"]


def usable() -> int:
    """Return the number of processors that this process may keep busy, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = quota()
    return allowed if share is None else max(1, min(allowed, math.ceil(share)))


def quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the smallest quota, in processors, of this process's control groups; None: there is none.

    Args:
        root: where control groups are mounted.
        groups: file that names those of this process, a line each: ``number:controllers:path``.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            found += [_of_version_2(folder / "cpu.max") for folder in _above(root, path)]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers]
            found += [_of_version_1(folder) for mount in mounts for folder in _above(mount, path)]
    return min((share for share in found if share is not None), default=None)


def limit_threads() -> None:
    """Set ``OMP_NUM_THREADS`` where a quota allows fewer processors than the affinity does and nobody set it.

    OpenMP knows the affinity, not the quota, and reads the variable when it is loaded, with torch.
    """
    share = quota()
    if share is not None and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(usable())


def _above(mount: Path, path: str) -> list[Path]:
    """Return the folder of the group and those above it, up to the mount (a container sees its own group as that)."""
    folder = mount / path.strip().lstrip("/")
    return [folder, *(p for p in folder.parents if p == mount or mount in p.parents)]


def _of_version_2(file: Path) -> float | None:
    try:
        most, period = file.read_text(encoding="utf-8").split()[:2]
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _of_version_1(folder: Path) -> float | None:
    try:
        most, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
        )
        return most / period if most > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
