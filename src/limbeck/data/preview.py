"""Preview of a batch for ``--dry-run``: each token with its id, coloured by what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from limbeck.data.batch import IGNORE, Batch
from limbeck.data.tokenizer import Tokenizer

__all__ = ["preview", "visible"]

# Brackets beside colours, so that a log without colours says the same.
_STYLES = {"learned": "bold green", "context": "cyan", "padding": "dim"}
_BRACKETS = {"learned": ("[", "]"), "context": ("", ""), "padding": ("(", ")")}


def visible(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of one token, white space shown (``␣``, ``↵``, ``⇥``); a special token's name, a lone byte's
    piece.
    """
    piece = tokenizer.piece(token)
    text = tokenizer.decode([token])
    if token in tokenizer.special_ids or not text or "\ufffd" in text:
        return piece.replace("▁", "␣")
    if piece.startswith("▁"):  # decoding takes the space before a first word away
        text = piece.replace("▁", " ")
    return text.replace(" ", "␣").replace("\n", "↵").replace("\r", "␍").replace("\t", "⇥")


def preview(
    batch: Batch, tokenizer: Tokenizer, *, names: Sequence[str] = (), limit: int = 4, width_tokens: int = 512
) -> RenderableType:
    """Show the first rows of ``batch`` as ``text:id``: ``[learned]`` green, context cyan, ``(padding)`` dim.

    A token is learned where a label asks for it; a document's first token never is. Padding is named ``pad``, so that
    an end token shows as what it is even where both have one id.

    Args:
        batch: what would be trained on.
        tokenizer: of the model.
        names: id of each row of the data set, by ``row_ids``; without them rows go by number.
        limit: most rows shown.
        width_tokens: most tokens shown of a row; the counts are of the whole row.

    Returns:
        A rich renderable: a legend, and a panel for each row.
    """
    legend = Text()
    for kind, style in _STYLES.items():
        legend.append(_bracket(kind, kind), style).append("  ")
    legend.append("text:id; documents of a packed row are divided by │", "default")
    rows = [_row(batch, tokenizer, b, names, width_tokens) for b in range(min(limit, batch.ids.shape[0]))]
    return Group(legend, *rows)


def _row(batch: Batch, tokenizer: Tokenizer, b: int, names: Sequence[str], width_tokens: int) -> Panel:
    kinds = _kinds(batch, b)
    ids, documents = batch.ids[b].tolist(), batch.document_ids[b].tolist()
    text = Text()
    for t, (token, kind) in enumerate(zip(ids[:width_tokens], kinds, strict=False)):
        if t and documents[t] and documents[t - 1] and documents[t] != documents[t - 1]:
            text.append("│ ", "bold")
        shown = "pad" if kind == "padding" else f"{visible(tokenizer, token)}:{token}"
        text.append(_bracket(shown, kind), _STYLES[kind]).append(" ")
    if len(ids) > width_tokens:
        text.append(f"... {len(ids) - width_tokens} more tokens", "italic")
    rows = dict.fromkeys(r for r in batch.row_ids[b].tolist() if r >= 0)
    title = Text(", ".join(names[r] if r < len(names) else f"row {r}" for r in rows))  # Text: an id is no markup
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _STYLES)
    return Panel(text, title=title, subtitle=counts, title_align="left", subtitle_align="left")


def _kinds(batch: Batch, b: int) -> list[str]:
    labels = batch.next_token_labels()[b].tolist()
    learned = [False, *(label != IGNORE for label in labels[:-1])]  # the label at t asks for token t + 1
    real = batch.real[b].tolist()
    return ["padding" if not r else "learned" if x else "context" for r, x in zip(real, learned, strict=True)]


def _bracket(text: str, kind: str) -> str:
    left, right = _BRACKETS[kind]
    return f"{left}{text}{right}"
