"""One border for text: every reader gives the same value for the same content, whatever file holds it (I39)."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.border import as_text, class_of, line_feeds, settle
from limbeck.data.readers import RepairedWarning, documents, read
from limbeck.errors import DataError

POEM = "one,\r\ntwo\rthree\nfour"
KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")


def _file(folder: Path, kind: str, text: str) -> str:
    path = folder / f"a{kind}"
    if kind in (".csv", ".tsv"):
        path.write_bytes(f'text\r\n"{text}"\r\n'.encode())
    elif kind == ".json":
        path.write_text(json.dumps([{"text": text}]))
    elif kind == ".jsonl":
        path.write_text(json.dumps({"text": text}) + "\r\n")
    elif kind == ".txt":
        path.write_bytes(text.encode())
    else:
        pq.write_table(pa.Table.from_pylist([{"text": text}]), path)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_line_ends_are_line_feeds_in_every_reader(tmp_path: Path, kind: str) -> None:
    source = _file(tmp_path, kind, POEM)
    assert [row.fields["text"] for row in read(source)] == ["one,\ntwo\nthree\nfour"]
    assert list(documents(source)) == ["one,\ntwo\nthree\nfour"]


@given(st.text(alphabet="a\r\n", max_size=12))
def test_line_feeds_is_what_universal_newlines_are(text: str) -> None:
    import io

    assert line_feeds(text) == io.TextIOWrapper(io.BytesIO(text.encode())).read()


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_no_value_is_missing_in_every_reader(tmp_path: Path, kind: str, value: float | None) -> None:
    rows = [{"q": 1.0, "text": "a"}, {"q": value, "text": "b"}]
    path = tmp_path / f"a{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("[" + ",".join(lines) + "]" if kind == ".json" else "\n".join(lines))
    second = "a:2" if kind == ".jsonl" else "a:1"
    with pytest.raises(DataError, match=rf"1 of 2 rows .*lack a value in 'q' \({second}\)"):
        read(str(path), required=["q"])
    found = read(str(path), required=["q"], missing="drop")
    assert len(found) == 1 and found.dropped == (second,) and found[0].text("q") == "1.0"


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_half_a_surrogate_pair_is_replaced_and_said(tmp_path: Path, kind: str) -> None:
    text = '{"text": "whole \\ud83d\\ude00, half \\ud83d", "\\udc00": [{"x": "\\ude00"}]}'
    path = tmp_path / f"a{kind}"
    path.write_text(f"[{text}]" if kind == ".json" else text)
    rows = read(str(path))
    assert rows[0].fields == {"text": "whole \U0001f600, half \ufffd", "\ufffd": [{"x": "\ufffd"}]}
    assert len(rows.notes) == 1 and "in 1 rows became U+FFFD (a:" in rows.notes[0]
    assert rows.describe()["read"] == list(rows.notes)
    with pytest.warns(RepairedWarning, match=r"became U\+FFFD"):
        assert list(documents(str(path))) == ["whole \U0001f600, half \ufffd"]


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"bytes"])
def test_nested_values_are_no_text(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": value}]), path)
    with pytest.raises(DataError, match="row a:0 of .* has a (list|dict|bytes) in its field 'text', where text is"):
        read(str(path), required=["text"])
    with pytest.raises(DataError, match="in its field 'text', where text is wanted"):
        list(documents(str(path)))
    with pytest.raises(DataError, match="in its field 'text', where text is wanted"):
        read(str(path))[0].text("text")


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (True, "true"), (1, "1"), (1.0, "1.0"), (Decimal("1.50"), "1.50"), (None, None), ([], None)],
)
def test_values_as_text(value: Any, text: str | None) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("value", "labels", "wanted"),
    [
        ("1_0", ("1_0", "10"), 0),
        ("10", ("1_0", "10"), 1),
        ("01", ("01", "02"), 0),
        ("01", ("1", "2"), None),  # a name of its own
        ("1", ("01", "02"), None),
        ("0.0", ("0.0", "1.0"), 0),
        (1, ("0.0", "1.0"), 1),
        (1.0, ("0", "1"), 1),
        ("1.0", ("0", "1"), 1),
        (" 2 ", ("2", "3"), 0),
        (1, ("1.0", "1.00"), None),  # which of both?
        (True, ("0", "1"), 1),
        (False, ("true", "false"), 1),
        (True, ("False", "True"), 1),
        ("True", ("true", "false"), None),
        ("yes", ("no", "yes"), 1),
        (0.5, ("0.50", "1"), 0),
        ("1e0", ("1", "2"), None),
        ([1], ("1", "2"), None),
        ("\u0661", ("1", "2"), None),  # another script's digit is a name of its own
    ],
)
def test_class_names_are_taken_as_given(value: Any, labels: tuple[str, ...], wanted: int | None) -> None:
    assert class_of(value, labels) == wanted


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(_PLAIN)
def test_settling_is_idempotent_and_leaves_what_utf8_and_strict_json_can_hold(value: Any) -> None:
    settled, _ = settle(value)
    text = json.dumps(settled, allow_nan=False, ensure_ascii=False)
    assert "\\r" not in text
    text.encode("utf-8")
    assert settle(settled) == (settled, 0)
