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
from tokenizers import models, pre_tokenizers, trainers

from limbeck.data.tokenizer_files import (
    END_OF_TEXT,
    TEMPLATE_FILE,
    USUAL_ENDS,
    byte_level,
    read_backend,
    read_chat_template,
    read_json,
    token_id,
)
from limbeck.errors import ConfigError, ModelError

__all__ = ["END_OF_TEXT", "TextStream", "Tokenizer"]

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
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
        """Return the same tokenizer with more ids that end a generated text."""
        other = copy.copy(self)
        other.end_ids = tuple(dict.fromkeys((self.eos_id, *ids)))
        return other

    def with_chat_template(self, text: str) -> Tokenizer:
        """Return the same tokenizer with another chat template."""
        other = copy.copy(self)
        other.chat_template = text
        return other

    def without_begin(self) -> Tokenizer:
        """Return the same tokenizer, putting no begin token before a text; nor does it where other tools load it."""
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
        """Return the token ids of ``text``, without any token that is not in it.

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
        """Return the token ids of each text, as ``encode`` gives them; many at a time on all cores."""
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
        """Return the text of ``ids`` without special tokens and padding rows; bytes that are no UTF-8 become U+FFFD."""
        return self._plain.decode(list(ids), skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """Return the vocabulary's own spelling of an id (``Ġthe``, ``<0x0A>``); ``<row 50260>`` for a padding row."""
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
        named = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
        backend = read_backend(folder, named)
        generation = {**read_json(folder / "config.json"), **read_json(folder / "generation_config.json")}
        bos = token_id(backend, folder, "bos", named, generation)
        eos = token_id(backend, folder, "eos", named, generation)
        if eos is None:
            eos = next((i for name in USUAL_ENDS if (i := backend.token_to_id(name)) is not None), None)
        if eos is None:
            raise ModelError(f"the tokenizer in {folder} names no end token; set eos_token in tokenizer_config.json")
        adds = bos is not None and (named.get("add_bos_token") is True or backend.encode("a").ids[0] == bos)
        pad = token_id(backend, folder, "pad", named, {})
        template = read_chat_template(folder, named)
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
        (folder / TEMPLATE_FILE).unlink(missing_ok=True)  # of a model saved there before; it would be read first
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
        backend = byte_level(models.BPE(), add_prefix_space=False)
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
