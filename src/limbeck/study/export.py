"""A study's runs as flat rows of one schema: CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.storage import write_text

__all__ = ["flat_rows", "write_exports"]


def flat_rows(arms: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row for each run, and one for each arm that failed; what was not measured is None.

    Args:
        arms: arm -> ``label``, ``knobs`` and ``runs`` (reports by seed).
        failed: arm -> reason.
    """
    rows = [_row(name, arm, seed, report) for name, arm in arms.items() for seed, report in arm["runs"].items()]
    rows += [{"arm": name, "label": name, "state": "failed", "reason": why} for name, why in failed.items()]
    columns = list(dict.fromkeys(c for row in rows for c in row))
    return [{c: row.get(c) for c in columns} for row in rows]


def _row(name: str, arm: Mapping[str, Any], seed: int, report: Mapping[str, Any]) -> dict[str, Any]:
    spent, training = report.get("cost") or {}, report.get("training") or {}
    speed, peak = spent.get("speed") or {}, spent.get("peak") or {}
    fired = [a["name"] for a in report.get("alarms") or [] if a["fired"]]
    row: dict[str, Any] = {
        "arm": name, "label": arm["label"], "state": "finished", "reason": None, "seed": seed,
        "verb": report.get("verb"), "run": report.get("run"), "evaluated": report.get("evaluated"),
        "parameters": spent.get("parameters"), "trainable": spent.get("trainable"), "bytes": spent.get("disk_bytes"),
        "memory_bytes": spent.get("memory_bytes"), "peak_load_bytes": peak.get("load_bytes"),
        "peak_use_bytes": peak.get("use_bytes"), "prefill_ms": speed.get("prefill_ms"),
        "ms_per_token": speed.get("decode_ms_per_token"), "flops_per_token": spent.get("flops_per_token"),
        "training_tokens": training.get("real_tokens"), "training_seconds": training.get("seconds"),
        "steps": training.get("steps"), "alarms": len(fired), "alarm_names": " ".join(sorted(set(fired))),
    }  # fmt: skip
    for figure, metric in (report.get("metrics") or {}).items():
        row |= {figure: metric["value"], f"{figure} low": metric["low"], f"{figure} high": metric["high"]}
    for key, metric in (report.get("agreement") or {}).items():
        row[key] = metric["value"]
    return row | {f"knob {k}": str(v) for k, v in (arm.get("knobs") or {}).items()}


def write_exports(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[Path, Path]:
    """Write ``study.csv`` and ``study.parquet`` and return their paths.

    Raises:
        StorageError: the disk refused.
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(folder / "study.csv", text.getvalue())
    # half a second to import: only who exports pays
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({c: pa.array([_same(row[c]) for row in rows]) for c in (rows[0] if rows else {})})
    pq.write_table(table, folder / "study.parquet")
    return folder / "study.csv", folder / "study.parquet"


def _same(value: Any) -> Any:
    """Numbers of one column are floats, so that a whole and a broken one may stand in it together."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
