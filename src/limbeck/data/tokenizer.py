"""Text to token ids and back, on the ``tokenizers`` library."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from limbeck.data.probes import PROBES
from limbeck.errors import CheckpointError, ConfigError, ModelError, VocabularyError

__all__ = ["BPE_FILES", "END_OF_TEXT", "TextStream", "Tokenizer", "check_alike"]

END_OF_TEXT = "<|endoftext|>"
"""End token of GPT-2 and of every tokenizer trained here."""

_USUAL_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>")
BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_TEMPLATE_FILE = "chat_template.jinja"
_SENTINELS = ("\n", ".")  # texts that following text rarely merges with; see Tokenizer.encode


class Tokenizer:
    """A trained tokenizer with its end, begin and padding tokens.

    Attributes:
        eos_id: id of the end token.
        bos_id: id of the begin token, or None.
        pad_id: id written on padding; the end token where the tokenizer names none.
        end_ids: every id that ends a generated text, ``eos_id`` first; the loader adds those of the model's generation
            defaults. Training and scoring write ``eos_id`` alone.
        begins_with_bos: documents begin with the begin token, because the tokenizer's own template adds it or its
            config says ``add_bos_token``. ``encode`` never adds it.
        chat_template: Jinja text that lays out a conversation (``data.chat``), or None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_id: int,
        bos_id: int | None = None,
        pad_id: int | None = None,
        begins_with_bos: bool = False,
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()  # some files carry a length limit, which would cut texts in silence
        backend.no_padding()
        backend.encode_special_tokens = True  # '</s>' inside a text is text, not the token
        self._plain = backend
        self.eos_id, self.bos_id = eos_id, bos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.end_ids: tuple[int, ...] = (eos_id,)
        self.begins_with_bos = begins_with_bos
        self.chat_template = chat_template

    def with_ends(self, ids: Iterable[int]) -> Tokenizer:
        """The same tokenizer with more ids that end a generated text."""
        other = copy.copy(self)
        other.end_ids = tuple(dict.fromkeys((self.eos_id, *ids)))
        return other

    def with_chat_template(self, text: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        other = copy.copy(self)
        other.chat_template = text
        return other

    def without_begin(self) -> Tokenizer:
        """The same tokenizer, putting no begin token before a text; nor does it where other tools load it."""
        backend = tokenizers.Tokenizer.from_str(self._plain.to_str())
        backend.post_processor = None
        ids = {"eos_id": self.eos_id, "bos_id": self.bos_id, "pad_id": self.pad_id}
        other = Tokenizer(backend, **ids, chat_template=self.chat_template)  # type: ignore[arg-type]
        other.end_ids = self.end_ids
        return other

    def with_begin(self, ids: Sequence[int], begin: bool | None = None) -> list[int]:
        """Put the begin token before ``ids`` that do not begin with it.

        Args:
            ids: of a whole text or conversation; where there are none, the begin or end token is put there.
            begin: whether to; None: where ``begins_with_bos``. A tokenizer without a begin token puts none.
        """
        wanted = self.begins_with_bos if begin is None else begin
        if wanted and self.bos_id is not None and list(ids[:1]) != [self.bos_id]:
            return [self.bos_id, *ids]
        return list(ids) or [self.eos_id if self.bos_id is None else self.bos_id]

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows an embedding needs."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every piece, in the tokenizer's own spelling, with its id."""
        return self._plain.get_vocab(with_added_tokens=True)

    @cached_property
    def structure(self) -> Mapping[str, Any]:
        """What it is made of, as ``tokenizer.json`` says it: normalizer, pre-tokenizer, model, added tokens."""
        whole: dict[str, Any] = json.loads(self._plain.to_str())
        return whole

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which ``decode`` leaves out."""
        return frozenset(i for i, token in self._plain.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids that stand for one raw byte in a vocabulary with byte fallback; empty for a byte-level one."""
        if not json.loads(self._plain.to_str())["model"].get("byte_fallback"):
            return frozenset()
        return frozenset(i for piece, i in self.vocabulary.items() if _BYTE_PIECE.fullmatch(piece))

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the canonical JSON, with the end and begin tokens: equal for tokenizers that prepare data alike."""
        whole = [json.loads(self._plain.to_str()), self.eos_id, self.bos_id, self.begins_with_bos]
        canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _special(self) -> tokenizers.Tokenizer:
        """The same tokenizer reading special-token strings as tokens; a second one, so that no call changes state."""
        return tokenizers.Tokenizer.from_str(self._plain.to_str())

    @cached_property
    def _has_dummy_prefix(self) -> bool:
        """Does a text's first word get a space that is not there, as in Llama 2?"""
        before, both = self.encode("\n"), self.encode("\na")
        return before + self.encode("a") != both

    def encode(self, text: str, *, specials: bool = False, continues: bool = False) -> list[int]:
        """Token ids of ``text``, without any token that is not in it.

        Args:
            text: any text.
            specials: read special-token strings as those tokens. By default they are plain text, so that no row of a
                data set can end its own document. (Added tokens not marked special are always read as tokens.)
            continues: the text continues another, so a tokenizer of the Llama 2 kind does not put a space before it:
                the ids of a prompt and of a continuation then decode to prompt + continuation.
        """
        backend = self._special if specials else self._plain
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return self._continue(backend, text, ids) if continues and self._has_dummy_prefix else ids

    def encode_many(self, texts: Sequence[str], *, specials: bool = False, continues: bool = False) -> list[list[int]]:
        """Token ids of each text, as ``encode`` gives them; many at a time on all cores."""
        backend = self._special if specials else self._plain
        many = [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        if continues and self._has_dummy_prefix:
            return [self._continue(backend, text, ids) for text, ids in zip(texts, many, strict=True)]
        return many

    @staticmethod
    def _continue(backend: tokenizers.Tokenizer, text: str, alone: list[int]) -> list[int]:
        """Ids of ``text`` after a sentinel that does not merge with it; ``alone`` where every sentinel merges."""
        for sentinel in _SENTINELS:
            before = backend.encode(sentinel, add_special_tokens=False).ids
            both: list[int] = backend.encode(sentinel + text, add_special_tokens=False).ids
            if both[: len(before)] == before:
                return both[len(before) :]
        return alone

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` without special tokens and padding rows; bytes that are no UTF-8 become U+FFFD."""
        return self._plain.decode(list(ids), skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """The vocabulary's own spelling of an id (``Ġthe``, ``<0x0A>``); ``<row 50260>`` for a padding row."""
        found = self._plain.id_to_token(token)
        return f"<row {token}>" if found is None else found

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        That is ``tokenizer.json``, or GPT-2's ``vocab.json`` + ``merges.txt`` (``encoder.json`` + ``vocab.bpe``), with
        the names of end, begin and padding tokens from ``tokenizer_config.json``, ``special_tokens_map.json``,
        ``generation_config.json`` and ``config.json``, in this order. A chat template is read from
        ``chat_template.jinja``, else from ``tokenizer_config.json`` (of several the one named ``default``).

        Raises:
            ModelError: there is no tokenizer in ``folder``, or none of its tokens ends a document.
            CheckpointError: a file is not what its name says.
        """
        if not folder.is_dir():
            raise ModelError(f"there is no folder {folder} to load a tokenizer from")
        named = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
        backend = _backend(folder, named)
        generation = {**_json(folder / "config.json"), **_json(folder / "generation_config.json")}
        bos = _token(backend, folder, "bos", named, generation)
        eos = _token(backend, folder, "eos", named, generation)
        if eos is None:
            eos = next((i for name in _USUAL_ENDS if (i := backend.token_to_id(name)) is not None), None)
        if eos is None:
            raise ModelError(f"the tokenizer in {folder} names no end token; set eos_token in tokenizer_config.json")
        adds = bos is not None and (named.get("add_bos_token") is True or backend.encode("a").ids[0] == bos)
        pad = _token(backend, folder, "pad", named, {})
        template = _chat_template(folder, named)
        return cls(backend, eos_id=eos, bos_id=bos, pad_id=pad, begins_with_bos=adds, chat_template=template)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, as transformers' AutoTokenizer reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._plain.to_str(pretty=True), encoding="utf-8")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config["eos_token"] = self.piece(self.eos_id)
        if self.bos_id is not None:
            config["bos_token"] = self.piece(self.bos_id)
            config["add_bos_token"] = self.begins_with_bos
        if self.pad_id != self.eos_id:
            config["pad_token"] = self.piece(self.pad_id)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        (folder / _TEMPLATE_FILE).unlink(missing_ok=True)  # of a model saved there before; it would be read first
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE (Radford et al. 2019) whose id 0 is the end token.

        Args:
            texts: the corpus; read once.
            vocab_size: ids wanted; fewer come out where the corpus offers fewer merges.

        Raises:
            ConfigError: ``vocab_size`` has no room for the 256 bytes and the end token.
        """
        if vocab_size < 257:
            raise ConfigError(
                f"a byte-level vocabulary needs 257 entries or more (256 bytes, one end token), not {vocab_size}"
            )
        backend = _byte_level(models.BPE(), add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend, eos_id=0, bos_id=0)


class TextStream:
    """Turns ids into text as they come, for a terminal.

    ``push`` returns what no later id can change any more, so a character whose bytes are spread over several tokens
    comes out whole; all that was pushed out, with ``flush`` at the end, is exactly ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # a window: tokens already shown, the context decoding needs, then those held back
        self._shown = 0  # how many of the window were shown

    def push(self, token: int) -> str:
        """Take one id; return the text that became certain, often none."""
        t = self._tokenizer
        if token in t.special_ids or token >= t.vocab_size:
            return ""
        self._ids.append(token)
        text = self._pending()
        # An unfinished character decodes to U+FFFD; a run of byte tokens is read as a whole when it ends.
        if not text or text.endswith("\ufffd") or token in t.byte_ids:
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text

    def flush(self) -> str:
        """End the stream: return the text still held back, and start anew."""
        text = self._pending()
        self._ids, self._shown = [], 0
        return text

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._shown])
        return self._tokenizer.decode(self._ids)[len(before) :]


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


def _byte_level(model: models.BPE, *, add_prefix_space: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _backend(folder: Path, named: Mapping[str, Any]) -> tokenizers.Tokenizer:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            return tokenizers.Tokenizer.from_str(whole.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{whole} is not a tokenizer: {_line(error)}") from None
    for vocabulary, merges in BPE_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            try:
                model = models.BPE.from_file(str(folder / vocabulary), str(folder / merges))
            except Exception as error:
                pair = f"{folder / vocabulary} and {merges}"
                raise CheckpointError(f"{pair} are no byte-pair vocabulary: {_line(error)}") from None
            backend = _byte_level(model, add_prefix_space=named.get("add_prefix_space") is True)
            backend.add_special_tokens([name for name in _USUAL_ENDS if backend.token_to_id(name) is not None])
            return backend
    wanted = "tokenizer.json, nor vocab.json with merges.txt, nor encoder.json with vocab.bpe"
    only = (
        "; its SentencePiece tokenizer.model must be converted first" if (folder / "tokenizer.model").exists() else ""
    )
    raise ModelError(f"{folder} holds no {wanted}{only}")


def _token(
    backend: tokenizers.Tokenizer, folder: Path, kind: str, named: Mapping[str, Any], generation: Mapping[str, Any]
) -> int | None:
    """Id of the ``kind`` token: by its name in ``named``, else by the id in ``generation``, else None."""
    name = named.get(f"{kind}_token")
    if isinstance(name, Mapping):
        name = name.get("content")
    if name is not None:
        found = backend.token_to_id(str(name))
        if found is None:
            raise ModelError(f"{folder} names {name!r} as its {kind} token, which its vocabulary does not hold")
        return found
    value = generation.get(f"{kind}_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) and backend.id_to_token(value) is not None else None


def _chat_template(folder: Path, named: Mapping[str, Any]) -> str | None:
    try:
        return (folder / _TEMPLATE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _TEMPLATE_FILE} cannot be read: {_line(error)}") from None
    found = named.get("chat_template")
    if isinstance(found, list):  # several, each with a name
        several = {str(one.get("name")): one.get("template") for one in found if isinstance(one, Mapping)}
        found = several.get("default")
    if found is None or isinstance(found, str):
        return found
    raise CheckpointError(f"the chat template in {folder} is no text, but a {type(found).__name__}")


def _json(file: Path) -> dict[str, Any]:
    """Object in ``file``; empty where there is no file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {_line(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not a {type(values).__name__}")
    return values


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
