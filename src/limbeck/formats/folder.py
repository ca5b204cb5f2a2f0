"""Write a model folder as a whole or not at all (I23)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck import storage
from limbeck.errors import ConfigError

__all__ = ["check_replaceable", "replacing"]

_OURS = re.compile(
    r"(config|generation_config|limbeck|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new, empty folder beside ``folder``; on success it takes its place, on any error it is removed.

    Args:
        folder: a new path, an empty folder, or an earlier model folder, which is replaced.

    Yields:
        The folder to write into.

    Raises:
        StorageError: the disk refused; what was there is whole.
        ConfigError: ``folder`` holds files that are no model's.
    """
    folder = folder.absolute()
    check_replaceable(folder)
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a writer that was killed
        shutil.rmtree(left, ignore_errors=True)
    draft = storage.scratch(folder)
    try:
        with storage.writing(folder):
            draft.mkdir(parents=True)
            yield draft
        storage.replace_folder(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds more than a model.

    Raises:
        ConfigError: it does, or is a file.
    """
    if folder.is_dir():
        others = sorted(p.name for p in folder.iterdir() if p.is_dir() or not _OURS.fullmatch(p.name))
        if others:
            raise ConfigError(f"{folder} holds '{others[0]}', which is no model's file: choose a new or empty folder")
    elif folder.exists():
        raise ConfigError(f"{folder} is a file: choose a folder for the model")
