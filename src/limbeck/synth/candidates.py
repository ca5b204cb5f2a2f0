"""Candidate pairs from one model: restatements of a text, or two continuations of one context, sampled diversely."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from limbeck.data.rows import Row, Rows
from limbeck.data.tokenizer import Tokenizer
from limbeck.decode.generate import generate
from limbeck.decode.settings import Decoding
from limbeck.model.decoder import Decoder

__all__ = ["Way", "candidates", "first_sentence"]

Way = Literal["restate", "continue"]

_SENTENCE = re.compile(r"^.*?[.?!](?=\s|$)", re.DOTALL)


def first_sentence(text: str) -> str:
    """Return ``text`` to the end of its first sentence, on one line."""
    line = " ".join(text.split("\n", 1)[0].split()) if text.strip() else ""
    found = _SENTENCE.match(line)
    return (found.group() if found else line).strip()


def candidates(
    model: Decoder,
    tokenizer: Tokenizer,
    contexts: Sequence[str],
    decoding: Decoding,
    *,
    way: Way = "restate",
    bridge: str = "\nIn other words:",
    batch_size: int = 32,
    name: str = "candidates",
) -> Rows:
    """Sample ``decoding.samples`` texts for each context and pair them.

    Args:
        model: that generates.
        tokenizer: of the model.
        contexts: sentences to begin from.
        decoding: temperature, top-p, repetition penalty, samples a context; a new line ends a sample.
        way: ``restate`` pairs each context with each of its restatements; ``continue`` pairs the sentences that go on
            from one context with each other.
        bridge: what stands between a text and its restatement.
        batch_size: sequences decoded together.
        name: of the set, and the beginning of its ids.

    Returns:
        Rows ``sentence1, sentence2, context``, blank samples left out. A context that does not fit is left out too.
    """
    room = model.config.context - decoding.max_new_tokens
    given = [text + bridge if way == "restate" else text for text in contexts]
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    prompts = {i: [first, *ids] for i, ids in enumerate(tokenizer.encode_many(given)) if 0 < len(ids) < room}
    stopping = decoding.model_copy(update={"stop": ("\n",) if way == "restate" else ()})
    out = generate(model, tokenizer, list(prompts.values()), stopping, batch_size=batch_size) if prompts else []
    rows = []
    for i, some in zip(prompts, out, strict=True):
        said = list(dict.fromkeys(text for g in some if (text := first_sentence(g.text))))
        pairs = [(contexts[i], text) for text in said] if way == "restate" else list(combinations(said, 2))
        for k, (a, b) in enumerate(pairs):
            rows.append(Row(f"{name}:{i}:{k}", {"sentence1": a, "sentence2": b, "context": contexts[i]}))
    return Rows.of(rows, name)
