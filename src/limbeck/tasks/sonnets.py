"""Sonnets: whole poems are learned, and continued from their first three lines."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from limbeck.data.batch import Example
from limbeck.data.prompts import EncodingReport, encode_rows
from limbeck.data.readers import Dialect, Row, Rows
from limbeck.data.tables import iter_text
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.measure.diversity import corpus_distinct, distinct, distinct_columns, self_bleu
from limbeck.measure.likelihood import nll_sums
from limbeck.measure.overlap import CHRF, CHRF_SIGNATURE, chrf_columns
from limbeck.measure.perplexity import NATS_PER_TOKEN
from limbeck.measure.scores import Scores
from limbeck.measure.statistic import COUNT, Statistic, mean
from limbeck.measure.verse import MEMORISED, VERSE, VERSE_PROTOCOL, line_set, memorised_columns, verse_columns
from limbeck.model.decoder import Decoder
from limbeck.objectives.next_token import NextToken
from limbeck.objectives.objective import AnyObjective
from limbeck.tasks.fitting import Fitting
from limbeck.tasks.poems import numbered_poems
from limbeck.tasks.predictions import read_numbered, write_numbered
from limbeck.tasks.task import Measuring, Result, Task

__all__ = ["CHRF_NEW", "Sonnets"]

_ORDER = 2  # n-grams whose variety over all poems together is told
_ORDERS = (1, 2, 3)  # and within each

CHRF_NEW = Statistic(
    "chrF of new lines", tuple(f"new_{c}" for c in CHRF.columns), CHRF.of_sums, CHRF.better, CHRF.unit, CHRF.bounds
)
"""The same without the given lines, which are right in every poem and flatter the figure of the whole."""

_FIGURES = (
    CHRF,
    CHRF_NEW,
    *VERSE,
    *map(distinct, _ORDERS),
    mean("self_bleu", name="self-BLEU", better="lower", unit="BLEU", bounds=(0, 100)),
    MEMORISED,
)


class Sonnets(Task):
    """Poems in a field ``text``, or in the course's format: a title page, then number and poem in turn."""

    name: ClassVar[str] = "sonnets"
    required: ClassVar[tuple[str, ...]] = ("text",)

    kind: Literal["sonnets"] = "sonnets"
    given_lines: int = Field(3, ge=1, description="lines of a poem that are given when it is continued")
    begin: bool | None = Field(None, description="put the begin token before each poem; none: wherever there is one")
    training: str | None = Field(None, description="poems that were learned, to count generated lines that are theirs")

    def read(
        self,
        source: str,
        *,
        columns: Mapping[str, str],
        limit: int | None,
        separator: str,
        dialect: Dialect | None = None,
    ) -> Rows:
        """Read a table with a field ``text``, ``toy:verse``, or poems under numbered headings (see ``poems``)."""
        path = Path(source).expanduser()
        if path.suffix.lower() not in (".txt", ".raw") or not path.is_file():
            return super().read(source, columns=columns, limit=limit, separator=separator, dialect=dialect)
        (_, fields), *_ = iter_text(path, "")
        poems = [(number, _poem(body)) for number, body in numbered_poems(fields["text"], source)]
        if not poems:
            return super().read(source, columns=columns, limit=limit, separator=separator, dialect=dialect)
        rows = [Row(f"sonnet:{number}", {"number": number, "text": poem}) for number, poem in poems if poem]
        if not rows:
            raise DataError(f"{source} has numbers but no poem below any of them")
        return Rows.of(rows[:limit], source)

    def _begin(self, tokenizer: Tokenizer) -> bool:
        return tokenizer.bos_id is not None if self.begin is None else self.begin

    def encode(self, rows: Rows, tokenizer: Tokenizer, context: int) -> tuple[list[Example], EncodingReport]:
        """Encode whole poems with their end token."""
        return encode_rows(rows, tokenizer, context, overlap=1, bos=self._begin(tokenizer))

    def objective(self) -> AnyObjective:
        """Return the likelihood of every next token."""
        return NextToken()

    def statistics(self, columns: Collection[str]) -> tuple[Statistic, ...]:
        """Return nats a token of whole poems; of the continued ones chrF, verse, variety and copied lines."""
        return tuple(s for s in (NATS_PER_TOKEN, *_FIGURES) if set(s.columns) - {COUNT} <= set(columns))

    def predicts(self, measuring: Measuring) -> bool:
        """Return whether poems are generated."""
        return measuring.generate

    def decoding(self) -> Decoding:
        """Return sampling as the course's baseline does: temperature 1.2, top-p 0.9."""
        return Decoding(max_new_tokens=220, temperature=1.2, top_p=0.9, truncate_prompts=True)

    def evaluate(
        self, model: Decoder, tokenizer: Tokenizer, rows: Rows, measuring: Measuring, decoding: Decoding
    ) -> Result:
        """Measure the likelihood of the poems, and chrF of continuations against whole poems, given lines included."""
        context = min(measuring.context or model.config.context, model.config.context)
        examples, report = self.encode(rows, tokenizer, context)
        chunks = nll_sums(model, examples, measuring.batch_size)
        nll, tokens = np.zeros(len(rows)), np.zeros(len(rows))
        np.add.at(nll, [e.row for e in examples], chunks)
        np.add.at(tokens, [e.row for e in examples], [e.predictions for e in examples])
        columns: dict[str, np.ndarray] = {"nll": nll, "tokens": tokens}
        predictions: dict[str, str] = {}
        notes = dict(report.describe())
        if measuring.generate:
            started = time.perf_counter()
            prompts = self._prompts(tokenizer, rows)
            fitting = Fitting.of(model, decoding, prompts)
            decoding, notes = fitting.decoding, notes | fitting.notes()
            out = generate(model, tokenizer, prompts, decoding, batch_size=measuring.batch_size)
            predictions = {row.id: self._given(row) + some[0].text for row, some in zip(rows, out, strict=True)}
            written = sum(g.tokens for some in out for g in some)
            seconds = time.perf_counter() - started
            notes["generation"] = {"tokens": written, "seconds": seconds, "tokens_per_second": written / seconds}
            columns |= self.judge(predictions, rows)
            notes["distinct_of_all"] = corpus_distinct(self._new(predictions, rows), order=_ORDER)
        protocol = {
            "context": context,
            "unit": "token",
            "end_token": True,  # nosec B105 - a token of text
            "begin_token": self._begin(tokenizer),
            "decoding": decoding.model_dump(mode="json") if measuring.generate else None,
            **self._judging(rows),
        }
        shown = [
            (self._given(r), predictions[r.id].removeprefix(self._given(r)), "") for r in rows.rows[:1] if predictions
        ]
        return Result(Scores.of([r.id for r in rows], **columns), protocol, shown, notes, predictions)

    def score(self, predictions: Mapping[str, str], rows: Rows) -> Result:
        """Return ChrF, verse, variety and copied lines of poems from a file; only their new lines, where so said."""
        notes = {"distinct_of_all": corpus_distinct(self._new(predictions, rows), order=_ORDER)}
        scores = Scores.of(predictions, **self.judge(predictions, rows))
        return Result(scores, self._judging(rows), (), notes, predictions)

    def _judging(self, rows: Rows) -> dict[str, object]:
        return {
            "corpus": rows.source,
            "given_lines": self.given_lines,
            "chrf": f"sacrebleu {CHRF_SIGNATURE}, corpus score of whole poems, given lines included",
            "verse": VERSE_PROTOCOL,
            "variety": f"distinct-{', '.join(map(str, _ORDERS))} and self-BLEU of the new lines",
            "memorised": self.training and f"lines of three words or more that stand in {self.training}",
        }

    def judge(self, predictions: Mapping[str, str], rows: Rows) -> dict[str, np.ndarray]:
        """Score whole poems, by id, that continue ``rows``; without chrF where no row has more than the given lines.

        Raises:
            DataError: the training poems cannot be read.
        """
        texts, new = [predictions[row.id] for row in rows], self._new(predictions, rows)
        truth = [row.text("text") for row in rows]
        columns = verse_columns(texts)
        for order in _ORDERS:
            columns |= distinct_columns(new, order=order)
        if any(len(text.splitlines()) > self.given_lines for text in truth):
            columns |= chrf_columns(texts, truth)
            rest = [text.removeprefix(self._given(row)) for text, row in zip(truth, rows, strict=True)]
            columns |= {f"new_{name}": column for name, column in chrf_columns(new, rest).items()}
        if len(texts) > 1:
            columns["self_bleu"] = self_bleu(new)
        if self.training is not None:
            learned = self.read(self.training, columns={}, limit=None, separator="<|endoftext|>")
            columns |= memorised_columns(new, line_set(row.text("text") for row in learned))
        return columns

    def _new(self, predictions: Mapping[str, str], rows: Rows) -> list[str]:
        """Return what was written after the given lines."""
        return [predictions[row.id].removeprefix(self._given(row)) for row in rows]

    def write_predictions(self, result: Result, path: Path) -> None:
        """Write numbered poems in the course's format; a row's number is the poem's own, else its place from 1."""
        write_numbered(((_number(name, i), text) for i, (name, text) in enumerate(result.predictions.items())), path)

    def read_predictions(self, path: Path, rows: Rows) -> dict[str, str]:
        """Read the course's format.

        Numbers are the poems' own, or count from 0 or 1 (the course's own code counts); every poem must begin with
        the given lines of its row.

        Raises:
            DataError: the file is of another split.
        """
        found = read_numbered(path)
        own = [_number(row.id, i) for i, row in enumerate(rows)]
        first = min(found)
        wanted = own if set(found) == set(own) else list(range(first, first + len(rows)))
        if first > 1 and wanted != own or set(found) != set(wanted):
            numbers = f"{first} to {max(found)}, {len(found)} in all"
            raise DataError(
                f"predictions file {path} is of another split: its poems are {numbers}, not those {len(rows)}"
            )
        out = {}
        for row, number in zip(rows, wanted, strict=True):
            if not _poem(found[number]).startswith(self._given(row).strip()):
                raise DataError(
                    f"poem {number} of predictions file {path} does not begin with the given lines of {row.id}"
                )
            out[row.id] = found[number]
        return out

    def _given(self, row: Row) -> str:
        return "\n".join(row.text("text").split("\n")[: self.given_lines]) + "\n"

    def _prompts(self, tokenizer: Tokenizer, rows: Rows) -> list[list[int]]:
        """Ids of the lines that are given."""
        return [tokenizer.with_begin(tokenizer.encode(self._given(row)), self._begin(tokenizer)) for row in rows]


def _poem(body: str) -> str:
    """Return the lines of a poem, blank ones and the couplet's indent left out."""
    return "\n".join(line.strip() for line in body.splitlines() if line.strip())


def _number(name: str, place: int) -> int:
    last = name.rpartition(":")[2]
    return int(last) if last.isdigit() and name.startswith("sonnet:") else place + 1
