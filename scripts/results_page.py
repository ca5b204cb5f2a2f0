"""Write a results page from finished study folders, and its raw tables on a page below it.

Usage: python scripts/results_page.py RUN_FOLDER... docs/results/NAME.md --command 'limbeck study ...'
           --question 'What ...?' --verdict FILE [--arm LABEL]... [--commit HASH]

docs/results/NAME.md opens with the question, one table (the first of the first study; ``--arm`` chooses its rows) and
the verdict, and has at most 600 words. docs/results/raw/NAME.md has commands, commit, machine, all tables, verdicts,
alarms and costs. Paths below the folders that LIMBECK_DATA and the variables of the studies name are written with the
variable, so that no page names a machine's folders.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from limbeck.command.flags import MISSING, Flag, flags_of, shown
from limbeck.command.verb import schema

WORDS = 600
"""Largest number of words of a results page; its raw tables have no limit."""


def main() -> None:
    """Read the studies, write the two pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("page", type=Path)
    parser.add_argument("--command", required=True, action="append", help="what made each folder, as the page shows it")
    parser.add_argument("--question", required=True, help="what the page answers, one sentence")
    parser.add_argument("--verdict", type=Path, required=True, help="Markdown: the answer, and what is not shown")
    parser.add_argument("--arm", action="append", default=[], help="label of a row of the page's table; none: all")
    parser.add_argument("--title", help="heading of a page of several studies")
    parser.add_argument("--commit", help="commit of the source, where the run's provenance lacks it")
    parser.add_argument("--note", type=Path, help="Markdown put between the head and the first table of the raw page")
    given = parser.parse_args()
    if len(given.command) != len(given.folders):
        parser.error("give one --command for each folder")
    note = [] if given.note is None else [given.note.read_text(encoding="utf-8").strip(), ""]
    raw = [] if given.title is None else [f"# {given.title}", "", *note]
    for folder, command in zip(given.folders, given.command, strict=True):
        raw += _study(folder, command, given.commit, note if given.title is None else [], given.title is not None)
    front = front_page(given, raw[0])
    if (count := words(front)) > WORDS:
        parser.error(f"the page would have {count} words, and {WORDS} are allowed: name fewer --arm, shorten --verdict")
    below = given.page.parent / "raw" / given.page.name
    below.parent.mkdir(parents=True, exist_ok=True)
    lead = f"The question, one table and the verdict are on [its page](../{given.page.name})."
    written = {given.page: front, below: "\n".join([f"{raw[0]}: raw tables", "", lead, *raw[1:]])}
    for file, text in written.items():
        file.write_text(_without_folders(text, given.folders).rstrip("\n") + "\n", encoding="utf-8")


def front_page(given: argparse.Namespace, title: str) -> str:
    """Return the page: question, table, verdict, how it was measured."""
    first = given.folders[0]
    table = _table((first / "study.md").read_text(encoding="utf-8"), given.arm)
    verdict = given.verdict.read_text(encoding="utf-8").strip()
    parts = [title, f"**Question.** {given.question}", "\n".join(table), f"**Verdict.** {verdict}"]
    origins = [sorted(folder.glob("*/seed-*/provenance.json"))[0] for folder in given.folders]
    heads = [_head(json.loads(o.read_text(encoding="utf-8")), "", given.commit)[-1] for o in origins]
    parts += ["How it was measured: " + " ".join(dict.fromkeys(heads)), "\n".join(["```sh", *given.command, "```"])]
    return "\n\n".join([*parts, f"All tables, alarms, runs and one command an arm: [raw](raw/{given.page.name})."])


def _table(text: str, arms: Sequence[str]) -> list[str]:
    """Return the first table of a study with the columns arm, figure with its interval, and change."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    size = next((i for i, row in enumerate(rows[2:], 2) if row[0] == "arm"), len(rows))
    kept = [[row[0], f"{row[2]} {row[3]}", row[4]] for row in [rows[0], *rows[2:size]]]
    kept[0][1] = "figure, 95 % interval"
    if missing := [arm for arm in arms if arm not in [row[0] for row in kept]]:
        raise SystemExit(f"no row of the study is called {missing[0]!r}; its rows: {', '.join(r[0] for r in kept[1:])}")
    kept = [kept[0], *(row for row in kept[1:] if not arms or row[0] in arms)]
    lines = ["| " + " | ".join(row) + " |" for row in kept]
    return [lines[0], "|---|---:|---:|", *lines[1:]]


def words(text: str) -> int:
    """Return the number of words of a page: prose and cells of tables, without code blocks, pictures and addresses."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|<!--.*?-->", " ", text, flags=re.DOTALL)
    return sum(any(c.isalnum() for c in word) for word in text.split())


def _without_folders(text: str, folders: Sequence[Path]) -> str:
    for name in ("QA_CSV", "BASE", "MODERN", "GPT2LAYOUT", "LIMBECK_DATA"):
        value = os.environ.get(name)
        text = text.replace(value.rstrip("/"), f"${name}") if value else text
    for folder in folders:
        text = text.replace(str(folder), f"runs/{folder.name}")
    return text


def _study(folder: Path, command: str, commit: str | None, note: list[str], nested: bool) -> list[str]:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    table = (folder / "study.md").read_text(encoding="utf-8")
    origin = json.loads(next(iter(sorted(folder.glob("*/seed-*/provenance.json")))).read_text(encoding="utf-8"))
    title, _, rest = table.partition("\n")
    parts = ["#" * nested + title, "", *_head(origin, command, commit), "", *note, rest.strip(), ""]
    stages = folder / "stages.md"  # of a study with models and figures
    parts += [stages.read_text(encoding="utf-8").strip(), ""] if stages.is_file() else []
    return [*parts, *_alarms(study, nested), *_commands(study, nested), *_runs(study, nested), ""]


def _alarms(study: dict[str, Any], nested: bool) -> list[str]:
    """What rang, an arm a line; what kept silent is counted."""
    rang, silent = {}, 0
    for arm in study["arms"].values():
        for alarm in (a for run in arm["runs"] for a in run.get("alarms") or []):
            silent += not alarm["fired"]
            if alarm["fired"]:
                rang[f"- {arm['label']}: **{alarm['name']}**: {' '.join(alarm['sentence'].split())}"] = None
    head = [f"{'#' * nested}## Alarms", "", f"Of {silent + len(rang)} checks {len(rang)} rang."]
    return [*head, "", *rang, ""]


def _commands(study: dict[str, Any], nested: bool) -> list[str]:
    """One command an arm, the first seed's; paths of runs are those of the study."""
    lines = []
    for arm in study["arms"].values():
        file = Path(arm["runs"][0]["run"]) / "recipe.yaml"
        words = command_words(arm["runs"][0]["verb"], yaml.safe_load(file.read_text(encoding="utf-8")))
        lines += [f"# {arm['label']}", " ".join(map(quoted, ["limbeck", *words]))]
    return [f"{'#' * nested}## One command an arm", "", "```sh", *lines, "```", ""]


def quoted(word: str) -> str:
    """As a shell reads it; a mapping in double quotes, in which variables stand for folders."""
    if not word.startswith("{"):
        return shlex.quote(word)
    return '"' + re.sub(r'([\\"`$])', r"\\\1", word) + '"'


def command_words(verb: str, values: Mapping[str, Any]) -> list[str]:
    """The words of a command that gives a recipe these values: flags for what differs from the defaults."""
    positional, options = [], []
    for flag in flags_of(schema()["verbs"][verb]["schema"]):
        for value in _given(flag, values):
            usual = (
                flag.default.get("kind") if isinstance(flag.default, Mapping) and "kind" in flag.default else MISSING
            )
            if value is MISSING or value == flag.default or isinstance(value, Mapping) and value.get("kind") == usual:
                continue
            if flag.positional:
                positional.append(str(value))
            elif flag.form == "switch":
                options.append(f"--{flag.name}" if value else f"--no-{flag.name}")
            elif flag.form == "union":
                options += [f"--{flag.name}", value["kind"]]
            elif flag.form == "unions":
                options += [f"--{flag.name}", ",".join(v["kind"] for v in value)] if value else []
            elif flag.form == "mapping":
                options += [word for k, v in value.items() for word in (f"--{flag.name}", f"{k}={shown(v)}")]
            elif flag.form == "list":
                options += [f"--{flag.name}", ",".join(map(shown, value if isinstance(value, list) else [value]))]
            else:
                options += [f"--{flag.name}", shown(value)]
    return [verb, *positional, *options]


def _given(flag: Flag, values: Mapping[str, Any]) -> list[Any]:
    """Values of a flag: one, or none where its union member is not chosen."""
    if flag.member is None:
        return [_at(values, flag.path)]
    union = _at(values, flag.member.union)
    members = union if isinstance(union, list) else [union]
    chosen = [m for m in members if isinstance(m, Mapping) and m.get("kind") == flag.member.kind]
    return [_at(m, flag.path) for m in chosen]


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return MISSING
        values = values[key]
    return values


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


def _runs(study: dict[str, Any], nested: bool) -> list[str]:
    lines = [
        f"{'#' * nested}## Runs",
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
