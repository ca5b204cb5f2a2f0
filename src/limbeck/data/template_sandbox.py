"""Where chat templates run: Jinja's sandbox, with limits on steps, time and size.

A template comes with a model from anywhere. It cannot reach Python (Jinja's sandbox), and here it cannot run for long
or fill the memory either: loops and macros count steps, and what multiplies, joins or pads text is measured before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["GenerationTag", "LimitedEnvironment"]

_STEPS, _SECONDS, _SIZE, _POWER = 200_000, 5.0, 2_000_000, 1_000
_LONGEST_TEMPLATE = 200_000  # characters


class GenerationTag(Extension):
    """Read ``{% generation %} ... {% endgeneration %}``, by which published templates mark answers.

    What stands between is laid out as it is. Which tokens are learned is found without the marks, so that templates
    with and without them are learned alike.
    """

    tags = {"generation"}  # noqa: RUF012 - of the base

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what stands between as a scope of its own, as transformers has it."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox in which no template runs for more than a few seconds, or makes text without end.

    Each rendering starts its own count. What goes beyond a limit raises ``jinja2.TemplateRuntimeError``.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    template_class: type[jinja2.Template]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left, self._until = _STEPS, time.monotonic() + _SECONDS
        self.globals = {k: v for k, v in self.globals.items() if k != "lipsum"}
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}

    def begin(self) -> None:
        """Start counting steps and seconds anew."""
        self._left, self._until = _STEPS, time.monotonic() + _SECONDS

    def tick(self) -> str:
        """Count one turn of a loop or call of a macro."""
        self._left -= 1
        if self._left < 0 or time.monotonic() > self._until:
            raise jinja2.TemplateRuntimeError("it runs for too long: a template has a few seconds")
        return ""

    def join(self, *parts: Any) -> str:
        """Concatenate as ``~`` does."""
        return str(_measured("".join(map(str, parts))))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result may be large."""
        self.tick()
        if operator == "*":
            _check(_size(left) * right if isinstance(right, int) else 0)
            _check(_size(right) * left if isinstance(left, int) else 0)
        if operator == "**" and isinstance(right, int) and abs(right) > _POWER:
            _check(_SIZE + 1)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, int) and not isinstance(found, bool) and found.bit_length() > 64 * _POWER:
            _check(_SIZE + 1)
        return _measured(found)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - of the base
        self.tick()
        _check_numbers(args, kwargs)
        if isinstance(getattr(function, "__self__", None), str):
            if function.__name__ == "replace" and len(args) > 1 and isinstance(args[1], str):
                _check((len(function.__self__) + 1) * (len(args[1]) + 1))
            if function.__name__ in ("format", "format_map"):
                _check_format(function.__self__)
            if function.__name__ in ("join", "expandtabs", "translate"):
                _check(len(function.__self__) * max(map(_size, args), default=1))
        return _measured(super().call(context, function, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Put a count into each loop and macro, and measure what ``~`` joins."""
        if len(source) > _LONGEST_TEMPLATE:
            raise jinja2.TemplateSyntaxError(f"it has more than {_LONGEST_TEMPLATE:,} characters", 1)
        template = super()._parse(source, name, filename)
        found: list[Any] = list(template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in found:
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        for parent in [template, *template.find_all(nodes.Node)]:
            _replace_joins(parent)
        return template


class _LimitedTemplate(jinja2.Template):
    """A template that starts its environment's count at each rendering."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Return the text laid out, as Jinja does."""
        environment = self.environment
        assert isinstance(environment, LimitedEnvironment)
        environment.begin()
        return super().render(*args, **kwargs)


LimitedEnvironment.template_class = _LimitedTemplate


def _replace_joins(parent: nodes.Node) -> None:
    for field, value in parent.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(parent, field, _join(value))
        elif isinstance(value, list):
            value[:] = [_join(v) if isinstance(v, nodes.Concat) else v for v in value]


def _join(concat: nodes.Concat) -> nodes.Node:
    call = nodes.Call(nodes.EnvironmentAttribute("join"), concat.nodes, [], None, None)
    return call.set_lineno(concat.lineno)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is given no huge width and gives no huge text."""

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args, kwargs)
        return _measured(function(*args, **kwargs))

    return measured


def _check_numbers(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _SIZE:
            _check(_SIZE + 1)


def _check_format(text: str) -> None:
    """Refuse widths and precisions of more than three digits."""
    digits = 0
    for character in text:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 3 or character == "*":
            _check(_SIZE + 1)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | bytes) else 0


def _check(size: int) -> None:
    if size > _SIZE:
        raise jinja2.TemplateRuntimeError(f"it makes text or a list of more than {_SIZE:,} characters or items")


def _measured(value: Any) -> Any:
    _check(_size(value))
    return value
