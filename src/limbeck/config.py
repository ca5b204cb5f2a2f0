"""Frozen configs: defaults <- YAML <- flags, strict keys, JSON Schema out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from limbeck.errors import ConfigError, nearest

__all__ = ["Config", "build", "dump", "load", "merge"]


class Config(BaseModel):
    """Base of every frozen config: unknown keys are errors, values do not change after building."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=(), allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def build(kind: type[C], values: Mapping[str, Any], where: str = "the configuration") -> C:
    """Build ``kind`` from plain values.

    Raises:
        ConfigError: one sentence a problem, naming the key, the value and the nearest known key.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_sentence(kind, error, where)) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` overlaid by ``over``; nested mappings merge, everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def load(kind: type[C], file: Path | None, flags: Mapping[str, Any]) -> C:
    """Build ``kind`` from its defaults, overlaid by the YAML ``file``, overlaid by nested ``flags``.

    Raises:
        ConfigError: the file is missing, is not YAML, is no mapping, or holds an unknown key or a bad value.
    """
    values: Mapping[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"config file {file} does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"config file {file} cannot be read: {error}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"config file {file} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, Mapping):
            raise ConfigError(f"config file {file} must hold 'key: value' lines, not a {type(values).__name__}")
    return build(kind, merge(values, flags), str(file) if file is not None and not flags else "the configuration")


def dump(config: Config) -> str:
    """Write ``config`` as the YAML that ``load`` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _sentence(kind: type[Config], error: ValidationError, where: str) -> str:
    parts = []
    for problem in error.errors():
        path = [str(p) for p in problem["loc"]]
        name = ".".join(path) or "value"
        if problem["type"] == "extra_forbidden":
            known = _known(kind, path[:-1])
            parts.append(f"unknown key '{name}' in {where}{nearest(path[-1], known)}")
        elif problem["type"] == "missing":
            parts.append(f"'{name}' is required in {where}")
        else:
            given = problem.get("input")
            shown = "" if isinstance(given, Mapping) else f" (got {given!r})"
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"'{name}' in {where}: {message[0].lower() + message[1:]}{shown}")
    return "; ".join(parts)


def _known(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Return the field names at ``path`` inside ``kind`` (unions: the names of every member)."""
    kinds: list[type[BaseModel]] = [kind]
    for step in path:
        if step.isdigit():
            continue
        inner: list[type[BaseModel]] = []
        for k in kinds:
            field = k.model_fields.get(step)
            if field is not None:
                inner += _models(field.annotation)
        kinds = inner or kinds  # a union's tag is a step of the path that names no field
    return [name for k in kinds for name in k.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models(a)]
