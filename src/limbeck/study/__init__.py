"""Run every arm of a study under every seed and compare them: ``limbeck.study(plan, out=None, **options)``.

This room holds the studies, and can be called, because Python binds the name ``limbeck.study`` to it;
``limbeck.api.evidence.study`` says what the arguments are.

>>> import limbeck
>>> values = {"model": "runs/tiny", "data": "toy:stories", "limit": 4, "probes": "off"}
>>> arms = {name: {"verb": "evaluate", "values": values} for name in ("one", "two")}
>>> limbeck.study({"title": "Twice the same", "arms": arms}, out="runs/twice").open(show=False).name
'study.html'
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A package that can be called as the function of its name."""

    def __call__(self, plan: Any, **options: Any) -> Any:
        """Run a study; see ``limbeck.api.evidence.study``, which is above this room and so is reached by name."""
        return import_module("limbeck.api.evidence").study(plan, **options)


sys.modules[__name__].__class__ = _Room
