"""The audit of corpora: every document, once, and its outcome kept beside the shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from limbeck.data.audit.report import AuditReport, AuditSettings, audit_stream
from limbeck.data.rows import Row, Rows
from limbeck.jobs.corpora import CorpusSource
from limbeck.storage import write_json

__all__ = ["audit_corpora"]

_VERSION = 1  # of what is looked for, beside its settings


def audit_corpora(
    corpora: Mapping[str, CorpusSource],
    held_out: Rows | None,
    folder: Path,
    *,
    separator: str,
    limit: int | None,
    say: Callable[[str], None],
) -> AuditReport:
    """Compare every document of all corpora with the held-out documents, and find those that repeat (``audit_stream``).

    The documents go by once; none but those at hand are in memory. What was found is kept in ``folder`` under the hash
    of what was compared, so that a run that is resumed, or another of the same corpora, does not look again.

    Raises:
        DataError: a corpus cannot be read.
        StorageError: the disk refused a write.
    """
    place = folder / f"audit-{_key(corpora, held_out, separator, limit)[:16]}.json"
    kept = _kept(place)
    if kept is not None:
        return kept
    names = ", ".join(corpora)
    say(f"auditing every document of {names}")
    sets = {} if held_out is None else {"valid": held_out}
    rows = _documents(corpora, separator, limit)
    found = audit_stream(f"corpora {names}", rows, sets, fields=("text",), within=True)
    write_json(place, asdict(found))
    return found


def _documents(corpora: Mapping[str, CorpusSource], separator: str, limit: int | None) -> Iterator[Row]:
    for name, corpus in corpora.items():
        for i, text in enumerate(corpus.texts(separator, limit)):
            yield Row(f"{name}/{i}", {"text": text})


def _key(corpora: Mapping[str, CorpusSource], held_out: Rows | None, separator: str, limit: int | None) -> str:
    contents = {name: corpus.content(separator, limit) for name, corpus in corpora.items()}
    against = None if held_out is None else held_out.hash
    whole = json.dumps([_VERSION, AuditSettings().model_dump(mode="json"), list(contents.items()), against])
    return hashlib.sha256(whole.encode()).hexdigest()


def _kept(place: Path) -> AuditReport | None:
    """Return what an earlier audit found; None where there was none, or its file is damaged."""
    try:
        return TypeAdapter(AuditReport).validate_json(place.read_bytes())
    except (OSError, ValueError):
        return None
