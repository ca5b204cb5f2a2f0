"""I10: teacher and student are accepted only if their tokenizers encode alike; widths differ by padding rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.probes import PROBES
from limbeck.data.same_tokens import check_alike
from limbeck.data.tokenizer import Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.errors import VocabularyError
from tests.reference.tokenizers import llama_like

TEXTS = [row.fields["text"] for row in toy_rows("stories", size=40)]
TEACHER = Tokenizer.train(TEXTS, 320)


def _changed(tmp_path: Path, config: dict[str, Any] | None = None, **parts: Any) -> Tokenizer:
    """The teacher's tokenizer with parts of its file replaced."""
    TEACHER.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **parts}))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(tmp_path)


def _model(edit: Any) -> dict[str, Any]:
    model = json.loads(TEACHER._plain.to_str())["model"]
    edit(model)
    return dict(model)


def test_equal_tokenizers_are_accepted_with_any_padding_rows(tmp_path: Path) -> None:
    TEACHER.save(tmp_path)
    student = Tokenizer.load(tmp_path)
    for rows in ((320, 320), (384, 320), (320, 384), (512, 321)):
        check_alike(TEACHER, student, *rows)


def test_one_vocabulary_in_two_layouts_is_accepted(tmp_path: Path) -> None:
    model = json.loads(TEACHER._plain.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in model["merges"]), encoding="utf-8")
    student = Tokenizer.load(tmp_path)
    assert student.fingerprint != TEACHER.fingerprint, "it has no begin token, so the texts themselves are compared"
    check_alike(TEACHER, student, 320, 320)


@pytest.mark.parametrize(("teacher", "student", "who"), [(319, 320, "teacher"), (320, 300, "student")])
def test_a_model_with_fewer_rows_than_its_tokenizer_is_refused(teacher: int, student: int, who: str) -> None:
    with pytest.raises(
        VocabularyError, match=f"the {who}'s model has {min(teacher, student)} vocabulary rows .* of 320"
    ):
        check_alike(TEACHER, TEACHER, teacher, student)


def test_other_vocabularies_are_refused_with_the_first_id_that_differs() -> None:
    student = Tokenizer.train(TEXTS, 310)
    with pytest.raises(
        VocabularyError, match=r"\(320 and 310 entries\): id 310 is '.*' to the teacher and '<row 310>'"
    ):
        check_alike(TEACHER, student, 320, 320)


def test_swapped_ids_are_refused(tmp_path: Path) -> None:
    def swap(model: dict[str, Any]) -> None:
        vocabulary = model["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    student = _changed(tmp_path, model=_model(swap))
    with pytest.raises(VocabularyError, match=r"id \d+ is 'a' to the teacher and 'b' to the student"):
        check_alike(TEACHER, student, 320, 320)


def test_tokenizers_that_cut_texts_otherwise_are_refused_with_text_and_ids(tmp_path: Path) -> None:
    split = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    student = _changed(tmp_path, pre_tokenizer=split)
    with pytest.raises(VocabularyError) as caught:
        check_alike(TEACHER, student, 320, 320)
    message, text = str(caught.value), PROBES[0]
    ours, theirs = TEACHER.encode(text), student.encode(text)
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    assert repr(text) in message and f"from token {at} on" in message
    assert str(ours[at : at + 4]) in message and str(theirs[at : at + 4]) in message


def test_a_difference_in_merges_alone_is_found(tmp_path: Path) -> None:
    student = _changed(tmp_path, model=_model(lambda model: model["merges"].reverse()))
    assert student.vocabulary == TEACHER.vocabulary
    with pytest.raises(VocabularyError, match="encode '.*' differently"):
        check_alike(TEACHER, student, 320, 320)


def test_a_difference_in_normalisation_alone_is_found(tmp_path: Path) -> None:
    student = _changed(tmp_path, normalizer={"type": "NFC"})
    with pytest.raises(VocabularyError, match="differently"):
        check_alike(TEACHER, student, 320, 320)


def test_another_end_token_is_refused(tmp_path: Path) -> None:
    student = _changed(tmp_path, config={"eos_token": "!"})
    with pytest.raises(VocabularyError, match=r"end a document with different tokens: '<\|endoftext\|>' and '!'"):
        check_alike(TEACHER, student, 320, 320)


def test_families_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="different vocabularies"):
        check_alike(TEACHER, Tokenizer.load(llama_like(tmp_path)), 320, 320)


def test_probes_cover_every_byte_and_end_of_text() -> None:
    found = {byte for text in PROBES for byte in text.encode()}
    valid = {byte for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF for byte in chr(i).encode()}
    assert found >= {b for b in valid if b < 0xF0} and any("<|endoftext|>" in text for text in PROBES)


@pytest.mark.realdata
def test_real_tokenizers_part(real_data: Path) -> None:
    names = ("gpt2_tokenizer", "models/base-14m-gpt2", "stories260K")
    gpt2, base, stories = (Tokenizer.load(real_data / name) for name in names)
    check_alike(gpt2, gpt2, 50257, 50304)
    for other in (base, stories):
        with pytest.raises(VocabularyError, match="different vocabularies"):
            check_alike(gpt2, other, 50257, 50257)
