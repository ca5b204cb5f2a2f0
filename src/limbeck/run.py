"""A run is a directory: its recipe, metrics, checkpoints, model, provenance and report."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from limbeck import config, storage
from limbeck.errors import BusyError, ConfigError, DataError
from limbeck.old_names import quiet
from limbeck.processors import usable

__all__ = ["Run", "machine", "source", "versions"]

_PACKAGES = ("limbeck", "torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "datasets", "pydantic")


class Run:
    """The folder of one run.

    Attributes:
        path: the folder.
        resumed: ``create`` found this recipe's run begun there before.
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path, self.resumed = path, resumed
        self._events: Any = None
        self._purge: int | None = None
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, recipe: config.Config) -> Run:
        """Begin a run in ``path``, or go on with the same recipe's run there (see ``resumed`` and ``finished``).

        A run that stopped before it made anything, on a wrong setting for instance, gives way to another recipe.

        Raises:
            ConfigError: the folder holds another recipe's run, or files that are no run.
            BusyError: another process is writing this run.
            StorageError: the folder cannot be written.
        """
        file, text = path / "recipe.yaml", config.dump(recipe)
        resumed = cls.check(path, recipe)
        run = cls(path, resumed=resumed)
        with storage.writing(path):
            path.mkdir(parents=True, exist_ok=True)
            run._take_lock()
            storage.sweep(path)
            storage.settle(run.model)
            for folder in (run.checkpoints, run.scores):
                folder.mkdir(exist_ok=True)
        if not resumed:
            with storage.writing(path):
                (path / "provenance.json").unlink(missing_ok=True)
            storage.write_text(file, text)
        return run

    @staticmethod
    def check(path: Path, recipe: config.Config) -> bool:
        """Refuse a folder that ``create`` would refuse; nothing is written.

        Returns:
            Whether the same recipe's run was begun there.

        Raises:
            ConfigError: the folder holds another recipe's run, or files that are no run, or cannot be written.
        """
        storage.check_place(path)
        file, here = path / "recipe.yaml", yaml.safe_load(config.dump(recipe))
        there = _filled(_read_yaml(file), type(recipe)) if file.exists() else None
        resumed = there is not None and (there == here or _worth_keeping(path))
        if there is not None and resumed:
            _check_same(path, there, here)
        elif there is None and path.exists() and any(not p.name.startswith(".") for p in path.iterdir()):
            raise ConfigError(f"folder {path} is not empty and holds no run: give an empty or a new one")
        return resumed

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a run to read; nothing is written.

        Raises:
            DataError: there is no run in ``path``.
        """
        if not (path / "recipe.yaml").is_file():
            raise DataError(f"{path} is no run folder: it holds no recipe.yaml")
        return cls(path)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the TensorBoard events and let another process write here."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def checkpoints(self) -> Path:
        """Folder of training checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the finished model."""
        return self.path / "model"

    @property
    def scores(self) -> Path:
        """Folder of per-item scores, one file an evaluation."""
        return self.path / "scores"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def metrics_file(self) -> Path:
        """``metrics.jsonl``: one JSON object a line, each with its ``step``."""
        return self.path / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        """The report is written: there is nothing left to do."""
        return (self.path / "report.json").is_file()

    def describe(self) -> str:
        """Say in one sentence how far the run is."""
        if self.finished:
            return f"run {self.path} is finished: its report is {self.path / 'report.json'}"
        if self.resumed:
            return f"run {self.path} was begun before and goes on from its last checkpoint"
        return f"run {self.path} is new"

    def recipe(self) -> dict[str, Any]:
        """Read the recipe back as plain values.

        Raises:
            DataError: the file is not YAML.
        """
        return _read_yaml(self.path / "recipe.yaml")

    def metrics(self) -> list[dict[str, Any]]:
        """Read every whole line of ``metrics.jsonl``; a line that a kill tore is left out.

        Raises:
            DataError: the file cannot be read, or a line is damaged; names it.
        """
        if not self.metrics_file.exists():
            return []
        try:
            *lines, _ = self.metrics_file.read_bytes().decode("utf-8").split("\n")  # the last is empty, or torn
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.metrics_file} cannot be read: {' '.join(str(error).split())}") from None
        out = []
        for number, line in enumerate(lines, start=1):
            try:
                out.append(json.loads(line))
            except (ValueError, RecursionError):
                raise DataError(f"line {number} of {self.metrics_file} is damaged: it is no JSON object") from None
        return out

    def report(self) -> dict[str, Any]:
        """Read the report.

        Raises:
            DataError: the run is not finished, or the file is damaged.
        """
        file = self.path / "report.json"
        if not file.exists():
            raise DataError(f"run {self.path} has no report yet: run its command again to finish it")
        return _read_json(file)

    def log(self, step: int, **metrics: float | None) -> None:
        """Append one line to ``metrics.jsonl`` and its numbers to TensorBoard. Values that are not finite become null.

        Raises:
            StorageError: the line cannot be written.
        """
        line = {"step": step, **storage.plain(metrics)}
        with storage.writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        with storage.writing(self.tensorboard):
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer().add_scalar(name, value, step)

    def flush(self) -> int:
        """Sync ``metrics.jsonl`` to the disk and return its size in bytes, as a checkpoint records it."""
        if not self.metrics_file.exists():
            return 0
        with storage.writing(self.metrics_file), self.metrics_file.open("rb+") as file:
            os.fsync(file.fileno())
        return self.metrics_file.stat().st_size

    def rewind(self, size_bytes: int, step: int) -> None:
        """Cut ``metrics.jsonl`` back to ``size_bytes`` and hide TensorBoard events after ``step``: a resumed run writes
        those again, so the file ends like an uninterrupted run's. Size 0 and step -1: from the beginning.
        """
        self._purge = step + 1
        if self.metrics_file.exists() and self.metrics_file.stat().st_size > size_bytes:
            with storage.writing(self.metrics_file):
                os.truncate(self.metrics_file, size_bytes)

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``value`` atomically as JSON under ``name`` within the folder and return its path."""
        storage.write_json(self.path / name, value)
        return self.path / name

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report; with it the run is finished."""
        self.write_json("report.json", report)

    def provenance(
        self, *, seed: int, data: Mapping[str, str], models: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Write ``provenance.json``: versions, source, seed, data hashes, machine. A later session adds to ``resumed``.

        Args:
            seed: of the run.
            data: content hash of each data set, by its role.
            models: commit of each model that came from the Hub, by its name.

        Raises:
            DataError: the run was begun with other data, another commit of a model, or another seed.
        """
        file = self.path / "provenance.json"
        session = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "source": source(),
            "machine": machine(),
        }
        if not file.exists():
            out: dict[str, Any] = {
                "seed": seed,
                "data": dict(data),
                "models": dict(models or {}),
                **session,
                "resumed": [],
            }
        else:
            out = _read_json(file)
            _check_data(self.path, out, seed, data)
            _check_models(self.path, out.get("models", {}), models or {})
            out["resumed"] = [*out.get("resumed", []), session]
        storage.write_json(file, out)
        return out

    def _writer(self) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import: only a run that logs pays

            self._events = SummaryWriter(str(self.tensorboard), purge_step=self._purge)
        return self._events

    def _take_lock(self) -> None:
        """Hold a lock that dies with the process, so that two of the same command cannot mix their lines."""
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.close()
            told = f"another process is writing run {self.path}: wait for it, or give another folder"
            raise BusyError(told) from None


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that the numbers depend on; those not installed are left out."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def source() -> dict[str, Any]:
    """Commit of the checkout that this source lies in, and whether it was changed since; None where it is none."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside somebody else's checkout: only a tracked file speaks for its commit.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", here.name) is not None else None
    if commit is None:
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}


def machine() -> dict[str, Any]:
    """Return what the numbers were made on: processor, cores, memory, GPUs, platform; no name of host or user."""
    out: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": usable(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpus": [],
    }
    torch = sys.modules.get("torch")  # who has not imported torch computed nothing on it
    if torch is not None:
        out["threads"] = torch.get_num_threads()
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _worth_keeping(path: Path) -> bool:
    """Whether a run made anything: a file beside what says how it was begun."""
    begun = {"recipe.yaml", "provenance.json"}
    return any(p.is_file() and p.name not in begun and not p.name.startswith(".") for p in path.rglob("*"))


def _filled(there: dict[str, Any], kind: type[config.Config]) -> dict[str, Any]:
    """Return a recipe as it was written, with the defaults of options that came later: a run outlives a new version."""
    try:
        with quiet():
            values: dict[str, Any] = yaml.safe_load(config.dump(kind.model_validate(there)))
    except ValueError:  # what this version does not know: compared as it stands
        return there
    return values


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # a run that was moved, or is named from another folder, is the same run
    differences = _differences({**there, "out": None}, {**here, "out": None})
    if differences:
        shown = "; ".join(differences[:4]) + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")
        raise ConfigError(f"folder {path} holds another run ({shown}): give another folder, or the same recipe")


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*there, *(k for k in here if k not in there)]
        return [d for k in keys for d in _differences(there.get(k), here.get(k), f"{name}.{k}" if name else str(k))]
    return [] if there == here else [f"{name or 'recipe'} is {there!r} there and {here!r} here"]


def _check_data(path: Path, known: Mapping[str, Any], seed: int, data: Mapping[str, str]) -> None:
    if known.get("seed") != seed:
        raise DataError(f"run {path} was begun with seed {known.get('seed')}, not {seed}: give another folder")
    for role in sorted({*known.get("data", {}), *data}):
        if known["data"].get(role) != data.get(role):
            raise DataError(f"the {role} data changed since run {path} was begun: give another folder to start afresh")


def _check_models(path: Path, known: Mapping[str, str], models: Mapping[str, str]) -> None:
    for name, commit in models.items():
        if known.get(name, commit) != commit:
            raise DataError(
                f"the Hub's {name} is at commit {commit[:12]} now, and run {path} was begun with {known[name][:12]}: "
                f"give another folder, or pin the model by {name.partition('@')[0]}@{known[name]}"
            )


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} holds no recipe")
    return values


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{file} holds no JSON object")
    return values
