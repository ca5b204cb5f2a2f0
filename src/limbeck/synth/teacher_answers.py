"""Sequence-level distillation: a teacher's answers as training text (Kim and Rush 2016)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from limbeck.data.batch import Example
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import DataError
from limbeck.model.decoder import Decoder
from limbeck.storage import write_text
from limbeck.synth.on_policy import answered, prompt_of

__all__ = ["teacher_answers"]

_BLOCK = 64  # prompts answered between two writes


def teacher_answers(
    teacher: Decoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    context: int | None = None,
    file: Path | None = None,
    key: str = "",
    batch_size: int = 16,
    say: Callable[[str], None] = lambda line: None,
) -> list[Example]:
    """Return ``examples`` with the teacher's answers in place of the data's.

    With ``file`` the answers are kept, a JSON line an example after one with the key, and a killed call goes on from
    them.

    Args:
        teacher: that answers.
        tokenizer: of teacher and student.
        examples: prompts with answers; the answers are not looked at.
        decoding: of the teacher.
        context: most tokens of prompt and answer; None: the teacher's context.
        file: where answers are kept.
        key: what the answers depend on beside the prompts, such as a fingerprint of the teacher.
        batch_size: prompts answered together.
        say: receives a line now and then.

    Raises:
        DataError: ``file`` holds the answers of another teacher, of other prompts or of other settings.
    """
    reach = min(context or teacher.config.context, teacher.config.context)
    prompts = [prompt_of(e)[-(reach - 1) :] for e in examples]
    whole = hashlib.sha256(json.dumps([key, decoding.model_dump(mode="json"), prompts]).encode()).hexdigest()
    found = _read(file, whole)
    while len(found) < len(prompts):
        some = prompts[len(found) : len(found) + _BLOCK]
        room = max(1, min(decoding.max_new_tokens, reach - max(map(len, some))))
        asked = decoding.model_copy(update={"max_new_tokens": room, "truncate_prompts": True})
        found += [list(one[0].ids) for one in generate(teacher, tokenizer, some, asked, batch_size=batch_size)]
        if file is not None:
            write_text(file, "".join(json.dumps(line) + "\n" for line in [whole, *found]))
        say(f"the teacher answered {len(found)} of {len(prompts)} prompts")
    return [answered(e.row, p, a) for e, p, a in zip(examples, prompts, found, strict=True)]


def _read(file: Path | None, key: str) -> list[list[int]]:
    if file is None or not file.is_file():
        return []
    there, *answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if there != key:
        raise DataError(f"{file} holds answers of another teacher, or to other prompts: delete it, or use a new folder")
    return answers
