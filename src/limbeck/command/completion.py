"""Shell completion: verbs, flags and their choices from the schema; imports neither torch nor pydantic."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from limbeck.command.flags import Flag, shown
from limbeck.errors import nearest

__all__ = ["SHELLS", "choices_of", "script"]

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_LIMBECK_COMPLETE"  # through which click's script asks the program


def script(command: click.Command, shell: str) -> str:
    """Return the script that a shell sources to complete ``limbeck``.

    Raises:
        UsageError: a shell that is not supported.
    """
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        known = ", ".join(SHELLS)
        raise click.UsageError(f"--print-completion is one of {known}, not '{shell}'{nearest(shell, SHELLS)}")
    return kind(command, {}, "limbeck", _VARIABLE).source()


def choices_of(flag: Flag, typed: str) -> list[CompletionItem]:
    """Return how the value of ``flag`` may go on after ``typed``: its choices, or the files that the shell finds."""
    if not flag.choices:
        return [CompletionItem(typed, type="file")]
    before, comma, last = typed.rpartition(",")  # of a list, its last item
    names = [shown(choice) for choice in flag.choices]
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]
