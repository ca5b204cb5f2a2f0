"""Audit of training rows against evaluation rows and against themselves (I28).

Kinds of finding, each for itself, so that a copied poem is also one of shared lines:

- ``exact``: every audited field equals that of one evaluation row, to the character.
- ``normalised``: the same but for case, punctuation, white space and the order of the fields.
- ``field``: one field of several equals (normalised) one of an evaluation row, as where two question pairs share a
  question.
- ``ngram``: a run of 13 words stands in both (Brown et al. 2020, appendix C).
- ``near``: sets of word 3-grams of Jaccard similarity 0.7 or more, found by MinHash and then computed exactly.
- ``lines``: two lines of a text of lines, such as a poem, stand in one evaluation text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from limbeck.config import Config
from limbeck.data.audit.find import KINDS, IndexedRows, Kind, Match, Matcher, opening
from limbeck.data.audit.repeats import Repeat, Repeats
from limbeck.data.audit.rows import CutRows, is_empty, label_balance, text_fields
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError

__all__ = ["WITHIN", "AuditReport", "AuditSettings", "Finding", "OnFinding", "audit", "audit_stream"]

OnFinding = Literal["list", "drop", "refuse"]

_BLOCK_CHARACTERS = 1 << 20

WITHIN = "(itself)"
"""Stands where the name of an evaluation set would: a row repeats an earlier one of its own set."""


class AuditSettings(Config):
    """The kinds of overlap to look for, and their thresholds."""

    kinds: tuple[Kind, ...] = Field(KINDS, description="kinds of overlap to look for")
    ngram_words: int = Field(13, ge=2, description="words of a shared run")
    ngram_share: float = Field(0.0, ge=0, le=1, description="least share of the shorter text's runs that is reported")
    jaccard: float = Field(0.7, ge=0.5, le=1, description="similarity from which a near-duplicate is reported")
    shingle_words: int = Field(3, ge=1, description="words of the runs that near-duplicates are compared by")
    shared_lines: int = Field(
        2, ge=1, description="shared lines of verse with one text of the other set that count as an overlap"
    )
    least_words: int = Field(3, ge=1, description="texts of fewer words are not compared")


@dataclass(frozen=True, slots=True)
class Finding:
    """A training row and what it shares with another.

    Attributes:
        kind: of overlap.
        row: id of the training row.
        other: id of the evaluation row that shares most with it (of the set itself: of an earlier row).
        against: name of the evaluation set, or ``(itself)``.
        share: of the shared fields, runs of words or lines in all there are; the Jaccard similarity of ``near``.
        count: how many are shared.
        others: how many rows it shares as much or less with.
        excerpt: a piece of what is shared.
    """

    kind: Kind
    row: str
    other: str
    against: str
    share: float
    count: int
    others: int
    excerpt: str


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        source: of the training rows.
        rows: how many there are.
        fields: that were compared.
        against: evaluation set -> its rows.
        findings: at most one for each row, kind and evaluation set.
        touched: evaluation set -> its rows that a finding names or that share with a named row.
        too_short: training texts of too few words to be compared.
        empty: ids of training rows with an empty field.
        cut: ids of training rows that seem cut.
        labels: set -> field -> label -> rows.
        decision: what was done about it.
        dropped: ids of training rows left out.
    """

    source: str
    rows: int
    fields: tuple[str, ...]
    against: Mapping[str, int]
    findings: tuple[Finding, ...]
    touched: Mapping[str, int]
    too_short: int
    empty: tuple[str, ...]
    cut: tuple[str, ...]
    labels: Mapping[str, Mapping[str, Mapping[str, int]]]
    decision: OnFinding = "list"
    dropped: tuple[str, ...] = field(default=())

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """Findings against evaluation sets."""
        return tuple(f for f in self.findings if f.against != WITHIN)

    def leaked(self, share: float = 0.5) -> int:
        """Return evaluation rows of which some training row shares at least ``share``: more than a phrase in common."""
        return len({(f.against, f.other) for f in self.leaks if f.share >= share})

    @property
    def duplicates(self) -> tuple[Finding, ...]:
        """Findings within the set."""
        return tuple(f for f in self.findings if f.against == WITHIN)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Evaluation set (or the set itself) -> kind -> training rows."""
        out: dict[str, dict[str, int]] = {}
        for f in self.findings:
            of = out.setdefault(f.against, {})
            of[f.kind] = of.get(f.kind, 0) + 1
        return out

    def sentences(self) -> tuple[str, ...]:
        """Return what a reader must know, a sentence each."""
        told = []
        for name, size in self.against.items():
            rows = len({f.row for f in self.leaks if f.against == name})
            if rows:
                told.append(
                    f"{rows} of {self.rows} training rows overlap with {self.touched[name]} of {size} rows of {name}"
                )
        repeats = len({f.row for f in self.duplicates})
        if repeats:
            told.append(f"{repeats} of {self.rows} training rows repeat an earlier one")
        if self.empty:
            told.append(f"{len(self.empty)} training rows have an empty field ({_some(self.empty)})")
        if self.cut:
            told.append(f"{len(self.cut)} training rows seem cut at one length ({_some(self.cut)})")
        return (*told, *self._of_labels())

    def _of_labels(self) -> Iterator[str]:
        for name, fields in self.labels.items():
            for label, counts in fields.items():
                if len(counts) == 1:
                    yield f"every row of {name} has the same '{label}', {next(iter(counts))}"
        train = self.labels.get(self.source, {})
        for name in self.against:
            for label, counts in self.labels.get(name, {}).items():
                unseen = sorted(set(counts) - set(train.get(label, counts)))
                if unseen:
                    yield f"'{label}' {', '.join(unseen)} occurs in {name} and never in training"

    def decide(self, on: OnFinding, train: Rows) -> tuple[Rows, AuditReport]:
        """Carry ``on`` out: ``list`` leaves all rows; ``drop`` leaves out every training row with a finding.

        Raises:
            DataError: ``refuse``, and training rows overlap with evaluation rows; or ``drop`` would leave nothing.
        """
        if on == "refuse" and self.leaks:
            kinds = ", ".join(sorted({f.kind for f in self.leaks}))
            first = self.leaks[0]
            raise DataError(
                f"{len({f.row for f in self.leaks})} training rows of {self.source} overlap with evaluation rows "
                f"({kinds}; the first: {first.row} with {first.other} of {first.against}): drop them, or only list them"
            )
        if on != "drop" or not self.findings:
            return train, replace(self, decision=on)
        bad = {f.row for f in self.findings}
        kept = [row for row in train if row.id not in bad]
        if not kept:
            raise DataError(f"every training row of {self.source} overlaps with evaluation rows: nothing would be left")
        dropped = tuple(row.id for row in train if row.id in bad)
        left = Rows.of(kept, train.source, (*train.dropped, *dropped), train.notes)
        return left, replace(self, decision=on, dropped=dropped)

    def describe(self, shown: int = 20) -> dict[str, Any]:
        """Return plain values for a report: counts, sentences and, of each kind, the ``shown`` findings that share
        most.
        """
        findings: list[dict[str, Any]] = []
        for against in (*self.against, WITHIN):
            for kind in KINDS:
                some = [f for f in self.findings if (f.against, f.kind) == (against, kind)]
                findings += [asdict(f) for f in sorted(some, key=lambda f: (-f.share, -f.count))[:shown]]
        return {
            "source": self.source,
            "rows": self.rows,
            "fields": list(self.fields),
            "against": dict(self.against),
            "counts": self.counts,
            "touched": dict(self.touched),
            "findings": findings,
            "too_short": self.too_short,
            "empty": {"rows": len(self.empty), "ids": list(self.empty[:shown])},
            "cut": {"rows": len(self.cut), "ids": list(self.cut[:shown])},
            "labels": {name: dict(fields) for name, fields in self.labels.items()},
            "sentences": list(self.sentences()),
            "decision": self.decision,
            "dropped": len(self.dropped),
        }


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def audit(
    train: Rows,
    against: Mapping[str, Rows],
    *,
    within: bool = False,
    fields: Sequence[str] = (),
    settings: AuditSettings | None = None,
) -> AuditReport:
    """Compare training rows with evaluation rows, and with each other.

    Memory grows with the evaluation sets (12 bytes a word for n-grams); of the training rows one chunk of text is held
    at a time, and with ``within`` the bands of every text (512 bytes each).

    Args:
        train: rows to learn from.
        against: name -> rows to be measured on.
        within: also look for rows that repeat an earlier one (exact, normalised, near).
        fields: to compare; empty: those that hold text.
        settings: what to look for.

    Raises:
        DataError: a field is missing, or no field holds text.
    """
    settings = settings or AuditSettings()
    chosen = text_fields(train, fields)
    theirs = {name: _theirs(rows, chosen, fields) for name, rows in against.items()}
    found = _walk(train.source, train, against, chosen, theirs, within, settings)
    if within and "near" in settings.kinds:
        mine = IndexedRows.of(train, chosen, settings.least_words)
        near = Matcher(mine, ("near",), **_options(settings)).find(mine, earlier=True)
        place = {row.id: i for i, row in enumerate(train)}
        repeats = [*found.duplicates, *(_finding(m, mine, mine, WITHIN) for m in near)]
        repeats.sort(key=lambda f: (place[f.row], KINDS.index(f.kind)))
        found = replace(found, findings=(*found.leaks, *repeats))
    return replace(found, labels={train.source: label_balance(train, chosen), **found.labels})


def audit_stream(
    source: str,
    train: Iterable[Row],
    against: Mapping[str, Rows],
    *,
    fields: Sequence[str],
    within: bool = False,
    settings: AuditSettings | None = None,
) -> AuditReport:
    """Return the audit of training rows that go by once and are too many to hold: the same findings, but for two kinds.

    ``near`` is not looked for among the training rows themselves (it is against the evaluation rows), and their labels
    are not counted. Memory: that of ``audit`` for the evaluation sets, a megabyte of training text (or one row, where
    that is longer), the findings, and with ``within`` 24 bytes and the id of each row.

    Args:
        source: of the training rows, for messages.
        train: rows to learn from.
        against: name -> rows to be measured on.
        fields: to compare; in ``against`` other text fields where it has none of them.
        within: also look for rows that repeat an earlier one (exact, normalised).
        settings: what to look for.

    Raises:
        DataError: no field of an evaluation set holds text; or whatever reading ``train`` raises.
    """
    theirs = {name: _theirs(rows, fields, ()) for name, rows in against.items()}
    return _walk(source, train, against, tuple(fields), theirs, within, settings or AuditSettings())


def _walk(
    source: str,
    train: Iterable[Row],
    against: Mapping[str, Rows],
    fields: tuple[str, ...],
    theirs: Mapping[str, Sequence[str]],
    within: bool,
    settings: AuditSettings,
) -> AuditReport:
    """Everything but what needs all training rows at once."""
    matchers = {
        name: Matcher(IndexedRows.of(rows, theirs[name], settings.least_words), settings.kinds, **_options(settings))
        for name, rows in against.items()
    }
    findings: dict[str, list[Finding]] = {name: [] for name in (*against, WITHIN)}
    seen, cut, empty = Repeats(), CutRows(fields), list[str]()
    count = too_short = 0
    for block in _blocks(train, fields):
        mine = IndexedRows.of(block, fields, settings.least_words)
        for name, matcher in matchers.items():
            findings[name] += [_finding(m, mine, matcher.theirs, name) for m in matcher.find(mine)]
        if within:
            repeats = [r for r in seen.find(mine) if r[0] in settings.kinds]
            findings[WITHIN] += [_repeat(r, mine, count, seen) for r in repeats]
        for row in block:
            cut.add(row)
        empty += [row.id for row in block if is_empty(row, fields)]
        count, too_short = count + len(block), too_short + mine.too_short
    return AuditReport(
        source=source,
        rows=count,
        fields=fields,
        against={name: len(rows) for name, rows in against.items()},
        findings=tuple(f for some in findings.values() for f in some),
        touched={name: matcher.touched for name, matcher in matchers.items()},
        too_short=too_short,
        empty=tuple(empty),
        cut=cut.found(),
        labels={name: label_balance(rows, fields) for name, rows in against.items()},
    )


def _options(settings: AuditSettings) -> dict[str, Any]:
    return settings.model_dump(exclude={"kinds", "least_words"})


def _blocks(rows: Iterable[Row], fields: Sequence[str]) -> Iterator[list[Row]]:
    """Consecutive rows whose texts come to about ``_BLOCK_CHARACTERS`` characters."""
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += sum(len(str(row.fields.get(f) or "")) for f in fields)
        if size >= _BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _theirs(rows: Rows, ours: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the same fields where the other set has them; else those of it that hold text (a set may be shaped
    otherwise).
    """
    shared = tuple(f for f in ours if f in rows.columns)
    return shared or text_fields(rows, wanted)


def _finding(match: Match, mine: IndexedRows, theirs: IndexedRows, against: str) -> Finding:
    row, other = mine.rows[match.row], theirs.rows[match.other]
    return Finding(
        match.kind, row.id, other.id, against, match.share, match.count, match.others, match.excerpt(mine, theirs)
    )


def _repeat(repeat: Repeat, mine: IndexedRows, first: int, seen: Repeats) -> Finding:
    kind, row, other, others = repeat
    text = mine.texts[(row - first) * mine.fields]
    return Finding(kind, seen.id_of(row), seen.id_of(other), WITHIN, 1.0, mine.fields, others, opening(text))
