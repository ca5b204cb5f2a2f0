"""The report of ``limbeck doctor``: what the machine offers, what is missing, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from limbeck.jobs.machine import describe, findings
from limbeck.jobs.recipe import Report, facts

__all__ = ["machine_report"]

_GB = 1e9


def machine_report(verb: str) -> Report:
    """Return what this machine is, and what was found to be missing or slow on it."""
    seen = describe()
    found = findings(seen)
    values = {"verb": verb, "healthy": all(f.optional for f in found), **seen}
    values["findings"] = [asdict(f) for f in found]
    wrong = [(f.what, f.mend) for f in found if not f.optional]
    extra = [(f.what, f.mend) for f in found if f.optional]
    body = [facts("this machine", _rows(seen)), facts("to mend", wrong or [("nothing is missing", "")])]
    if extra:
        body.append(facts("where it is wanted", extra))
    return Report(values, tuple(body))


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
