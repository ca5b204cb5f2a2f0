from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data.readers import Row, Rows, read
from limbeck.errors import DataError

ROWS = [{"question": "Who?", "answer": "Me."}, {"question": "Why, then?", "answer": 'So "be" it.\nYes.'}]


def _write(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    kind = path.suffix
    if kind in (".csv", ".tsv"):
        mark = "," if kind == ".csv" else "\t"
        cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
        text = "".join(mark.join('"' + c.replace('"', '""') + '"' for c in line) + "\n" for line in cells)
        path.write_text(text, encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def _put(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("kind", "places"),
    [(".csv", (2, 3)), (".tsv", (2, 3)), (".json", (0, 1)), (".jsonl", (1, 2)), (".parquet", (0, 1))],
)
def test_every_format_gives_the_same_fields(tmp_path: Path, kind: str, places: tuple[int, int]) -> None:
    source = _write(tmp_path / f"pairs{kind}")
    rows = read(source, required=["question", "answer"])
    assert [dict(row.fields) for row in rows] == ROWS
    assert [row.id for row in rows] == [f"pairs:{i}" for i in places]
    assert rows.source == source and rows.columns == ("question", "answer") and len(rows) == 2


def test_rows_are_a_sequence_with_a_content_hash(tmp_path: Path) -> None:
    rows = read(_write(tmp_path / "a.json"))
    again = read(_write(tmp_path / "a.jsonl"))
    assert isinstance(rows[0], Row) and isinstance(rows[:1], Rows) and list(rows[:1]) == [rows[0]]
    assert rows.hash != again.hash, "ids differ: a:0 and a:1"
    assert Rows.of(rows.rows, "elsewhere").hash == rows.hash != rows[:1].hash
    changed = [{**ROWS[0], "answer": "You."}, ROWS[1]]
    assert read(_write(tmp_path / "a.json", changed)).hash != rows.hash


def test_a_row_says_which_field_it_lacks() -> None:
    row = Row("q:7", {"question": "Who?", "answer": None})
    assert row.value("question") == "Who?"
    with pytest.raises(DataError, match=r"row q:7 of a.csv has no field 'anwser', .*did you mean 'answer'"):
        row.value("anwser", "a.csv")
    with pytest.raises(DataError, match="row q:7 has nothing in its field 'answer'"):
        row.value("answer")


def test_text_is_cut_at_separators_and_stripped(tmp_path: Path) -> None:
    source = _put(tmp_path, "tales.txt", "one\r\nmore\n<|endoftext|>\n\n two \n<|endoftext|>\n \n<|endoftext|>\n")
    rows = read(source, required=["text"])
    assert [row.fields["text"] for row in rows] == ["one\nmore", "two"]
    assert [row.id for row in rows] == ["tales:0", "tales:1"]
    assert [row.fields["text"] for row in read(source, separator="two")][0].startswith("one\nmore\n<|endoftext|>")


def test_text_without_separator_is_one_document_to_the_byte(tmp_path: Path) -> None:
    source = _put(tmp_path, "wiki.txt", b"\xef\xbb\xbf \n = Title = \n\n text \n")
    assert [row.fields["text"] for row in read(source)] == [" \n = Title = \n\n text \n"]
    assert len(read(source, separator="")) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y\n1,2\n"),
        ("a.csv", "x;y\n1;2\n"),
        ("a.csv", "x\ty\n1\t2\n"),
        ("a.tsv", "x\ty\n1\t2\n"),
        ("a.csv", "\r\nx,y\r\n\r\n1,2\r\n"),
        ("a.csv", b"\xef\xbb\xbfx,y\n1,2"),
        ("a.csv", ",x,y\n0,1,2\n"),
        ("a.csv", " x , y\n1,2\n"),
    ],
)
def test_delimiters_and_headers_are_understood(tmp_path: Path, name: str, text: str | bytes) -> None:
    assert [dict(row.fields) for row in read(_put(tmp_path, name, text))] == [{"x": "1", "y": "2"}]


def test_csv_ids_are_the_lines_rows_begin_on(tmp_path: Path) -> None:
    source = _put(tmp_path, "a.csv", 'x,y\n"two\nlines",1\n\nshort\n')
    rows = read(source)
    assert [row.id for row in rows] == ["a:2", "a:5"]
    assert rows[1].fields == {"x": "short", "y": None}


def test_columns_are_renamed_and_the_others_keep_their_names(tmp_path: Path) -> None:
    source = _put(tmp_path, "a.csv", "sentence1,question,is_duplicate\nA?,B?,1\n")
    rows = read(source, required=["question", "label"], columns={"question": "sentence1", "label": "is_duplicate"})
    assert rows[0].fields == {"question": "A?", "label": "1"}
    rows = read(source, columns={"prompt": "question", "answer": "question"})
    assert rows[0].fields == {"sentence1": "A?", "is_duplicate": "1", "prompt": "B?", "answer": "B?"}


def test_a_renamed_column_may_be_absent_from_some_rows(tmp_path: Path) -> None:
    source = _put(tmp_path, "a.jsonl", '{"q": 1, "a": 2}\n\n{"a": 3}\n')
    assert [dict(row.fields) for row in read(source, columns={"question": "q"})] == [{"a": 2, "question": 1}, {"a": 3}]
    with pytest.raises(DataError, match="1 of 2 rows .* lack a value in 'question' .a:3."):
        read(source, required=["question"], columns={"question": "q"})


def test_the_id_column_is_used_where_it_names_every_row(tmp_path: Path) -> None:
    assert [r.id for r in read(_put(tmp_path, "a.csv", "id,x\nn1,a\nn2,b\n"))] == ["n1", "n2"]
    assert [r.id for r in read(_put(tmp_path, "a.csv", "id,x\nn1,a\nn1,b\n"))] == ["a:2", "a:3"]
    assert [r.id for r in read(_put(tmp_path, "a.csv", "id,x\nn1,a\n,b\n"))] == ["a:2", "a:3"]
    assert [r.id for r in read(_put(tmp_path, "b.json", '[{"id": 7}, {"id": 8}]'))] == ["7", "8"]


@pytest.mark.parametrize("kind", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_limit_changes_no_id(tmp_path: Path, kind: str) -> None:
    rows = [{"id": i, "x": "a"} for i in ("u", "v", "v")]  # unique among the first two only
    source = _write(tmp_path / f"a{kind}", rows)
    assert [r.id for r in read(source, limit=2)] == [r.id for r in read(source)][:2]
    with pytest.raises(DataError, match="limit of 0 rows"):
        read(source, limit=0)


def test_strings_in_json_are_texts(tmp_path: Path) -> None:
    assert read(_put(tmp_path, "a.json", '["one", "two"]'))[1].fields == {"text": "two"}
    assert read(_put(tmp_path, "a.jsonl", '"one"\n'))[0].fields == {"text": "one"}


def test_missing_values_are_named_or_dropped_and_counted(tmp_path: Path) -> None:
    source = _put(tmp_path, "a.csv", "q,label\nA,1\nB,\nC,0\n,\n")
    with pytest.raises(DataError, match=r"2 of 4 rows of .*a.csv lack a value in 'label' \(a:3, a:5\).*remove them"):
        read(source, required=["label"])
    rows = read(source, required=["label"], missing="drop")
    assert [r.id for r in rows] == ["a:2", "a:4"] and rows.dropped == ("a:3", "a:5")
    assert len(read(source, required=["label"], limit=1)) == 1, "rows beyond the limit are not looked at"
    many = _put(tmp_path, "b.csv", "q,label\n" + "A,\n" * 9)
    with pytest.raises(DataError, match=r"9 of 9 rows .*b:6, \.\.\.\)"):
        read(many, required=["q", "label"])
    with pytest.raises(DataError, match="every row of .* lacks a value in 'q' or 'label'"):
        read(many, required=["q", "label"], missing="drop")


def test_an_empty_string_is_a_value_in_json_and_none_in_csv(tmp_path: Path) -> None:
    source = _put(tmp_path, "a.json", '[{"input": ""}]')
    assert read(source, required=["input"])[0].fields == {"input": ""}
    with pytest.raises(DataError, match="lack a value in 'input'"):
        read(_put(tmp_path, "b.json", '[{"input": null}]'), required=["input"])


def test_a_split_column_chooses_rows(tmp_path: Path) -> None:
    rows = [{"split": "train", "x": "a"}, {"split": "test", "x": "b"}, {"split": "train", "x": "c"}]
    source = _write(tmp_path / "a.parquet", rows)
    assert [r.id for r in read(source, split="train")] == ["a:0", "a:2"]
    with pytest.raises(DataError, match="has no split 'tset', only train, test; did you mean 'test'"):
        read(source, split="tset")
    with pytest.raises(DataError, match="has no column 'split'"):
        read(_write(tmp_path / "b.json"), split="train")


def test_toy_corpora_are_sources() -> None:
    rows = read("toy:qa", required=["question", "answer"], limit=5)
    assert len(rows) == 5 and rows.source == "toy:qa" and rows[0].id == "qa-0:0"
    assert read("toy:qa", columns={"prompt": "question"}, limit=1).columns == ("answer", "prompt")
    with pytest.raises(DataError, match="no toy corpus 'storys'.*did you mean 'stories'"):
        read("toy:storys")
    with pytest.raises(DataError, match="toy:qa has no split 'test'"):
        read("toy:qa", split="test")
    with pytest.raises(DataError, match="toy:qa has no column 'label'"):
        read("toy:qa", required=["label"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.txt", " \n", "a.txt is empty"),
        ("a.csv", "x,y\n", "has a header but no rows"),
        ("a.csv", "x,y\n1,2,3\n", "line 2 of .*a.csv has 3 cells under a header of 2"),
        ("a.csv", "x,x\n1,2\n", "two columns named 'x'"),
        ("a.csv", 'x,y\n"1","' + "a" * 200_000 + "\n", "line 2 of .*a.csv opens a quote .*the file ends within it"),
        ("a.json", '{"x": 1, "x": 2}\n{"x": 3}', "the key 'x' stands twice"),
        ("a.jsonl", '{"x": 1}\n{"x": 1, "x": 2}', "line 2 of .*the key 'x' stands twice"),
        ("a.jsonl", "[\n1\n]", "line 1 of .*a JSON list has the ending .json"),
        ("a.jsonl", '[{"x": 1}]', "line 1 of .* is a list.*has the ending .json"),
        ("a.jsonl", '{"x": ' + "[" * 200 + "]" * 200 + "}", "row 1 of .*more than 100 deep"),
        ("a.jsonl", "[" * 100_000, "line 1 of .*nested too deep"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.jsonl", '{"x": ' + "1" * 5000 + "}", "line 1 of .* is not JSON that can be read: Exceeds the limit"),
        ("a.csv", b"x,y\na,b\nc,\xff\n", r"line 3 of .*a.csv is not UTF-8 \(byte 0xff\)"),
        ("a.txt", b"\xe9t\xe9", "line 1 of .*a.txt is not UTF-8"),
        ("a.jsonl", '{"x": 1}\n{"x": \n', "line 2 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", '{"x": 1}\n[1]\n', "line 2 of .*a.jsonl must be a JSON object, not a list"),
        ("a.json", '[{"x": 1},\n 2 3]', "line 2 of .*a.json is not valid JSON"),
        ("a.json", '{"x": 1}', "must hold a JSON list of rows, not a dict"),
        ("a.json", '[{"x": 1}, 5]', "item 1 of .* must be a JSON object, not a int"),
        ("a.json", "[]", "holds no rows"),
        ("a.txt", "<|endoftext|>\n<|endoftext|>", "holds no rows"),
        ("a.parquet", b"PAR1 nonsense", "is not a readable parquet file"),
        ("a.docx", "x", r"does not end in one of \.txt, \.raw, \.csv"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(_put(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_wrong_columns_are_named_with_what_is_there(tmp_path: Path) -> None:
    source = _put(tmp_path, "a.csv", "question,answer\nA,B\n")
    with pytest.raises(DataError, match="no column 'anser'; its columns are question, answer; did you mean 'answer'"):
        read(source, required=["question", "anser"])
    with pytest.raises(DataError, match=r"no column 'quesiton' \(wanted for 'prompt'\).*did you mean 'question'"):
        read(source, columns={"prompt": "quesiton"})
    with pytest.raises(DataError, match="no column 'question'"):
        read(source, required=["question"], columns={"prompt": "question"})


def test_missing_files_folders_and_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (str(tmp_path / "no.csv"), "no.jsonl", "a/b/c", str(tmp_path / "odd name")):
        with pytest.raises(DataError, match="does not exist"):
            read(source)
    with pytest.raises(DataError, match="is a folder"):
        read(str(tmp_path))
    source = _put(tmp_path, "a.txt", "x")

    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read(source)


def test_hub_sets_come_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str | None, str]] = []

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read("stanfordnlp/sst2", required=["sentence"], split="validation", limit=1)
    assert rows[0] == Row("stanfordnlp/sst2:0", {"sentence": "a", "label": 1}) and len(rows) == 1
    read("glue:sst2")
    assert asked == [("stanfordnlp/sst2", None, "validation"), ("glue", "sst2", "train")]


def test_a_hub_set_may_be_pinned_to_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str | None, str, str]] = []

    def load(name: str, config: str | None, split: str, revision: str) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list([{"sentence": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    read("owner/set@v1.0")
    read("owner/set@refs/pr/3:part")
    assert asked == [("owner/set", None, "train", "v1.0"), ("owner/set", "part", "train", "refs/pr/3")]


def test_a_hub_set_that_cannot_be_had_is_one_sentence() -> None:
    with pytest.raises(DataError, match="is no file here, and as a Hub data set its split 'train' cannot be read") as e:
        read("nobody/there-is-no-such-set")
    assert "\n" not in str(e.value)


@pytest.mark.realdata
def test_real_tables(real_data: Path) -> None:
    counts = {"ids-sst-train": 8544, "ids-sst-dev": 1101, "ids-cfimdb-train": 1707, "ids-cfimdb-dev": 245}
    for name, count in counts.items():
        rows = read(str(real_data / "cs224n" / f"{name}.csv"), required=["sentence", "sentiment"])
        assert len(rows) == count and rows.columns == ("id", "sentence", "sentiment")
        assert len({row.id for row in rows}) == count
    sst2 = read(str(real_data / "sst2" / "alps_test.tsv"), required=["sentence", "label"])
    assert len(sst2) == 872 and {row.fields["label"] for row in sst2} == {"0", "1"}
    assert len(read(str(real_data / "sst2" / "alps_train.tsv"), required=["label"])) == 60_614


@pytest.mark.realdata
def test_real_quora_has_two_rows_without_a_label(real_data: Path) -> None:
    source = str(real_data / "quora" / "quora-dev.csv")
    with pytest.raises(DataError, match="2 of 20214 rows of .* lack a value in 'is_duplicate'"):
        read(source, required=["is_duplicate"])
    rows = read(source, required=["is_duplicate"], missing="drop")
    assert len(rows) == 20_212 and len(rows.dropped) == 2
    assert sum(row.fields["is_duplicate"] == "1.0" for row in rows) == 7_585


@pytest.mark.realdata
def test_real_books_json_and_stories(real_data: Path) -> None:
    books = read(str(real_data / "gutenberg" / "verse.parquet"), required=["text", "title"], split="valid")
    assert books and all(len(row.fields["text"]) > 1000 for row in books)
    assert len(read(str(real_data / "tinystories" / "valid.txt"))) == 1_727
    assert len(read(str(real_data / "tinystories" / "train.txt"))) == 2_315
    assert len(read(str(real_data / "gsm8k" / "test.jsonl"), required=["question", "answer"])) == 1_319
    assert len(read(str(real_data / "alpaca" / "alpaca_merged.json"), required=["instruction", "output"])) == 18_659
    poems = read(str(real_data / "synthetic_sonnets" / "sonnets_flash.json"), required=["text"])
    assert len(poems) == 840
