from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from limbeck.data.probes import PROBES
from limbeck.data.tokenizer import END_OF_TEXT, TextStream, Tokenizer
from limbeck.data.toy.table import toy_rows
from limbeck.errors import CheckpointError, ConfigError, ModelError
from tests.reference.tokenizers import llama_like

TEXTS = [row.fields["text"] for row in toy_rows("stories", size=60)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(llama_like(tmp_path_factory.mktemp("llama")))


def test_a_trained_vocabulary_holds_the_end_token_first_and_every_byte(trained: Tokenizer) -> None:
    assert trained.piece(0) == END_OF_TEXT and trained.eos_id == trained.bos_id == trained.pad_id == 0
    assert trained.vocab_size == 400 and not trained.begins_with_bos
    for text in (*PROBES, *TEXTS):
        assert trained.decode(trained.encode(text)) == text


def test_training_gives_the_same_vocabulary_again(trained: Tokenizer) -> None:
    assert Tokenizer.train(TEXTS, 400).fingerprint == trained.fingerprint
    assert Tokenizer.train(TEXTS, 390).fingerprint != trained.fingerprint


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="257 entries or more .* not 256"):
        Tokenizer.train(TEXTS, 256)


def test_saved_and_loaded_is_the_same(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    again = Tokenizer.load(tmp_path / "model")
    assert again.fingerprint == trained.fingerprint
    assert (again.eos_id, again.bos_id, again.pad_id) == (0, 0, 0)


def test_a_llama_tokenizer_is_saved_with_its_begin_and_padding_tokens(llama: Tokenizer, tmp_path: Path) -> None:
    assert (llama.bos_id, llama.eos_id, llama.pad_id, llama.begins_with_bos) == (1, 2, 3, True)
    llama.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == llama.fingerprint and again.pad_id == 3


@pytest.mark.parametrize("kind", ["trained", "llama"])
def test_transformers_opens_what_was_saved_and_encodes_alike(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert (theirs.eos_token_id, theirs.bos_token_id) == (tokenizer.eos_id, tokenizer.bos_id)
    for text in (*PROBES, *TEXTS):
        if END_OF_TEXT not in text:  # they read special strings as tokens
            assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    expected = [tokenizer.bos_id] if tokenizer.begins_with_bos else []
    assert theirs.encode("Once") == [*expected, *tokenizer.encode("Once")]


def test_encode_adds_no_begin_token_even_where_the_template_would(llama: Tokenizer) -> None:
    assert 1 not in llama.encode("once upon") and llama.encode("") == []
    assert llama.encode_many(["once upon", ""]) == [llama.encode("once upon"), []]


def test_special_strings_in_a_text_are_text_unless_asked_for(trained: Tokenizer, llama: Tokenizer) -> None:
    text = f"one{END_OF_TEXT}two"
    assert 0 not in trained.encode(text) and 0 not in trained.encode_many([text])[0]
    assert trained.decode(trained.encode(text)) == text
    assert trained.encode(text, specials=True) == [*trained.encode("one"), 0, *trained.encode("two")]
    assert trained.encode_many([text], specials=True) == [trained.encode(text, specials=True)]
    assert 0 not in trained.encode(text), "asking once must not change later calls"
    assert 2 not in llama.encode("a</s>b") and 2 in llama.encode("a</s>b", specials=True)


def test_decode_skips_special_tokens_and_padding_rows(trained: Tokenizer) -> None:
    ids = trained.encode("a dog")
    assert trained.decode([0, *ids, 0, 10_000]) == "a dog"
    assert trained.piece(10_000) == "<row 10000>"


@pytest.mark.parametrize("prompt", ["once upon a time", "Question:\n", "x"])
@pytest.mark.parametrize("answer", [" there was", "no space", "\n\nline", "", " "])
def test_a_continuation_decodes_to_exactly_prompt_and_answer(
    trained: Tokenizer, llama: Tokenizer, prompt: str, answer: str
) -> None:
    for tokenizer in (trained, llama):
        ids = tokenizer.encode(prompt) + tokenizer.encode(answer, continues=True)
        assert tokenizer.decode(ids) == prompt + answer
        assert tokenizer.encode_many([answer], continues=True) == [tokenizer.encode(answer, continues=True)]


def test_a_dummy_prefix_is_left_out_of_a_continuation_only(llama: Tokenizer) -> None:
    assert llama.piece(llama.encode("a")[0]).startswith("▁")
    assert llama.encode("a", continues=True) == [llama.vocabulary["a"]]


def test_a_continuation_with_which_every_sentinel_merges_is_encoded_alone() -> None:
    merges = [("\u010a", "a"), (".", "a"), ("\u0120", "a"), ("\u0120", "\u010a"), ("\u0120", ".")]
    pieces = [*pre_tokenizers.ByteLevel.alphabet(), *(a + b for a, b in merges)]
    backend = Backend(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, eos_id=0)
    assert tokenizer.encode("a", continues=True) == tokenizer.encode("a")


def test_limits_inside_a_tokenizer_file_cut_nothing(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.load(tmp_path)
    assert again.encode(TEXTS[0]) == trained.encode(TEXTS[0]) and again.fingerprint == trained.fingerprint


def _gpt2_files(folder: Path, names: tuple[str, str], header: str = "") -> None:
    folder.mkdir(exist_ok=True)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "\u0120he", END_OF_TEXT]
    (folder / names[0]).write_text(json.dumps({p: i for i, p in enumerate(pieces)}), encoding="utf-8")
    (folder / names[1]).write_text(f"{header}h e\n\u0120 he\n", encoding="utf-8")


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
@pytest.mark.parametrize("header", ["", "#version: 0.2\n"])
def test_gpt2_files_load_with_and_without_a_header(tmp_path: Path, names: tuple[str, str], header: str) -> None:
    _gpt2_files(tmp_path, names, header)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == 258 and tokenizer.vocab_size == 259 and tokenizer.bos_id is None
    assert tokenizer.encode("he he") == [256, 257]
    assert tokenizer.encode(END_OF_TEXT, specials=True) == [258] and 258 not in tokenizer.encode(END_OF_TEXT)
    tokenizer.save(tmp_path / "whole")
    assert Tokenizer.load(tmp_path / "whole").fingerprint == tokenizer.fingerprint


def test_gpt2_files_may_ask_for_a_space_before_the_first_word(tmp_path: Path) -> None:
    _gpt2_files(tmp_path, ("vocab.json", "merges.txt"))
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert Tokenizer.load(tmp_path).encode("he") == [257]


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config.json": {"eos_token": "h"}}, "h"),
        ({"tokenizer_config.json": {"eos_token": {"content": "e", "lstrip": False}}}, "e"),
        ({"special_tokens_map.json": {"eos_token": "h"}}, "h"),
        ({"special_tokens_map.json": {"eos_token": "h"}, "tokenizer_config.json": {"eos_token": "e"}}, "e"),
        ({"generation_config.json": {"eos_token_id": 256}, "config.json": {"eos_token_id": 257}}, "he"),
        ({"generation_config.json": {"eos_token_id": [256, 258]}}, "he"),
        ({"generation_config.json": {"eos_token_id": []}}, END_OF_TEXT),
        ({"config.json": {"eos_token_id": 9999}}, END_OF_TEXT),
        ({"tokenizer_config.json": {"eos_token": None}}, END_OF_TEXT),
    ],
)
def test_the_end_token_is_found_in_the_files_in_order(tmp_path: Path, files: dict[str, object], eos: str) -> None:
    _gpt2_files(tmp_path, ("vocab.json", "merges.txt"))
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.piece(tokenizer.eos_id) == eos


def test_begin_tokens_come_from_the_template_or_the_config(tmp_path: Path) -> None:
    _gpt2_files(tmp_path, ("vocab.json", "merges.txt"))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": END_OF_TEXT, "add_bos_token": False}))
    assert not Tokenizer.load(tmp_path).begins_with_bos
    config.write_text(json.dumps({"bos_token": END_OF_TEXT, "add_bos_token": True}))
    assert Tokenizer.load(tmp_path).begins_with_bos
    config.write_text(json.dumps({"add_bos_token": True}))
    assert not Tokenizer.load(tmp_path).begins_with_bos, "there is no such token to begin with"


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, ModelError, "holds no tokenizer.json"),
        ({"tokenizer.model": "x"}, ModelError, "tokenizer.model must be converted"),
        ({"tokenizer.json": "{"}, CheckpointError, "is not a tokenizer"),
        ({"tokenizer.json": '{"a": 1}'}, CheckpointError, "is not a tokenizer"),
        ({"vocab.json": "[]", "merges.txt": "a b"}, CheckpointError, "no byte-pair vocabulary"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b"}, CheckpointError, "no byte-pair vocabulary"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, ModelError, "names no end token"),
        ({"vocab.json": "{}", "tokenizer_config.json": "{"}, CheckpointError, "is not valid JSON"),
        ({"vocab.json": "{}", "tokenizer_config.json": "[1]"}, CheckpointError, "must hold a JSON object, not a list"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "", "tokenizer_config.json": '{"eos_token": "</s>"}'},
            ModelError,
            "names '</s>' as its eos token",
        ),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(
    tmp_path: Path, files: dict[str, str], error: type[ModelError], words: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=words) as caught:
        Tokenizer.load(tmp_path)
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        Tokenizer.load(tmp_path / "nowhere")


# --- streaming


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(i) for i in ids), stream.flush()]


@given(st.text(max_size=40))
def test_streamed_text_is_the_decoded_text(text: str) -> None:
    for tokenizer in _streamed():
        ids = tokenizer.encode(text)
        parts = _stream(tokenizer, ids)
        assert "".join(parts) == tokenizer.decode(ids)
        if "\ufffd" not in text:
            assert not any("\ufffd" in part for part in parts), "a character came out in pieces"


@given(st.lists(st.integers(0, 275), max_size=30))
def test_streams_of_any_ids_add_up_to_the_decoded_text(ids: list[int]) -> None:
    for tokenizer in _streamed():
        assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


_CACHE: list[Tokenizer] = []


def _streamed() -> list[Tokenizer]:
    if not _CACHE:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            _CACHE.extend([Tokenizer.train(TEXTS, 270), Tokenizer.load(llama_like(Path(folder)))])
    return _CACHE


def test_a_stream_shows_words_as_they_come_and_can_be_used_again(trained: Tokenizer) -> None:
    stream = TextStream(trained)
    ids = trained.encode("a dog é")
    shown = [stream.push(i) for i in ids]
    assert shown[0] == "a" and "".join(shown) == "a dog é"
    assert stream.flush() == ""
    half = trained.encode("é")[:1]
    assert stream.push(half[0]) == "" and stream.flush() == "\ufffd"
    assert stream.push(trained.encode("x")[0]) == "x"


# --- real files


@pytest.mark.realdata
def test_gpt2_ids_equal_those_of_transformers(real_data: Path) -> None:
    from transformers import GPT2Tokenizer

    folder = real_data / "gpt2_tokenizer"
    ours = Tokenizer.load(folder)
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    theirs = GPT2Tokenizer(vocab=vocabulary, merges=[tuple(x.split()) for x in lines if x])
    assert ours.vocab_size == 50257 and ours.eos_id == 50256
    texts = [t for t in PROBES if END_OF_TEXT not in t]
    texts.append(
        (real_data / "tinystories" / "valid.txt").read_text(encoding="utf-8")[:20_000].replace(END_OF_TEXT, "")
    )
    for text in texts:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("Hello world", specials=False) == [15496, 995]  # as published for GPT-2


@pytest.mark.realdata
def test_stories260k_and_the_base_model_load(real_data: Path) -> None:
    stories = Tokenizer.load(real_data / "stories260K")
    assert (stories.bos_id, stories.eos_id, stories.vocab_size, stories.begins_with_bos) == (1, 2, 512, True)
    assert stories.decode(stories.encode("Once upon a time")) == "Once upon a time"
    base = Tokenizer.load(real_data / "models" / "base-14m-gpt2")
    assert (base.bos_id, base.eos_id, base.vocab_size, base.begins_with_bos) == (0, 0, 8192, False)
    assert base.decode(base.encode("Once upon a time")) == "Once upon a time"


def test_the_llama_fixture_is_of_the_llama_kind(llama: Tokenizer) -> None:
    backend = Backend.from_str(llama._plain.to_str())
    assert isinstance(backend.normalizer, normalizers.Sequence)
    assert isinstance(backend.post_processor, processors.TemplateProcessing)
    assert len(llama.byte_ids) == 256
