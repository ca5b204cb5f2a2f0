"""Distillation from a teacher with another vocabulary: sorted distributions compared (ULD, Boizard et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.data.batch import IGNORE, Batch
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import ConfigError, DataError
from limbeck.losses.likelihood import token_nll, wide
from limbeck.losses.terms import Counts, Term, Terms
from limbeck.model.decoder import Decoder

__all__ = ["Aligned", "CrossTokenizer", "align", "sorted_distance"]


def sorted_distance(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum of absolute differences of both distributions, each sorted by probability: (N, V) and (N, V') -> (N,).

    This is the Wasserstein-1 distance of ULD (equation 5) between distributions over vocabularies without any common
    ground; the narrower one is filled with zeros. It is 0 for equal sets of probabilities and at most 2.
    """
    dtype = wide(student_logits.dtype)
    sides = [(x.to(dtype) / temperature).softmax(dim=-1) for x in (student_logits, teacher_logits)]
    width = max(x.shape[-1] for x in sides)
    first, second = (
        torch.nn.functional.pad(x.sort(dim=-1, descending=True).values, (0, width - x.shape[-1])) for x in sides
    )
    return (first - second).abs().sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Places of one row where both models have read the same text.

    Attributes:
        student: columns of the student's logits.
        teacher: columns of the teacher's.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]


def align(student: Sequence[str], teacher: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how many tokens of each side have been read where both have read the same text, with some still to come.

    Args:
        student: text of the answer after 0, 1, ... of the student's tokens; the last is the whole answer.
        teacher: the same of the teacher's.
    """
    places = {text: k for k, text in reversed(list(enumerate(teacher[:-1]))) if not text.endswith("\ufffd")}
    pairs = [(k, places[text]) for k, text in enumerate(student[:-1]) if text in places]
    return tuple(k for k, _ in pairs), tuple(k for _, k in pairs)


@dataclass(frozen=True)
class CrossTokenizer:
    """``alpha`` x NLL of the target tokens + ``beta`` x sorted distance to a teacher with its own tokenizer.

    Terms: ``nll`` (mean over target tokens) and ``uld`` (mean over aligned places). Each row is one document: a prompt
    and an answer, whose text the teacher reads in its own tokens.

    Attributes:
        model: the teacher; frozen, in evaluation mode.
        tokenizer: the teacher's.
        own: the student's.
        alpha: weight of the likelihood.
        beta: weight of the distance.
        temperature: divides both logits in the distance.
        alignment: ``position`` compares the k-th answer tokens of both, as ULD does, up to the shorter answer; ``text``
            compares only where both have read exactly the same text.
    """

    model: Decoder
    tokenizer: Tokenizer
    own: Tokenizer
    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    alignment: Literal["position", "text"] = "text"

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or self.alpha == self.beta == 0:
            raise ConfigError("alpha and beta are weights of 0 or more, and one of them must be above 0")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature:g}: it must be above 0")
        self.model.eval().requires_grad_(False)

    def counts(self, batch: Batch) -> Counts:
        """Return the target tokens under ``nll``, aligned places under ``uld``."""
        out = {}
        if self.alpha:
            out["nll"] = float((batch.next_token_labels() != IGNORE).sum())
        if self.beta:
            out["uld"] = float(sum(len(places.student) for _, places in self._rows(batch)))
        return out

    def _rows(self, batch: Batch) -> list[tuple[list[int], Aligned]]:
        """Return the teacher's ids of each row, and the places to compare.

        Raises:
            DataError: a row holds several documents.
        """
        if not batch.plain:
            raise DataError("a teacher with another tokenizer reads one document a row: leave packing out")
        out = []
        sizes = batch.real.sum(dim=1).tolist()
        for ids, target, size in zip(batch.ids.tolist(), batch.target_mask.tolist(), sizes, strict=True):
            learned = [k for k in range(1, size) if target[k]]
            first = learned[0] if learned else size
            out.append(self._row(ids[:first], ids[first:size]))
        return out

    def _row(self, prompt: list[int], answer: list[int]) -> tuple[list[int], Aligned]:
        reach = self.model.config.context
        ends = bool(answer) and answer[-1] == self.own.eos_id
        body = answer[:-1] if ends else answer
        text = _read(self.own, body, False)[-1]
        head = self.tokenizer.encode(self.own.decode(prompt))
        begin = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        before = [begin, *head]
        theirs = self.tokenizer.encode(text, continues=bool(head))
        whole = [*theirs, self.tokenizer.eos_id] if ends else theirs
        if self.alignment == "position":
            places = range(min(len(answer), len(whole)))
            mine, other = tuple(places), tuple(places)
        else:
            mine, other = align(_read(self.own, body, ends), _read(self.tokenizer, theirs, ends))
        kept = [(a, b) for a, b in zip(mine, other, strict=True) if len(before) + b <= reach]
        ids = [*before, *whole][:reach]
        student = tuple(len(prompt) - 1 + a for a, _ in kept)
        return ids, Aligned(student, tuple(len(before) - 1 + b for _, b in kept))

    @torch.no_grad()
    def _teacher_logits(self, rows: list[tuple[list[int], Aligned]], device: torch.device) -> Tensor:
        """(N, V') logits of the teacher at all aligned places, row after row."""
        lengths = [len(ids) for ids, _ in rows]
        padded = [[*ids, *[self.tokenizer.pad_id] * (max(lengths) - len(ids))] for ids, _ in rows]
        batch = Batch.of_ids(torch.tensor(padded, device=device), lengths)
        place = [(r, k) for r, (_, places) in enumerate(rows) for k in places.teacher]
        at, columns = (torch.tensor(part, device=device, dtype=torch.long) for part in _columns(place))
        self.model.eval()
        logits: Tensor = self.model(batch, read=lambda hidden, head: head(hidden[at, columns]))
        return logits

    def __call__(self, model: nn.Module, batch: Batch, counts: Counts | None = None) -> Terms:
        """Return sums over the batch."""
        labels = batch.next_token_labels()
        rows = self._rows(batch) if self.beta else []
        place = [(r, k) for r, (_, places) in enumerate(rows) for k in places.student]
        at, columns = (torch.tensor(part, device=batch.ids.device, dtype=torch.long) for part in _columns(place))
        learned = labels != IGNORE

        def read(hidden: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
            return head(hidden[learned]), head(hidden[at, columns])

        for_labels, for_teacher = model(batch, read=read)
        terms = {}
        if self.alpha:
            terms["nll"] = Term(token_nll(for_labels, labels[learned]).sum(), float(learned.sum()), self.alpha)
        if self.beta:
            distance = for_teacher.sum() * 0
            if place:
                theirs = self._teacher_logits(rows, batch.ids.device)
                distance = sorted_distance(for_teacher, theirs, self.temperature).sum()
            terms["uld"] = Term(distance, float(len(place)), self.beta)
        return terms


def _columns(places: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [r for r, _ in places], [k for _, k in places]


def _read(tokenizer: Tokenizer, ids: list[int], ends: bool) -> list[str]:
    """Text after 0, 1, ... of ``ids``, and once more where an end token follows them.

    The ids continue a text: some tokenizers spell a space before a word only there.
    """
    before = tokenizer.encode("a")
    size = len(tokenizer.decode(before))
    out = [tokenizer.decode([*before, *ids[:k]])[size:] for k in range(len(ids) + 1)]
    return [*out, out[-1]] if ends else out
