"""What a recipe is: a frozen config that is the file and the command line, and what it hands back."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

from pydantic import Field
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.config import Config, dump
from limbeck.run import Run
from limbeck.storage import check_folder, plain, write_json

__all__ = ["Dtype", "Recipe", "Report", "Display", "default_folder", "facts"]

Dtype = Literal["auto", "fp32", "bf16", "fp16", "fp64"]

_PAGE = "report.html"  # of a result, which Python's result.open() writes beside what the verb wrote
_UNBOUND = 140  # columns where nobody says how many there are
_COMMON: dict[str, Any] = {"section": "common"}


def _console() -> Console:
    """Console on stderr; a file or pipe, which has no width of its own, gets lines that hold our tables whole."""
    console = Console(stderr=True)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=True, width=_UNBOUND)


@dataclass(frozen=True)
class Display:
    """Where a recipe's output for people goes; the recipe's result is its ``Report``.

    Attributes:
        console: rich console on stderr: tables, notes, progress bars.
        text: where generated text may be streamed: stdout, or stderr where ``--json`` keeps stdout for its object.
        quiet: write nothing for people.
        progress: show progress bars.
    """

    console: Console = field(default_factory=_console)
    text: TextIO = field(default_factory=lambda: sys.stdout)
    quiet: bool = False
    progress: bool = True

    def write(self, text: str) -> None:
        """Stream generated text, at once."""
        self.text.write(text)
        self.text.flush()

    @classmethod
    def silent(cls) -> Display:
        """Return a session that shows nothing, for calls from Python."""
        return cls(console=Console(file=StringIO(), quiet=True), text=StringIO(), quiet=True, progress=False)

    @classmethod
    def bars(cls) -> Display:
        """Return a display that shows progress bars alone, in a terminal or a notebook, for calls from Python."""
        return cls(console=Console(file=StringIO(), quiet=True), text=StringIO(), quiet=True, progress=True)

    def say(self, *lines: RenderableType) -> None:
        """Print for people, unless quiet."""
        if not self.quiet:
            for line in lines:
                self.console.print(line)


@dataclass(frozen=True)
class Report:
    """What a recipe found.

    Attributes:
        values: everything, as plain values: what ``--json`` prints and ``report.json`` holds.
        body: the same for people: rich tables and sentences, printed in order.
    """

    values: Mapping[str, Any]
    body: tuple[RenderableType, ...] = ()

    def show(self, console: Console) -> None:
        """Print the tables and sentences for people."""
        for part in self.body:
            console.print(part)

    def to_json(self) -> str:
        """Return one strict JSON object: NaN and infinities become null, paths text."""
        return json.dumps(plain(self.values), ensure_ascii=False, allow_nan=False)

    def write(self, file: Path) -> None:
        """Write the values to ``file``, atomically, making its folder.

        Raises:
            StorageError: the system refused the write.
        """
        write_json(file, self.values)


class Recipe(Config):
    """Base of every verb: its fields are the YAML file and the flags, ``run`` does the work.

    Attributes:
        verb: name on the command line.
        summary: one line for the list of verbs.
        on_ranks: several processes of torchrun may run it together.
        files: what it writes into ``out``, by name; None: ``out`` is a run folder.
    """

    verb: ClassVar[str]
    summary: ClassVar[str]
    on_ranks: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...] | None] = None

    out: str | None = Field(None, description="folder to write to", json_schema_extra=_COMMON)
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything drawn at random", json_schema_extra=_COMMON)
    device: str = Field(
        "auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU if any", json_schema_extra=_COMMON
    )
    dtype: Dtype = Field("auto", description="precision of the computation", json_schema_extra=_COMMON)

    def claim(self) -> None:
        """Refuse an output folder that is not ours to write, before any work is done.

        Raises:
            ConfigError: it holds something else, or cannot be written.
        """
        if self.out is not None and self.files is not None:
            check_folder(Path(self.out), (*self.files, _PAGE))
        elif self.out is not None:
            Run.check(Path(self.out), self)

    @abstractmethod
    def run(self, session: Display) -> Report:
        """Do the work and say what came of it.

        Raises:
            LimbeckError: one sentence; its ``exit_code`` becomes the command's.
        """


def default_folder(recipe: Recipe) -> Path:
    """Return the run folder of a recipe without ``out``, named after its values: the same command finds it again."""
    return Path("runs") / f"{recipe.verb}-{hashlib.sha256(dump(recipe).encode()).hexdigest()[:8]}"


def facts(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """Return a two-column table for people: a name and what stands behind it."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(str(value)))  # as text: a path may hold what rich takes for markup
    return table
