"""What every verb that touches data and models shares: parts of the data, device and dtype, encoded examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, JsonValue

from limbeck.config import Config
from limbeck.data.readers import Dialect, Rows, read
from limbeck.data.splits import split_rows
from limbeck.errors import ConfigError, DataError
from limbeck.tasks.task import Task

__all__ = ["DataSource", "NamedRows", "Parts", "Reading", "device_of", "dtype_of"]

_DATA: dict[str, JsonValue] = {"section": "data"}
_NAMED = 10  # dropped rows


@dataclass(frozen=True, slots=True)
class Parts:
    """Training, validation and test rows; the last two may be missing.

    Attributes:
        dropped: ids of the rows of the data that reading left out, whichever part they would have been in.
    """

    train: Rows
    valid: Rows | None
    test: Rows | None
    dropped: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return source, content hash and size of each part; how many rows reading left out, and the first ids of
        those.
        """
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        facts = {k: v.describe() for k, v in named.items() if v is not None}
        if self.dropped:
            facts["train"] |= {"dropped": len(self.dropped), "dropped_ids": list(self.dropped[:_NAMED])}
        return facts

    @property
    def final(self) -> tuple[str, Rows] | None:
        """The part that the report is about: test, else valid."""
        if self.test is not None:
            return "test", self.test
        return ("valid", self.valid) if self.valid is not None else None


class NamedRows(Config):
    """One data set by name."""

    data: str = Field(description="rows: a path, toy:NAME or a Hub id", json_schema_extra=_DATA)


class Reading(Config):
    """How data sets are read; fields of every recipe that reads any."""

    columns: dict[str, str] = Field(
        default_factory=dict, description="our field = their column, e.g. question=prompt", json_schema_extra=_DATA
    )
    separator: str = Field(
        "<|endoftext|>", description="line between documents of a text file", json_schema_extra=_DATA
    )
    dialect: Dialect = Field(
        default_factory=Dialect, description="delimiter and quotes of tables of text", json_schema_extra=_DATA
    )
    limit: int | None = Field(None, ge=1, description="read only so many rows of each source", json_schema_extra=_DATA)

    def rows(self, source: str, task: Task | None, *, whole: bool = False) -> Rows:
        """Read one source as ``task`` does; None: as any table or text.

        Args:
            source: a path, ``toy:NAME`` or a Hub id.
            task: kind of work.
            whole: every row, whatever ``limit`` says.

        Raises:
            DataError: the source is missing, empty or shaped otherwise.
        """
        how: dict[str, Any] = {
            "columns": self.columns,
            "limit": None if whole else self.limit,
            "separator": self.separator,
            "dialect": self.dialect,
        }
        return read(source, **how) if task is None else task.read(source, **how)


class DataSource(Reading, NamedRows):
    """Where rows come from and how they are parted; the fields of every recipe that trains."""

    data: str = Field(description="training rows: a path, toy:NAME or a Hub id", json_schema_extra=_DATA)
    valid: str | None = Field(None, description="validation rows; none: a share of the data", json_schema_extra=_DATA)
    test: str | None = Field(None, description="test rows, read once at the end", json_schema_extra=_DATA)
    split_by: str | None = Field(
        None, description="field whose equal values stay in one part; none: the task's choice", json_schema_extra=_DATA
    )
    fractions: tuple[float, float, float] = Field(
        (0.7, 0.15, 0.15),
        description="train, valid and test shares of data that comes in one piece",
        json_schema_extra=_DATA,
    )

    def parts(self, task: Task) -> Parts:
        """Read every part; without ``valid`` and ``test`` the data is split by the hash of a field.

        Raises:
            DataError: a source is missing, empty or shaped otherwise.
        """
        rows = self.rows(self.data, task)
        if self.valid is not None or self.test is not None:
            valid = self.rows(self.valid, task) if self.valid is not None else None
            test = self.rows(self.test, task) if self.test is not None else None
            return Parts(rows, valid, test, rows.dropped)
        shares = {k: f for k, f in zip(("train", "valid", "test"), self.fractions, strict=True) if f > 0}
        if "train" not in shares:
            raise DataError("the train share of 'fractions' is zero: nothing would be trained on")
        split: Mapping[str, Rows] = split_rows(rows, self.split_by or task.split_by, shares)
        return Parts(split["train"], split.get("valid"), split.get("test"), rows.dropped)


def device_of(name: str) -> torch.device:
    """Return the device that is meant: ``auto`` is a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"'{name}' is no device; name auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but no CUDA device is at hand; use cpu or auto")
    return device


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype to evaluate and generate in; ``auto`` is fp32."""
    table = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
    return table.get(name, torch.float32)
