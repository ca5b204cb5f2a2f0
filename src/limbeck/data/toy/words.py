"""Words and the small grammar that the toy corpora share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import TypeVar

__all__ = ["BOYS", "GIRLS", "NUMBERS", "capital", "number", "say", "two"]

T = TypeVar("T")

GIRLS = (
    "Ada", "Bella", "Cora", "Daisy", "Ella", "Fern", "Gita", "Hana", "Iris", "Juno", "Kira", "Lena",
    "Mira", "Nora", "Olga", "Petra", "Rosa", "Sana", "Tara", "Uma", "Vera", "Wren", "Yara", "Zoe",
)  # fmt: skip
BOYS = (
    "Abe", "Ben", "Carl", "Dev", "Eli", "Finn", "Gus", "Hugo", "Ivan", "Jack", "Karim", "Leo",
    "Max", "Ned", "Omar", "Paul", "Remy", "Sam", "Theo", "Ugo", "Vic", "Walt", "Yan", "Zeb",
)  # fmt: skip

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def say(random: Random, text: str, **values: object) -> str:
    """Pick one of each ``[this|that]`` in ``text``, fill in the ``{values}`` and join the lines."""
    picked = _CHOICE.sub(lambda found: random.choice(found[1].split("|")), text)
    return " ".join(picked.format(**values).split())


def two(random: Random, items: Sequence[T]) -> tuple[T, T]:
    """Return two different items."""
    first, second = random.sample(items, 2)
    return first, second


def capital(text: str) -> str:
    """Return ``text`` with its first letter large."""
    return text[:1].upper() + text[1:]


def number(value: int) -> str:
    """Return a small number in words."""
    return NUMBERS[value]
