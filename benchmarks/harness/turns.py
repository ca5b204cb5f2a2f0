"""The process that gives the arms their turns, checks that they computed the same, and sums up."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.claim import Arm, Bar, Claim
from harness.stamp import stamp
from harness.worker import serve

__all__ = ["Different", "judge", "main", "measure", "table"]


_ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LIMBECK_ALLOCATOR")  # an arm says itself which it has


class Different(Exception):
    """Two arms did not compute the same thing, so that comparing them would mean nothing."""


class _Worker:
    """The process of one arm."""

    def __init__(self, file: Path, arm: Arm, claim: Claim, quick: bool) -> None:
        self.arm = arm
        command = [sys.executable, str(file), "--worker", arm.name, "--warmup", str(claim.warmup)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_ALLOCATORS)}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": _path()}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command + ["--quick"] * quick, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment,
        )  # fmt: skip
        self.reply = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            code = self._process.returncode
            raise RuntimeError(f"arm '{self.arm.name}' failed with code {code}:\n{self._log.read()[-3000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def take(self, steps: int, profile: bool = False) -> dict[str, Any]:
        """Have it take ``steps`` and wait for them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a worker that died: reading its reply tells why
            print(json.dumps({"steps": steps, "profile": profile}), file=self._process.stdin, flush=True)
        self.reply = self._read()
        return self.reply

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def measure(file: Path, claim: Claim, *, quick: bool = False, profile: bool = False) -> dict[str, Any]:
    """Give every arm its turns.

    Args:
        file: the benchmark's file, which each worker runs.
        claim: what is measured.
        quick: passed on to the workers, which must build the same claim.
        profile: one more turn at the end, under torch's profiler.

    Returns:
        Plain values: for each arm its tokens a second round by round, and its memory; ``left_out``: arms without
        their packages.

    Raises:
        Different: the losses of two arms part.
        RuntimeError: a worker failed.
    """
    arms = [a for a in claim.arms if all(importlib.util.find_spec(p) for p in a.packages)]
    left_out = {a.name: f"needs {', '.join(a.packages)}" for a in claim.arms if a not in arms}
    began = time.time()
    rows = (_apart if claim.apart else _in_turn)(file, claim, arms, quick, profile)
    _compare(claim, rows)
    return {
        "name": claim.name,
        "title": claim.title,
        "setting": claim.setting,
        "unit": claim.unit,
        "axis": claim.axis,
        "rounds": claim.rounds,
        "steps": claim.steps,
        "seconds": round(time.time() - began, 1),
        "stamp": stamp(),
        "arms": rows,
        "left_out": left_out,
        "bars": [b for bar in claim.bars if (b := judge(bar, rows)) is not None],
    }


def _in_turn(file: Path, claim: Claim, arms: Sequence[Arm], quick: bool, profile: bool) -> dict[str, dict[str, Any]]:
    workers: list[_Worker] = []
    rates: dict[str, list[float]] = {a.name: [] for a in arms}
    try:
        for arm in arms:
            workers.append(_Worker(file, arm, claim, quick))
            _say(f"{arm.name}: warm")
        for number in range(claim.rounds):
            for w in workers:
                reply = w.take(claim.steps)
                rates[w.arm.name].append(reply["tokens"] / reply["seconds"])
            _say(f"round {number + 1} of {claim.rounds}: " + ", ".join(f"{r[-1]:,.0f}" for r in rates.values()))
        return {w.arm.name: _row(w, rates[w.arm.name], claim, profile) for w in workers}
    finally:
        for w in workers:
            w.close()


def _apart(file: Path, claim: Claim, arms: Sequence[Arm], quick: bool, profile: bool) -> dict[str, dict[str, Any]]:
    out = {}
    for arm in arms:
        worker = _Worker(file, arm, claim, quick)
        try:
            replies = [worker.take(claim.steps) for _ in range(claim.rounds)]
            rates = [r["tokens"] / r["seconds"] for r in replies]
            out[arm.name] = _row(worker, rates, claim, profile)
            _say(f"{arm.name}: {statistics.median(rates):,.0f}")
        finally:
            worker.close()
    return out


def _row(worker: _Worker, rates: list[float], claim: Claim, profile: bool) -> dict[str, Any]:
    held = worker.reply
    state = held["weight_bytes"] + held["optimizer_bytes"]
    above = held["peak_bytes"] - held["import_bytes"] - state
    out = {
        "remark": worker.arm.remark,
        "allocator": worker.arm.allocator,
        "rates": rates,
        "peak_bytes": held["peak_bytes"],
        "import_bytes": held["import_bytes"],
        "state_bytes": state,
        "above_state_bytes": above,
        "first": held["first"],
        "last": held["last"],
    }
    if profile:
        out["profile_ms_per_step"] = {
            kind: ms / claim.steps for kind, ms in worker.take(claim.steps, profile=True)["profile_ms"].items()
        }
    return out


def _compare(claim: Claim, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Losses of every arm against those of the first that reports them."""
    for name, tolerance in claim.equal.items():
        for when in ("first", "last"):
            told = {arm: r[when][name] for arm, r in rows.items() if name in r[when]}
            reference = next(iter(told), None)
            for arm, value in told.items():
                there = told[reference or arm]
                # a loss that training brought down to nothing is held to what it began from
                scale = max(abs(there), abs(rows[reference or arm]["first"][name]))
                if not abs(value - there) <= tolerance * scale:
                    raise Different(f"{claim.name}: the {when} {name} of '{arm}' is {value}, of '{reference}' {there}")


_MEMORY = {"peak": "peak_bytes", "above state": "above_state_bytes"}


def judge(bar: Bar, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The bar beside its figure: median, smallest and largest of the rounds' ratios; None where an arm is missing."""
    if bar.arm not in rows or bar.against not in rows:
        return None
    a, b = rows[bar.arm], rows[bar.against]
    if bar.quantity == "speed":
        ratios = [x / y for x, y in zip(a["rates"], b["rates"], strict=True)]
    else:
        key = _MEMORY[bar.quantity]
        ratios = [a[key] / b[key]]
    value = statistics.median(ratios)
    return {
        "arm": bar.arm,
        "against": bar.against,
        "quantity": bar.quantity,
        "bound": bar.bound,
        "at_least": bar.at_least,
        "value": value,
        "low": min(ratios),
        "high": max(ratios),
        "met": None if bar.bound is None else value >= bar.bound if bar.at_least else value <= bar.bound,
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for people, as a Markdown table of arms and one of bars."""
    lines = [
        f"| arm | allocator | {result['unit']}, median (min to max) | peak MB | above state, MB |",
        "|---|---|---:|---:|---:|",
    ]
    for name, r in result["arms"].items():
        rates = r["rates"]
        speed = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        sizes = [r[key] / 1e6 for key in _MEMORY.values()]
        lines.append(f"| {name} | {r['allocator']} | {speed} | " + " | ".join(f"{s:,.0f}" for s in sizes) + " |")
    for name, why in result["left_out"].items():
        lines.append(f"| {name} | left out: {why} | | | |")
    if result["bars"]:
        lines += ["", "| what | against | ratio (min to max) | bar | |", "|---|---|---:|---:|---|"]
        for b in result["bars"]:
            span = f" ({b['low']:.2f} to {b['high']:.2f})" if b["high"] > b["low"] else ""
            sign = "at least" if b["at_least"] else "at most"
            asked = "" if b["bound"] is None else f"{sign} {b['bound']:g}"
            verdict = {None: "", True: "met", False: "**missed**"}[b["met"]]
            lines.append(
                f"| {b['quantity']}, {b['arm']} | {b['against']} | {b['value']:.2f}{span} | {asked} | {verdict} |"
            )
    return "\n".join(lines)


def main(file: str, claim_of: Callable[[bool], Claim], shapes: Callable[[bool], Sequence[Any]]) -> None:
    """The command line of a benchmark file.

    Args:
        file: its ``__file__``.
        claim_of: quick -> the claim; called in every worker too, so it imports nothing heavy.
        shapes: quick -> the shapes whose random weights must lie ready.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="toy shapes, two rounds: tries the benchmark itself")
    parser.add_argument("--profile", action="store_true", help="one more turn each under torch's profiler")
    parser.add_argument("--rounds", type=int, help="turns of every arm")
    parser.add_argument("--arms", help="only these, separated by ';'")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--warmup", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    claim = claim_of(given.quick)
    if given.worker is not None:
        serve(next(a for a in claim.arms if a.name == given.worker), given.warmup)
        return
    changes: dict[str, Any] = {"rounds": given.rounds or (2 if given.quick else claim.rounds)}
    if given.arms:
        named = given.arms.split(";")
        changes["arms"] = tuple(a for a in claim.arms if a.name in named)
    claim = Claim(**{name: getattr(claim, name) for name in claim.__dataclass_fields__} | changes)
    with weights_folder(shapes(given.quick)):
        result = measure(Path(file), claim, quick=given.quick, profile=given.profile)
    print(f"{claim.title}: {claim.setting}\n\n{table(result)}", flush=True)
    for name, row in result["arms"].items():
        if "profile_ms_per_step" in row:
            print(f"\n{name}, ms a step by kind: {row['profile_ms_per_step']}")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")


@contextmanager
def weights_folder(shapes: Sequence[Any]) -> Iterator[None]:
    """Random weights of ``shapes`` in a folder of their own while this lasts, written by another process."""
    folder = tempfile.mkdtemp(prefix="limbeck-bench-")
    os.environ["LIMBECK_BENCH_WEIGHTS"] = folder
    try:
        for shape in shapes:
            code = f"from harness.shapes import Shape, write_weights; write_weights({shape!r})"
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": _path()})
        yield
    finally:
        del os.environ["LIMBECK_BENCH_WEIGHTS"]
        shutil.rmtree(folder)


def _path() -> str:
    """PYTHONPATH on which this checkout's source wins over what is installed."""
    here = Path(__file__).resolve().parents[2]
    return os.pathsep.join(filter(None, (str(here / "src"), str(here / "benchmarks"), os.environ.get("PYTHONPATH"))))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
