"""A trial: a point of the space, and what became of it so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.sweep.space import Choice, Distribution, Fixed

# What a checkpoint holds of a trial, beside its point, its curve and its arrays.
PLAIN = ("number", "status", "loss", "steps", "trained", "seeds", "scores")


@dataclass(eq=False)
class Trial:
    """A point of the space, and what became of it so far.

    Attributes:
        number: in the order of asking.
        point: its hyperparameters.
        tx: the optimizer.
        structure: the number of its pytree structure; lanes hold one structure at a time.
        seeds: of its runs.
        status: how it ended; "stopped" while it has not.
        loss: the mean score, where lower is better; inf where a run has none.
        steps: taken.
        trained: the segments of the sweep in which it had lanes.
        scores: of its runs, in the units of the task: the worst infinity where one has no finite
            score, nan before the first.
        curve: after each of its segments, what was measured: its mean over the runs.
        parked: its lanes, on the host, while it waits for others.
        params: of its first run, if it is among the best.
        line: pairs of a step and the point from there on; one of them, but under population-based
            training.
        past: as `line`, but its own points: what it copied from another does not take their place.
    """

    number: int
    point: dict[str, Any]
    tx: Transform
    structure: int
    seeds: tuple[int, ...]
    status: str = "stopped"
    loss: float = math.inf
    steps: int = 0
    trained: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    parked: Any = None
    params: PyTree = None
    line: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    past: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self):
        self.scores = self.scores or [math.nan] * len(self.seeds)


def encoded(space: Mapping[str, Distribution], point: Mapping[str, Any]) -> dict[str, Any]:
    """The point as JSON has it: choices by their number, what is fixed left out."""
    plain = {}
    for name, value in point.items():
        distribution = space[name]
        if isinstance(distribution, Choice):
            plain[name] = distribution.index(value)
        elif not isinstance(distribution, Fixed):
            plain[name] = value
    return plain


def decoded(space: Mapping[str, Distribution], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The point again."""
    point = {}
    for name, distribution in space.items():
        if isinstance(distribution, Fixed):
            point[name] = distribution.value
        elif isinstance(distribution, Choice):
            point[name] = distribution.options[plain[name]]
        else:
            point[name] = plain[name]
    return point


def stacked(txs: list[Transform], repeats: int, dtype: Any) -> Transform:
    """Optimizers of one structure as one, each number of which has all of theirs in front."""

    def stack(*numbers):
        if jnp.issubdtype(getattr(numbers[0], "dtype", dtype), jax.dtypes.prng_key):
            return jnp.repeat(jnp.stack(numbers), repeats, axis=0)
        arrays = [x if hasattr(x, "dtype") else np.asarray(x, dtype) for x in numbers]
        return np.repeat(np.stack([np.asarray(x) for x in arrays]), repeats, axis=0)

    return jax.tree.map(stack, *txs)
