"""Write a results page from a finished study folder: command, commit, machine, table, verdicts, costs of the runs.

Usage: python scripts/results_page.py RUN_FOLDER docs/results/NAME.md --command 'limbeck study ...' [--commit HASH]

Paths below the folder named by LIMBECK_DATA are written as $LIMBECK_DATA, so that no page names a machine's folders.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the study, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the folder, as the page shows it")
    parser.add_argument("--commit", help="commit of the source, where the run's provenance lacks it")
    parser.add_argument("--note", type=Path, help="Markdown put between the head and the table")
    given = parser.parse_args()
    study = json.loads((given.folder / "study.json").read_text(encoding="utf-8"))
    table = (given.folder / "study.md").read_text(encoding="utf-8")
    origin = json.loads(next(iter(sorted(given.folder.glob("*/seed-*/provenance.json")))).read_text(encoding="utf-8"))
    title, _, rest = table.partition("\n")
    parts = [title, "", *_head(origin, given.command, given.commit), ""]
    if given.note is not None:
        parts += [given.note.read_text(encoding="utf-8").strip(), ""]
    parts += [rest.strip(), "", *_runs(study)]
    text = "\n".join(parts) + "\n"
    data = os.environ.get("LIMBECK_DATA")
    given.page.parent.mkdir(parents=True, exist_ok=True)
    given.page.write_text(text.replace(data.rstrip("/"), "$LIMBECK_DATA") if data else text, encoding="utf-8")


def _head(origin: dict[str, Any], command: str, commit: str | None) -> list[str]:
    machine, versions = origin["machine"], origin["versions"]
    source = origin["source"]["commit"] or commit or "unknown"
    memory = machine["memory_bytes"] / 2**30
    return [
        "```sh",
        command,
        "```",
        "",
        f"Commit {source[:12]}; {machine['cpu']}, {machine['cores']} cores, {memory:.0f} GiB, "
        f"{machine.get('threads', '?')} torch thread(s); torch {versions['torch']}, Python {versions['python']}. "
        "The machine is shared: times are what they were, and only ratios within a page mean something.",
    ]


def _runs(study: dict[str, Any]) -> list[str]:
    lines = [
        "## Runs",
        "",
        "| arm | seed | figures | steps | weights of step | tokens/s |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for arm in study["arms"].values():
        for seed, run in zip(study["seeds"], arm["runs"], strict=False):
            t = run.get("training") or {}
            figures = ", ".join(f"{k} {v['value']:.4g}" for k, v in (run.get("metrics") or {}).items())
            cells = [arm["label"], str(seed), figures, *(str(t.get(k, "-")) for k in ("steps", "weights_step"))]
            cells.append(f"{t['tokens_per_second']:,.0f}" if t else "-")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
