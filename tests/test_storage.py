"""Atomic writing: what was there before is whole until the new is."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from limbeck import storage
from limbeck.config import Config
from limbeck.errors import ConfigError, StorageError


def test_text_and_json_come_back(tmp_path: Path) -> None:
    storage.write_text(tmp_path / "deep" / "a.txt", "zwölf\n")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "zwölf\n"
    value = {"path": Path("x"), "n": np.float64(0.1), "t": torch.tensor(3), "nan": float("nan"), "list": (1, [True])}
    storage.write_json(tmp_path / "b.json", value)
    back = json.loads((tmp_path / "b.json").read_text())
    assert back == {"path": "x", "n": 0.1, "t": 3, "nan": None, "list": [1, [True]]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.json", "deep"]


def test_dataclasses_and_configs_are_mappings() -> None:
    @dataclass
    class Pair:
        name: str
        inner: object

    class Inner(Config):
        rate: float = 0.5

    assert storage.plain(Pair("a", Inner())) == {"name": "a", "inner": {"rate": 0.5}}
    with pytest.raises(TypeError, match="type"):
        storage.plain(Pair)


def test_a_value_without_json_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bytes"):
        storage.write_json(tmp_path / "b.json", {"x": b"1"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EIO, "Input/output error")],
)
def test_a_refused_write_names_the_reason_and_keeps_the_old(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    storage.write_text(file, "old")

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=words) as caught:
        storage.write_text(file, "new")
    assert str(file) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "old"


def test_a_refusal_within_safetensors_is_understood(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is full"), storage.writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="header"), storage.writing(tmp_path):
        raise SafetensorError("header too large")


def fill(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    final = tmp_path / "model"
    for text in ("first", "second"):
        storage.replace_folder(fill(storage.scratch(final), text), final)
        assert (final / "file").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_replacement_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, temporary = fill(tmp_path / "model", "old"), fill(tmp_path / "new", "new")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == temporary:
            raise OSError(errno.ENOSPC, "full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError):
        storage.replace_folder(temporary, final)
    assert (final / "file").read_text() == "old"


def test_a_replacement_cut_short_is_settled(tmp_path: Path) -> None:
    final = fill(tmp_path / "model", "old")
    aside = final.rename(tmp_path / ".model.old")  # killed between the two renames
    storage.settle(final)
    assert (final / "file").read_text() == "old" and not aside.exists()
    fill(aside, "older")  # killed before the old folder was removed
    storage.settle(final)
    assert (final / "file").read_text() == "old" and not aside.exists()


def test_leftovers_are_swept(tmp_path: Path) -> None:
    fill(storage.scratch(tmp_path / "folder"), "x")
    storage.scratch(tmp_path / "file").write_text("x")
    (tmp_path / "kept.tmp").write_text("x")
    storage.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.tmp"]


def test_a_folder_with_anything_but_our_files_is_refused_before_work(tmp_path: Path) -> None:
    storage.check_folder(tmp_path / "new", ["a.json"])
    (tmp_path / "a.json").touch()
    (tmp_path / ".a.json.01234567.tmp").touch()  # left by a kill
    storage.check_folder(tmp_path, ["a.json"])
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds thesis.tex, not only a.json: give an empty or a new folder"):
        storage.check_folder(tmp_path, ["a.json"])
    for place in (tmp_path / "a.json", tmp_path / "a.json" / "below"):
        with pytest.raises(ConfigError, match="is a file"):
            storage.check_place(place)
    with pytest.raises(ConfigError, match="too long"):
        storage.check_place(tmp_path / ("x" * 256))
    with pytest.raises(ConfigError, match="zero byte"):
        storage.check_place(tmp_path / "a\0b")


def test_a_place_that_is_not_ours_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(ConfigError, match="is read-only for us"):
        storage.check_place(tmp_path / "a" / "b")


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127])
def test_a_name_as_long_as_file_systems_allow_is_written(tmp_path: Path, name: str) -> None:
    storage.write_text(tmp_path / name, "one")
    storage.write_text(tmp_path / name, "two")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "two"
    storage.sweep(tmp_path)
    for text in ("one", "two"):
        draft = storage.scratch(tmp_path / "folder" / name)
        draft.mkdir(parents=True)
        (draft / "a").write_text(text)
        storage.replace_folder(draft, tmp_path / "folder" / name)
    assert (tmp_path / "folder" / name / "a").read_text() == "two" and len(list((tmp_path / "folder").iterdir())) == 1
