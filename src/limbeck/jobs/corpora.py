"""Corpora of a pretraining: named sources with weights, their shards on disk, and their held-out text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from limbeck.config import Config
from limbeck.data.batch import Example
from limbeck.data.readers import Dialect, Row, Rows, documents, read
from limbeck.data.shards import Corpus, build_shards, shard_key
from limbeck.data.tokenizer import Tokenizer

__all__ = ["CorpusSource", "bytes_per_token", "encode_corpus", "held_out_rows", "sample_rows", "shared_tokenizer"]

_SAMPLE_BYTES = 1 << 20  # of each corpus, for the probes
_BLOCK_BYTES = 1 << 20


class CorpusSource(Config):
    """One corpus of a mixture."""

    data: str = Field(description="documents: a path, toy:NAME or a Hub id; of parquet only the text is read")
    split: str | None = Field(None, description="value of the column 'split', or the Hub's split")
    column: str = Field("text", description="column that holds the document")
    separator: str | None = Field(None, description="line between documents of its text files; none: the recipe's")
    dialect: Dialect = Field(default_factory=Dialect, description="delimiter and quotes of its tables of text")
    weight: float = Field(1.0, gt=0, description="share among the training tokens, relative to the other corpora")
    valid: str | None = Field(None, description="held-out documents; none: not measured by itself")
    valid_split: str | None = Field(None, description="split of the held-out documents")
    valid_limit: int | None = Field(None, ge=1, description="only so many held-out documents")

    def texts(self, separator: str, limit: int | None) -> Iterator[str]:
        """Return the documents in order, without the corpus in memory where its format allows; see ``documents``.

        Raises:
            DataError: the source is missing, broken, or lacks the column.
        """
        between = self._between(separator)
        return documents(
            self.data, column=self.column, split=self.split, separator=between, dialect=self.dialect, limit=limit
        )

    def content(self, separator: str, limit: int | None) -> str:
        """Return the SHA-256 (hex) of what ``texts`` is made from: the file's bytes, or the documents where it is no
        file.
        """
        path = Path(self.data).expanduser()
        told: tuple[object, ...] = (self.split, self.column, self._between(separator), limit)
        if self.dialect != Dialect():
            told = (*told, self.dialect)
        digest = hashlib.sha256(repr(told).encode())
        if not path.is_file():
            for text in self.texts(separator, limit):
                raw = text.encode("utf-8", "surrogatepass")
                digest.update(len(raw).to_bytes(8, "little") + raw)
            return digest.hexdigest()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def held_out(self, separator: str) -> Rows | None:
        """Return the held-out documents, where there are any."""
        if self.valid is None:
            return None
        columns = {} if self.column == "text" else {"text": self.column}
        told: dict[str, Any] = {"limit": self.valid_limit, "split": self.valid_split, "dialect": self.dialect}
        between = self._between(separator)
        return read(self.valid, required=("text",), columns=columns, separator=between, **told)

    def _between(self, separator: str) -> str:
        """Return what divides its text files: its own separator, or the recipe's."""
        return separator if self.separator is None else self.separator


def shared_tokenizer(
    corpora: Mapping[str, CorpusSource], folder: Path, vocab_size: int, separator: str, limit: int | None
) -> Tokenizer:
    """Return a BPE of all corpora's text, trained once and kept in ``folder`` under the hash of its sources."""
    whole = [vocab_size, *(c.content(separator, limit) for c in corpora.values())]
    place = folder / f"tokenizer-{hashlib.sha256(repr(whole).encode()).hexdigest()[:16]}"
    if not (place / "tokenizer_config.json").is_file():  # written last
        texts = (text for c in corpora.values() for text in c.texts(separator, limit))
        Tokenizer.train(texts, vocab_size).save(place)
    return Tokenizer.load(place)


def encode_corpus(
    name: str,
    corpus: CorpusSource,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    begin: bool,
    end: bool,
    processes: int,
    separator: str,
    limit: int | None,
) -> Corpus:
    """Return shards of one corpus below ``folder``, in a folder named after the hash of source and tokenizer."""
    key = shard_key(corpus.content(separator, limit), tokenizer, begin=begin, end=end)
    place = folder / f"{name}-{key[:16]}"
    texts = corpus.texts(separator, limit)
    build_shards(place, key, texts, tokenizer, begin=begin, end=end, processes=processes)
    return Corpus(name, place, key)


def sample_rows(corpora: Mapping[str, CorpusSource], separator: str, limit: int | None) -> Rows:
    """Return the first documents of each corpus, about 1 MB: what the probes look at."""
    rows: list[Row] = []
    for name, corpus in corpora.items():
        size = 0
        for i, text in enumerate(corpus.texts(separator, limit)):
            rows.append(Row(f"{name}/{i}", {"text": text}))
            size += len(text.encode())
            if size >= _SAMPLE_BYTES:
                break
    return Rows.of(rows, f"first documents of {', '.join(corpora)}")


def held_out_rows(corpora: Mapping[str, CorpusSource], separator: str) -> Rows | None:
    """Return held-out documents of all corpora; ids begin with the corpus's name and a slash."""
    found = {name: corpus.held_out(separator) for name, corpus in corpora.items()}
    rows = [Row(f"{n}/{r.id}", {"text": r.text("text", n)}) for n, some in found.items() if some for r in some]
    return Rows.of(rows, f"held-out text of {', '.join(n for n in found if found[n])}") if rows else None


def bytes_per_token(rows: Rows, examples: list[Example], corpus: str, begin: bool) -> float:
    """Return UTF-8 bytes of a corpus's held-out text by its tokens, end tokens counted and begin tokens not."""
    mine = [e for e in examples if e.id.startswith(f"{corpus}/")]
    tokens = sum(e.predictions for e in mine) + (0 if begin else sum(e.offset == 0 for e in mine))
    texts: list[Any] = [r.fields["text"] for r in rows if r.id.startswith(f"{corpus}/")]
    return sum(len(str(t).encode()) for t in texts) / max(tokens, 1)
