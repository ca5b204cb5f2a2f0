"""Find or make the shared library of the C kernels (``native/``) for the processor at hand; imports no torch.

A wheel holds one library for each of ``VARIANTS`` of its machine (``setup.py`` compiles them), and the best that the
processor serves is taken. Elsewhere, as from a checkout, the source is compiled at first use with the system's compiler
and kept in the cache folder. Both are named after the source, so that a stale one is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from limbeck.processors import usable

__all__ = [
    "VARIANTS", "built", "cache_folder", "compile_library", "compiler", "features", "lacking", "package_variants",
    "packaged", "processor",
]  # fmt: skip

_SOURCE = Path(__file__).with_name("native")
_PACKAGED = Path(__file__).with_name("native") / "built"
_FLAGS = ("-O3", "-fopenmp", "-fPIC", "-std=gnu11", "-Wno-psabi")
_AVX2 = {"avx2", "fma", "f16c", "bmi1", "bmi2"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}

VARIANTS: dict[str, tuple[str, set[str], tuple[str, ...]]] = {
    "x86-64-v4-bf16": (
        "x86_64", _AVX512 | {"avx512_vnni", "avx512_bf16"}, ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
    ),
    "x86-64-v4": ("x86_64", _AVX512, ("-march=x86-64-v4",)),
    "x86-64-v3": ("x86_64", _AVX2, ("-march=x86-64-v3",)),
    "aarch64-dotprod": ("aarch64", {"asimd", "asimddp"}, ("-march=armv8.2-a+dotprod+fp16",)),
}  # fmt: skip
"""Libraries of a wheel, the best first: name -> machine, features that the processor must have, flags."""


def processor() -> str:
    """Return what ``-march=native`` depends on, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join((platform.machine(), platform.processor(), *sorted(told)))


def features() -> set[str]:
    """Return the names of the processor's features, as the system calls them."""
    return set(processor().split())


def lacking(arch: str) -> list[str]:
    """Return the features that this processor lacks for the instructions ``arch``; none where they are not known."""
    needed = VARIANTS[arch][1] if arch in VARIANTS else set()
    return sorted(needed - features())


def packaged(arch: str) -> Path | None:
    """Return the best library of this package that the processor serves; None: there is none, or another is wanted.

    Args:
        arch: name of the variant wanted, "" for the best one.
    """
    for name, (machine, needed, _) in VARIANTS.items():
        file = _PACKAGED / f"{name}-{_fingerprint()}.so"
        if arch in ("", name) and machine == platform.machine() and file.is_file() and needed <= features():
            return file
    return None


def package_variants(folder: Path, cc: Sequence[str], machine: str, names: Sequence[str]) -> list[Path]:
    """Compile the named variants of ``machine`` into ``folder``; those that the compiler does not know are left out."""
    made = []
    for name, (where, _, flags) in VARIANTS.items():
        if where != machine or name not in names:
            continue
        target = folder / f"{name}-{_fingerprint()}.so"
        try:
            compile_library(cc, (*_FLAGS, *flags), target)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"the C kernels were not compiled for {name}: {error}", file=sys.stderr)
            continue
        made.append(target)
    return made


def compiler() -> list[str]:
    """Return the command of the C compiler: ``CC``, else cc, gcc or clang.

    Raises:
        FileNotFoundError: there is none.
    """
    given = os.environ.get("CC")
    if given:
        return shlex.split(given)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C compiler was found")


def cache_folder() -> Path:
    """Return the folder of compiled libraries: below ``LIMBECK_CACHE``, else ``~/.cache/limbeck``."""
    return Path(os.environ.get("LIMBECK_CACHE", "~/.cache/limbeck")).expanduser() / "native"


def built(cc: Sequence[str]) -> Path:
    """Return the library compiled for this processor, compiling it unless that was done before."""
    flags = (*_FLAGS, *_flags_of(os.environ.get("LIMBECK_ARCH") or "native"))
    key = hashlib.sha256()
    for part in (_fingerprint().encode(), " ".join((*cc, *flags)).encode(), processor().encode()):
        key.update(hashlib.sha256(part).digest())
    target = cache_folder() / f"{key.hexdigest()[:24]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        print("compiling the C kernels for this processor, once: up to a minute ...", file=sys.stderr, flush=True)
        compile_library(cc, flags, target)
    return target


def compile_library(cc: Sequence[str], flags: Sequence[str], target: Path) -> None:
    """Compile all of ``native/`` into ``target``, which appears whole under its name.

    Raises:
        subprocess.SubprocessError: the compiler failed; ``stderr`` says why.
        OSError: it cannot be run, or the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        units = sorted(_SOURCE.glob("*.c"))
        objects = [str(Path(place) / f"{s.stem}.o") for s in units]
        made = Path(place) / target.name
        with ThreadPoolExecutor(min(len(units), usable())) as pool:
            list(pool.map(lambda s, o: _call([*cc, *flags, "-c", str(s), "-o", o]), units, objects))
        _call([*cc, *flags, "-shared", *objects, "-o", str(made), "-lm"])
        made.replace(target)


def _flags_of(arch: str) -> tuple[str, ...]:
    return VARIANTS[arch][2] if arch in VARIANTS else (f"-march={arch}",)


@cache
def _fingerprint_of(sources: tuple[Path, ...], flags: tuple[str, ...]) -> str:
    key = hashlib.sha256(" ".join(flags).encode())
    for source in sources:
        key.update(hashlib.sha256(source.read_bytes()).digest())
    return key.hexdigest()[:16]


def _fingerprint() -> str:
    """Name of the source as it is now, and of the flags."""
    return _fingerprint_of(tuple(sorted(_SOURCE.glob("*.[ch]"))), _FLAGS)


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
