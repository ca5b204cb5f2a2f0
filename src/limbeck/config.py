"""Frozen configs: defaults <- YAML <- flags, strict keys, JSON Schema out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from limbeck.errors import ConfigError, nearest
from limbeck.old_names import renamed

__all__ = ["Config", "Constructed", "build", "dump", "load", "merge", "parse", "read"]


class Config(BaseModel):
    """Base of every frozen config: unknown keys are errors, values do not change after building.

    A field with ``json_schema_extra={"old_name": NAME}`` is also read, with a warning, under its old name.

    Attributes:
        retired: key that earlier versions wrote -> why it is read no more; it is left out with a warning.
    """

    retired: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _current(cls, values: Any) -> Any:
        return cls.current(values)

    @classmethod
    def current(cls, values: Any) -> Any:
        """Return ``values`` with present names in place of old ones; a subclass that looks at them first calls it."""
        return renamed(values, cls.old_names(), cls.retired) if isinstance(values, Mapping) else values

    @classmethod
    def old_names(cls) -> dict[str, str]:
        """Return old key -> key of the fields that have an old name."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {str(e["old_name"]): name for name, e in extras.items() if isinstance(e, dict) and "old_name" in e}


if TYPE_CHECKING:  # for mypy alone, which wants a class
    from pydantic._internal._model_construction import ModelMetaclass as _Metaclass
else:
    _Metaclass = type(Config)


class _BadArgumentError(ConfigError, ValueError):
    """A bad argument; within a validator pydantic takes it for one more thing that is wrong with the whole."""


class Constructed(_Metaclass):
    """Metaclass of configs that users construct in Python: a bad argument is a ``ConfigError`` of one sentence.

    Values that pydantic builds inside of others do not pass here.
    """

    def __call__(cls, *args: Any, **values: Any) -> Any:
        """Return the value.

        Raises:
            ConfigError: an unknown name or a bad value.
        """
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            kind: Any = cls
            raise _BadArgumentError(_sentence(kind, error, f"{cls.__name__}(...)")) from None


C = TypeVar("C", bound=Config)

_LONGEST, _DEEPEST, _MOST = 1 << 20, 50, 100_000  # characters, levels and values of a recipe
_BREAKS = re.compile("[\r\x85\u2028\u2029]")
_EXPONENT = re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Floats such as ``1e-4`` (YAML 1.2), which PyYAML's own rule (YAML 1.1) takes for text."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number and a key that stands twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose one mapping; a later key would silently win over an equal earlier one, so that is refused."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"'{key.value}' stands twice", key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: text that looks like a number there is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return true: anchors are never written, equal values are written out."""
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text with line breaks other than the line feed in double quotes: YAML folds them in every other style."""
    style = '"' if _BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def build(kind: type[C], values: Mapping[str, Any], where: str = "the configuration") -> C:
    """Build ``kind`` from plain values.

    Args:
        kind: the config to build.
        values: nested plain values; what is missing takes its default.
        where: how messages call the place that the values came from.

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


def parse(text: str, where: str) -> Any:
    """Read YAML ``text``; aliases count as often as they are used.

    Raises:
        ConfigError: it is not YAML, a key stands twice in one mapping, or it is longer, nested deeper, or holds more
            values than any recipe.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"{where} has {len(text):,} characters, more than any recipe: name a recipe's file")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        _count(value, 0, _MOST)
    except RecursionError:
        raise ConfigError(f"{where} is nested more than {_DEEPEST} deep: no recipe is") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-99-99
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    return value


def _count(value: Any, depth: int, left: int) -> int:
    """How many values may still follow; an alias to what it stands in is endless, and so is refused."""
    if depth > _DEEPEST:
        raise ValueError(f"values are nested more than {_DEEPEST} deep")
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | set | tuple) else ()
    for one in inside:
        left = _count(one, depth + 1, left - 1)
        if left < 0:
            raise ValueError(f"it holds more than {_MOST:,} values, those of aliases included")
    return left


def read(file: Path, called: str = "config file") -> dict[str, Any]:
    """Read the mapping that a YAML ``file`` holds; an empty file is an empty mapping.

    Args:
        file: to read.
        called: what messages call it.

    Raises:
        ConfigError: the file is missing, cannot be read, is not YAML, or is no mapping of names.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{called} {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{called} {file} cannot be read: {error}") from None
    except ValueError as error:  # a name with a zero byte
        raise ConfigError(f"{called} {str(file)!r} cannot be read: {error}") from None
    values = parse(text, f"{called} {file}")
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        kind = type(values).__name__ if not isinstance(values, dict) else "mapping with a key that is no text"
        raise ConfigError(f"{called} {file} must hold 'key: value' lines, not a {kind}")
    return values


def load(kind: type[C], file: Path | None, flags: Mapping[str, Any]) -> C:
    """Build ``kind`` from its defaults, overlaid by the YAML ``file``, overlaid by nested ``flags``.

    Raises:
        ConfigError: the file is missing, is not YAML, is no mapping, or holds an unknown key or a bad value.
    """
    values = {} if file is None else read(file)
    return build(kind, merge(values, flags), str(file) if file is not None and not flags else "the configuration")


def dump(config: Config) -> str:
    """Write ``config`` as the YAML that ``load`` reads back to an equal value."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _sentence(kind: type[Config], error: ValidationError, where: str) -> str:
    """One sentence that names every problem; of a union's many complaints each key is named once."""
    parts: dict[str, str] = {}
    for problem in error.errors():
        path = [str(p) for p in problem["loc"]]
        name = _name(kind, path)
        if problem["type"] == "extra_forbidden":
            part = f"unknown key '{name}' in {where}{nearest(path[-1], _known(kind, path[:-1]))}"
        elif problem["type"] == "missing":
            part = f"'{name}' is required in {where}"
        elif problem["type"] == "union_tag_not_found":
            part = f"'{name}' in {where} needs a 'kind'"
        elif problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            given = f"not '{context['tag']}'{nearest(context['tag'], known)}"
            part = f"'{name}' in {where} is of kind {', '.join(known)}, {given}"
        else:
            value = problem.get("input")
            shown = "" if isinstance(value, Mapping) else f" (got {_cut(repr(value))})"
            message = _worded(problem)
            part = f"'{name}' in {where}: {message}{shown}" if path else f"{where}: {message}"
        parts.setdefault(name, part)
    return "; ".join(parts.values())


_WORDS: Mapping[str, str] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text (put a number in quotes)",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be 'key: value' pairs",
    "model_type": "must be 'key: value' pairs",
    "model_attributes_type": "must be 'key: value' pairs",
    "none_required": "must be none",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must hold {min_length} or more, not {actual_length}",
    "too_long": "must hold {max_length} or fewer, not {actual_length}",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have {max_length} characters or fewer",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}
"""Our words for pydantic's kinds of complaints."""


def _worded(problem: Any) -> str:
    """One complaint in our words; those of our own validators as they are."""
    words = _WORDS.get(problem["type"])
    if words is not None:
        bounds = problem.get("ctx") or {}
        return words.format_map({k: f"{v:g}" if isinstance(v, float) else v for k, v in bounds.items()})
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _cut(text: str, longest: int = 80) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _name(kind: type[BaseModel], path: list[str]) -> str:
    """Dotted name of a place, without the steps that pydantic adds for a union's alternatives."""
    kept: list[str] = []
    for i, step in enumerate(path):
        last_of_unknown = i == len(path) - 1
        named = step.isdigit() or step in _known(kind, path[:i]) or _is_mapping(kind, path[:i])
        if named or (last_of_unknown and _is_key(step)):
            kept.append(step)
    return ".".join(kept)


def _is_key(step: str) -> bool:
    """Return a key that a user may have written, not one of pydantic's own labels such as ``tuple[int, ...]`` or
    ``Lora``.
    """
    return step not in _LABELS and "[" not in step and "(" not in step


_LABELS = frozenset({"str", "int", "float", "bool", "none", "dict", "list", "tuple"})


def _is_mapping(kind: type[BaseModel], path: list[str]) -> bool:
    """Whether ``path`` leads to a mapping, whose keys the user has chosen."""
    fields = [k.model_fields.get(path[-1]) for k in _at(kind, path[:-1])] if path else []
    return any(get_origin(field.annotation) is dict for field in fields if field is not None)


def _known(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Return the field names at ``path`` inside ``kind`` (unions: the names of every member)."""
    return [name for k in _at(kind, path) for name in k.model_fields]


def _at(kind: type[BaseModel], path: list[str]) -> list[type[BaseModel]]:
    """Return the configs that may stand at ``path`` inside ``kind``."""
    kinds: list[type[BaseModel]] = [kind]
    for step in path:
        inner: list[type[BaseModel]] = []
        for k in kinds:
            field = k.model_fields.get(step)
            if field is not None:
                inner += _models(field.annotation)
        kinds = inner or kinds  # an index, or a union's tag: a step of the path that names no field
    return kinds


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models(a)]
