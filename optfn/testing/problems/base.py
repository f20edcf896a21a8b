"""The type of a test problem."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Key = jax.Array
Params: TypeAlias = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A function to minimize, where to start, and how to tell that it is solved.

    Problems compare and hash by identity, so one can be a static argument of ``jax.jit`` even if it
    holds arrays.

    Attributes:
      name: the name of the function that builds the problem.
      difficulty: one sentence on what makes the problem hard.
      init: ``init(key)`` returns the initial parameters, a tree of arrays. It ignores the key where
        the literature fixes a starting point.
      value: ``value(params)`` is the noiseless objective, a scalar.
      optimum: the infimum of ``value``.
      target: an optimizer has solved the problem once ``value`` is at most this.
      minimizer: parameters that attain the optimum, as float64 NumPy arrays, or None where they
        are not unique or do not exist.
      noisy: ``noisy(params, key)`` is an unbiased estimate of ``value(params)`` whose gradient
        is an unbiased estimate of the gradient, or None for a deterministic problem.
    """

    name: str
    difficulty: str
    init: Callable[[Key], Params]
    value: Callable[[Params], jax.Array]
    optimum: float
    target: float
    minimizer: Params | None = None
    noisy: Callable[[Params, Key], jax.Array] | None = None

    def loss(self, params: Params, key: Key) -> jax.Array:
        """The loss an optimizer sees: the estimate drawn with ``key`` if there is noise.

        A deterministic problem ignores the key and returns ``value(params)``.
        """
        return self.value(params) if self.noisy is None else self.noisy(params, key)


def bound(curvature: float, radius: float = 0.01) -> float:
    """The least excess over the optimum at ``radius`` from a minimizer, to second order."""
    return curvature * radius**2 / 2
