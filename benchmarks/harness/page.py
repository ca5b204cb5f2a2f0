"""The results page and its raw tables, from the JSON files of the benchmarks.

Usage: python -m harness.page FOLDER PAGE, with benchmarks/ on PYTHONPATH: reads FOLDER/*.json and FOLDER/*.md (remarks
on the claim of that name), writes PAGE (question, one table, verdict), raw/PAGE beside it, and plots into FOLDER.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.svg import Panel, draw
from harness.turns import table

__all__ = ["front", "main", "page"]

_ORDER = (
    "full_finetuning", "sft", "ragged_finetuning", "lora_finetuning", "distillation", "distillation_memory", "gkd",
    "dpo", "perplexity", "matmul_share", "decode", "prefill", "decode_batch", "growth_sequence", "growth_vocabulary",
)  # fmt: skip

_HEAD = """# Performance: raw tables

The question, one table and the verdict are on [its page](../performance.md).

Written by `make bench` from the files in `{folder}/`. Each arm runs in a process of its own; the arms take turns, round
after round, on the same random weights and tokens, and a run ends with an error where their losses part. A ratio is
that of two turns of one round; told are the median of the rounds, and the smallest and largest.

- **Peak** is the largest resident size of the process, interpreter and libraries included. **Above state** leaves out
  what it had after its imports, the weights (master copies too) and the optimizer's moments.
- **Allocator**: `system` is glibc as it comes; `keep` are the settings that Limbeck makes for itself at its start
  (`kernels.allocator`), made in the peer's process by the same function.
- Bars are those the project set itself before it measured.
"""

_FRONT = """# Performance

**Question.** How fast and small is Limbeck beside the libraries that people use for the same work, and which of the
bars that the project set itself are met?

{table}

**Verdict.** {met} of {all} bars are met{missed}. {kept} of those missed are against a peer that was made to keep freed
memory, as Limbeck does: part of what is gained over the peer as it comes is that. The reasons stand with each claim on
the raw page.

How it was measured: each arm in a process of its own, arms in turn, the same random weights and tokens; a run ends with
an error where losses part. The figure is the median of the ratios of two turns of one round; speed: higher is better;
peak and memory above the state: lower is better. Written by `make bench` on {machines}; commits {commits}.

Every ratio with its bar, all turns, commands, machines and plots: [raw](raw/{name}).
"""


def front(results: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the page: question, a row a claim, verdict.

    Args:
        results: what ``harness.turns.measure`` returned, one a claim.
        name: file name of the page, which its raw tables share.
    """
    bars = {r["title"]: [b for b in r["bars"] if b["bound"] is not None] for r in results}
    lines = ["| claim | bars met | ratios (bar), as the peer comes; in italics: missed |", "|---|---:|---|"]
    for title, those in bars.items():
        plain = [b for b in those if "freed memory kept" not in b["against"]] or those
        shown = dict.fromkeys(_short(b) for b in plain[:4])
        if those:
            lines.append(f"| {title} | {sum(b['met'] for b in those)} of {len(those)} | {'; '.join(shown)} |")
    every = [b for those in bars.values() for b in those]
    missed = sorted({b["quantity"] for b in every if not b["met"]})
    stamps = [r["stamp"] for r in results]
    return _FRONT.format(
        table="\n".join(lines),
        met=sum(b["met"] for b in every),
        all=len(every),
        kept=sum("freed memory kept" in b["against"] for b in every if not b["met"]),
        missed=f"; missed are bars of {' and '.join(missed)}" if missed else "",
        machines=" and ".join(dict.fromkeys(f"{s['cpu']}, {s['cores']} cores" for s in stamps)),
        commits=", ".join(dict.fromkeys(s["commit"] for s in stamps)),
        name=name,
    )


def _short(bar: Mapping[str, Any]) -> str:
    text = f"{bar['quantity']} {bar['value']:.2f} ({bar['bound']:g})"
    return text if bar["met"] else f"*{text}*"


def page(results: Sequence[Mapping[str, Any]], folder: Path, remarks: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the page of raw tables, and the plots by file name.

    Args:
        results: what ``harness.turns.measure`` returned, one a claim.
        folder: where the plots lie, as the page names it.
        remarks: Markdown put at the end of the claim's section.
    """
    plots: dict[str, str] = {}
    parts = [_HEAD.format(folder=folder), _bars(results)]
    for r in results:
        part = [f"## {r['title']}", f"{r['setting'][0].upper()}{r['setting'][1:]}.", _stamp(r)]
        if r["axis"]:
            name = f"{r['name']}.svg"
            plots[name] = _plot(r)
            part.append(f"![{r['title']}: {r['unit']} and peak memory]({folder}/{name})")
        part.append(table(r))
        told = [f"- {name}: {arm['remark']}." for name, arm in r["arms"].items() if arm["remark"]]
        if told and not r["axis"]:
            part.append("\n".join(told))
        part += [_profile(r)] if any("profile_ms_per_step" in a for a in r["arms"].values()) else []
        part += [remarks[r["name"]].strip()] if r["name"] in remarks else []
        parts.append("\n\n".join(part))
    return "\n\n".join(p.strip() for p in parts) + "\n", plots


def _bars(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| claim | what | against | ratio | bar | |", "|---|---|---|---:|---:|---|"]
    for r in results:
        for b in r["bars"]:
            if b["bound"] is not None:
                sign = "at least" if b["at_least"] else "at most"
                verdict = "met" if b["met"] else "**missed**"
                shown = f"{b['quantity']}, {b['arm']} | {b['against']} | {b['value']:.2f} | {sign} {b['bound']:g}"
                lines.append(f"| {r['title']} | {shown} | {verdict} |")
    return "\n".join(lines)


def _stamp(r: Mapping[str, Any]) -> str:
    s = r["stamp"]
    versions = ", ".join(f"{name} {version}" for name, version in s["versions"].items())
    return (
        f"```sh\n{s['command']}\n```\n\nCommit {s['commit']}; {s['cpu']}, {s['cores']} cores, {s['threads']} threads, "
        f"{s['memory_bytes'] / 2**30:.0f} GiB; {versions}; Python {s['python']}; load {s['load'][0]:g} at the end; "
        f"{r['rounds']} rounds of {r['steps']} steps, {r['seconds']:.0f} s in all."
    )


def _plot(r: Mapping[str, Any]) -> str:
    speed: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    for name, arm in r["arms"].items():
        line, _, x = name.rpartition(", ")
        speed.setdefault(line, []).append((float(x), statistics.median(arm["rates"])))
        memory.setdefault(line, []).append((float(x), arm["peak_bytes"] / 1e9))
    return draw([Panel(r["unit"], r["axis"], speed), Panel("peak memory, GB", r["axis"], memory)])


def _profile(r: Mapping[str, Any]) -> str:
    arms = {name: a["profile_ms_per_step"] for name, a in r["arms"].items() if "profile_ms_per_step" in a}
    kinds = sorted({k for a in arms.values() for k in a}, key=lambda k: -max(a.get(k, 0.0) for a in arms.values()))
    lines = [
        "Where the time goes, ms a step of own time under torch's profiler:\n",
        "| kind | " + " | ".join(arms) + " |",
        "|---|" + "---:|" * len(arms),
    ]
    lines += [f"| {k} | " + " | ".join(f"{a.get(k, 0.0):,.0f}" for a in arms.values()) + " |" for k in kinds]
    sums = " | ".join(f"{sum(a.values()):,.0f}" for a in arms.values())
    return "\n".join([*lines, f"| all | {sums} |"])


def main(folder: Path, target: Path) -> None:
    """Write the page ``target`` from the files in ``folder``, its raw tables, and the plots into the folder."""
    results = [r for f in sorted(folder.glob("*.json")) if "arms" in (r := json.loads(f.read_text()))]
    results.sort(key=lambda r: (_ORDER.index(r["name"]) if r["name"] in _ORDER else len(_ORDER), r["name"]))
    remarks = {f.stem: f.read_text() for f in folder.glob("*.md")}
    text, plots = page(results, ".." / folder.relative_to(target.parent), remarks)
    raw = target.parent / "raw" / target.name
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(text)
    target.write_text(front(results, target.name))
    for name, svg in plots.items():
        (folder / name).write_text(svg)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
