"""Constraints: what the scores of a trial must keep to, so that it can win."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

Constraint = Callable[[Mapping[str, float]], Any]

WHERE = "sweep.run(constraints=...)"


@dataclass(frozen=True)
class Bounds:
    """A score that must lie between two numbers, both included; by default at most 0."""

    name: str
    low: float = -math.inf
    high: float = 0.0

    def __call__(self, scores: Mapping[str, float]) -> float:
        if self.name not in scores:
            raise ValueError(
                f"{WHERE}: {self.name!r} is none of the scores there are: {', '.join(scores)}."
            )
        score = scores[self.name]
        return max(self.low - score, score - self.high)


def as_constraints(given: Any) -> tuple[Constraint, ...]:
    """The constraints as functions of the scores, see `sweep.run`.

    Raises:
        TypeError: something is neither a name nor a function, or bounds are no pair of numbers.
        ValueError: bounds that no score keeps.
    """
    if isinstance(given, Mapping):
        return tuple(_bounds(name, ends) for name, ends in given.items())
    parts = [given] if isinstance(given, str) or callable(given) else given
    if not isinstance(parts, (list, tuple)) or not all(
        isinstance(x, str) or callable(x) for x in parts
    ):
        raise TypeError(
            f"{WHERE} must be names of scores, functions of the scores, or a dict such as "
            f'{{"size": (0, 10)}}, found {given!r:.60}.'
        )
    return tuple(Bounds(part) if isinstance(part, str) else part for part in parts)


def _bounds(name: str, ends: Any) -> Bounds:
    pair = isinstance(ends, (list, tuple)) and len(ends) == 2
    if not pair or not all(isinstance(end, Real) for end in ends):
        raise TypeError(
            f"{WHERE} must have a pair (low, high) for {name!r}, with math.inf for no bound, found "
            f"{ends!r:.60}."
        )
    low, high = map(float, ends)
    if not low <= high:
        raise ValueError(f"{WHERE}: no {name!r} lies between {low:g} and {high:g}.")
    return Bounds(name, low, high)


def violation(constraint: Constraint, scores: Mapping[str, float]) -> float:
    """How far the scores are from keeping a constraint: at most 0 if they do, inf for nan."""
    found = np.asarray(constraint(scores))
    if found.shape or found.dtype.kind not in "biuf":
        raise TypeError(
            f"{WHERE}: a function of the scores must give True or False, or a number that is above "
            f"0 where they are not allowed, found {found!r:.60}."
        )
    if found.dtype == bool:
        return 0.0 if found else 1.0
    return math.inf if np.isnan(found) else float(found)
