from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from limbeck.data.batch import Batch, collate
from limbeck.data.preview import preview, visible
from limbeck.data.prompts import Template
from limbeck.data.rows import Row
from limbeck.data.tokenizer import Tokenizer
from tests.reference.encoding import encode_pair
from tests.reference.tokenizers import llama_like

TOK = Tokenizer.train(["Who? Me. Why? So be it."] * 3, 262)
QA = Template(prompt="{q}\n", answer=" {a}")
ROWS = [Row("first", {"q": "Who?", "a": "Me"}), Row("[bold]2", {"q": "Why, then?", "a": "So"})]
EXAMPLES = [encode_pair(i, row, QA, TOK, 64) for i, row in enumerate(ROWS)]


def _print(shown: RenderableType, colour: bool = False) -> str:
    out = io.StringIO()
    Console(
        file=out, width=160, force_terminal=colour, no_color=not colour, color_system="standard" if colour else None
    ).print(shown)
    return out.getvalue()


def _tokens(batch: Batch) -> str:
    return " ".join(line.strip("│ ") for line in _print(preview(batch, TOK)).splitlines() if line.startswith("│"))


def test_learned_context_and_padding_are_told_apart() -> None:
    text = _tokens(collate([[e] for e in EXAMPLES], TOK.pad_id))
    learned = EXAMPLES[0].ids[EXAMPLES[0].target].tolist()
    expected = " ".join(f"[{visible(TOK, i)}:{i}]" for i in learned)
    assert expected in text and expected.endswith("[<|endoftext|>:0]")
    given = " ".join(f"{visible(TOK, i)}:{i}" for i in EXAMPLES[0].ids[~EXAMPLES[0].target].tolist())
    assert text.startswith(given)
    padding = len(EXAMPLES[1]) - len(EXAMPLES[0])
    assert text.count("(pad)") == padding > 0, "an end token and padding of one id are shown apart"


def test_titles_counts_and_the_legend() -> None:
    batch = collate([[e] for e in EXAMPLES], TOK.pad_id)
    text = _print(preview(batch, TOK, names=[row.id for row in ROWS]))
    assert "[learned]" in text.splitlines()[0] and "(padding)" in text.splitlines()[0]
    assert " first " in text and " [bold]2 " in text, "a row's id is shown as it is"
    n, t = len(EXAMPLES[0]), EXAMPLES[0].predictions
    assert f"{t} learned, {n - t} context, {len(EXAMPLES[1]) - n} padding" in text
    assert " row 0 " in _print(preview(batch, TOK)) and " row 1 " in _print(preview(batch, TOK))


def test_packed_documents_are_divided_and_a_first_token_is_never_learned() -> None:
    packed = _tokens(collate([EXAMPLES], TOK.pad_id))
    assert packed.count("[<|endoftext|>:0] │ ") == 1
    only = Batch.of_ids(collate([[EXAMPLES[0]]]).ids)  # every token a target
    assert not _tokens(only).startswith("[") and _tokens(only).count("[") == len(EXAMPLES[0]) - 1


def test_rows_and_tokens_beyond_the_limits_are_left_out() -> None:
    batch = collate([[e] for e in EXAMPLES], TOK.pad_id)
    text = _print(preview(batch, TOK, limit=1, width_tokens=3))
    assert " row 0 " in text and " row 1 " not in text
    assert f"... {batch.ids.shape[1] - 3} more tokens" in text


def test_colours_are_written_to_a_terminal() -> None:
    text = _print(preview(collate([[e] for e in EXAMPLES], TOK.pad_id), TOK), colour=True)
    assert "\x1b[1;32m" in text and "\x1b[36m" in text and "\x1b[2m" in text


@pytest.mark.parametrize(("text", "shown"), [(" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("\r", "␍"), ("x", "x")])
def test_white_space_is_made_visible(text: str, shown: str, tmp_path: Path) -> None:
    assert visible(TOK, TOK.encode(text)[0]) == shown
    llama = Tokenizer.load(llama_like(tmp_path))
    if text.strip():
        assert visible(llama, llama.encode("the")[0]) == "␣the"


def test_special_tokens_lone_bytes_and_padding_rows_have_names(tmp_path: Path) -> None:
    assert visible(TOK, 0) == "<|endoftext|>" and visible(TOK, 5000) == "<row 5000>"
    half = TOK.encode("é")[0]
    assert visible(TOK, half) == TOK.piece(half)
    llama = Tokenizer.load(llama_like(tmp_path))
    assert visible(llama, 2) == "</s>" and visible(llama, llama.vocabulary["▁"]) == "␣"
    assert visible(llama, llama.vocabulary["<0xC3>"]) == "<0xC3>" and visible(llama, llama.vocabulary["<0x0A>"]) == "↵"
