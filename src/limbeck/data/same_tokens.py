"""Do two tokenizers mean the same by every id?"""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.data.probes import PROBES
from limbeck.data.tokenizer import Tokenizer
from limbeck.errors import VocabularyError

__all__ = ["check_alike"]


def check_alike(teacher: Tokenizer, student: Tokenizer, teacher_rows: int, student_rows: int) -> None:
    """Accept two models for distillation only if one id means one thing to both (I10).

    The vocabularies must be equal and every probe text must encode to the same ids, with the same end token. The
    models' rows (of embedding and head) may then differ by padding rows alone, those beyond the vocabulary.

    Args:
        teacher: the teacher's tokenizer.
        student: the student's.
        teacher_rows: vocabulary rows of the teacher's model.
        student_rows: those of the student's.

    Raises:
        VocabularyError: says where they part.
    """
    if teacher.fingerprint != student.fingerprint:
        _same_vocabulary(teacher, student)
        _same_ids(teacher, student, PROBES)
        if teacher.eos_id != student.eos_id:
            ends = f"{teacher.piece(teacher.eos_id)!r} and {student.piece(student.eos_id)!r}"
            raise VocabularyError(f"teacher and student end a document with different tokens: {ends}")
    size = teacher.vocab_size
    for who, rows in (("teacher", teacher_rows), ("student", student_rows)):
        if rows < size:
            raise VocabularyError(
                f"the {who}'s model has {rows} vocabulary rows for a tokenizer of {size}; use its own"
            )


def _same_vocabulary(teacher: Tokenizer, student: Tokenizer) -> None:
    if teacher.vocabulary == student.vocabulary:
        return
    size = min(teacher.vocab_size, student.vocab_size)
    place = next((i for i in range(size) if teacher.piece(i) != student.piece(i)), size)
    raise VocabularyError(
        f"teacher and student have different vocabularies ({teacher.vocab_size} and {student.vocab_size} entries): "
        f"id {place} is {teacher.piece(place)!r} to the teacher and {student.piece(place)!r} to the student; "
        "use a student with the teacher's tokenizer, or set cross_tokenizer (--cross-tokenizer)"
    )


def _same_ids(teacher: Tokenizer, student: Tokenizer, texts: Sequence[str]) -> None:
    for text in texts:
        ours, theirs = teacher.encode(text), student.encode(text)
        if ours == theirs:
            continue
        length = min(len(ours), len(theirs))
        at = next((i for i in range(length) if ours[i] != theirs[i]), length)
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise VocabularyError(
            f"teacher and student encode {shown!r} differently: from token {at} on the teacher's ids are "
            f"{ours[at : at + 4]} and the student's {theirs[at : at + 4]}; use a student with the teacher's tokenizer"
        )
