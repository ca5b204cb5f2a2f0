"""Kill commands with SIGKILL at random moments, run them again, and compare the end with an undisturbed run's.

usage: python tests/faults/kills.py [KILLS] [--seed N]

Each kind of work (training, cache of a teacher, shards of corpora, quantizing, export, study) is run once undisturbed.
Then processes are forked, killed after a random share of that time, and run again until done; every file of the end
must be equal to the bit, but for times, speeds and names of folders. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = ["WORKS", "digest", "kill_many"]

_TRAIN = [
    "--batch-size",
    "4",
    "--context",
    "32",
    "--steps",
    "12",
    "--dtype",
    "fp32",
    "--probes",
    "off",
    "--audit",
    "off",
    "--no-generate",
    "--checkpoint-every",
    "3",
    "--quiet",
]
_TOLD = ("resumed", "resumed_from", "check", "metrics_bytes")  # that it was killed; hash and size of lines with times
_TIMES = (
    "seconds",
    "per_second",
    "tokens_per_second",
    "started",
    "speed",
    "created",
    "_ms",
    "ms_",
    "utilisation",
    "mfu",
    "peak",
    "memory",
)


def _works(base: Path) -> dict[str, tuple[list[str], str]]:
    """Kind of work -> command line without ``--out``, and the flag that names its folder."""
    start, data = str(base / "start"), str(base / "rows.jsonl")
    corpus = str(base / "corpus.json")
    return {
        "train": (["finetune", "--model", start, "--data", data, "--task", "text", *_TRAIN], "--out"),
        "cache": (
            [
                "distill",
                "--model",
                start,
                "--teacher",
                start,
                "--data",
                data,
                "--task",
                "text",
                "--teacher-top-k",
                "4",
                *_TRAIN,
            ],
            "--out",
        ),
        "shards": (["pretrain", "--config", corpus, *_TRAIN], "--out"),
        "quantize": (
            [
                "quantize",
                start,
                "--technique",
                "rtn",
                "--data",
                data,
                "--task",
                "text",
                "--no-generate",
                "--quiet",
            ],
            "--out",
        ),
        "export": (["export", start, "--overwrite", "--quiet"], "--out"),
        "study": (["study", str(base / "study.yaml"), "--quiet"], "--out"),
    }


WORKS = ("train", "cache", "shards", "quantize", "export", "study")


def _prepare(base: Path) -> None:
    import torch

    from tests.reference.small_model import saved

    torch.manual_seed(0)
    saved(base / "start", context=64)
    rows = [{"text": f"the {w} number {i} goes on by the sea"} for i in range(40) for w in ("sun", "moon")]
    (base / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (base / "corpus.json").write_text(
        json.dumps(
            {
                "corpora": {"a": {"data": str(base / "rows.jsonl")}, "b": {"data": "toy:stories"}},
                "limit": 200,
                "vocab_size": 300,
                "architecture": {
                    "preset": "toy",
                    "layers": 2,
                    "hidden_size": 16,
                    "heads": 2,
                    "kv_heads": 1,
                    "context": 64,
                },
            }
        )
    )
    (base / "study.yaml").write_text(
        json.dumps(
            {
                "seeds": [0, 1],
                "arms": {
                    "a": {
                        "verb": "finetune",
                        "values": {
                            "model": str(base / "start"),
                            "data": str(base / "rows.jsonl"),
                            "task": {"kind": "text"},
                            "batch_size": 4,
                            "context": 32,
                            "dtype": "fp32",
                            "probes": "off",
                            "audit": "off",
                            "train": {"steps": 4, "checkpoint_every": 2},
                            "measuring": {"generate": False},
                        },
                    }
                },
            }
        )
    )


def _run(argv: Sequence[str]) -> int:
    """Run one command in a forked process and return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                if not os.environ.get("KILLS_SHOW"):
                    os.dup2(nowhere.fileno(), 2)
            from limbeck import cli

            code = cli.main(list(argv))
        finally:
            os._exit(code)
    return pid


def _speaks_of_speed(value: Any) -> bool:
    """Whether a sentence of a report holds a measured speed, which no two runs share."""
    return isinstance(value, str) and (" ms a token" in value or " times slower" in value)


def _rows_without_times(text: str, folder: str) -> list[dict[str, str]]:
    """Rows of a study's CSV without columns of times and speeds."""
    return [
        {k: v.replace(folder, ".") for k, v in row.items() if not any(part in k for part in _TIMES)}
        for row in csv.DictReader(io.StringIO(text))
    ]


def _plain(value: Any, folder: str) -> Any:
    """A report without what differs from run to run: times, speeds, sessions, and the folder's name."""
    if isinstance(value, dict):
        names = [k for k in value if k not in _TOLD and not any(part in k for part in _TIMES)]
        kept = {k: value[k] for k in names}
        return {k.replace(folder, "."): _plain(v, folder) for k, v in kept.items()}
    if isinstance(value, list):
        return [_plain(v, folder) for v in value if not _speaks_of_speed(v)]
    if isinstance(value, str):
        return value.replace(folder, ".")
    return value


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file that a finished folder holds, by name; JSON without times, no TensorBoard events."""
    out = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if "tensorboard" in name or name.endswith((".lock", ".html", ".md", ".parquet", "provenance.json")):
            continue
        raw = file.read_bytes()
        if file.suffix == ".csv":
            raw = json.dumps(_rows_without_times(raw.decode(), str(folder))).encode()
        if file.suffix in (".json", ".jsonl", ".yaml"):
            texts = raw.decode().splitlines() if file.suffix == ".jsonl" else [raw.decode()]
            if file.suffix == ".yaml":
                raw = raw.replace(str(folder).encode(), b".")
            else:
                raw = json.dumps([_plain(json.loads(t), str(folder)) for t in texts], sort_keys=True).encode()
        out[name] = hashlib.sha256(raw).hexdigest()
    return out


def _finish(argv: Sequence[str]) -> int:
    _, status = os.waitpid(_run(argv), 0)
    return os.waitstatus_to_exitcode(status)


def kill_many(kills: int, seed: int, works: Sequence[str] = WORKS) -> dict[str, Any]:
    """Kill ``kills`` times over ``works`` and say what was lost.

    Returns:
        For each kind of work the kills, how many of them hit a running process, and the differences that were found.
    """
    draw, found = random.Random(seed), dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        _prepare(base)
        _import_all()
        for name in works:
            argv, flag = _works(base)[name]
            whole = base / f"{name}-whole" / "out"
            began = time.monotonic()
            code = _finish([*argv, *_more(name, whole), flag, str(whole)])
            assert code == 0, f"{name} ends with {code} undisturbed"
            seconds, wanted = time.monotonic() - began, digest(whole.parent)
            hits, bad, done = 0, list[str](), 0
            share = kills // len(works) + (works.index(name) < kills % len(works))
            while done < share:
                folder = base / f"{name}-{done}" / "out"
                for _ in range(draw.choice((1, 1, 2, 3))):
                    pid = _run([*argv, *_more(name, folder), flag, str(folder)])
                    time.sleep(draw.uniform(0, seconds))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                    hits, done = hits + os.WIFSIGNALED(status), done + 1
                code = _finish([*argv, *_more(name, folder), flag, str(folder)])
                here = digest(folder.parent)
                odd = [n for n in sorted({*wanted, *here}) if wanted.get(n) != here.get(n)]
                hidden = [p.name for p in folder.parent.rglob(".*.tmp")]
                if code != 0 or odd or hidden:
                    bad.append(f"after {done} kills: exit code {code}, other files {odd[:5]}, left behind {hidden[:3]}")
                shutil.rmtree(folder.parent)
            found[name] = {
                "kills": done,
                "of a running process": hits,
                "seconds undisturbed": round(seconds, 2),
                "lost": bad,
            }
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def _more(name: str, folder: Path) -> list[str]:
    return ["--shards", str(folder.parent / "shards")] if name == "shards" else []


def _import_all() -> None:
    """Import once what every forked command needs."""
    import limbeck.cli  # noqa: F401
    from limbeck.verbs.table import recipe

    for verb in ("finetune", "distill", "pretrain", "quantize", "export", "study"):
        recipe(verb)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--works", default=",".join(WORKS))
    asked = parser.parse_args()
    result = kill_many(asked.kills, asked.seed, tuple(asked.works.split(",")))
    print(json.dumps(result))
    sys.exit(any(one["lost"] for one in result.values()))
