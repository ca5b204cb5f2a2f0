"""Every kind of overlap against a slow reference, the decisions, and the sentences."""

from __future__ import annotations

import itertools
import random

import pytest

from limbeck.data.audit.report import WITHIN, AuditReport, AuditSettings, audit
from limbeck.data.rows import Row, Rows
from limbeck.errors import DataError
from tests.reference.slow_audit import near, shared_lines, shared_runs

LONG = "the quick brown fox jumps over the lazy dog and then it runs away from all of us into the dark wood"
POEM = (
    "When forty winters shall besiege thy brow\nAnd dig deep trenches in thy field\nThy youth's proud livery so gazed\n"
)


def rows(*texts: str, name: str = "set", **more: object) -> Rows:
    return Rows.of((Row(f"{name}{i}", {"text": t, **more}) for i, t in enumerate(texts)), name)


def kinds(found: AuditReport, row: str, against: str = "dev") -> set[str]:
    return {f.kind for f in found.findings if (f.row, f.against) == (row, against)}


def test_each_kind_is_found_and_nothing_else() -> None:
    train = rows(
        LONG,
        LONG.upper().replace(" ", "  ") + "!",
        "nothing of the kind " + LONG.split(" and ")[0] + " and then it runs and that is it",
        LONG.replace("runs", "flees"),
        "And dig deep trenches in thy field\nanother line stands here\nWHEN forty winters shall besiege thy brow!\n",
        "quite another text of no interest whatever to anybody in this house or the next one",
    )
    found = audit(train, {"dev": rows(LONG, POEM, name="dev")})
    assert kinds(found, "set0") == {"exact", "ngram", "near"}
    assert kinds(found, "set1") == {"normalised", "ngram", "near"}
    assert kinds(found, "set2") == {"ngram"}
    assert kinds(found, "set3") == {"near"}
    assert kinds(found, "set4") == {"lines"}
    assert kinds(found, "set5") == set()
    assert found.touched == {"dev": 2} and (found.leaked(), found.leaked(0.9)) == (2, 1)
    by = {(f.row, f.kind): f for f in found.findings}
    assert by["set2", "ngram"].excerpt == "the quick brown fox jumps over the lazy dog and then it runs"
    assert by["set4", "lines"].excerpt == "And dig deep trenches in thy field"
    assert (by["set4", "lines"].count, by["set4", "lines"].share) == (2, 2 / 3)
    assert by["set3", "near"].share == near(LONG, LONG.replace("runs", "flees"), 3)
    assert found.sentences() == ("5 of 6 training rows overlap with 2 of 2 rows of dev",)


def test_counts_and_shares_are_those_of_the_slow_reference() -> None:
    draw = random.Random(0)
    vocabulary = "ab cd ef gh".split()

    def text() -> str:
        return "\n".join(" ".join(draw.choices(vocabulary, k=draw.randint(3, 6))) for _ in range(4))

    ours, theirs = [text() for _ in range(25)], [text() for _ in range(25)]
    theirs[3], theirs[4] = ours[7] + " xy", ours[8].replace("ab", "zz", 1)
    settings = AuditSettings(ngram_words=5, jaccard=0.5, shared_lines=1)
    found = audit(rows(*ours), {"dev": rows(*theirs, name="dev")}, settings=settings)
    best = {(f.kind, f.row): f for f in found.findings}
    for i, a in enumerate(ours):
        for kind, measure in (("lines", shared_lines), ("ngram", lambda x, y: shared_runs(x, y, 5))):
            counts = [measure(a, b) for b in theirs]
            hit = best.get((kind, f"set{i}"))  # type: ignore[arg-type]
            assert (hit is not None) == (max(counts) > 0)
            if hit is not None:
                assert hit.others == sum(c > 0 for c in counts)
                assert hit.count == counts[int(hit.other.removeprefix("dev"))]
                assert kind == "ngram" or hit.count == max(counts)
        similar = [near(a, b, 3) for b in theirs]
        hit = best.get(("near", f"set{i}"))
        assert (hit.share if hit else 0) == (
            pytest.approx(max(similar)) if max(similar) >= 0.6 else (hit.share if hit else 0)
        )


def test_pairs_that_share_one_field_are_found_wherever_it_stands() -> None:
    def pairs(name: str, *texts: tuple[str, str]) -> Rows:
        return Rows.of((Row(f"{name}{i}", {"a": a, "b": b, "y": "1"}) for i, (a, b) in enumerate(texts)), name)

    one, two, three, four = "how do I cook rice", "what is the best rice", "who wrote this book", "when does it open"
    dev = pairs("dev", (one, two), (three, three))
    train = pairs("set", (two, one), (four, one + "?"), (four, "why?"), (three, four), (one, two))
    found = audit(train, {"dev": dev}, settings=AuditSettings(kinds=("exact", "normalised", "field")))
    assert found.fields == ("a", "b") and found.too_short == 1
    assert [kinds(found, f"set{i}") for i in range(5)] == [{"normalised"}, {"field"}, set(), {"field"}, {"exact"}]
    field = next(f for f in found.findings if f.row == "set1")
    assert (field.other, field.share, field.count, field.others) == ("dev0", 0.5, 1, 1)
    assert found.touched == {"dev": 2}


def test_one_kind_alone_does_not_tell_the_others() -> None:
    dev = rows(LONG, name="dev")
    for kind in ("exact", "ngram", "near"):
        found = audit(rows(LONG), {"dev": dev}, settings=AuditSettings(kinds=(kind,)))  # type: ignore[arg-type]
        assert kinds(found, "set0") == {kind}
    assert audit(rows(LONG.upper()), {"dev": dev}, settings=AuditSettings(kinds=("exact",))).findings == ()


def test_duplicates_within_a_set_name_the_earlier_row() -> None:
    found = audit(rows(LONG, POEM, LONG, LONG + ".", LONG.replace("lazy", "sleepy")), {}, within=True)
    told = [(f.kind, f.row, f.other, f.against) for f in found.findings if f.kind != "near"]
    assert told == [("exact", "set2", "set0", WITHIN), ("normalised", "set3", "set0", WITHIN)]
    assert {f.row for f in found.findings if f.kind == "near"} == {"set2", "set3", "set4"}
    assert found.leaks == () and len(found.duplicates) == len(found.findings)
    assert found.sentences() == ("3 of 5 training rows repeat an earlier one",)


def test_a_threshold_on_shared_runs_keeps_a_quotation_from_being_told() -> None:
    book = " ".join(f"w{i}" for i in range(400))
    quoting = " ".join(f"v{i}" for i in range(400)) + " " + " ".join(f"w{i}" for i in range(15))
    for share, expected in ((0.0, {"ngram"}), (0.1, set())):
        found = audit(rows(quoting), {"dev": rows(book, name="dev")}, settings=AuditSettings(ngram_share=share))
        assert kinds(found, "set0") == expected


def test_decisions() -> None:
    train, dev = rows(LONG, POEM + "one line more stands here"), rows(LONG, name="dev")
    found = audit(train, {"dev": dev})
    kept, listed = found.decide("list", train)
    assert kept is train and listed.decision == "list" and listed.dropped == ()
    kept, dropped = found.decide("drop", train)
    assert [r.id for r in kept] == ["set1"] and dropped.dropped == ("set0",) == kept.dropped
    with pytest.raises(DataError, match=r"1 training rows of set overlap .*set0 with dev0 of dev"):
        found.decide("refuse", train)
    with pytest.raises(DataError, match="nothing would be left"):
        audit(rows(LONG), {"dev": dev}).decide("drop", rows(LONG))
    clean = audit(rows(POEM), {"dev": dev})
    assert clean.decide("refuse", rows(POEM))[1].decision == "refuse"
    repeats = audit(rows(LONG, LONG), {}, within=True)
    assert len(repeats.decide("refuse", rows(LONG, LONG))[0]) == 2  # a repetition is no leak


def test_labels_empty_and_cut_rows_are_told() -> None:
    cut = [{"text": ("word " * 40)[:100] + str(i), "y": "no"} for i in range(4)]
    train = Rows.of((Row(str(i), f) for i, f in enumerate([*cut, {"text": "", "y": "no"}])), "set")
    dev = Rows.of((Row(str(i), {"text": f"some text number {i}", "y": "no yes".split()[i % 2]}) for i in range(6)), "d")
    found = audit(train, {"dev": dev})
    assert found.labels == {"set": {"y": {"no": 5}}, "dev": {"y": {"no": 3, "yes": 3}}}
    assert found.sentences() == (
        "1 training rows have an empty field (4)",
        "4 training rows seem cut at one length (0, 1, 2, ...)",
        "every row of set has the same 'y', no",
        "'y' yes occurs in dev and never in training",
    )


def test_an_evaluation_set_of_another_shape_is_compared_by_its_own_text() -> None:
    dev = Rows.of([Row("d", {"document": LONG})], "dev")
    assert kinds(audit(rows(LONG), {"dev": dev}), "set0") == {"exact", "ngram", "near"}


def test_the_description_holds_the_worst_of_each_kind() -> None:
    told = audit(rows(*[LONG] * 5, POEM), {"dev": rows(LONG, name="dev")}, within=True).describe(shown=2)
    assert told["counts"]["dev"] == {"exact": 5, "ngram": 5, "near": 5}
    groups = itertools.groupby(told["findings"], key=lambda f: (f["against"], f["kind"]))
    assert {key: len(list(some)) for key, some in groups} == {
        ("dev", "exact"): 2, ("dev", "ngram"): 2, ("dev", "near"): 2, (WITHIN, "exact"): 2, (WITHIN, "near"): 2,
    }  # fmt: skip
