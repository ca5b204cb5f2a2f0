"""Tokenised corpora on disk: memory-mapped shards with document borders, written once and resumed after a kill."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import DataError
from limbeck.storage import scratch, sweep, write_json, writing

__all__ = ["Corpus", "Shard", "build_shards", "shard_key"]

_MAGIC = b"LMBKTOKS"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s")  # magic, version, bytes a token, tokens, documents, key
_TEXT_BYTES = 4 << 20  # UTF-8 bytes of text in one shard, by and large: documents are not cut


def shard_key(content: str, tokenizer: Tokenizer, *, begin: bool, end: bool) -> str:
    """Return the SHA-256 (hex) of what shards are made from: the source's content hash, the tokenizer, and its border
    tokens.
    """
    whole = json.dumps([_VERSION, content, tokenizer.fingerprint, begin, end])
    return hashlib.sha256(whole.encode()).hexdigest()


class Shard:
    """One file, mapped: a header, the end of each document as uint64, then the ids as uint16 or uint32.

    Attributes:
        ids: (tokens,) memory-mapped ids.
        ends: (documents,) memory-mapped; document d is ``ids[ends[d - 1] : ends[d]]``.

    Raises:
        DataError: the file is missing, no shard, cut short, or was made from another source or tokenizer.
    """

    def __init__(self, path: Path, key: str) -> None:
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_HEADER.size)
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error.strerror}") from None
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise DataError(f"{path} is not a shard of tokens: delete it and run again to have it made anew")
        _, version, width, tokens, documents, made_of = _HEADER.unpack(head)
        if version != _VERSION or width not in (2, 4):
            raise DataError(f"shard {path} has version {version} and {width} bytes a token, which is unknown here")
        if made_of.hex() != key:
            raise DataError(f"shard {path} was made from another source or with another tokenizer: delete its folder")
        expected = _HEADER.size + 8 * documents + width * tokens
        if size != expected:
            raise DataError(
                f"shard {path} has {size} bytes where its header promises {expected}: it was cut short or added to; "
                "delete it and run again"
            )
        self.ends: NDArray[np.uint64] = np.memmap(path, np.uint64, "r", _HEADER.size, (documents,))
        kind: Any = np.uint16 if width == 2 else np.uint32
        self.ids: NDArray[Any] = np.memmap(path, kind, "r", _HEADER.size + 8 * documents, (tokens,))
        if documents == 0 or int(self.ends[-1]) != tokens or bool((self.ends[1:] <= self.ends[:-1]).any()):
            raise DataError(f"shard {path} has document borders that do not fit its tokens: delete it and run again")


def _write(path: Path, key: str, documents: Sequence[Sequence[int]], vocab_size: int) -> None:
    kind: Any = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    ends = np.cumsum([len(d) for d in documents], dtype=np.uint64)
    ids = np.fromiter((i for d in documents for i in d), dtype=kind, count=int(ends[-1]))
    head = _HEADER.pack(_MAGIC, _VERSION, ids.dtype.itemsize, len(ids), len(ends), bytes.fromhex(key))
    temporary = scratch(path)
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(head + ends.tobytes() + ids.tobytes())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _encode(path: Path, key: str, texts: Sequence[str], tokenizer: Tokenizer, begin: bool, end: bool) -> None:
    head = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id] if begin else []
    tail = [tokenizer.eos_id] if end else []
    many = tokenizer.encode_many(texts)
    _write(path, key, [[*head, *ids, *tail] for ids in many], tokenizer.vocab_size)


_TOKENIZER: list[Tokenizer] = []  # of a worker process


def _prepare(folder: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    _TOKENIZER.append(Tokenizer.load(Path(folder)))


def _work(path: Path, key: str, texts: Sequence[str], begin: bool, end: bool) -> None:
    _encode(path, key, texts, _TOKENIZER[0], begin, end)


def _pieces(texts: Iterable[str], most_bytes: int) -> Iterator[tuple[list[str], int]]:
    """Consecutive documents, as many as a shard takes; empty ones are left out."""
    piece: list[str] = []
    size = 0
    for text in texts:
        if not text.strip():
            continue
        piece.append(text)
        size += len(text.encode())
        if size >= most_bytes:
            yield piece, size
            piece, size = [], 0
    if piece:
        yield piece, size


def build_shards(
    folder: Path,
    key: str,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    *,
    begin: bool,
    end: bool,
    processes: int = 1,
    shard_bytes: int = _TEXT_BYTES,
) -> None:
    """Tokenise ``texts`` into ``folder`` unless that is done; whole shards of a run that was killed are kept.

    Args:
        folder: of this corpus alone; ``index.json``, written last, says that it is complete.
        key: ``shard_key`` of source and tokenizer.
        texts: the documents, in the source's order; read only if something is missing.
        tokenizer: makes the ids.
        begin: the begin token before each document.
        end: the end token after it.
        processes: that encode at once.
        shard_bytes: bytes of text a shard, by and large.

    Raises:
        DataError: there is no text, or a shard that stands there is damaged or of another source or tokenizer.
        StorageError: the disk refused a write.
    """
    if (folder / "index.json").is_file():
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    sizes: list[int] = []  # bytes of text of each shard
    missing = _missing(folder, key, _pieces(texts, shard_bytes), sizes)
    if processes == 1:
        for path, piece in missing:
            _encode(path, key, piece, tokenizer, begin, end)
    else:
        _in_processes(folder, key, missing, tokenizer, begin, end, processes)
    if not sizes:
        raise DataError(f"there is no text to tokenise into {folder}: the corpus is empty")
    shards = [Shard(folder / _name(i), key) for i in range(len(sizes))]
    write_json(
        folder / "index.json",
        {
            "key": key,
            "shards": len(shards),
            "tokens": sum(len(s.ids) for s in shards),
            "documents": sum(len(s.ends) for s in shards),
            "bytes": sum(sizes),
        },
    )


def _name(number: int) -> str:
    return f"{number:05}.shard"


def _missing(
    folder: Path, key: str, pieces: Iterable[tuple[list[str], int]], sizes: list[int]
) -> Iterator[tuple[Path, list[str]]]:
    for number, (piece, size) in enumerate(pieces):
        path = folder / _name(number)
        sizes.append(size)
        if path.exists():
            Shard(path, key)  # renamed into place only when whole: anything else here is damage
        else:
            yield path, piece


def _in_processes(
    folder: Path,
    key: str,
    missing: Iterator[tuple[Path, list[str]]],
    tokenizer: Tokenizer,
    begin: bool,
    end: bool,
    processes: int,
) -> None:
    """Encode with a few shards in flight, so that the corpus is never in memory as a whole."""
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    kept = folder / "tokenizer"
    tokenizer.save(kept)
    with ProcessPoolExecutor(processes, spawn, _prepare, (str(kept),)) as pool:
        running: set[Future[None]] = set()
        for path, piece in missing:
            running.add(pool.submit(_work, path, key, piece, begin, end))
            if len(running) >= 2 * processes:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()
        for one in running:
            one.result()


class Corpus:
    """All shards of one folder as one long run of tokens, none of them in memory.

    Attributes:
        name: for messages, metrics and reports.
        tokens: of all documents, border tokens included.
        documents: in all.
        bytes: UTF-8 bytes of the text.

    Raises:
        DataError: the folder has no index, or a shard is damaged, missing or of another source or tokenizer.
    """

    def __init__(self, name: str, folder: Path, key: str) -> None:
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            count, self.bytes, told = int(index["shards"]), int(index["bytes"]), int(index["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{folder / 'index.json'} is no index of shards: delete {folder} and run again") from None
        self.name, self.folder = name, folder
        self._shards = [Shard(folder / _name(i), key) for i in range(count)]
        self._starts = np.cumsum([0, *(len(s.ids) for s in self._shards)])
        self._documents = np.cumsum([0, *(len(s.ends) for s in self._shards)])
        self.tokens, self.documents = int(self._starts[-1]), int(self._documents[-1])
        if self.tokens != told:
            raise DataError(f"the shards of {folder} hold {self.tokens} tokens where its index says {told}: delete it")

    def spans(self, start: int, stop: int) -> list[tuple[int, int, NDArray[np.int32]]]:
        """Return tokens ``start`` to ``stop`` as pieces of documents: (document, place in the document, ids)."""
        out: list[tuple[int, int, NDArray[np.int32]]] = []
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            shard, first = self._shards[number], int(self._starts[number])
            document = int(np.searchsorted(shard.ends, start - first, side="right"))
            while document < len(shard.ends) and start < stop:
                begin = int(shard.ends[document - 1]) if document else 0
                upto = min(int(shard.ends[document]), stop - first)
                ids = np.asarray(shard.ids[start - first : upto]).astype(np.int32)
                out.append((int(self._documents[number]) + document, start - first - begin, ids))
                start, document = first + upto, document + 1
            number += 1
        return out
