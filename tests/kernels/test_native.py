"""Compiling the C kernels: once, kept by source and processor, and told in one sentence where it cannot be."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.kernels import build, native


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_it_is_compiled_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")
    monkeypatch.delenv("LIMBECK_ARCH", raising=False)  # the tests run with it set, too
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    (source / "one.c").write_text("int one(void) { return 1; }\n")
    monkeypatch.setattr(build, "_SOURCE", source)  # the kernels themselves take half a minute
    monkeypatch.setenv("LIMBECK_CACHE", str(cache))
    made = build.built(build.compiler())
    assert ctypes.CDLL(str(made)).one() == 1 and list((cache / "native").iterdir()) == [made]
    stamp = made.stat().st_mtime_ns
    assert build.built(build.compiler()) == made and made.stat().st_mtime_ns == stamp
    x86 = platform.machine() == "x86_64"
    for arch in ("x86-64-v2", "x86-64-v3") if x86 else ("armv8-a", "armv8.2-a"):  # other instructions, another file
        monkeypatch.setenv("LIMBECK_ARCH", arch)
        build.built(build.compiler())
    assert len(list((cache / "native").iterdir())) == 3


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_it_says_so(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    monkeypatch.setenv("LIMBECK_NATIVE", "on")
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match="install a C compiler"):
        assert native.load() is None
    assert native.load() is None  # and not twice


def test_a_machine_without_any_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_NATIVE", "on")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="no C compiler was found"):
        assert native.load() is None


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_NATIVE", "off")
    assert native.load() is None
    native.load.cache_clear()
    monkeypatch.setenv("LIMBECK_NATIVE", "maybe")
    with pytest.raises(ValueError, match="'maybe'"):
        native.load()
    monkeypatch.setenv("LIMBECK_NATIVE", "on")
    monkeypatch.setenv("LIMBECK_ARCH", "x86-64-v4")
    monkeypatch.setattr(build, "processor", lambda: "flags : fma avx2 f16c")
    with pytest.raises(ValueError, match="this processor lacks avx512bw"):
        native.load()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_yield_their_core_unless_told_otherwise(given: dict[str, str], wanted: str) -> None:
    here = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import limbeck, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env=here | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted
