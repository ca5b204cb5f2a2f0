"""The only walk that replaces modules."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn

__all__ = ["find", "matches", "replace"]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a dotted module name, or its last parts, match one of the shell-style ``patterns``.

    ``qkv`` matches ``blocks.0.attention.qkv``; so do ``attention.qkv``, ``blocks.0.*`` and ``*qkv``.
    """
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)


def find(model: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> dict[str, nn.Module]:
    """Return modules for which ``wanted(name, module)`` is true, by dotted name, in the model's own order."""
    return {name: module for name, module in model.named_modules() if name and wanted(name, module)}


def replace(
    model: nn.Module, wanted: Callable[[str, nn.Module], bool], build: Callable[[str, nn.Module], nn.Module]
) -> list[str]:
    """Replace in place every module that ``wanted`` picks by ``build(name, module)``; returns their names.

    All are picked before the first is replaced, so a replacement is never itself walked into.
    """
    picked = find(model, wanted)
    for name, module in picked.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, build(name, module))
    return list(picked)
