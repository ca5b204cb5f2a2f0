"""Flags of a verb, read from the JSON Schema of its recipe; imports neither torch nor pydantic."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from limbeck.old_names import KINDS

__all__ = ["COMMON", "MISSING", "Flag", "Form", "Member", "flags_of", "shown"]

Form = Literal["scalar", "switch", "list", "mapping", "union", "unions", "yaml"]

MISSING: Any = object()
"""Default of a flag that has none: the value is required, or the recipe finds it."""

COMMON = "common"
"""Section of the fields that every verb has."""

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """That a flag belongs to one kind of a union, as ``--lora.rank`` belongs to ``lora`` of ``techniques``.

    Attributes:
        union: path of the union's field in the recipe.
        kind: tag of the member.
    """

    union: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Flag:
    """One leaf of a recipe as the command line sees it.

    Attributes:
        path: keys of the value in the nested config; within the member where ``member`` is set.
        name: long name without dashes, such as ``train.batch-size``.
        form: how it is given: once, as a switch, as a list, as KEY=VALUE, as the kind(s) of a union, or as YAML.
        types: JSON types that one item may have.
        choices: the only values allowed, or empty.
        nullable: ``none`` may be given.
        single: a list of one is given to the recipe as its item.
        verbatim: commas do not split; so for what is positional, such as a prompt.
        short: leaf name alone, where no other flag of the verb ends so.
        default: default value, or ``MISSING``.
        bounds: such as ``>= 1``.
        text: description.
        section: heading in the help.
        intro: what stands under that heading.
        positional: an argument, not an option.
        member: the union member it belongs to, or None.
        old: last part of its name in earlier versions, or empty.
    """

    path: tuple[str, ...]
    name: str
    form: Form
    types: frozenset[str] = frozenset()
    choices: tuple[Any, ...] = ()
    nullable: bool = False
    single: bool = False
    verbatim: bool = False
    short: str | None = None
    default: Any = MISSING
    bounds: str = ""
    text: str = ""
    section: str = ""
    intro: str = ""
    positional: bool = False
    member: Member | None = None
    old: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every option that sets it, shortest first, with dashes."""
        names = (self.short, self.name) if self.short else (self.name,)
        return tuple(f"--{n}" for n in names)

    @property
    def old_spellings(self) -> dict[str, str]:
        """Option of earlier versions -> the option that it is now, without dashes in front."""
        out = {}
        for name in (self.name, *([self.short] if self.short else [])):
            head, dot, last = name.rpartition(".")
            kind = head.partition(".")[0]
            olds = [old for old, now in KINDS.items() if now == kind] if self.member else []
            heads = [head, *(old + head.removeprefix(kind) for old in olds)]
            lasts = [last, *([self.old.replace("_", "-")] if self.old else [])]
            out.update({f"{h}{dot}{e}": name for h in heads for e in lasts if f"{h}{dot}{e}" != name})
        return out

    @property
    def argument(self) -> str:
        """How an argument stands in the usage line."""
        return self.name.upper() if self.default is MISSING else f"[{self.name.upper()}]"

    @property
    def metavar(self) -> str:
        """What stands for its value in the help."""
        if self.form == "yaml":
            return "YAML"
        if self.form == "mapping":
            return "KEY=VALUE"
        if self.choices:
            return "|".join(shown(c) for c in self.choices)
        kinds = [name for kind, name in _METAVARS.items() if kind in self.types]
        return "|".join(kinds) or "VALUE"


_METAVARS = {"integer": "INT", "number": "FLOAT", "boolean": "BOOL", "string": "TEXT"}


@dataclass
class _Walk:
    defs: Mapping[str, Any]
    title: str = ""  # of the union member walked, before the headings of its own parts
    flags: list[Flag] = field(default_factory=list)


def flags_of(schema: Schema) -> tuple[Flag, ...]:
    """Read every leaf of a recipe's JSON Schema as a flag, in the order of the fields, unions' members after them.

    Nested configs flatten with dots; a leaf whose last name is unique among them has that as its short name; the
    members of a union give ``kind.field``.
    """
    walk = _Walk(schema.get("$defs", {}))
    _fields(walk, schema, (), "", "", {})
    return tuple(_shortened(walk.flags))


def _fields(walk: _Walk, schema: Schema, path: tuple[str, ...], section: str, intro: str, given: Any) -> None:
    """Walk the properties of one object; ``given`` holds the defaults that its owner sets over its own."""
    for name, raw in schema.get("properties", {}).items():
        prop = _resolve(raw, walk.defs)
        default = given[name] if isinstance(given, Mapping) and name in given else raw.get("default", MISSING)
        if "const" in prop and default == prop["const"]:
            continue  # the tag of a config that is no union's: nothing to choose
        _field(walk, prop, (*path, name), prop.get("section", section), intro, default)


def _field(walk: _Walk, prop: Schema, path: tuple[str, ...], section: str, intro: str, default: Any) -> None:
    shapes = list(_shapes(prop, walk.defs))
    nullable = any(s.get("type") == "null" for s in shapes)
    shapes = [s for s in shapes if s.get("type") != "null"]
    objects = [s for s in shapes if s.get("type") == "object" and "properties" in s]
    leaves = [s for s in shapes if s not in objects]
    flag = Flag(
        path=path,
        name=_dashed(path),
        form="yaml",
        nullable=nullable,
        default=default,
        text=prop.get("description", ""),
        section=section,
        intro=intro,
        positional=prop.get("positional", False),
        old=prop.get("old_name", ""),
        verbatim=prop.get("verbatim", prop.get("positional", False)),
    )
    if len(objects) > 1:
        walk.flags.append(flag)  # a union without a tag: its value is given as YAML
    elif leaves:
        flag = _formed(flag, leaves, walk.defs)
        walk.flags.append(flag)
        for shape in leaves:
            _members(walk, flag, shape)
    if len(objects) == 1:
        heading = f"{walk.title} {_dashed(path)}".strip()
        _fields(walk, objects[0], path, prop.get("section", heading), _first_line(objects[0]), default)


def _formed(flag: Flag, leaves: list[Schema], defs: Mapping[str, Any]) -> Flag:
    """Fill in how a leaf of these alternatives is given."""
    arrays = [s for s in leaves if s.get("type") == "array"]
    others = [s for s in leaves if s not in arrays]
    items = [i for a in arrays for item in _items(a) for i in _shapes(_resolve(item, defs), defs)]
    every = [*others, *items]
    if all("discriminator" in s for s in every):
        kinds = tuple(dict.fromkeys(k for s in every for k in s["discriminator"]["mapping"]))
        form: Form = "unions" if arrays else "union"
        name = flag.name.removesuffix("s") if arrays and not others else flag.name
        return replace(flag, form=form, name=name, choices=kinds, types=frozenset({"string"}), single=bool(others))
    if len(others) == 1 and not arrays and isinstance(others[0].get("additionalProperties"), Mapping):
        values = list(_shapes(_resolve(others[0]["additionalProperties"], defs), defs))
        if all(map(_is_scalar, values)):
            return replace(flag, form="mapping", **_scalar(values))
    if not all(map(_is_scalar, every)):
        return flag
    if arrays:
        return replace(flag, form="list", single=bool(others), **_scalar(every))
    scalar = _scalar(others)
    return replace(flag, form="switch" if scalar["types"] == {"boolean"} else "scalar", **scalar)


def _members(walk: _Walk, union: Flag, shape: Schema) -> None:
    """Add the flags of every member of a union (or of an array of them)."""
    shape = _resolve(shape["items"], walk.defs) if "items" in shape else shape
    if union.form not in ("union", "unions") or "discriminator" not in shape:
        return
    tag = shape["discriminator"]["propertyName"]
    known = {f.member.kind for f in walk.flags if f.member}
    for kind, ref in shape["discriminator"]["mapping"].items():
        if kind in known and any(f.member == Member(union.path, kind) for f in walk.flags):
            continue  # the same member, once alone and once in an array
        inner = _Walk(walk.defs, f"{union.name} {kind}")
        member = _resolve({"$ref": ref}, walk.defs)
        _fields(inner, member, (), inner.title, _first_line(member), {})
        prefix = f"{union.name}.{kind}" if kind in known else kind
        for flag in inner.flags:
            if flag.path != (tag,) and flag.member is None:
                form: Form = "yaml" if flag.form in ("union", "unions") else flag.form
                name = f"{prefix}.{flag.name}".replace("_", "-")
                walk.flags.append(replace(flag, name=name, form=form, member=Member(union.path, kind)))


def _shortened(flags: list[Flag]) -> Iterator[Flag]:
    """Give each nested leaf its last name alone where that is nobody else's."""
    own = [f for f in flags if f.member is None]
    full = {f.name for f in own}
    ends = Counter(f.name.rpartition(".")[2] for f in own)
    for flag in flags:
        leaf = flag.name.rpartition(".")[2]
        unique = flag.member is None and leaf != flag.name and ends[leaf] == 1 and leaf not in full
        yield replace(flag, short=leaf) if unique else flag


def _resolve(schema: Schema, defs: Mapping[str, Any]) -> Schema:
    """Follow a reference; keys beside it win over those it leads to."""
    while "$ref" in schema:
        beside = {k: v for k, v in schema.items() if k != "$ref"}
        schema = {**defs[schema["$ref"].rpartition("/")[2]], **beside}
    return schema


def _shapes(schema: Schema, defs: Mapping[str, Any]) -> Iterator[Schema]:
    """Yield alternatives of a schema: members of ``anyOf``, references followed; a tagged union is one alternative."""
    schema = _resolve(schema, defs)
    if "anyOf" in schema:
        for alternative in schema["anyOf"]:
            yield from _shapes(alternative, defs)
    else:
        yield schema


def _items(array: Schema) -> list[Schema]:
    """Return what may stand in an array: its items, or each place of a fixed tuple."""
    return list(array["prefixItems"]) if "prefixItems" in array else [array.get("items", {})]


def _is_scalar(schema: Schema) -> bool:
    return "enum" in schema or "const" in schema or schema.get("type") in _METAVARS


def _scalar(shapes: list[Schema]) -> dict[str, Any]:
    """Types, choices and bounds of scalar alternatives taken together."""
    types = frozenset(s.get("type") or _json_type((s.get("enum") or [s.get("const")])[0]) for s in shapes)
    listed = [s.get("enum") or [s["const"]] for s in shapes if "enum" in s or "const" in s]
    choices = tuple(c for one in listed for c in one) if len(listed) == len(shapes) else ()
    bounds = list(dict.fromkeys(b for s in shapes for b in _bounds(s)))
    return {"types": types, "choices": choices, "bounds": ", ".join(bounds)}


def _bounds(schema: Schema) -> Iterator[str]:
    for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")):
        if key in schema:
            yield f"{sign} {shown(schema[key])}"


def _json_type(value: Any) -> str:
    return {bool: "boolean", int: "integer", float: "number"}.get(type(value), "string")


def _dashed(path: tuple[str, ...]) -> str:
    return ".".join(path).replace("_", "-")


def _first_line(schema: Schema) -> str:
    """First sentence or line of an object's description, without reST quotes."""
    return str(schema.get("description", "")).strip().partition("\n")[0].replace("``", "'")


def shown(value: Any) -> str:
    """Return a default or choice as it would be typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)  # YAML too
    return f"{value:g}" if isinstance(value, float) else str(value)
