"""What makes requests differ: themes, forms and tones for each kind of data."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["VARIETY"]


def _cut(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";"))


VARIETY: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sonnets": {
        "theme": _cut(
            "the sea at night; a garden in winter; time and its thefts; a letter never sent; the moon and its "
            "moods; an old friendship; jealousy; the death of a parent; first love; a city at dawn; sleep and "
            "dreams; the vanity of fame; music heard from afar; a storm at sea; a portrait; the harvest; exile "
            "and return; blindness; a broken promise; the stars; a child at play; envy between poets; spring "
            "after plague; the power of verse; mirrors; a rival; silence; a journey by road; fire and ash; "
            "forgiveness; the soldier's home-coming; gold and its price; the nightingale; a ruined abbey; doubt; "
            "the hourglass"
        ),
        "form": _cut(
            "a question answered in the couplet; an argument in three steps; an address to a beloved; an address "
            "to a thing; a complaint that turns to praise; praise that turns to doubt; a story told in three "
            "scenes; a list of comparisons that the couplet undoes; a dialogue of heart and eye; a farewell"
        ),
        "tone": _cut("tender; bitter; playful; grave; proud; weary; hopeful; mocking"),
    },
    "paraphrase": {
        "theme": _cut(
            "health; money; programming; cooking; history; travel; school; physics; relationships; sport; law; "
            "music; languages; animals; careers; mathematics; politics; gardening; films; psychology; religion; "
            "phones; cars; the internet; biology; housing; weather; books; art; parenting"
        ),
        "form": _cut(
            "a question that begins with how; a question that begins with what; a question that begins with why; "
            "a question that begins with which or who; a yes-or-no question; a statement; a request for advice; a "
            "question that names a number or a year"
        ),
        "tone": _cut("plain; formal; colloquial; terse"),
    },
    "qa": {
        "theme": _cut(
            "accounting; household chemistry; geography; astronomy; the human body; computers; grammar; cooking; "
            "law in daily life; money and banking; plants; animals; machines; history; sport; music; art; "
            "mathematics; weather; health; transport; electricity; mythology; statistics; economics"
        ),
        "form": _cut(
            "a definition; a comparison of two things; a cause and its effect; a procedure in a few steps; a "
            "calculation with small numbers; an example that explains a rule; a common mistake and its remedy"
        ),
        "tone": _cut("for a child; for a student; for a colleague; for an expert"),
    },
    "instructions": {
        "theme": _cut(
            "a short letter; a list; an explanation; a summary; a rewritten sentence; a translation into plain "
            "words; a plan for a week; a small program in words; a classification; a correction of mistakes; a "
            "product name; a recipe; a riddle; a comparison; a headline; a short story; a definition; advice; "
            "arithmetic; a table as text"
        ),
        "form": _cut(
            "that needs no further input; with a short text to work on; with two constraints; with one example"
        ),
        "tone": _cut("at work; at school; at home; on a journey; in a laboratory; in a shop; in a club"),
    },
}
"""Kind of data -> field of its prompt -> values."""
