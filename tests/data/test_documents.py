"""Documents one after the other: equal to a whole reading, wherever blocks end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data import tables
from limbeck.data.readers import documents, read
from limbeck.errors import DataError

SIZES = [1, 2, 3, 5, 7, 1 << 20]


def whole(raw: bytes, separator: str) -> list[str]:
    """The slow, obvious reading of a text file."""
    text = raw.removeprefix(b"\xef\xbb\xbf").decode().replace("\r\n", "\n").replace("\r", "\n")
    if not separator or separator not in text:
        return [text]
    return [part.strip() for part in text.split(separator) if part.strip()]


def streamed(path: Path, separator: str, block_bytes: int) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_BLOCK_BYTES", block_bytes)
        places = list(tables.iter_text(path, separator))
    assert [at for at, _ in places] == list(range(len(places)))
    return [fields["text"] for _, fields in places]


TEXTS = [
    "one<|end|>two",
    "\ufeff  one \r\n<|end|>\r\n zwei ü 人 🙂 <|end|><|end|> \n <|end|>",
    "<<|end|>|end|><|end|",
    "  no separator\r\nis kept to the byte \r",
    "\r\r\n<|end|>\r",
    "a\ufeffb<|end|>\ufeff",
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", TEXTS)
def test_borders_of_blocks_change_no_document(text: str, size: int, tmp_path: Path) -> None:
    raw = text.encode()
    (tmp_path / "t.txt").write_bytes(raw)
    assert streamed(tmp_path / "t.txt", "<|end|>", size) == whole(raw, "<|end|>")
    assert streamed(tmp_path / "t.txt", "", size) == whole(raw, "")


def test_random_texts_of_separators_that_overlap_themselves(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(300):
        raw = "".join(draw.choices(["a", "b", "\n", "\r\n", "\r", "é", "🙂"], k=draw.randint(1, 60))).encode()
        if not raw.strip():
            continue
        (tmp_path / "t.raw").write_bytes(raw)
        separator, size = draw.choice(["aa", "aba", "\n\n", "a", "é\n"]), draw.randint(1, 9)
        assert streamed(tmp_path / "t.raw", separator, size) == whole(raw, separator), (raw, separator, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"fine\nfine<|end|>\nbad \xe4\xb8 cut", r"line 3 of .*t\.txt is not UTF-8 \(byte 0xe4\)"),
        ("ü\n人\n".encode() + b"\xff", r"line 3 of .*t\.txt is not UTF-8 \(byte 0xff\)"),
        (b"cut at the end \xf0\x9f\x99", r"line 1 of .*t\.txt is not UTF-8 \(byte 0xf0\)"),
        (b" \n\t\r\n ", r"t\.txt is empty"),
        (b"", r"t\.txt is empty"),
    ],
)
def test_bad_bytes_are_named_by_line_whatever_the_block(raw: bytes, told: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(raw)
    with pytest.raises(DataError, match=told):
        streamed(tmp_path / "t.txt", "<|end|>", size)


def text_file(path: Path) -> str:
    path.write_text("<|endoftext|>\n".join(f"text {i} é" for i in range(40)))
    return str(path)


def json_lines(path: Path) -> str:
    lines = [json.dumps(f"text {i}") if i % 2 else json.dumps({"text": f"té\u2028xt {i}"}) for i in range(40)]
    path.write_text("\n\n".join(lines).replace("\\u00e9", "é").replace("\\u2028", "\u2028"))
    return str(path)


def parquet(path: Path) -> str:
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(200)], "n": list(range(200))}), path)
    return str(path)


def cells(path: Path) -> str:
    path.write_text("text,n\n" + "".join(f'"one, {i}",{i}\n' for i in range(9)))
    return str(path)


def toy(_: Path) -> str:
    return "toy:stories"


SOURCES: list[tuple[str, Callable[[Path], str]]] = [
    ("a.txt", text_file), ("a.raw", text_file), ("a.jsonl", json_lines), ("a.parquet", parquet), ("a.csv", cells),
    ("-", toy),
]  # fmt: skip


@pytest.mark.parametrize("block", [1, 4, 1 << 20])
@pytest.mark.parametrize(("name", "make"), SOURCES)
def test_documents_are_those_of_read(
    name: str, make: Callable[[Path], str], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BLOCK_BYTES", block)
    source = make(tmp_path / name)
    expected = [str(row.fields["text"]) for row in read(source, required=("text",))]
    assert len(expected) > 1 and list(documents(source)) == expected
    assert list(documents(source, limit=2)) == expected[:2]


def test_json_lines_are_those_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = json_lines(tmp_path / "a.jsonl")
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 3)
    values = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().split("\n") if line]
    assert list(documents(source)) == [v if isinstance(v, str) else v["text"] for v in values]
    assert [row.id for row in read(source)] == [f"a:{1 + 2 * i}" for i in range(40)]


def test_a_split_is_chosen_on_the_way(tmp_path: Path) -> None:
    rows = [{"body": "one", "split": "train"}, {"body": "two", "split": "valid"}, {"body": "three", "split": "train"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = str(tmp_path / "a.jsonl")
    assert list(documents(source, column="body", split="train")) == ["one", "three"]
    with pytest.raises(DataError, match="no split 'test', only train, valid"):
        list(documents(source, column="body", split="test"))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"body": "x"}'], "has no column 'text'; its columns are body"),
        (['{"text": "x"}', '{"text": null}'], r"row 2 of .* lacks a value in 'text'"),
        (['{"text": "x"}', '{"text": '], r"line 2 of .* is not valid JSON"),
        (['"x"', "3"], "line 2 of .* must be a JSON object, not a int"),
    ],
)
def test_a_bad_line_is_named(lines: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=told):
        list(documents(str(tmp_path / "a.jsonl")))


def test_reading_stops_where_the_limit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first document is given before the file was read to its end."""
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 8)
    for name, raw in (
        ("a.txt", b"one<|endoftext|>" + b" " * 30 + b"\xff"),
        ("a.jsonl", b'"one"\n' + b" " * 30 + b"\xff"),
    ):
        (tmp_path / name).write_bytes(raw)
        assert next(documents(str(tmp_path / name))) == "one"
        with pytest.raises(DataError, match="not UTF-8"):
            list(documents(str(tmp_path / name)))


def test_a_hub_set_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Rows:
        given = 0

        def __iter__(self) -> Any:
            for i in range(1000):
                self.given += 1
                yield {"body": f"text {i}"}

    rows = Rows()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert list(documents("owner/name", column="body", limit=3)) == ["text 0", "text 1", "text 2"]
    assert rows.given <= 4
