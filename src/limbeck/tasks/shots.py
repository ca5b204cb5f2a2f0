"""Examples shown before a question: drawn once from a seed, never from the rows that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from limbeck.data.readers import Row, Rows
from limbeck.data.splits import normalise
from limbeck.errors import ConfigError, DataError

__all__ = ["draw_shots"]


def draw_shots(
    source: Rows | None, measured: Rows, count: int, seed: int, *, by: str, groups: Sequence[int] | None = None
) -> list[Row]:
    """Draw ``count`` rows of ``source`` to show, in an order drawn with them.

    Args:
        source: where they come from; None is fine where ``count`` is 0.
        measured: rows that are measured: none that equals one of them in ``by`` is shown.
        count: how many.
        seed: another seed gives other rows and another order; more shots from one seed show other rows.
        by: the field that makes two rows the same question.
        groups: class of each row of ``source``: as many of each are drawn as can be. None: drawn whatever it is.

    Raises:
        ConfigError: rows are to be shown, but none were named.
        DataError: ``source`` has too few rows that are not measured.
    """
    if count == 0:
        return []
    if source is None:
        raise ConfigError(f"{count} examples are to be shown, but no rows to draw them from are named: set 'examples'")
    asked = {normalise(row.text(by, measured.source)) for row in measured}
    free = [i for i, row in enumerate(source) if normalise(row.text(by, source.source)) not in asked]
    if len(free) < count:
        raise DataError(f"{source.source} has {len(free)} rows that are not measured, and {count} are to be shown")
    random = Random(f"shots:{seed}:{count}")
    random.shuffle(free)
    if groups is not None:
        free = _alternate(free, groups, random)
    chosen = free[:count]
    random.shuffle(chosen)
    return [source[i] for i in chosen]


def _alternate(places: Sequence[int], groups: Sequence[int], random: Random) -> list[int]:
    """One row of each class in turn, the classes in a drawn order, until they run out."""
    queues: dict[int, list[int]] = {}
    for place in places:
        queues.setdefault(groups[place], []).append(place)
    names = sorted(queues)
    random.shuffle(names)
    longest = max(map(len, queues.values()))
    return [queues[name][turn] for turn in range(longest) for name in names if turn < len(queues[name])]
