"""Compiling the C kernels: once, kept by source and processor, and told in one sentence where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.kernels import native


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_it_is_compiled_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")
    native.load.cache_clear()
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    assert native.load() is not None
    (made,) = (tmp_path / "native").iterdir()
    stamp = made.stat().st_mtime_ns
    native.load.cache_clear()
    assert native.load() is not None
    assert made.stat().st_mtime_ns == stamp
    native.load.cache_clear()
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-g0"))  # other flags, another file
    assert native.load() is not None
    assert len(list((tmp_path / "native").iterdir())) == 2


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
