"""A synthetic set: answers through the filters of their kind, into files with a datasheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.config import Config
from limbeck.data.audit.report import AuditSettings
from limbeck.data.rows import Row, Rows
from limbeck.measure.verse import VERSE_PROTOCOL, poem
from limbeck.storage import plain, write_json, write_text
from limbeck.synth.datasheet import Datasheet
from limbeck.synth.filters import (
    EditDistance,
    English,
    Filter,
    KeepsNames,
    KeepsNumbers,
    LengthFilter,
    LengthRatio,
    PromptEcho,
    Readable,
    Refusal,
    Verse,
)
from limbeck.synth.prompts import Kind
from limbeck.synth.repeats import Duplicates, Overlap
from limbeck.synth.yields import Share

__all__ = ["Sifting", "figures", "filters_of", "write_set"]

_OURS = ("prompt", "unread")
_PAIR: tuple[str, str] = ("sentence1", "sentence2")


class Sifting(Config):
    """What is dropped from a synthetic set."""

    verse: Literal["perfect", "any", "none"] = Field(
        "perfect", description="sonnets: Shakespeare's rhymes, those of any known scheme, or fourteen lines alone"
    )
    metre: float = Field(0.0, ge=0, le=1, description="sonnets: least share of lines of nine to eleven syllables")
    language: Literal["english", "any"] = Field("english", description="drop texts that seem not to be English")
    least_words: int = Field(3, ge=0, description="drop texts of fewer words")
    most_words: int = Field(512, ge=1, description="drop texts of more words")
    echo_words: int = Field(8, ge=0, description="drop answers that repeat so many words of the prompt; 0: keep them")
    length_ratio: float = Field(0.5, ge=0, le=1, description="pairs: least words of the shorter text by the longer's")
    edit_least: float = Field(
        0.1, ge=0, le=1, description="pairs: least edit distance in words by the longer text's words; nearer is a copy"
    )
    edit_most: float = Field(0.8, ge=0, le=1, description="pairs: largest edit distance")
    compare: AuditSettings = Field(
        default_factory=AuditSettings, description="what counts as a duplicate, and as overlap with other sets"
    )


def filters_of(kind: Kind, sifting: Sifting, against: Mapping[str, Rows]) -> list[Filter]:
    """Return the filters for one kind of data, cheap ones first.

    Args:
        kind: of data.
        sifting: their bounds.
        against: name -> rows that nothing may be shared with.
    """
    fields = tuple(name for name in kind.fields if name != "input")
    out: list[Filter] = [Readable(), Refusal(fields)]
    out += [English(fields)] if sifting.language == "english" else []
    out += [PromptEcho(fields[-1:], words=sifting.echo_words)] if sifting.echo_words and kind.given == "" else []
    if kind.name == "sonnets":
        out.append(Verse(fields[0], sifting.verse, sifting.metre))
    else:
        out.append(LengthFilter(fields, sifting.least_words, sifting.most_words))
    compared = sifting.compare
    if set(_PAIR) <= set(fields):
        out += [
            LengthRatio(_PAIR, sifting.length_ratio),
            EditDistance(_PAIR, sifting.edit_least, sifting.edit_most),
            KeepsNumbers(_PAIR),
            KeepsNames(_PAIR),
        ]
        compared = compared.model_copy(update={"least_words": 1})
    out.append(Duplicates(fields, compared))
    return [*out, Overlap(against, fields, compared)] if against else out


def figures(kind: Kind, rows: Rows) -> dict[str, Any]:
    """Return what is measured of all answers, before any filter: of sonnets the share of perfect ones."""
    if kind.name != "sonnets" or not len(rows):
        return {}
    texts = [row.text("text", rows.source) for row in rows]
    rates = {
        name: Share.of_counts(sum(poem(text, strict=strict).perfect for text in texts), len(texts)).describe()
        for name, strict in (("perfect sonnets", False), ("perfect sonnets, strict rhymes", True))
    }
    return {**rates, "verse": VERSE_PROTOCOL}


def write_set(folder: Path, kind: Kind, sheet: Datasheet) -> None:
    """Write ``data.jsonl`` (rows kept), ``dropped.jsonl`` (with filter and reason), ``datasheet.json`` and ``.md``.

    Raises:
        StorageError: the disk refused.
    """
    rows = (json.dumps(plain(_row(kind, row)), ensure_ascii=False) for row in sheet.found.kept)
    write_text(folder / "data.jsonl", "".join(f"{row}\n" for row in rows))
    write_text(folder / "dropped.jsonl", "".join(f"{line}\n" for line in sheet.found.lines()))
    write_json(folder / "datasheet.json", sheet.describe())
    write_text(folder / "datasheet.md", sheet.markdown())


def _row(kind: Kind, row: Row) -> dict[str, Any]:
    """Return a row as its task reads it: without what we added; a pair is labelled as a paraphrase."""
    fields = {name: value for name, value in row.fields.items() if name not in _OURS}
    return {"id": row.id, **fields, **({"is_duplicate": 1} if set(_PAIR) <= set(kind.fields) else {})}
