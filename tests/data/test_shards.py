from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from limbeck.data.shards import Corpus, Shard, build_shards, shard_key
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import DataError

TEXTS = [f"Document {i} says hello to number {i * i}. " * (1 + i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def built(folder: Path, tokenizer: Tokenizer, texts: list[str] = TEXTS, processes: int = 1) -> tuple[Path, str]:
    key = shard_key("content", tokenizer, begin=True, end=True)
    build_shards(folder, key, texts, tokenizer, begin=True, end=True, processes=processes, shard_bytes=900)
    return folder, key


def slow(tokenizer: Tokenizer) -> list[list[int]]:
    return [[0, *tokenizer.encode(text), 0] for text in TEXTS]


def test_any_span_is_that_of_all_documents_put_end_to_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    corpus = Corpus("c", *built(tmp_path / "c", tokenizer))
    documents = slow(tokenizer)
    flat = [(d, at, i) for d, ids in enumerate(documents) for at, i in enumerate(ids)]
    assert (corpus.tokens, corpus.documents) == (len(flat), len(documents))
    assert corpus.bytes == sum(len(t.encode()) for t in TEXTS)
    assert len(list((tmp_path / "c").glob("*.shard"))) > 5
    random = np.random.default_rng(0)
    for start, stop in [(0, len(flat)), *np.sort(random.integers(0, len(flat) + 1, (50, 2))).tolist()]:
        spans = corpus.spans(start, stop)
        assert [(d, at + j, int(i)) for d, at, ids in spans for j, i in enumerate(ids)] == flat[start:stop]
        assert all(len(ids) for _, _, ids in spans)


def test_ids_are_mapped_not_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder, key = built(tmp_path / "c", tokenizer)
    shard = Shard(folder / "00000.shard", key)
    assert isinstance(shard.ids, np.memmap) and isinstance(shard.ends, np.memmap)
    assert shard.ids.dtype == np.uint16


def test_wide_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    from limbeck.data.shards import _write

    _write(tmp_path / "a.shard", "00" * 32, [[1, 70_000], [3]], 70_001)
    shard = Shard(tmp_path / "a.shard", "00" * 32)
    assert shard.ids.tolist() == [1, 70_000, 3] and shard.ends.tolist() == [2, 3]


def test_processes_write_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one, _ = built(tmp_path / "one", tokenizer)
    two, _ = built(tmp_path / "two", tokenizer, processes=2)
    files = sorted(p.name for p in one.glob("*.shard"))
    assert files == sorted(p.name for p in two.glob("*.shard"))
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)


def test_a_killed_build_keeps_its_whole_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole, key = built(tmp_path / "whole", tokenizer)

    def dying() -> Iterator[str]:
        yield from TEXTS[:40]
        raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        build_shards(folder, key, dying(), tokenizer, begin=True, end=True, shard_bytes=900)
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.shard")}
    assert kept and not (folder / "index.json").exists()
    with pytest.raises(DataError, match="no index"):
        Corpus("c", folder, key)
    (folder / ".00007.shard.0123abcd.tmp").write_bytes(b"half")  # what a kill leaves in the middle of a write
    built(folder, tokenizer)
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.shard")}.items() >= kept.items()
    assert not list(folder.glob(".*.tmp"))
    for file in whole.glob("*.shard"):
        assert file.read_bytes() == (folder / file.name).read_bytes()


def test_a_complete_build_reads_no_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder, key = built(tmp_path / "c", tokenizer)
    build_shards(folder, key, iter(lambda: pytest.fail("read"), None), tokenizer, begin=True, end=True)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda b: b[:-1], "cut short"),
        (lambda b: b + b"\0", "cut short"),
        (lambda b: b[:20], "not a shard"),
        (lambda b: b"", "not a shard"),
        (lambda b: b"X" + b[1:], "not a shard"),
        (lambda b: b[:8] + struct.pack("<I", 9) + b[12:], "version 9"),
        (lambda b: b[:16] + struct.pack("<Q", 2**40) + b[24:], "cut short"),
        (lambda b: b[:32] + bytes(32) + b[64:], "another source or with another tokenizer"),
        (lambda b: b[:64] + struct.pack("<Q", 2**40) + b[72:], "borders"),
    ],
)
def test_a_damaged_shard_is_an_error_that_names_it(damage, told, tmp_path: Path, tokenizer: Tokenizer) -> None:  # type: ignore[no-untyped-def]
    folder, key = built(tmp_path / "c", tokenizer)
    file = folder / "00001.shard"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=told) as error:
        Corpus("c", folder, key)
    assert "00001.shard" in str(error.value)
    os.remove(folder / "index.json")
    with pytest.raises(DataError, match=told):  # nor does a resumed build take it for done
        built(folder, tokenizer)


def test_a_missing_shard_and_a_wrong_index_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder, key = built(tmp_path / "c", tokenizer)
    index = (folder / "index.json").read_text()
    (folder / "index.json").write_text(index.replace('"tokens": ', '"tokens": 1'))
    with pytest.raises(DataError, match="its index says"):
        Corpus("c", folder, key)
    (folder / "index.json").write_text(index)
    (folder / "00002.shard").unlink()
    with pytest.raises(DataError, match=r"00002\.shard cannot be read"):
        Corpus("c", folder, key)


def test_the_key_tells_source_tokenizer_and_borders_apart(tokenizer: Tokenizer) -> None:
    other = Tokenizer.train(TEXTS, 280)
    keys = {
        shard_key("a", tokenizer, begin=True, end=True), shard_key("b", tokenizer, begin=True, end=True),
        shard_key("a", other, begin=True, end=True), shard_key("a", tokenizer, begin=False, end=True),
    }  # fmt: skip
    assert len(keys) == 4


def test_an_empty_corpus_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="empty"):
        built(tmp_path / "c", tokenizer, [" ", ""])
