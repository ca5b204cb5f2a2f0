"""Writing a teacher cache in a stream, to be killed and resumed at any moment; ``teacher_cache`` has the layout."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.data.batch import Example, collate
from limbeck.errors import CheckpointError, DataError, ModelError, StorageError
from limbeck.kernels.fused_head.topk import top_k
from limbeck.objectives.teacher import LiveTeacher
from limbeck.objectives.teacher_cache import CacheHeader, CacheKey, check_fresh, read_json

__all__ = ["build_cache"]

_LOWEST = -60000.0  # within float16; a probability of 0 for every purpose


def build_cache(
    teacher: LiveTeacher,
    examples: Sequence[Example],
    folder: Path,
    key: CacheKey,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    sync_chunks: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Ask ``teacher`` about every example once and keep its top tokens; go on where an earlier call was killed.

    Args:
        teacher: asked in batches; on a resume it must be the one that ``key`` names.
        examples: chunks of rows, each asked on its own, the longest first; no two of one row begin at one token.
        folder: made where missing; a finished cache of the same key and text is left as it is. Runs that share it may
            start together: one writes, the others wait.
        key: what the cache is made from, with k, temperature and vocabulary rows.
        batch_size: chunks of one forward.
        device: of the teacher.
        sync_chunks: chunks between two resume markers.
        on_progress: called with chunks done and chunks in all after every batch.

    Returns:
        ``folder``.

    Raises:
        DataError: there are no examples, two begin at one place, or ``folder`` holds a cache of something else.
        ModelError: the teacher has fewer vocabulary rows than ``key.rows``.
        CheckpointError: what an earlier call left is damaged.
        StorageError: the disk refused a write; what was marked as written stays good.
    """
    ordered = sorted(examples, key=lambda e: (-len(e), e.row, e.offset))
    chunks = _chunks(ordered)
    header = CacheHeader(key=key, text=_text_hash(ordered), chunks=len(ordered), tokens=int(chunks[:, 2].sum()))
    try:
        with _alone(folder):
            done = _start(folder, header, chunks)
            with _Files(folder, header, int(chunks[:done, 2].sum())) as files:
                since = 0
                while done < len(ordered):
                    part = ordered[done : done + batch_size]
                    files.append(*_ask(teacher, part, header, device))
                    done, since = done + len(part), since + len(part)
                    if since >= sync_chunks or done == len(ordered):
                        files.sync()
                        _write(folder / "progress.json", json.dumps({"chunks": done}).encode())
                        since = 0
                    if on_progress is not None:
                        on_progress(done, len(ordered))
    except OSError as error:
        raise StorageError(
            f"the teacher cache in {folder} could not be written ({error}): free some space and run again to go on"
        ) from None
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make ``folder`` and wait until no other run writes in it: the second of two finds the cache finished."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which unlocks


def _chunks(examples: Sequence[Example]) -> NDArray[np.int64]:
    """(chunks, 3) row, offset, length, after checks."""
    if not examples:
        raise DataError("there are no examples to build a teacher cache from: check the data set and its limits")
    chunks = np.array([(e.row, e.offset, len(e)) for e in examples], dtype=np.int64)
    by_place = chunks[np.lexsort((chunks[:, 1], chunks[:, 0]))]
    before, after = by_place[:-1], by_place[1:]
    twice = (before[:, :2] == after[:, :2]).all(axis=1)
    if twice.any():
        row, offset, _ = after[int(np.argmax(twice))]
        raise DataError(f"two chunks of row {row} begin at token {offset}: a teacher cache finds a chunk by its begin")
    if (chunks[:, 2] == 0).any():
        raise DataError(f"row {chunks[int(np.argmin(chunks[:, 2])), 0]} is empty: leave it out of the teacher cache")
    return chunks


def _text_hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for e in examples:
        digest.update(f"{e.row} {e.offset} {len(e)}\n".encode())
        digest.update(np.ascontiguousarray(e.ids, dtype="<u4").data)
    return digest.hexdigest()


def _start(folder: Path, header: CacheHeader, chunks: NDArray[np.int64]) -> int:
    """Lay out a new cache, or check the one that is there; returns how many chunks are written."""
    if not (folder / "cache.json").exists():
        _write(folder / "chunks.bin", chunks.tobytes())
        _write(folder / "progress.json", b'{"chunks": 0}')
        _write(folder / "cache.json", header.model_dump_json(indent=2).encode())  # last: it makes the folder a cache
        return 0
    check_fresh(folder, header.key)
    if CacheHeader.read(folder) != header:
        raise DataError(
            f"{folder} holds a teacher cache of something else: its rows are other text, or cut into other chunks; "
            "remove it or name another folder"
        )
    done = read_json(folder / "progress.json").get("chunks")
    if not isinstance(done, int) or not 0 <= done <= header.chunks:
        raise CheckpointError(f"{folder / 'progress.json'} is damaged: remove {folder} and build the cache again")
    return done


def _ask(
    teacher: LiveTeacher, examples: Sequence[Example], header: CacheHeader, device: torch.device | str
) -> tuple[NDArray[np.uint32], NDArray[np.unsignedinteger], NDArray[np.float16]]:
    """Tokens (n,), ids (n, k) and log-probabilities (n, k + 1) of the examples' tokens, one example after the other."""
    batch = collate([[e] for e in examples]).to(device)
    index = batch.real.reshape(-1).nonzero()[:, 0]
    key = header.key
    try:
        log_probs, ids, tail = top_k(teacher.signal(batch).select(index), key.k, key.temperature, key.rows)
    except ValueError as error:
        raise ModelError(f"a teacher cache over {key.rows} vocabulary rows cannot be made: {error}") from None
    buckets = torch.cat((log_probs, tail[:, None]), dim=1).clamp(_LOWEST, 0).to(torch.float16)
    tokens = np.concatenate([e.ids for e in examples]).astype(np.uint32)
    return tokens, ids.cpu().numpy().astype(header.id_dtype), buckets.cpu().numpy()


class _Files:
    """The three files that grow, cut back to what the last marker vouches for."""

    def __init__(self, folder: Path, header: CacheHeader, tokens: int) -> None:
        sizes = {folder / name: size for name, size in header.bytes_per_token().items()}
        for file, size in sizes.items():
            file.touch()
            held = file.stat().st_size
            if held < tokens * size:
                raise CheckpointError(
                    f"{file} holds {held} bytes, less than the {tokens * size} that were written: remove {folder} and"
                    " build the cache again"
                )
            os.truncate(file, tokens * size)
        self.files = [open(file, "ab") for file in sizes]

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    def append(self, *arrays: NDArray[np.generic]) -> None:
        for file, array in zip(self.files, arrays, strict=True):
            file.write(np.ascontiguousarray(array).data)

    def sync(self) -> None:
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())


def _write(file: Path, content: bytes) -> None:
    """Replace a file at once: what is read later is the old content or the new, never a part."""
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
