"""Checkpoints: one folder a step, written aside and renamed, so that a kill or a full disk spoils none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck import storage
from limbeck.errors import CheckpointError, ConfigError, LimbeckWarning
from limbeck.train.distributed import world
from limbeck.train.optim import load_state
from limbeck.train.precision import TrainedWeights
from limbeck.train.settings import TrainSettings
from limbeck.train.state import State

__all__ = ["CheckpointWarning", "Checkpoints"]

_CHANGING, _FROZEN = "model.safetensors", "frozen.safetensors"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"


class CheckpointWarning(LimbeckWarning):
    """A damaged checkpoint was passed over."""


class Checkpoints:
    """The checkpoints of one run.

    Each folder ``step-00000123/`` holds ``model.safetensors`` (what training changes, in full precision),
    ``frozen.safetensors`` (what it does not; one file on the disk, linked into every folder), ``optimizer.safetensors``
    and ``state.json``. ``last.json`` and ``best.json`` point to folders.

    Attributes:
        folder: where they lie.
        keep: newest ones kept; the best is kept besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self._frozen: tuple[tuple[int, int], str] | None = None

    def path(self, step: int) -> Path:
        """Return the folder of one step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return steps that have a checkpoint, oldest first."""
        found = (p.name.removeprefix("step-") for p in self.folder.glob("step-*"))
        return sorted(int(name) for name in found if name.isdigit())

    def pointer(self, which: str) -> Path | None:
        """Return the folder that ``last`` or ``best`` points to, None where there is none."""
        try:
            values = json.loads((self.folder / f"{which}.json").read_text(encoding="utf-8"))
            path = self.folder / str(values["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if path.is_dir() else None

    def save(
        self,
        state: State,
        weights: tuple[dict[str, Tensor], dict[str, Tensor]],
        moments: dict[str, Tensor],
        extra: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write the checkpoint of ``state.step``, move the pointers, and drop the oldest beyond ``keep``.

        Args:
            state: place in the training.
            weights: as from ``TrainedWeights.state``.
            moments: as from ``state_tensors``.
            extra: writes further files into the folder before it counts.

        Raises:
            StorageError: the disk refused; earlier checkpoints are whole.
        """
        final = self.path(state.step)
        with storage.writing(final):
            self.folder.mkdir(parents=True, exist_ok=True)
            storage.sweep(self.folder)
            temporary = storage.scratch(final)
            try:
                temporary.mkdir()
                self._fill(temporary, state, weights, moments, extra)
                storage.replace_folder(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        self.mark(state)
        return final

    def adopt(self, state: State) -> None:
        """Make the restored ``state`` the last: what is newer is damaged, and training will make it again."""
        for newer in self.steps():
            if newer > state.step:
                shutil.rmtree(self.path(newer), ignore_errors=True)
        self.mark(state)

    def mark(self, state: State) -> None:
        """Point ``last`` and ``best`` to where ``state`` says, then drop what nothing needs."""
        best = None if state.best_step is None else self.path(state.best_step)
        storage.write_json(self.folder / "last.json", {"folder": self.path(state.step).name, "step": state.step})
        if best is not None and best.is_dir():
            value = {"folder": best.name, "step": state.best_step, "value": state.best_value}
            storage.write_json(self.folder / "best.json", value)
        kept = {*self.steps()[-self.keep :], state.step, state.best_step}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def _fill(
        self,
        folder: Path,
        state: State,
        weights: tuple[dict[str, Tensor], dict[str, Tensor]],
        moments: dict[str, Tensor],
        extra: Callable[[Path], None] | None,
    ) -> None:
        changing, frozen = weights
        _write(folder / _CHANGING, changing)
        _write(folder / _OPTIMIZER, moments)
        if frozen and not self._link(folder / _FROZEN):
            _write(folder / _FROZEN, frozen)
        if extra is not None:
            extra(folder)
        files = [p for p in sorted(folder.iterdir()) if p.is_file()]
        values = {
            "state": state.to_json(),
            "sizes_bytes": {p.name: p.stat().st_size for p in files},
            "sha256": {p.name: self._hash(p) for p in files},
        }
        text = json.dumps({**values, "check": _check_of(values)}, indent=2, allow_nan=False)
        (folder / _STATE).write_text(text + "\n", encoding="utf-8")

    def _hash(self, file: Path) -> str:
        """Sha256 of a file; of the frozen weights, which all checkpoints share, once."""
        if file.name != _FROZEN:
            return _sha256(file)
        about = file.stat()
        key = (about.st_ino, about.st_size)
        if self._frozen is None or self._frozen[0] != key:
            self._frozen = (key, _sha256(file))
        return self._frozen[1]

    def verify(self, step: int) -> None:
        """Compare every file of a checkpoint with the hash that was written beside it.

        Raises:
            CheckpointError: a file is missing, cut, or changed by as little as a bit; names it.
        """
        folder = self.path(step)
        with _naming(folder / _STATE):
            values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            for name, wanted in values.get("sha256", {}).items():  # none in those of earlier versions
                if _sha256(folder / name) != wanted:
                    raise CheckpointError(
                        f"checkpoint file {folder / name} is damaged: its content is not what was written"
                    )

    def _link(self, target: Path) -> bool:
        """Share the frozen weights of the checkpoint before, which never change within a run."""
        before = self.pointer("last")
        if before is None:
            return False
        try:
            os.link(before / _FROZEN, target)
        except OSError:
            return False  # none there, or a file system without links
        return True

    def states(self, settings: TrainSettings) -> Iterator[tuple[int, State | CheckpointError]]:
        """Read every checkpoint's state, the newest first; what is damaged comes as its error.

        Raises:
            ConfigError: a checkpoint was made with other settings.
        """
        for step in reversed(self.steps()):
            try:
                yield step, self._state(step, settings)
            except CheckpointError as error:
                yield step, error

    def restore(
        self, weights: TrainedWeights, optimizer: torch.optim.Optimizer, settings: TrainSettings
    ) -> State | None:
        """Load the newest whole checkpoint and return its state; None where there is no checkpoint at all.

        A damaged one is passed over with a warning.

        Raises:
            CheckpointError: there are checkpoints and none is whole; names file and key of the newest's damage.
            ConfigError: they were made with other settings.
        """
        first: CheckpointError | None = None
        for step, state in self.states(settings):
            try:
                if isinstance(state, CheckpointError):
                    raise state
                self.verify(step)
                moments = self._load(step, _OPTIMIZER)
                self.load_weights(step, weights)
                with _naming(self.path(step) / _OPTIMIZER):
                    load_state(optimizer, weights.trained, moments)
            except CheckpointError as error:
                first = first or error
                warnings.warn(f"{error}; going on from the checkpoint before it", CheckpointWarning, stacklevel=2)
            else:
                return state
        if first is not None:
            raise CheckpointError(f"no checkpoint in {self.folder} is whole: {first}; remove them to start afresh")
        return None

    def load_weights(self, step: int, weights: TrainedWeights) -> None:
        """Load one checkpoint's weights alone.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the model; nothing was changed then.
        """
        tensors = self._load(step, _CHANGING)
        if (self.path(step) / _FROZEN).exists():
            tensors |= self._load(step, _FROZEN)
        with _naming(self.path(step) / _CHANGING):
            weights.load(tensors)

    def _load(self, step: int, name: str) -> dict[str, Tensor]:
        with _naming(self.path(step) / name):
            tensors: dict[str, Tensor] = load_file(self.path(step) / name)
            return tensors

    def _state(self, step: int, settings: TrainSettings) -> State:
        folder = self.path(step)
        with _naming(folder / _STATE):
            values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            if "check" in values and values.pop("check") != _check_of(values):
                raise CheckpointError(
                    f"checkpoint file {folder / _STATE} is damaged: its content is not what was written"
                )
            state = State.from_json(json.dumps(values["state"]))
            for name, size in values["sizes_bytes"].items():
                if not (folder / name).exists():
                    raise CheckpointError(f"checkpoint file {folder / name} is missing")
                if (folder / name).stat().st_size != size:
                    held = (folder / name).stat().st_size
                    raise CheckpointError(f"checkpoint file {folder / name} holds {held} bytes instead of {size}")
        here = settings.model_dump(mode="json") | {"ranks": world().size}
        _check_settings(folder, state.settings, here)
        return state


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_settings(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in here:
        if name in there and there[name] != here[name]:
            raise ConfigError(
                f"checkpoint {folder} was made with {name} {there[name]!r}, not {here[name]!r}: "
                "give the same settings to go on, or another folder"
            )


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, file)
    storage.share(file)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Give every complaint about ``file`` its name."""
    try:
        yield
    except CheckpointError as error:
        sentence = str(error)
        raise CheckpointError(sentence if str(file.parent) in sentence else f"{file}: {sentence}") from None
    except KeyError as error:
        raise CheckpointError(f"checkpoint file {file} lacks key {error}") from None
    except (OSError, ValueError, AttributeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint file {file} is damaged: {' '.join(str(error).split())}") from None
