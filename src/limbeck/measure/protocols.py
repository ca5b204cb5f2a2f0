"""Perplexity protocols by name: one word settles corpus, split, tokenisation, context, stride and normaliser (I25)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from limbeck.errors import DataError
from limbeck.measure.perplexity import PerplexityProtocol

__all__ = ["PROTOCOLS", "NamedProtocol", "ProtocolName"]

ProtocolName = Literal[
    "wikitext2-512",
    "wikitext2-512-sliding",
    "wikitext2-1024",
    "wikitext2-1024-sliding",
    "wikitext2-2048",
    "wikitext2-512-word",
    "wikitext2-1024-word",
    "wikitext2-512-byte",
    "wikitext2-unk-512-word",
    "stories-512",
]
"""``-sliding``: windows overlap by half; ``-word``, ``-byte``: sliding too, normalised by words or bytes."""

_UNKNOWN = "<unk>"
_RAW = "raw text (no <unk>) as one stream, cut by the model's own tokenizer, no special tokens"


@dataclass(frozen=True, slots=True)
class NamedProtocol:
    """A protocol and the text that it is of.

    Attributes:
        settings: windows and normaliser, with the names of corpus and split.
        about: text and tokenisation in words.
        words: of the text, separated by white space; None: any text of the corpus.
        bytes: of the published file; None: unknown.
        unknown: rare words stand as ``<unk>``; None: either way.
    """

    settings: PerplexityProtocol
    about: str
    words: int | None = None
    bytes: int | None = None
    unknown: bool | None = None

    def check(self, documents: Mapping[str, str], source: str) -> tuple[str, ...]:
        """Hold a text against the one that the protocol is of.

        Returns:
            Sentences that a reader of the figure must know.

        Raises:
            DataError: it is another text.
        """
        name = f"{self.settings.corpus} {self.settings.split}"
        words = sum(len(text.split()) for text in documents.values())
        if self.words is not None and words != self.words:
            raise DataError(
                f"{source} has {words:,} words and is not {name}, which has {self.words:,}: name it, or settings "
                "of your own instead of the protocol"
            )
        if self.unknown is not None and self.unknown != any(_UNKNOWN in text for text in documents.values()):
            has = "has no <unk>" if self.unknown else "has <unk> for rare words"
            raise DataError(f"{source} {has}: the protocol is of {name} in its other form")
        size = sum(len(text.encode()) for text in documents.values())
        if self.bytes is not None and size != self.bytes:
            return (
                f"the text has {size:,} bytes and the published file of {name} {self.bytes:,}: white space differs, so "
                "that this figure can be compared with others of the same file alone",
            )
        return ()


def _wikitext(context: int, stride: int, unit: Literal["token", "word", "byte"] = "token") -> NamedProtocol:
    settings = PerplexityProtocol(
        corpus="WikiText-2", split="test", mode="stream", context=context, stride=stride, begin=False, unit=unit
    )
    return NamedProtocol(settings, _RAW, words=241_211, bytes=1_290_590, unknown=False)


_UNK = NamedProtocol(
    PerplexityProtocol(
        corpus="WikiText-2", split="test", mode="stream", context=512, stride=256, begin=False, unit="word"
    ),
    "tokenised text with <unk> as one stream, cut again by the model's own tokenizer, no special tokens",
    words=241_211,
    bytes=1_256_449,
    unknown=True,
)

_STORIES = NamedProtocol(
    PerplexityProtocol(corpus="TinyStories", split="valid", context=512, stride=512, begin=True, truncate=True),
    "each story alone after the begin token (the end token where there is none), its first 512 tokens, no end token",
)

PROTOCOLS: Mapping[ProtocolName, NamedProtocol] = {
    "wikitext2-512": _wikitext(512, 512),
    "wikitext2-512-sliding": _wikitext(512, 256),
    "wikitext2-1024": _wikitext(1024, 1024),
    "wikitext2-1024-sliding": _wikitext(1024, 512),  # the settings of transformers' guide to perplexity
    "wikitext2-2048": _wikitext(2048, 2048),  # as papers on quantization report (Frantar et al. 2023)
    "wikitext2-512-word": _wikitext(512, 256, "word"),
    "wikitext2-1024-word": _wikitext(1024, 512, "word"),
    "wikitext2-512-byte": _wikitext(512, 256, "byte"),
    "wikitext2-unk-512-word": _UNK,
    "stories-512": _STORIES,
}
"""Every named protocol."""
