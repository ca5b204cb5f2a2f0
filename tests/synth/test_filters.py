"""Filters of generated rows and their accounting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.audit.report import AuditSettings
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError
from limbeck.measure.verse import poem
from limbeck.synth.datasheet import Datasheet
from limbeck.synth.filters import (
    EditDistance,
    English,
    Filter,
    KeepsNames,
    KeepsNumbers,
    LengthFilter,
    LengthRatio,
    PromptEcho,
    Refusal,
    RowFilter,
    Verse,
)
from limbeck.synth.repeats import Duplicates, Overlap
from limbeck.synth.text import edit_distance, names, numbers, relative_edit_distance
from limbeck.synth.yields import Share, sift
from limbeck.tasks.sonnets import Sonnets

SONNET = """When silver rivers wander to the sea,
And summer birds have sung the day to rest,
I sit alone beneath the willow tree
And hold the secret hidden in my breast.
The golden morning never came so bright,
The meadow never wore a fairer gown,
As when thy smile did put the stars to flight
And all the bells were ringing through the town.
But seasons turn, and every leaf must fall,
And every flower must bend before the snow,
And winter comes to lay his hand on all
That once did in the pleasant garden grow.
Yet in this verse thy beauty shall remain
Till summer and its birds return again."""


def pairs(*texts: tuple[str, str]) -> Rows:
    return Rows.of((Row(f"p{i}", {"sentence1": a, "sentence2": b}) for i, (a, b) in enumerate(texts)), "pairs")


def texts(*some: str, **more: str) -> Rows:
    return Rows.of((Row(f"t{i}", {"text": text, **more}) for i, text in enumerate(some)), "texts")


def kept(one: Filter, rows: Rows) -> list[bool]:
    drops = one.drops(rows)
    return [row.id not in drops for row in rows]


def slow_distance(a: str, b: str) -> int:
    """Levenshtein's distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return slow_distance(a[1:], b[1:])
    return 1 + min(slow_distance(a[1:], b), slow_distance(a, b[1:]), slow_distance(a[1:], b[1:]))


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_the_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == slow_distance(a, b)


def test_relative_edit_distance_ignores_case_and_punctuation() -> None:
    assert relative_edit_distance("How do I cook rice?", "how do i cook rice") == 0
    assert relative_edit_distance("How do I cook rice?", "How do I boil rice?") == pytest.approx(1 / 5)
    assert relative_edit_distance("one two", "three four five") == 1
    assert relative_edit_distance("", "?") == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("In 1999, 1,000 men and 1000 women", {"1999", "1000"}),
        ("2.0 and 2", {"2"}),
        ("007 of 0.50", {"7", "0.5"}),
        ("version 1.2.3", {"1.2.3"}),
        ("none", set()),
    ],
)  # fmt: skip
def test_numbers(text: str, found: set[str]) -> None:
    assert numbers(text) == found


def test_names_leave_out_the_first_word_and_the_pronoun() -> None:
    assert names("How do I move from India to Google's iPhone team? Yes. Where?") == {"india", "google", "iphone"}
    assert names("NASA is what?") == {"nasa"} and names("I'm I've Is it so") == {"is"}


def test_numbers_and_names_must_stand_on_both_sides() -> None:
    rows = pairs(
        ("What happened in 1984 in India?", "In India, what took place in 1984?"),
        ("What happened in 1984?", "What happened in 1985?"),
        ("What is the best phone of Samsung?", "What is the best phone of Nokia?"),
        ("Why is Python slow?", "why is python so slow"),
    )
    assert kept(KeepsNumbers(), rows) == [True, False, True, True]
    assert kept(KeepsNames(), rows) == [True, True, False, True]
    assert "1984, 1985" in KeepsNumbers().drops(rows)["p1"]


def test_copies_and_strangers_fall_out_by_edit_distance() -> None:
    rows = pairs(
        ("How can I lose weight fast?", "how can i lose weight fast"),
        ("How can I lose weight fast?", "How do I lose weight quickly?"),
        ("How can I lose weight fast?", "Which river runs through Vienna today?"),
    )
    assert kept(EditDistance(), rows) == [False, True, False]
    rows = pairs(("a b c d", "a b"), ("a b c d e", "a b"), ("", ""))
    assert kept(LengthRatio(least=0.5), rows) == [True, False, False]


@pytest.mark.parametrize("wrong", [{"least": 0.5, "most": 0.2}, {"least": -0.1}, {"most": 1.2}])
def test_bounds_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="edit distances need"):
        EditDistance(**wrong)


def test_other_settings_out_of_range_are_refused() -> None:
    for make in (lambda: LengthFilter(least=5, most=2), lambda: LengthRatio(least=2), lambda: Verse(scheme="free"),
                 lambda: Verse(metre=2), lambda: PromptEcho(words=0)):  # fmt: skip
        with pytest.raises(ValueError):
            make()


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m unable to write this poem.", True),
        ("As an AI language model, I have no feelings.", True),
        ("Unfortunately, I do not know.", True),
        ("I cannot fulfill this request.", True),
        ("I cannot but remember such things were", False),
        ("And when I cannot help but love thee still", False),
        ("Sure. However, I am not able to provide that.", True),
        ("Since brass, nor stone, I am sorry to behold", False),
        ("Shall I compare thee to a summer's day?", False),
        ("I am sorry that the summer went so soon", False),
    ],
)  # fmt: skip
def test_refusals(text: str, declines: bool) -> None:
    assert kept(Refusal(), texts(text)) == [not declines]


def test_a_prompt_echo_is_a_shared_run_of_words() -> None:
    asked = "Write a sonnet about the sea in the manner of Shakespeare, fourteen lines long."
    said = ("Write a sonnet about the sea in the manner of old", "The sea, the sea, in the manner of Shakespeare")
    assert kept(PromptEcho(), texts(*said, prompt=asked)) == [False, True]
    assert kept(PromptEcho(words=4), texts(*said, prompt=asked)) == [False, False]
    assert kept(PromptEcho(), texts("Tell me a tale. Once there was", prompt="Tell me a tale.")) == [False]
    assert kept(PromptEcho(), texts("anything at all", prompt="Hm?")) == [True]  # nothing to echo
    assert kept(PromptEcho(), texts("anything at all")) == [True]


def test_language() -> None:
    rows = texts(
        SONNET, "Der Mond ist aufgegangen und die goldnen Sternlein prangen am Himmel hell und klar", "Что это такое?",
        "short enough", "",
    )  # fmt: skip
    assert kept(English(), rows) == [True, False, False, True, False]


def test_verse_and_length() -> None:
    unrhymed = SONNET.replace("sea", "ocean").replace("rest", "sleeping")
    rows = texts(SONNET, "\n".join(SONNET.splitlines()[:13]), unrhymed)
    assert poem(SONNET).perfect
    assert kept(Verse(), rows) == [True, False, False]
    assert kept(Verse(scheme="none"), rows) == [True, False, True]
    assert kept(Verse(scheme="any"), rows) == [True, False, False]
    assert kept(Verse(metre=0.8), rows) == [True, False, False]
    short = texts("\n".join(line.rsplit(" ", 4)[0] + " " + line.split()[-1] for line in SONNET.splitlines()))
    assert "syllables" in Verse(scheme="none", metre=0.9).drops(short)["t0"]
    assert kept(LengthFilter(least=3, most=5), texts("one two", "one two three", "1 2 3 4 5 6")) == [False, True, False]


def test_a_missing_field_is_an_error_that_names_the_row() -> None:
    with pytest.raises(DataError, match="row t0 has no field 'sentence1'"):
        EditDistance().drops(texts("x"))


def test_duplicates_keep_the_first() -> None:
    other = SONNET.replace("willow", "cedar")
    rows = texts(SONNET, "A line of its own that nobody else has written yet", SONNET.upper() + " !", other, SONNET)
    drops = Duplicates().drops(rows)
    assert set(drops) == {"t2", "t3", "t4"}
    assert drops["t2"].startswith("normalised") and drops["t3"].startswith("near") and drops["t4"].startswith("exact")
    assert Duplicates().drops(Rows.of([], "none")) == {}


def test_overlap_names_set_and_row() -> None:
    dev = Rows.of([Row("d0", {"text": SONNET})], "dev")
    stolen = "\n".join([*SONNET.splitlines()[:2], "and something of its own that follows", "and more of the same kind"])
    rows = texts("Nothing that stands elsewhere, a line\nand a second line of the same\nand a third", stolen)
    drops = Overlap({"dev": dev}).drops(rows)
    assert list(drops) == ["t1"] and "d0 of dev" in drops["t1"]
    assert Overlap({"dev": dev}, settings=AuditSettings(kinds=("exact",))).drops(rows) == {}
    assert Overlap({"dev": dev}).drops(Rows.of([], "none")) == {}


@pytest.mark.parametrize(("count", "of"), [(0, 10), (10, 10), (3, 7), (555, 982), (1, 1)])
def test_the_interval_is_wilsons(count: int, of: int) -> None:
    z, p = 1.959963984540054, count / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    found = Share.of_counts(count, of)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert found.high > found.low and found.value == p
    assert Share.of_counts(0, 0) == Share(0, 0, 0.0, 1.0, 0.95) and Share.of_counts(0, 0).value == 0


class _Has(RowFilter):
    name = "has"

    def __init__(self, letter: str, called: str) -> None:
        self.letter, self.name = letter, called  # type: ignore[misc]

    def reason(self, row: Row) -> str:
        return f"no {self.letter}" if self.letter not in row.fields["text"] else ""


def test_the_yield_counts_what_reaches_each_filter_and_what_each_drops_alone() -> None:
    rows = texts("ab", "a", "b", "c", "abc")
    found = sift(rows, [_Has("a", "first"), _Has("b", "second")])
    steps = [(s.name, s.kept.count, s.kept.of, s.alone) for s in found.steps]
    assert steps == [("first", 3, 5, 2), ("second", 2, 3, 2)]
    assert [row.id for row in found.kept] == ["t0", "t4"]
    assert found.dropped == {"t2": ("first", "no a"), "t3": ("first", "no a"), "t1": ("second", "no b")}
    assert found.entered - len(found.dropped) == len(found.kept) == found.total.count
    assert [json.loads(line)["filter"] for line in found.lines()] == ["first", "first", "second"]
    assert found.describe()["filters"][1]["dropped"] == 1
    with pytest.raises(DataError, match="named twice"):
        sift(rows, [_Has("a", "one"), _Has("b", "one")])


def test_a_datasheet_says_what_is_known_and_what_is_not() -> None:
    found = sift(texts("ab", "b"), [_Has("a", "letters")])
    sheet = Datasheet("poems", "someone", "sonnets", "CC-BY-4.0", "made by hand", found, cost=0.5, figures={"x": 1})
    assert sheet.cost_per_kept == 0.5 and sheet.describe()["cost_per_kept"] == 0.5
    page = sheet.markdown()
    assert "| letters | 2 | 1 | 50.0% | 9.5% to 90.5% | 1 |" in page and "95 % interval" in page and "- x: 1" in page
    bare = Datasheet("poems", "", "sonnets", "", "made by hand", sift(texts("b"), [_Has("a", "letters")]))
    assert bare.cost_per_kept is None and "not known" in bare.markdown() and bare.describe()["licence"] is None


def sonnets(file: Path) -> Rows:
    return Sonnets().read(str(file), columns={}, limit=None, separator="<|endoftext|>")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "copied", "dev", "rows", "perfect", "clean"),
    [("sonnets_flash", 199, 8, 840, 807, 514), ("sonnets_flash_lite", 4, 0, 982, 970, 960)],
)
def test_the_two_published_sets(
    real_data: Path, name: str, copied: int, dev: int, rows: int, perfect: int, clean: int
) -> None:
    course = real_data / "cs224n"
    sets = {
        "train": sonnets(course / "sonnets.txt"),
        "dev": sonnets(course / "TRUE_sonnets_held_out_dev.txt"),
        "test": sonnets(course / "sonnets_held_out.txt"),
    }
    poems = sonnets(real_data / "synthetic_sonnets" / f"{name}.json")
    assert len(poems) == rows
    findings = Overlap(sets).findings(poems)
    long = [f for f in findings if f.kind == "lines" and f.count >= 8]
    assert abs(len({f.row for f in long if f.against == "train"}) - copied) <= 2
    assert len({f.row for f in long if f.against == "dev"}) == dev
    found = sift(poems, [Refusal(), English(), Overlap(sets), Duplicates(), Verse()])
    assert not Overlap(sets).drops(found.kept) and not Duplicates().drops(found.kept)
    rate = Share.of_counts(sum(poem(str(row.fields["text"])).perfect for row in poems), len(poems))
    assert (rate.count, len(found.kept)) == (perfect, clean)
