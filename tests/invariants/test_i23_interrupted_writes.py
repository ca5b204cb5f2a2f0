"""I23: kill -9 during a checkpoint, or a full disk, leaves the previous one whole and loadable."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck import storage
from limbeck.errors import StorageError
from limbeck.run import Run
from limbeck.train.checkpoint import Checkpoints
from tests.reference.metrics import same_but_time
from tests.reference.resumable import fit
from tests.reference.training import same

ROOT = Path(__file__).parents[2]

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from limbeck.train import checkpoint
from tests.reference.resumable import fit
write = checkpoint._write
def cut(file, tensors):
    write(file, tensors)
    if {name!r} == file.name and (Path(sys.argv[1]) / "checkpoints" / "step-00000003").exists():
        os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint._write = cut
fit(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_killed_while_a_checkpoint_is_written(name: str, tmp_path: Path) -> None:
    weights, _, metrics = fit(tmp_path / "whole")
    folder = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED_WHILE_WRITING.format(name=name), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert Checkpoints(folder / "checkpoints").steps() == [0, 3]
    assert list((folder / "checkpoints").glob(".*.tmp"))
    again, resumed, again_metrics = fit(folder)
    assert resumed.resumed_from == 3
    assert not list((folder / "checkpoints").glob(".*.tmp"))
    assert same(weights, again)
    assert [same_but_time(x) for x in metrics] == [same_but_time(x) for x in again_metrics]


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _, _ = fit(tmp_path / "whole")
    folder = tmp_path / "full"

    def full(path: Path) -> None:
        if "step-00000006" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "_sync", full)
    with pytest.raises(StorageError, match=r"step-00000006: the disk is full; what was there before is whole"):
        fit(folder)
    monkeypatch.undo()
    assert Checkpoints(folder / "checkpoints").steps() == [3, 4]
    again, resumed, _ = fit(folder)
    assert resumed.resumed_from == 4
    assert same(weights, again)


def test_a_file_that_the_system_refuses_to_let_grow(tmp_path: Path) -> None:
    """The write itself fails inside safetensors, as on a full disk: the limit is the kernel's own."""
    fit(tmp_path / "run", steps=3, checkpoint_every=1)
    before = {p: p.read_bytes() for p in sorted((tmp_path / "run" / "checkpoints").rglob("*.safetensors"))}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    state = next(iter(checkpoints.states(_settings())))[1]
    state.step = 4  # type: ignore[union-attr]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(StorageError, match="larger than this system lets a file be"):
            checkpoints.save(state, _tensors(before), {})  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps() == [2, 3]
    assert {p: p.read_bytes() for p in sorted((tmp_path / "run" / "checkpoints").rglob("*.safetensors"))} == before


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of one mebibyte, where the test may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageError, match="the disk is full") as caught:
            fit(small / "run", checkpoint_every=1, keep=50)
        held = Checkpoints(small / "run" / "checkpoints").steps()
        assert held and str(small) in str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        weights, resumed, metrics = fit(small / "run", checkpoint_every=1, keep=50)
        assert resumed.resumed_from == held[-1]
        whole, _, whole_metrics = fit(tmp_path / "whole", checkpoint_every=1, keep=50)
        assert same(weights, whole)
        assert [same_but_time(x) for x in metrics] == [same_but_time(x) for x in whole_metrics]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_torn_line_of_metrics_is_cut(tmp_path: Path) -> None:
    weights, _, metrics = fit(tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(step: int, _: Any) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        fit(tmp_path / "cut", on_step=kill)
    run = Run.open(tmp_path / "cut")
    whole_lines = len(run.metrics())
    with run.metrics_file.open("a") as file:
        file.write('{"step": 7, "train/lo')
    assert len(run.metrics()) == whole_lines
    again, _, again_metrics = fit(tmp_path / "cut")
    assert same(weights, again)
    assert [same_but_time(x) for x in metrics] == [same_but_time(x) for x in again_metrics]


def _settings() -> Any:
    from tests.reference.resumable import settings

    return settings(steps=3, checkpoint_every=1)


def _tensors(files: dict[Path, bytes]) -> Any:
    from safetensors.torch import load

    return load(next(data for path, data in files.items() if path.name == "model.safetensors")), {}
