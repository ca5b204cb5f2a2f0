"""Preference pairs as tokens: encoding, truncation of both sides alike, and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from limbeck.data.batch import Example, PairBatch, collate
from limbeck.data.chat import ChatTemplate, Message, naming_row
from limbeck.data.preferences import turns_before
from limbeck.data.prompts import EncodingReport, Truncate, cut_prompt
from limbeck.data.rows import Rows
from limbeck.errors import DataError, NothingToLearnError

__all__ = ["PairExample", "collate_pairs", "encode_pairs", "pair_of"]


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """A pair: an example of the chosen completion, with the one of the rejected beside it.

    Attributes:
        rejected: the same prompt with the other completion.
    """

    sides: ClassVar[int] = 2

    rejected: Example = field(kw_only=True)

    @property
    def width(self) -> int:
        """Tokens of the longer side."""
        return max(len(self), len(self.rejected))

    @property
    def tokens(self) -> int:
        """Tokens of both sides."""
        return len(self) + len(self.rejected)

    @property
    def targets(self) -> int:
        """Tokens scored of both sides."""
        return self.predictions + self.rejected.predictions

    @property
    def key(self) -> str:
        """Row id, ``#`` and a hash of the tokens of both sides and of what is scored of them."""
        digest = hashlib.blake2b(digest_size=12)
        for side in (self, self.rejected):
            digest.update(np.int64(len(side)).tobytes())
            digest.update(np.ascontiguousarray(side.ids, dtype="<i4").data)
            digest.update(np.packbits(side.target).data)
        return f"{self.id}#{digest.hexdigest()}"


def pair_of(example: Example) -> PairExample:
    """Return the same example as a pair.

    Raises:
        DataError: it has no rejected side.
    """
    if not isinstance(example, PairExample):
        raise DataError(f"row {example.id} has one answer, and a preference needs two: choose the task 'preferences'")
    return example


def collate_pairs(rows: Sequence[Sequence[Example]], pad_id: int = 0) -> PairBatch:
    """Lay out rows of one (padded) or several (packed) pairs as a batch, the two sides apart.

    Raises:
        DataError: an example is no pair.
    """
    pairs = [[pair_of(e) for e in row] for row in rows]
    keys = tuple(e.key for row in pairs for e in row)
    return PairBatch(collate(pairs, pad_id), collate([[e.rejected for e in row] for row in pairs], pad_id), keys)


def encode_pairs(
    rows: Rows,
    template: ChatTemplate,
    context: int,
    *,
    truncate: Truncate = "prompt_left",
    on_empty: Literal["error", "count"] = "error",
) -> tuple[list[PairExample], EncodingReport]:
    """Tokenise preference pairs; completions and their end tokens are the targets.

    A prompt is cut alike on both sides, so that the longer completion fits.

    Args:
        rows: as ``read_preferences`` gives them.
        template: lays out the turns.
        context: most tokens of a side.
        truncate: what gives way where the longer side is longer than ``context``.
        on_empty: a pair with a side that has nothing to learn left is an error that names it, or counted.

    Returns:
        The pairs, and a report; a pair counts as truncated where either side was cut.

    Raises:
        DataError: no pair is left.
        NothingToLearnError: a side has no target left within the context, under ``on_empty="error"``.
    """
    pairs: list[PairExample] = []
    truncated: list[str] = []
    too_long: list[str] = []
    empty: list[str] = []
    for index, row in enumerate(rows):
        before = turns_before(row)
        completions = []
        with naming_row(row.id, rows.source):
            prompt = template.prompt_ids(before)
            for side in ("chosen", "rejected"):
                ids, learned = template.encode((*before, Message("assistant", row.fields[side])))
                completions.append(ids[len(prompt) :])
                assert ids[: len(prompt)] == prompt and all(learned[len(prompt) :]), row.id
        first, rest = template.begin(prompt)
        fitted = cut_prompt(first, rest, max(map(len, completions)), context, truncate)
        if fitted is None:
            too_long.append(row.id)
            continue
        if len(fitted) + max(map(len, completions)) > context or len(fitted) < len(prompt):
            truncated.append(row.id)
        chosen, rejected = (_example(index, row.id, fitted, some, context) for some in completions)
        if not (chosen.predictions and rejected.predictions):
            if on_empty == "error":
                raise NothingToLearnError(
                    f"row {row.id} of {rows.source} has no answer left on a side: its prompt fills the context of "
                    f"{context} tokens; cut prompts (truncate=prompt_left), raise the context, or set empty=count"
                )
            empty.append(row.id)
            truncated = [name for name in truncated if name != row.id]
            continue
        pairs.append(PairExample(chosen.row, chosen.id, chosen.ids, chosen.target, rejected=rejected))
    if not pairs:
        raise DataError(
            f"no pair of {rows.source} is left to learn from: of {len(rows)}, {len(too_long)} are longer than "
            f"{context} tokens and {len(empty)} have no target; raise the context or cut prompts"
        )
    tokens = sum(e.tokens for e in pairs)
    targets = sum(e.targets for e in pairs)
    kinds = (tuple(truncated), tuple(too_long), tuple(empty))
    return pairs, EncodingReport(len(rows), len(pairs), tokens, targets, *kinds)


def _example(index: int, name: str, given: list[int], completion: list[int], context: int) -> Example:
    ids = np.asarray((given + completion)[:context], dtype=np.int32)
    return Example(index, name, ids, np.arange(len(ids)) >= len(given))
