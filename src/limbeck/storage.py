"""Writing so that a kill or a full disk leaves what was there before: temp, fsync, rename. Torch-free."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from limbeck.errors import ConfigError, StorageError

__all__ = [
    "check_folder",
    "check_place",
    "plain",
    "replace_folder",
    "scratch",
    "settle",
    "share",
    "sweep",
    "write_json",
    "write_text",
    "writing",
]

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it would be larger than this system lets a file be",
    errno.EACCES: "permission is denied",
    errno.EROFS: "the disk is read-only",
}
_LONGEST_NAME = 255  # bytes, of every common file system
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_SCRATCH = re.compile(r"\.([^/]+)\.[0-9a-f]{8}\.tmp(/.*)?$")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refused write of ``path`` (Python's or safetensors') into one sentence.

    Raises:
        StorageError: the system refused; names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        raise _refused(path, error.errno, error.strerror or str(error)) from error
    except SafetensorError as error:
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise
        raise _refused(path, int(code[1]), os.strerror(int(code[1]))) from error


def _refused(path: Path, code: int | None, reason: str) -> StorageError:
    reason = _REASONS.get(code, reason) if code is not None else reason
    final = _SCRATCH.sub(r"\1", str(path))  # what the user asked for, not the hidden name it is written under first
    help_ = "make room and run it again" if code in _FULL else "mend that, or give another place, and run it again"
    return StorageError(f"cannot write {final}: {reason}; what was there before is whole, {help_}")


def plain(value: Any) -> Any:
    """Reduce ``value`` to what JSON holds: paths to text, numpy and torch scalars to numbers, NaN and infinity to None.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "model_dump"):  # a config
        return plain(value.model_dump(mode="json"))
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 under a temporary name, sync it, and rename it over ``path``; makes the folder.

    Raises:
        StorageError: the system refused; the old file is whole.
    """
    temporary = scratch(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``plain(value)`` as indented JSON, atomically.

    Raises:
        StorageError: the system refused; the old file is whole.
    """
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def scratch(path: Path) -> Path:
    """Return a fresh hidden name beside ``path``, to be written and then renamed to it; ``sweep`` knows it.

    A long name is shortened: with what is added it would be longer than file systems allow.
    """
    name = path.name
    while len(os.fsencode(name)) > _LONGEST_NAME - len(".12345678.tmp") - 1:
        name = name[:-1]
    return path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")


def check_folder(folder: Path, files: Collection[str]) -> None:
    """Refuse a folder that a command must not write to, before its work starts.

    Args:
        folder: where it is to write; it need not exist.
        files: names that it writes there; what else lies there is somebody's.

    Raises:
        ConfigError: the folder holds other files, is a file, has too long a name, or cannot be written.
    """
    check_place(folder)
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    other = next((name for name in there if name not in files and not _SCRATCH.fullmatch(name)), None)
    if other is not None:
        known = ", ".join(sorted(files))
        raise ConfigError(f"folder {folder} holds {other}, not only {known}: give an empty or a new folder")


def check_place(path: Path) -> None:
    """Refuse a folder's path at which nothing can be written.

    Raises:
        ConfigError: it is a file, or below one; its name is too long; or the system does not let us write there.
    """
    try:
        if "\0" in str(path):
            raise ValueError("a name cannot hold a zero byte")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file: give a folder")
        place = next(p for p in (path, *path.absolute().parents) if p.exists())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"nothing can be written to {str(path)[:80]!r}: {reason}; give another place") from None
    if not place.is_dir():
        raise ConfigError(f"nothing can be written to {path}: {place} is a file; give another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written to {path}: {place} is read-only for us; give another place")
    long = next((part for part in path.parts if len(os.fsencode(part)) > _LONGEST_NAME), None)
    if long is not None:
        size = len(os.fsencode(long))
        raise ConfigError(f"nothing can be written to a name of {size} bytes ({long[:40]}...): shorten it")


def share(path: Path) -> None:
    """Give ``path`` the permissions of any new file: safetensors makes its files readable by their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in ``folder``; call it only where no other process writes."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def replace_folder(temporary: Path, final: Path) -> None:
    """Sync every file of ``temporary`` and put it in the place of ``final``, which may exist.

    A rename cannot replace a filled folder, so the old one steps aside first; a kill between the two renames is
    mended by ``settle``.

    Raises:
        StorageError: the system refused; the old folder is whole.
    """
    with writing(final):
        for root, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(root) / name)
            _sync(Path(root))
        settle(final)
        aside = _aside(final)
        if final.exists():
            final.rename(aside)
        try:
            temporary.rename(final)
        except OSError:
            settle(final)
            raise
        _sync(final.parent)
        shutil.rmtree(aside, ignore_errors=True)


def settle(final: Path) -> None:
    """Undo a replacement of the folder ``final`` that a kill cut short between its two renames."""
    final = final.absolute()  # the current folder has a name too
    if not final.name:  # the root, which nothing replaces
        return
    aside = _aside(final)
    if aside.exists():
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def _aside(final: Path) -> Path:
    name = final.name
    while len(os.fsencode(name)) > _LONGEST_NAME - len("..old"):
        name = name[:-1]
    return final.with_name(f".{name}.old")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
