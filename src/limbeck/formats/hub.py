"""From a model's name to a folder: a folder, a run, or a Hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from limbeck import storage
from limbeck.data.tokenizer_files import BPE_FILES
from limbeck.errors import ModelError, nearest

__all__ = ["ADAPTER", "GGUF", "commit_of", "commits_of", "resolve", "resolve_tokenizer"]

ADAPTER = "adapter_config.json"
"""What tells a PEFT adapter's folder."""

GGUF = ".gguf"
"""Suffix of a file that is a model with its tokenizer."""

ALLOWED = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched from the Hub; never a pickle."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[A-Za-z0-9][\w./-]*)?")


_COMMIT = re.compile(r"[0-9a-f]{40}")
_FETCHED: dict[str, str] = {}  # the commit of each Hub model that this process found, for provenance


def resolve(name: str) -> Path:
    """Find the folder of a model.

    Args:
        name: a GGUF file; a folder of a model or of a PEFT adapter; a run folder, whose ``model/`` is taken; or a Hub
            id such as ``gpt2`` or ``owner/name``, which is fetched into the Hub's cache (``HF_HUB_OFFLINE=1``: read
            from there alone); ``owner/name@REVISION`` pins a branch, a tag or a commit.

    Returns:
        A folder with a config.json, or with a PEFT adapter's adapter_config.json; or a GGUF file.

    Raises:
        ModelError: there is no such folder, Hub model or revision, it is gated, it has no safetensors, or the Hub
            cannot be reached and the cache has no copy.
    """
    folder = _folder(name)
    for place in (folder, folder / "model"):
        storage.settle(place)  # where a kill cut short the replacement of an earlier model
    if folder.is_dir():
        return _in_folder(folder)
    if folder.suffix == GGUF and folder.is_file():
        return folder
    if folder.exists():
        raise ModelError(f"{name} is a file, but no {GGUF}: name the folder of the model")
    near = list(folder.parent.iterdir()) if folder.parent.is_dir() else []
    if folder.suffix == GGUF:
        raise ModelError(f"there is no file {name} here{nearest(name, [str(p) for p in near if p.suffix == GGUF])}")
    siblings = [str(p) for p in near if p.is_dir()]
    if not _ID.fullmatch(name) or name.endswith((".", "-")):
        raise ModelError(f"the model folder {name} does not exist{nearest(name, siblings)}")
    return _from_hub(name, nearest(name, siblings))


def commits_of(values: object) -> dict[str, str]:
    """Return the commit of each Hub model that this process fetched and whose name stands in ``values``.

    Args:
        values: a recipe's plain values: lists, mappings and texts, nested.
    """
    if isinstance(values, str):
        return {values: _FETCHED[values]} if values in _FETCHED else {}
    some = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    return {name: commit for value in some for name, commit in commits_of(value).items()}


def commit_of(folder: Path) -> str | None:
    """Return the Hub's commit that a folder of the Hub's cache holds; None for any other folder or file."""
    place = next((p for p in (folder, *folder.parents) if p.parent.name == "snapshots"), None)
    return place.name if place is not None and _COMMIT.fullmatch(place.name) else None


def resolve_tokenizer(name: str) -> Path:
    """Find the folder of a tokenizer: one that holds its files without a model, or what ``resolve`` finds.

    Raises:
        ModelError: as ``resolve``.
    """
    folder = _folder(name)
    alone = any(all((folder / f).is_file() for f in files) for files in (("tokenizer.json",), *BPE_FILES))
    return folder if alone else resolve(name)


def _folder(name: str) -> Path:
    """Return the folder that ``name`` may mean.

    Raises:
        ModelError: no file system has such a name.
    """
    if not name.strip():
        raise ModelError(
            "a model has an empty name: name a folder, a run, a .gguf file or a Hub id (is a shell variable unset?)"
        )
    try:
        folder = Path(name).expanduser()
        folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"the model {name[:80]!r} cannot be opened: {reason}") from None
    return folder


def _in_folder(folder: Path) -> Path:
    for place in (folder, folder / "model"):
        if _is_model(place):
            return place
    if (folder / "recipe.yaml").is_file():
        raise ModelError(f"run {folder} has no model yet: run its command again to finish it")
    raise ModelError(f"{folder} holds no config.json, nor does a model folder in it: it is neither a model nor a run")


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", ADAPTER))


def _from_hub(name: str, hint: str) -> Path:
    """Fetch ``name``; ``hint`` names a folder here that may have been meant."""
    repository, _, revision = name.partition("@")
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=ALLOWED, ignore_patterns=["*/*"]
            )
        )
    except errors.RevisionNotFoundError:
        raise ModelError(f"the Hub model {repository} has no branch, tag or commit '{revision}'") from None
    except errors.GatedRepoError:
        raise ModelError(
            f"the Hub model {name} is gated: accept its terms there and log in with 'hf auth login'"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"'{name}' is neither a folder here nor a model on the Hub (or it is private){hint}") from None
    except errors.LocalEntryNotFoundError:
        raise ModelError(
            f"'{name}' is no folder here, and the Hub's cache has no copy while the Hub cannot be reached "
            f"(or HF_HUB_OFFLINE is set){hint}"
        ) from None
    except Exception as error:  # transport, storage and validation errors of several libraries, with no class in common
        raise ModelError(f"the Hub model {name} cannot be fetched: {' '.join(str(error).split())}") from None
    if not _is_model(folder):
        raise ModelError(f"the Hub repository {name} holds no config.json: it is no transformers model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"the Hub model {name} has no safetensors; pickled weights are never fetched or loaded")
    if commit := commit_of(folder):
        _FETCHED[name] = commit
    return folder
