"""Describe this machine: processor, kernels, compiler, caches, extras, torch, GPU and disk; find what is wrong.

Nothing is asked of the network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from limbeck import processors
from limbeck.kernels import build, native
from limbeck.run import machine, versions

__all__ = ["Fault", "describe", "findings"]

_NAMED = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "asimddp",
    "bf16", "i8mm", "sve",
)  # fmt: skip
_LITTLE_DISK_BYTES = 5e9
_SHOWN = re.compile(r"(LIMBECK|OMP|GOMP|HF_H)(?!.*(KEY|TOKEN|SECRET|PASS))")  # variables; none that may be a secret


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is missing or slow here.

    Attributes:
        what: a sentence.
        mend: what to do about it.
        optional: it is missing only for who wants it.
    """

    what: str
    mend: str
    optional: bool = False


def describe() -> dict[str, Any]:
    """Return everything that is known of the machine, as plain values."""
    here, features = machine(), build.features()
    return {
        "processor": {
            "name": here["cpu"],
            "platform": here["platform"],
            "cores": os.cpu_count(),
            "usable": processors.usable(),
            "quota": processors.quota(),
            "threads": torch.get_num_threads(),
            "features": [name for name in _NAMED if name in features],
            "memory_bytes": here["memory_bytes"],
        },
        "kernels": _kernels(),
        "compiler": _compiler(),
        "caches": [_folder(name, path) for name, path in _cache_folders().items()],
        "extras": _extras(),
        "versions": versions(),
        "gpu": {
            "names": here["gpus"],
            "cuda": torch.version.cuda,
            "driver": Path("/proc/driver/nvidia/version").exists(),
        },
        "disk": [_disk(name, Path(path)) for name, path in (("here", "."), ("temporary", tempfile.gettempdir()))],
        "settings": {k: os.environ[k] for k in sorted(os.environ) if _SHOWN.match(k)},
    }


def findings(facts: Mapping[str, Any]) -> list[Fault]:
    """Return what is missing or slow by what ``describe`` returned, the gravest first."""
    out = [*_of_kernels(facts), *_of_threads(facts["processor"])]
    for folder in facts["caches"]:
        if not folder["writable"]:
            out.append(
                Fault(
                    f"the cache {folder['path']} cannot be written", f"set {folder['variable']} to a folder that can"
                )
            )
    for place in facts["disk"]:
        if place["free_bytes"] is not None and place["free_bytes"] < _LITTLE_DISK_BYTES:
            free = f"{place['free_bytes'] / 1e9:.1f} GB are free at {place['path']}"
            out.append(Fault(f"{free}: checkpoints of a training may not fit", "free some, or give --out elsewhere"))
    gpu = facts["gpu"]
    if gpu["driver"] and not gpu["names"]:
        why = "torch was built without CUDA" if gpu["cuda"] is None else "torch cannot reach it"
        out.append(
            Fault(f"there is an NVIDIA driver, but {why}", "install torch for CUDA: https://pytorch.org/get-started")
        )
    for extra in facts["extras"]:
        if extra["missing"]:
            mend = f"pip install 'limbeck[{extra['name']}]'"
            out.append(Fault(f"the extra '{extra['name']}' lacks {', '.join(extra['missing'])}", mend, optional=True))
    return out


def _kernels() -> dict[str, Any]:
    try:
        found = native.find()
    except ValueError as error:
        return {"state": "refused", "instructions": None, "file": None, "reason": str(error)}
    off = os.environ.get("LIMBECK_NATIVE") == "off"
    return {
        "state": "off" if off else "missing" if found.functions is None else "loaded",
        "instructions": found.instructions or None,
        "file": None if found.file is None else str(found.file),
        "reason": found.reason or None,
    }


def _compiler() -> dict[str, Any]:
    try:
        command = build.compiler()
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"command": None, "version": None, "reason": str(error)}
    return {"command": " ".join(command), "version": (done.stdout.splitlines() or [""])[0], "reason": None}


def _cache_folders() -> dict[str, Path]:
    hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return {"LIMBECK_CACHE": build.cache_folder().parent, "HF_HOME": Path(hub).expanduser()}


def _folder(variable: str, path: Path) -> dict[str, Any]:
    """Size of a folder, and whether files can be made in it, or it in the nearest folder above that there is."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    files = (Path(base) / name for base, _, names in os.walk(path) for name in names)
    size = sum(_size(file) for file in files)
    return {"variable": variable, "path": str(path), "bytes": size, "writable": there.is_dir() and _takes_a_file(there)}


def _takes_a_file(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _size(file: Path) -> int:
    try:
        return 0 if file.is_symlink() else file.stat().st_size  # the Hub's snapshots are links to its blobs
    except OSError:
        return 0


def _disk(name: str, path: Path) -> dict[str, Any]:
    try:
        free: int | None = shutil.disk_usage(path).free
    except OSError:
        free = None
    return {"name": name, "path": str(path.absolute()), "free_bytes": free}


def _extras() -> list[dict[str, Any]]:
    """Each extra of the package, with those of its requirements that are not installed."""
    wanted: dict[str, list[str]] = {}
    try:
        lines = metadata.requires("limbeck") or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        extra, name = re.search(r"""extra\s*==\s*["']([\w-]+)""", line), re.match(r"[\w.-]+", line)
        if extra and name:
            wanted.setdefault(extra[1], []).append(name[0])
    return [{"name": extra, "missing": [n for n in names if not _installed(n)]} for extra, names in wanted.items()]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _of_kernels(facts: Mapping[str, Any]) -> list[Fault]:
    kernels, compiler = facts["kernels"], facts["compiler"]
    if kernels["state"] == "refused":
        return [Fault(kernels["reason"], "unset LIMBECK_ARCH and LIMBECK_NATIVE, or correct them")]
    if kernels["state"] == "off":
        return [Fault("LIMBECK_NATIVE=off keeps the compiled kernels from being used", "unset LIMBECK_NATIVE")]
    if kernels["state"] == "loaded":
        return []
    if compiler["command"] is None:
        mend = "install one (Debian: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install)"
        return [Fault("there are no compiled kernels, and no C compiler: decoding is several times slower", mend)]
    return [
        Fault(f"the C kernels could not be compiled: {kernels['reason']}", f"see that {compiler['command']} works")
    ]


def _of_threads(processor: Mapping[str, Any]) -> list[Fault]:
    threads, usable = processor["threads"], processor["usable"]
    if threads > usable:
        mend = f"set OMP_NUM_THREADS={usable}"
        return [Fault(f"{threads} threads share {usable} processors and wait for each other", mend)]
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        return [
            Fault("OMP_WAIT_POLICY=active: waiting threads keep their cores busy", "unset it where cores are shared")
        ]
    return []
