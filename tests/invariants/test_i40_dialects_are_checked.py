"""I40: a table whose dialect does not fit is refused with the line; a cell never swallows rows; by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference.commands import Limbeck, Said, refused
from tests.reference.small_model import saved

MEASURE = ("--probes", "off", "--no-generate", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("m") / "start", context=512)


def done(said: Said) -> dict[str, Any]:
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def items(found: dict[str, Any]) -> int:
    return int(next(iter(found["metrics"].values()))["items"])


def test_open_quotes_in_tab_separated_text_lose_no_row(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    for opened in ((4,), (4, 8), (4, 8, 9)):
        marks = ['"' if i in opened else "" for i in range(16)]
        rows = (f"s{i}\t{marks[i]}he has {i} hats\t{i % 2}\n" for i in range(16))
        (tmp_path / "a.tsv").write_text("id\tsentence\tlabel\n" + "".join(rows))
        said = limbeck("evaluate", model, "--task", "sst2", "--data", tmp_path / "a.tsv", *MEASURE)
        found = done(said)
        assert items(found) == 16 and "quotes are text (one on line 6" in found["data"]["all"]["read"][0]
        assert "quotes are text" in said.err  # people hear it too
        asked = ("evaluate", model, "--task", "sst2", "--data", tmp_path / "a.tsv", "--quotes", "on", *MEASURE)
        refused(limbeck(*asked), "line 6 of", "opens a quote that is not closed", "quotes=off")


def test_a_quoted_header_with_the_other_delimiter(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    rows = "".join(f'"so, it is {i}";{i % 2}\n' for i in range(8))
    (tmp_path / "a.csv").write_text('"sentence, raw";label\n' + rows)
    asked = ("evaluate", model, "--task", "sst2", "--data", tmp_path / "a.csv", *MEASURE)
    refused(limbeck(*asked), "no column 'sentence'", "its columns are sentence, raw, label")
    found = done(limbeck(*asked, "--columns", "sentence=sentence, raw"))
    assert items(found) == 8 and "cells by semicolon, quoted" in found["data"]["all"]["read"][0]
    refused(limbeck(*asked, "--delimiter", "comma"), "a.csv")


def test_a_cell_of_150000_characters_is_a_document(model: Path, tmp_path: Path, limbeck: Limbeck) -> None:
    (tmp_path / "a.csv").write_text('text\na short text\n"' + "word " * 30_000 + '"\n')
    found = done(
        limbeck("evaluate", model, "--task", "text", "--data", tmp_path / "a.csv", "--text.truncate", *MEASURE)
    )
    assert items(found) == 2
