"""The progress bar of a training: rate, time left and loss, on stderr."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Bar"]


class Bar:
    """A rich bar on stderr or in a notebook; silent where stderr is no terminal, or where told so."""

    def __init__(self, total_steps: int, done: int, shown: bool) -> None:
        self._progress: Any = None
        if shown and (sys.stderr.isatty() or _in_notebook()):
            self._start(total_steps, done)

    def _start(self, total_steps: int, done: int) -> None:
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=not _in_notebook()),
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=done, note="")
        self._progress.start()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that ``step`` steps are done."""
        if self._progress is not None:
            note = f"loss {loss:.4f}  {tokens_per_second:,.0f} tok/s"
            self._progress.update(self._task, completed=step, note=note)


def _in_notebook() -> bool:
    """Is this process the kernel of a Jupyter notebook? Only one that has IPython loaded can be."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
