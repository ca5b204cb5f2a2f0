"""Dialects are checked: a table that does not fit is refused with the line, and no cell swallows rows (I40)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.dialect import Dialect, parse_table
from limbeck.data.readers import read
from limbeck.errors import DataError

AUTO = Dialect()


def rows(text: str, dialect: Dialect = AUTO, delimiter: str | None = None) -> list[list[str]]:
    return [cells for _, cells in parse_table(text, "a.csv", dialect, delimiter).rows]


def _tabs(*quoted: int, count: int = 20) -> str:
    """Lines of id, sentence and label, in which the sentences of ``quoted`` begin with a quote that nothing closes."""
    mark = {i: '"' for i in quoted}
    lines = (f"s{i}\t{mark.get(i, '')}Ann has number {i}\t{i % 2}" for i in range(count))
    return "\n".join(["id\tsentence\tlabel", *lines]) + "\n"


@pytest.mark.parametrize("quoted", [(3,), (3, 9), (3, 9, 11), (0, 19)])
@pytest.mark.parametrize("kind", [".tsv", ".csv"])
def test_quotes_that_are_text_are_kept_and_no_row_is_lost(tmp_path: Path, quoted: tuple[int, ...], kind: str) -> None:
    path = tmp_path / f"a{kind}"
    path.write_text(_tabs(*quoted))
    found = read(str(path), required=["sentence", "label"])
    assert len(found) == 20 and not found.dropped
    assert [row.fields["sentence"] for row in found if row.fields["sentence"].startswith('"')] == [
        f'"Ann has number {i}' for i in quoted
    ]
    told = f"cells by tab, quotes are text (one on line {quoted[0] + 2} is not closed as a cell's is)"
    assert found.notes == (f"{path}: {told}",)


def test_a_quote_that_closes_lines_later_swallows_none(tmp_path: Path) -> None:
    text = _tabs(3).replace("Ann has number 9", 'Ann has number 9"')
    assert len(rows(text)) == 20 and rows(text)[3][1] == '"Ann has number 3'
    text = text.replace("\t", ",")  # with commas both readings fit
    with pytest.raises(DataError, match=r"line 5 of a.csv opens .* closes on line 11.*set quotes=off.*quotes=on"):
        rows(text)
    assert len(rows(text, Dialect(quotes="off"))) == 20
    assert len(rows(text, Dialect(quotes="on"))) == 14


def test_an_open_quote_in_a_quoted_table_is_refused_with_its_line() -> None:
    text = 'text,label\n"one, two",1\n"three,0\n"four, five",1\n'
    with pytest.raises(DataError, match="line 3 of a.csv opens a quote .*goes on behind its closing quote"):
        rows(text)
    with pytest.raises(DataError, match="line 3 of a.csv .*the file ends within it"):
        rows('a,b\n"1",y\n1,"x\n')
    with pytest.raises(DataError, match="line 2 of a.csv"):  # doubled quotes: it was quoted, and is broken
        rows('a\tb\n"say no\t1\n"say ""so"" again"\t0\n')
    with pytest.raises(DataError, match="line 2 of a.csv"):
        rows('a,b\n"x" y,1\n', Dialect(quotes="on"))


def test_cells_with_line_ends_are_one_row_and_counted() -> None:
    table = parse_table('text,label\n"one,\ntwo",1\nthree,0\n', "a.csv", AUTO)
    assert table.rows == [(2, ["one,\ntwo", "1"]), (4, ["three", "0"])]
    assert table.about == "cells by comma, quoted, 1 rows with line ends in cells"
    assert rows('text\n"one\ntwo"\n"three\nfour"\n') == [["one\ntwo"], ["three\nfour"]]


def test_a_cell_of_any_length_is_read_and_the_limit_of_csv_is_left_alone() -> None:
    before = csv.field_size_limit()
    long = "word " * 30_000
    assert rows(f'text\nshort\n"{long}"\n') == [["short"], [long]]
    assert rows(f"text\nshort\n{long}\n") == [["short"], [long]]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('"sentence, raw";label\n"a, b";0\n', ";"),
        ("sentence, raw;label\na, b;0\nc;1\n", ";"),
        ("sentence; raw,label\na; b,0\nc,1\n", ","),
        ('"a\tb",label\n"x",0\n', ","),
        ("a|b\n1|2\n", "|"),
        ("a\tb, c\n1\t2, 3\n", "\t"),
        ("a\tb, c\n1\t2\n", "\t"),
        ("text\none, two\n", ","),
    ],
)
def test_the_delimiter_is_the_one_that_fits_the_rows(text: str, mark: str) -> None:
    words = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}
    assert parse_table(text, "a.csv", AUTO).about.startswith(f"cells by {words[mark]}")


def test_delimiter_and_quotes_are_settable(tmp_path: Path) -> None:
    assert rows("a:b\n1:2\n", Dialect(delimiter=":")) == [["1", "2"]]
    assert Dialect(delimiter="tab") == Dialect(delimiter="\\t") == Dialect(delimiter="\t")
    assert rows('a,b\n"1","2"\n', Dialect(quotes="off")) == [['"1"', '"2"']]
    for wrong in ("ab", '"', "\n", ""):
        with pytest.raises(ValueError, match="a delimiter is tab, comma"):
            Dialect(delimiter=wrong)
    (tmp_path / "a.jsonl").write_text('{"x": 1}')
    with pytest.raises(DataError, match="is no table of cells: leave out delimiter and quotes"):
        read(str(tmp_path / "a.jsonl"), dialect=Dialect(delimiter=";"))


_CELLS = st.text(alphabet=st.sampled_from('ab ",;\t\n'), max_size=6)


@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(_CELLS, min_size=n, max_size=n), min_size=1, max_size=5)),
    st.sampled_from([",", ";", "\t", "|"]),
)
def test_what_csv_writes_is_read_back_or_refused_when_the_dialect_is_told(table: list[list[str]], mark: str) -> None:
    """With quotes=on always; by itself the same, or an error that names lines: never other cells."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark, lineterminator="\n", quoting=csv.QUOTE_ALL)
    header = [f"c{i}" for i in range(len(table[0]))]
    writer.writerows([header, *table])
    assert rows(out.getvalue(), Dialect(delimiter=mark, quotes="on")) == table
    try:
        found = rows(out.getvalue(), Dialect(delimiter=mark))
    except DataError as error:
        assert "opens a quote that closes on line" in str(error)
    else:
        assert found == table
