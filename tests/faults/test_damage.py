"""A checkpoint flipped by a bit, or cut, at fifty places; a clock that jumps while a run goes on."""

from __future__ import annotations

import ast
import json
import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import limbeck
from limbeck import cli
from limbeck import run as run_module
from limbeck.train.checkpoint import Checkpoints
from tests.faults.kills import digest
from tests.reference.small_model import saved
from tests.reference.training import same, weights
from tests.train.test_checkpoint import Kit

PLACES = 50


def flip(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def shorten(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


@pytest.mark.parametrize("damage", [flip, shorten])
def test_a_checkpoint_damaged_at_any_place_gives_way_aloud(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(0)
    for place in range(PLACES):
        kit, checkpoints = Kit(), Checkpoints(tmp_path / str(place))
        kit.save(checkpoints, 1)
        before = weights(kit.model)
        files = sorted(kit.save(checkpoints, 2, best=2).iterdir())
        file = files[place % len(files)]
        damage(file, draw)
        with pytest.warns(UserWarning, match=f"step-00000002.*{file.name}|{file.name}"):
            state = kit.restore(checkpoints)
        assert state is not None and state.step == 1, file
        assert same(weights(kit.model), before), file


def training(folder: Path, base: Path) -> list[str]:
    return [
        "finetune", "--model", str(base / "start"), "--data", str(base / "rows.jsonl"), "--task", "text",
        "--steps", "6", "--batch-size", "4", "--context", "32", "--dtype", "fp32", "--probes", "off", "--audit", "off",
        "--no-generate", "--checkpoint-every", "2", "--quiet", "--out", str(folder),
    ]  # fmt: skip


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "start", context=64)
    rows = [json.dumps({"text": f"the sun number {i} goes on by the sea"}) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    assert cli.main(training(tmp_path / "a" / "run", tmp_path)) == 0
    draw, now = random.Random(1), time.time()

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def, override]
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=draw.uniform(-4000, 4000))

    monkeypatch.setattr(time, "time", lambda: now + draw.uniform(-1e9, 1e9))
    monkeypatch.setattr(run_module, "datetime", Jumping)
    assert cli.main(training(tmp_path / "b" / "run", tmp_path)) == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_no_duration_is_taken_from_the_clock_on_the_wall() -> None:
    """The server alone asks for it: an answer of its API says when it was made."""
    for file in Path(limbeck.__file__).parent.rglob("*.py"):
        if file.parent.name == "serve":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("time", "time"), f"{file} line {node.lineno}"
