"""A study as a value: arms of recipes over seeds, and the order in which they can run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise, product
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.config import Config, merge
from limbeck.errors import ConfigError, nearest

__all__ = ["Arm", "Figure", "Stage", "StudyPlan", "fill", "references", "replace"]


class Arm(Config):
    """One row of the table: a verb with its values.

    A value ``"@name"`` anywhere inside is replaced by the run folder of arm ``name`` under the same seed, so that a
    student can name its teacher; ``"$key"`` by the value that ``over`` gives ``key``; ``"${NAME}"`` by that of the
    environment.
    """

    verb: Literal["pretrain", "finetune", "distill", "dpo", "quantize", "evaluate", "harness"]
    values: dict[str, Any] = Field(default_factory=dict, description="the recipe's values")
    over: dict[str, list[Any]] = Field(default_factory=dict, description="key -> values: one arm for each combination")
    once: bool = Field(False, description="run under the first seed alone and share it among all")
    label: str | None = Field(None, description="how the table calls it")
    knobs: dict[str, Any] = Field(
        default_factory=dict, description="knob -> level; arms of a grid have those of 'over'"
    )


class Figure(Config):
    """One column of a stage table: how every model is evaluated."""

    values: dict[str, Any] = Field(description="values of the evaluate recipe, without the model")
    metric: str | tuple[str, ...] | None = Field(None, description="figures of the task; none: its main one")
    margin: float | None = Field(None, gt=0, description="difference that does not matter: equivalence is tested")

    @property
    def metrics(self) -> tuple[str | None, ...]:
        """The metrics, one or several; None stands for the task's main one."""
        return self.metric or (None,) if isinstance(self.metric, tuple) else (self.metric,)


class Stage(Config):
    """One model of a stage table."""

    model: str = Field(description="folder, Hub id or @arm")
    after: str | None = Field(None, description="the model that it was made from; none: the one before it")


class StudyPlan(Config):
    """Arms x seeds -> one table."""

    title: str = ""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    common: dict[str, Any] = Field(default_factory=dict, description="values of every arm whose verb has the key")
    arms: dict[str, Arm] = Field(min_length=1, description="rows; models x figures add theirs")
    compare: tuple[tuple[str, str], ...] = Field((), description="pairs of arms: the first against the second")
    show: tuple[str, ...] = Field((), description="arms of the table, in order; none named: all")
    metric: str | None = Field(None, description="main figure of the table; none: the task's own")
    margin: float = Field(0.01, gt=0, lt=1, description="share of the main figure that may be lost: 'kept within 1 %'")
    plots: tuple[tuple[str, str], ...] = Field((), description="charts of two figures: one along, the other up")
    models: dict[str, str | Stage] = Field(
        default_factory=dict,
        description="stage table: name -> folder, Hub id, @arm or stage, in their order",
    )
    figures: dict[str, Figure] = Field(default_factory=dict, description="stage table: what every model is measured on")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        """Unfold ``over`` into arms named ``arm/key=value``, and models x figures into arms ``model:figure``."""
        if not isinstance(values, Mapping) or not isinstance(values.get("arms", {}), Mapping):
            return values
        arms: dict[str, Any] = {}
        for name, arm in values.get("arms", {}).items():
            over = arm.get("over") if isinstance(arm, Mapping) else None
            if not isinstance(over, Mapping) or not over:
                arms[name] = arm
                continue
            _check_grid(name, over, arm.get("values", {}))
            for combination in product(*over.values()):
                chosen = dict(zip(over, combination, strict=True))
                tag = ",".join(f"{k}={v}" for k, v in chosen.items())
                label = f"{arm.get('label') or name} {tag}"
                filled = fill(arm.get("values", {}), chosen)
                arms[f"{name}/{tag}"] = {**arm, "over": {}, "values": filled, "label": label, "knobs": chosen}
        models, figures = values.get("models") or {}, values.get("figures") or {}
        if isinstance(models, Mapping) and isinstance(figures, Mapping):
            for (model, stage), (figure, of) in product(models.items(), figures.items()):
                named = stage.get("model", "") if isinstance(stage, Mapping) else stage
                made = arms.get(str(named)[1:], {}) if str(named).startswith("@") else {"once": True}
                own = of.get("values", {}) if isinstance(of, Mapping) else {}
                arms[f"{model}:{figure}"] = {
                    "verb": "evaluate", "once": made.get("once", False), "label": f"{model}, {figure}",
                    "values": {**own, "model": named},
                }  # fmt: skip
        return {**values, "arms": arms}

    @model_validator(mode="after")
    def _known(self) -> StudyPlan:
        for name in (*self.show, *(n for pair in self.compare for n in pair)):
            if name not in self.arms:
                raise ValueError(f"no arm is called '{name}'{nearest(name, self.arms)}")
        return self

    @model_validator(mode="after")
    def _read(self) -> StudyPlan:
        for where, values in (("common", self.common), *((f"arm '{n}'", arm.values) for n, arm in self.arms.items())):
            for key, instead in (("out", "give --out to the study"), ("seed", "list it under seeds")):
                if key in values:
                    raise ValueError(f"{where} sets '{key}', which the study itself sets for every run: {instead}")
        for pair in self.compare:
            if pair[0] == pair[1]:
                raise ValueError(f"compare holds '{pair[0]}' against itself: name two arms")
        return self

    @model_validator(mode="after")
    def _both(self) -> StudyPlan:
        if bool(self.models) != bool(self.figures):
            raise ValueError("a stage table needs both 'models' and 'figures'")
        for name in self.models:
            before = self.before(name)
            if before is not None and before not in list(self.models)[: list(self.models).index(name)]:
                raise ValueError(f"'{name}' is said to come after '{before}', which is no model above it")
        return self

    def before(self, model: str) -> str | None:
        """Return the model that another one's change is told from; None for the first."""
        stage, names = self.models[model], list(self.models)
        told = stage.after if isinstance(stage, Stage) else None
        return told or next((b for b, a in pairwise(names) if a == model), None)

    def order(self) -> list[str]:
        """Return arms in an order in which every ``@name`` has run before it is needed.

        Raises:
            ConfigError: an ``@name`` that is no arm, or arms that need each other.
        """
        done: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in done:
                return
            if name in path:
                raise ConfigError(f"the study's arms need each other: {' -> '.join((*path, name))}")
            for need in sorted(references(self.arms[name].values)):
                if need not in self.arms:
                    raise ConfigError(f"arm '{name}' needs '@{need}', which is no arm{nearest(need, self.arms)}")
                visit(need, (*path, name))
            done.append(name)

        for name in self.arms:
            visit(name, ())
        return done

    def values(self, name: str, known: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
        """Return values of one arm: the common ones its verb knows, overlaid by its own, ``@name`` replaced by
        ``folders``.
        """
        common = {k: v for k, v in self.common.items() if k in known}
        filled = replace(merge(common, self.arms[name].values), folders)
        return dict(filled)


def _check_grid(arm: str, over: Mapping[str, Any], values: Any) -> None:
    """Refuse a key of ``over`` that no value reads, and levels that come twice.

    Raises:
        ValueError: names the arm and the key.
    """
    used = _placeholders(values)
    for key, levels in over.items():
        if key not in used:
            raise ValueError(
                f"arm '{arm}' varies '{key}', which none of its values reads: write \"${key}\" where it goes"
            )
        if not isinstance(levels, list):
            raise ValueError(f"arm '{arm}' varies '{key}' over {levels!r}: give a list of values")
        if len({str(level) for level in levels}) < len(levels):
            raise ValueError(f"arm '{arm}' gives '{key}' the same value twice: leave one out")


def _placeholders(value: Any) -> set[str]:
    """Return the keys of all ``$key`` anywhere in ``value``."""
    if isinstance(value, str):
        return {value[1:]} if value.startswith("$") else set()
    if isinstance(value, Mapping):
        return {key for v in value.values() for key in _placeholders(v)}
    if isinstance(value, list | tuple):
        return {key for v in value for key in _placeholders(v)}
    return set()


def references(value: Any) -> set[str]:
    """Return the names of the runs (``@name``) anywhere in ``value``."""
    if isinstance(value, str):
        return {value[1:]} if value.startswith("@") else set()
    if isinstance(value, Mapping):
        return {name for v in value.values() for name in references(v)}
    if isinstance(value, list | tuple):
        return {name for v in value for name in references(v)}
    return set()


def replace(value: Any, folders: Mapping[str, str]) -> Any:
    """Replace each ``@name`` by its folder and each ``${NAME}`` by that of the environment.

    Raises:
        ConfigError: the environment lacks a name.
    """
    if isinstance(value, str) and value.startswith("@"):
        return folders[value[1:]]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", _environment, value)
    if isinstance(value, Mapping):
        return {k: replace(v, folders) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [replace(v, folders) for v in value]
    return value


def fill(value: Any, chosen: Mapping[str, Any]) -> Any:
    """Replace each ``$key`` by what was chosen for it."""
    if isinstance(value, str) and value.startswith("$") and value[1:] in chosen:
        return chosen[value[1:]]
    if isinstance(value, Mapping):
        return {k: fill(v, chosen) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [fill(v, chosen) for v in value]
    return value


def _environment(match: re.Match[str]) -> str:
    name = match.group(1)
    if name not in os.environ:
        raise ConfigError(f"the study names ${{{name}}}, which is not set: export {name}=... first")
    return os.environ[name]
