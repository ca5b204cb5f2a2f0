"""Safetensors folders: what is in them, checked against the headers before anything is allocated; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.errors import CheckpointError, ModelError
from limbeck.storage import share, write_json, writing

__all__ = ["SHARD_BYTES", "TensorHeader", "WeightFiles", "read_json", "write_weights"]

SHARD_BYTES = 5_000_000_000
"""Largest weights file that is written; larger models are cut into several, as transformers cuts them."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of one tensor: the file it lies in, its shape and its dtype by safetensors' name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class WeightFiles:
    """The tensors of one folder by key, one file or many.

    Attributes:
        headers: key -> file, shape and dtype of every tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.headers: dict[str, TensorHeader] = {}
        single = _is_single(folder)
        self.where = str(folder / (SINGLE if single else INDEX))
        places = {} if single else _places(folder)
        for file in [folder / SINGLE] if single else [folder / name for name in dict.fromkeys(places.values())]:
            handle = _handle(file)
            for key in handle.keys():
                if key in self.headers:
                    first = self.headers[key].file.name
                    raise CheckpointError(f"'{key}' lies in both {first} and {file.name} of {folder}")
                part = handle.get_slice(key)
                self.headers[key] = TensorHeader(file, tuple(part.get_shape()), part.get_dtype())
        for key, name in places.items():
            if key not in self.headers or self.headers[key].file.name != name:
                raise CheckpointError(f"{self.where} places '{key}' in {name}, which does not hold it")

    def read(self, key: str) -> Tensor:
        """Return one tensor as it lies in its file, backed by the file's pages until it is freed.

        The file is opened anew each time: a handle that stays open keeps every page that was ever read of it resident,
        which for a small model in 16 bits was most of the peak of loading it.
        """
        tensor: Tensor = _handle(self.headers[key].file).get_tensor(key)
        return tensor

    def parts(self, key: str) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield the whole tensor, which is a view of the file."""
        yield slice(None), self.read(key)


def _is_single(folder: Path) -> bool:
    """Return whether ``folder`` holds one weights file, not an index of several."""
    if (folder / SINGLE).is_file():
        return True
    if (folder / INDEX).is_file():
        return False
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickles[0]}) and no pickle is ever loaded: "
            "save the model as safetensors first"
        )
    raise ModelError(f"{folder} holds no weights: there is neither {SINGLE} nor {INDEX}")


def _places(folder: Path) -> dict[str, str]:
    """Read the index: key -> name of its file, which lies in the folder itself."""
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise CheckpointError(f"{folder / INDEX} holds no weight_map from keys to files")
    for name in dict.fromkeys(places.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX} names '{name}', which is no safetensors file of its own folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / INDEX} names {name}, which is missing from the folder")
    return places


def _handle(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {_line(error)}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} must hold a JSON object, not a {type(values).__name__}")
    return values


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors to ``folder`` in order, in files of at most ``shard_bytes`` (one tensor at least a file).

    Tensors are taken one at a time and let go with their file, so that only one shard exists beside the model.

    Raises:
        StorageError: the disk refused.
    """
    total, count, held, held_bytes = 0, 0, dict[str, Tensor](), 0
    places: dict[str, int] = {}
    for key, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and held_bytes + size > shard_bytes:
            count += 1
            _write(folder / f"part-{count}", held)
            held, held_bytes = {}, 0
        held[key] = tensor.detach().to("cpu").contiguous()
        held_bytes += size
        total += size
        places[key] = count + 1
    count += 1
    _write(folder / f"part-{count}", held)
    names = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for i, name in enumerate(names, start=1):
        (folder / f"part-{i}").rename(folder / name)
    if count > 1:
        weight_map = {key: names[part - 1] for key, part in places.items()}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    with writing(file):
        save_file(tensors, str(file), metadata={"format": "pt"})
        share(file)
