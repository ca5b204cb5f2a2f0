"""``limbeck doctor``: what the machine offers, what is missing, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from limbeck.jobs.machine import describe, findings
from limbeck.jobs.recipe import Display, Recipe, Report, facts

__all__ = ["Doctor"]

_GB = 1e9


class Doctor(Recipe):
    """Describe this machine: processor, compiled kernels, compiler, caches, extras, torch, GPU and disk.

    It says what is missing or slow and how to mend it, and asks nothing of the network.
    """

    verb: ClassVar[str] = "doctor"
    summary: ClassVar[str] = "describe this machine, what is missing on it, and how to mend it"
    files: ClassVar[tuple[str, ...] | None] = ("doctor.json",)

    def run(self, session: Display) -> Report:
        """Look, and say what was found."""
        seen = describe()
        found = findings(seen)
        values = {"verb": self.verb, "healthy": all(f.optional for f in found), **seen}
        values["findings"] = [asdict(f) for f in found]
        wrong = [(f.what, f.mend) for f in found if not f.optional]
        extra = [(f.what, f.mend) for f in found if f.optional]
        body = [facts("this machine", _rows(seen))]
        body.append(facts("to mend", wrong or [("nothing is missing", "")]))
        if extra:
            body.append(facts("where it is wanted", extra))
        report = Report(values, tuple(body))
        if self.out is not None:
            report.write(Path(self.out) / "doctor.json")
        return report


def _rows(seen: Mapping[str, Any]) -> list[tuple[str, object]]:
    p, k, c, gpu = seen["processor"], seen["kernels"], seen["compiler"], seen["gpu"]
    quota = "" if p["quota"] is None else f", quota {p['quota']:g}"
    kernels = f"{k['state']} ({k['reason'] or 'as asked'})"
    if k["state"] == "loaded":
        kernels = f"{k['instructions']}, {k['file']}"
    extras = [f"{e['name']}{' (missing)' if e['missing'] else ''}" for e in seen["extras"]]
    return [
        ("processor", f"{p['name']}, {p['platform']}"),
        ("cores", f"{p['cores']}, usable {p['usable']}{quota}; torch runs {p['threads']} threads"),
        ("features", " ".join(p["features"]) or "none that the kernels know"),
        ("memory", f"{p['memory_bytes'] / _GB:.1f} GB"),
        ("kernels", kernels),
        ("compiler", c["version"] or c["reason"]),
        *((f["variable"], f"{f['path']}, {f['bytes'] / _GB:.2f} GB") for f in seen["caches"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in seen["versions"].items())),
        ("GPU", ", ".join(gpu["names"]) or "none that torch can use"),
        *((f"disk, {d['name']}", f"{d['path']}, {(d['free_bytes'] or 0) / _GB:.1f} GB free") for d in seen["disk"]),
        ("extras", ", ".join(extras) or "unknown"),
        ("settings", ", ".join(f"{k}={v}" for k, v in seen["settings"].items()) or "none"),
    ]  # fmt: skip
