"""``limbeck doctor`` describes the machine and says how to mend what is missing."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import processors
from limbeck.jobs import machine
from limbeck.kernels import native
from tests.reference.tiny_runs import run


def told(**values: Any) -> list[tuple[str, str]]:
    return [(f["what"], f["mend"]) for f in run("doctor", **values)["findings"] if not f["optional"]]


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that lacks nothing, whatever this one lacks."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("LIMBECK_NATIVE", "off")  # compiles nothing
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(machine, "_LITTLE_DISK_BYTES", 0)
    monkeypatch.setattr(torch, "get_num_threads", processors.usable)


def test_it_describes_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_API_KEY", "secret")
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "blobs" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "hub" / "link").symlink_to(tmp_path / "hub" / "blobs" / "a")
    found = run("doctor", out=str(tmp_path / "out"))
    assert found["processor"]["usable"] == processors.usable() and found["versions"]["torch"] == torch.__version__
    assert [(c["variable"], c["bytes"], c["writable"]) for c in found["caches"]] == [
        ("LIMBECK_CACHE", 0, True), ("HF_HOME", 1000, True),
    ]  # fmt: skip
    assert found["settings"]["LIMBECK_NATIVE"] == "off" and found["kernels"]["state"] == "off"
    assert {"peers", "harness"} <= {e["name"] for e in found["extras"]}
    assert json.loads((tmp_path / "out" / "doctor.json").read_text(encoding="utf-8"))["verb"] == "doctor"
    assert "LIMBECK_API_KEY" not in found["settings"]
    assert all(place["free_bytes"] > 0 for place in found["disk"])


def test_kernels_switched_off_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told() == [("LIMBECK_NATIVE=off keeps the compiled kernels from being used", "unset LIMBECK_NATIVE")]
    assert not run("doctor")["healthy"]
    monkeypatch.setenv("LIMBECK_NATIVE", "maybe")
    ((what, mend),) = told()
    assert "'maybe'" in what and "unset" in mend


def test_no_compiler_and_one_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIMBECK_NATIVE", "on")
    monkeypatch.setattr(native.build, "packaged", lambda _: None)
    monkeypatch.setenv("CC", "no-such-compiler")
    ((what, mend),) = told()
    assert "no C compiler" in what and "apt install gcc" in mend
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "mine 1.0" && exit 0\necho broken >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    ((what, mend),) = told()
    assert what == "the C kernels could not be compiled: broken" and str(compiler) in mend
    assert run("doctor")["compiler"]["version"] == "mine 1.0"


def test_loaded_kernels_say_their_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.CompiledKernels(instructions="AVX2", file=Path("/a/b.so"), functions=object())  # type: ignore[arg-type]
    monkeypatch.setenv("LIMBECK_NATIVE", "on")
    monkeypatch.setattr(native, "find", lambda: library)
    found = run("doctor")
    assert found["healthy"] and found["kernels"]["state"] == "loaded" and found["kernels"]["instructions"] == "AVX2"


def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    test_loaded_kernels_say_their_instructions(monkeypatch)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file" / "cache"))
    ((what, mend),) = told()
    assert "cannot be written" in what and "LIMBECK_CACHE" in mend


def test_threads_disk_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: processors.usable() + 1)
    assert told()[0][1] == f"set OMP_NUM_THREADS={processors.usable()}"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "keep their cores busy" in told()[0][0]
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(machine, "_LITTLE_DISK_BYTES", 1e18)
    assert "are free at" in told()[0][0] and len(told()) == 2
    monkeypatch.setattr(machine, "_LITTLE_DISK_BYTES", 0)
    facts = machine.describe() | {"gpu": {"names": [], "cuda": None, "driver": True}}
    assert [f.what for f in machine.findings(facts)][0] == "there is an NVIDIA driver, but torch was built without CUDA"


def test_missing_extras_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(monkeypatch)
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["torch>=2", 'not-there>=1; extra == "peers"', "torch; extra == 'a'"]
    )
    found = run("doctor")
    assert found["extras"] == [{"name": "peers", "missing": ["not-there"]}, {"name": "a", "missing": []}]
    (only,) = found["findings"]
    assert only == {
        "what": "the extra 'peers' lacks not-there",
        "mend": "pip install 'limbeck[peers]'",
        "optional": True,
    }
    assert found["healthy"] and os.environ["LIMBECK_NATIVE"] == "on"
