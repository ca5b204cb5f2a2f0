"""Main effects and pairwise interactions of knobs, with intervals from the same resamples as the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError

__all__ = ["Effect", "effects", "levels"]

Floats = NDArray[np.float64]
_TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True)
class Effect:
    """What one level of a knob, or one pair of levels of two knobs, adds to a figure.

    Attributes:
        knobs: one knob for a main effect, two for an interaction.
        levels: the level of each knob.
        value: added to the mean over all levels; of an interaction: added beyond both main effects. None where the
            arms do not tell it apart from other effects.
        low: lower end of the interval.
        high: upper end.
    """

    knobs: tuple[str, ...]
    levels: tuple[str, ...]
    value: float | None
    low: float | None
    high: float | None


def levels(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the levels of every knob that all ``arms`` set and that varies among them."""
    names = [name for name in (arms[0] if arms else ()) if all(name in arm for arm in arms)]
    found = {name: list(dict.fromkeys(str(arm[name]) for arm in arms)) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}


def effects(
    arms: Sequence[Mapping[str, Any]], figures: Floats, resampled: Floats, *, level: float = 0.95
) -> list[Effect]:
    """Fit a linear model with sum-to-zero contrasts: knobs and pairs of knobs.

    Interactions are fitted where the arms hold more than one arm for a parameter of the main effects. Unbalanced
    designs are fitted by least squares; an effect that the design confounds with others has no value.

    Args:
        arms: the knobs of each of the A arms.
        figures: (A,) figure of each arm.
        resampled: (R, A) the same, resampled.
        level: of the intervals.

    Raises:
        DataError: figures and arms differ in number.
    """
    if figures.shape != (len(arms),) or resampled.shape[1:] != figures.shape:
        raise DataError(f"{len(arms)} arms have {figures.shape[0]} figures: give one for each")
    knobs = levels(arms)
    if not knobs:
        return []
    terms: list[tuple[str, ...]] = [(name,) for name in knobs]
    if len(arms) > 1 + sum(len(v) - 1 for v in knobs.values()):
        terms += combinations(knobs, 2)
    blocks = {term: _columns(arms, term, knobs) for term in terms}
    design = np.concatenate([np.ones((len(arms), 1)), *blocks.values()], axis=1)
    inverse = np.linalg.pinv(design)
    estimable = inverse @ design  # a contrast c is estimable where c @ estimable == c
    out, at = [], 1
    for term, block in blocks.items():
        width = block.shape[1]
        for chosen in product(*(knobs[name] for name in term)):
            contrast = np.zeros(design.shape[1])
            contrast[at : at + width] = _coded(term, chosen, knobs)
            if np.abs(contrast @ estimable - contrast).max() > _TOLERANCE:
                out.append(Effect(term, chosen, None, None, None))
                continue
            weights = contrast @ inverse
            low, high = np.quantile(resampled @ weights, [(1 - level) / 2, (1 + level) / 2])
            out.append(Effect(term, chosen, float(weights @ figures), float(low), float(high)))
        at += width
    return out


def _coded(term: Sequence[str], chosen: Sequence[str], knobs: Mapping[str, Sequence[str]]) -> Floats:
    """Sum-to-zero code of one combination of levels: the last level is minus the sum of the others."""
    code = np.ones(1)
    for name, value in zip(term, chosen, strict=True):
        count = len(knobs[name])
        own = np.concatenate([np.eye(count - 1), -np.ones((1, count - 1))])[knobs[name].index(value)]
        code = np.kron(code, own)
    return code


def _columns(arms: Sequence[Mapping[str, Any]], term: Sequence[str], knobs: Mapping[str, Sequence[str]]) -> Floats:
    """Return (A, parameters) columns of one term of the design."""
    return np.stack([_coded(term, [str(arm[name]) for name in term], knobs) for arm in arms])
