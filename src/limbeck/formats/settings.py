"""Typed reading of a foreign config.json: every value is checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.errors import ModelError

__all__ = ["ConfigReader"]

_MOST = 2**31
_MOST_REAL = 1e30


class ConfigReader:
    """A JSON object and its file's name; each reader raises a ``ModelError`` that names both.

    A key that is absent or null takes the default; without a default it is required.

    Attributes:
        values: the object.
        where: its name.
        read: every key that was looked at.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = dict(values), where
        self.read: set[str] = set()

    def sharing(self, values: Mapping[str, Any]) -> ConfigReader:
        """Return other ``values`` under the same name; keys looked at there count here."""
        other = ConfigReader(values, self.where)
        other.read = self.read
        return other

    def get(self, key: str) -> Any:
        """Return what stands under ``key``, whatever it is; None where it is absent."""
        self.read.add(key)
        return self.values.get(key)

    def skip(self, *keys: str) -> None:
        """Count ``keys`` as read: what they say has no effect beside what was read."""
        self.read.update(keys)

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.where} lacks '{key}'")
        return value

    def size(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = _MOST, null: int | None = None
    ) -> int:
        """Return a whole number in ``least..most``; ``null``: what an explicit null means, where not the default."""
        if null is not None and key in self.values and self.get(key) is None:
            return null
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self.where} has {key} = {value!r}, which is no whole number")
        if value != default and not least <= value <= most:
            raise ModelError(f"{self.where} has {key} = {value}, which is not in {least}..{most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number that is not negative (NaN compares false and is refused)."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_REAL:
            raise ModelError(f"{self.where} has {key} = {value!r}, which is no number in 0..{_MOST_REAL:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.where} has {key} = {value!r}, which is neither true nor false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.where} has {key} = {value!r}, which is no string")
        return value

    def inner(self, key: str) -> ConfigReader:
        """Return a nested object, empty where absent or null."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise ModelError(f"{self.where} has {key} = {value!r}, which is no object")
        return ConfigReader(value, f"{self.where} ({key})")

    def expect(self, key: str, value: bool) -> None:
        """Refuse a switch that would change what the model computes."""
        if self.flag(key, value) != value:
            raise ModelError(f"{self.where} has {key} = {str(not value).lower()}, which is not supported")

    def refuse(self, key: str, why: str) -> None:
        """Refuse a key that is present at all."""
        if self.get(key) is not None:
            raise ModelError(f"{self.where} has a {key}: {why}")
