"""I37: one stop set for every verb: the tokenizer's end token and all of the generation config's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.errors import ModelError
from limbeck.formats.load import load_bundle, save_bundle
from tests.reference.small_tokenizer import byte_level
from tests.reference.twins import gpt2_config, random_decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(random_decoder(gpt2_config(280)), byte_level(280), tmp_path / "m")
    return tmp_path / "m"


def say(folder: Path, ends: object) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))


@pytest.mark.parametrize(
    ("ends", "expected"), [([0, 1, 7], (0, 1, 7)), ([7, 1], (0, 7, 1)), (5, (0, 5)), (None, (0,)), ([], (0,))]
)
def test_every_end_id_is_loaded_and_the_tokenizers_comes_first(folder: Path, ends: object, expected: tuple[int, ...]):
    say(folder, ends)
    assert load_bundle(str(folder)).tokenizer.end_ids == expected


def test_generation_without_further_word_stops_at_each(folder: Path):
    bundle = load_bundle(str(folder))
    decoding = Decoding(max_new_tokens=6)
    plain = generate(bundle.model, bundle.tokenizer, [[65, 66]], decoding)[0][0]
    say(folder, [0, plain.ids[0]])
    bundle = load_bundle(str(folder))
    found = generate(bundle.model, bundle.tokenizer, [[65, 66]], decoding)[0][0]
    assert found.stopped == "end" and found.ids == plain.ids[:1] and found.text == ""


def test_end_ids_that_are_no_ids_are_refused(folder: Path):
    for bad in ("</s>", [1, "x"], True):
        say(folder, bad)
        with pytest.raises(ModelError, match="eos_token_id of .* must be a token id or a list of them"):
            load_bundle(str(folder))
