from __future__ import annotations

import os
import subprocess
import sys

import pytest

from limbeck.kernels import allocator


class Library:
    """A C library that notes what it is told."""

    def __init__(self, glibc: bool = True, accepts: bool = True) -> None:
        self.told: list[tuple[int, int]] = []
        self.accepts = accepts
        if glibc:
            self.gnu_get_libc_version = object()

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append((parameter, value))
        return int(self.accepts)


@pytest.fixture(autouse=True)
def _linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def test_settings_are_made() -> None:
    library = Library()
    assert allocator.keep_freed_memory({}, library)  # type: ignore[arg-type]
    assert library.told == [(-4, 0), (-1, 2**31 - 1)]
    assert allocator.keep_freed_memory({"LIMBECK_ALLOCATOR": "keep"}, Library())  # type: ignore[arg-type]
    assert not allocator.keep_freed_memory({}, Library(accepts=False))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "environment", [{"LIMBECK_ALLOCATOR": "system"}, {"MALLOC_MMAP_MAX_": "0"}, {"GLIBC_TUNABLES": "x"}]
)
def test_the_environment_switches_it_off(environment: dict[str, str]) -> None:
    library = Library()
    assert not allocator.keep_freed_memory(environment, library)  # type: ignore[arg-type]
    assert library.told == []


def test_nothing_happens_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(glibc=False)
    assert not allocator.keep_freed_memory({}, library)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory({}, Library())  # type: ignore[arg-type]
    assert library.told == []


def test_a_wrong_word_is_an_error() -> None:
    with pytest.raises(ValueError, match="LIMBECK_ALLOCATOR is 'keeep'"):
        allocator.keep_freed_memory({"LIMBECK_ALLOCATOR": "keeep"})


def test_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trims(Library):
        def malloc_trim(self, pad: int) -> int:
            self.told.append((pad, 0))
            return 1

    library = Trims()
    monkeypatch.setenv("LIMBECK_ALLOCATOR", "system")
    assert not allocator.give_back_freed_memory(library) and library.told == []  # type: ignore[arg-type]
    monkeypatch.delenv("LIMBECK_ALLOCATOR")
    assert allocator.give_back_freed_memory(library)  # type: ignore[arg-type]
    assert library.told == [(0, 0)]
    assert not allocator.give_back_freed_memory(Library())  # type: ignore[arg-type]


GIVEN_BACK = """
import torch
from limbeck.kernels.allocator import give_back_freed_memory, keep_freed_memory
from limbeck.measure.cost import held_bytes
assert keep_freed_memory({})
kept = [torch.ones(1 << 18) for _ in range(200)]
kept = kept[::2]
before = held_bytes(torch.device("cpu"))
assert give_back_freed_memory()
print(before - held_bytes(torch.device("cpu")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_holes_between_blocks_in_use_go_back() -> None:
    own = {k: v for k, v in os.environ.items() if k != "LIMBECK_ALLOCATOR"}
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True, env=own)
    assert int(done.stdout) > 80 << 20


PROBE = """
import ctypes, sys
from limbeck.kernels.allocator import keep_freed_memory
if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
    sys.exit(77)
made = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
block = libc.malloc(256 << 20)
ctypes.memset(block, 1, 256 << 20)
full = resident()
libc.free(block)
print(made, full - resident() > 200 << 20)
"""


@pytest.mark.parametrize(("word", "said"), [("keep", "True False"), ("system", "False True")])
def test_freed_memory_stays_or_goes(word: str, said: str) -> None:
    """In a process of its own: 256 MiB, written and freed."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env={"LIMBECK_ALLOCATOR": word}, capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.stdout.strip() == said, done.stderr
