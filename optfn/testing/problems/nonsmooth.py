"""Problems without a derivative everywhere: kinks, maxima and jumps."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Params, Problem, bound


def kinks(dim: int = 10) -> Problem:
    """The sum of absolute values, ``sum_i |x_i - 1|``.

    Optimum 0 at ``x = (1, ..., 1)``; the start is that of ``quadratic``. The gradient has only
    entries of size 1, however close the minimum is. Gradient descent at a fixed rate therefore ends
    by stepping back and forth over the kink, and so does every optimizer whose steps shrink only
    with the gradient; the rate has to fall.

    There is no curvature to set the target, which is the least value at distance 0.01: a sum of
    absolute values is at least the Euclidean norm, so that is 0.01. Source: Shor, "Minimization
    methods for non-differentiable functions" (1985).
    """
    return Problem(
        name="kinks",
        difficulty="The gradient is as large next to the minimum as far from it.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: jnp.sum(jnp.abs(jnp.asarray(x) - 1.0)),
        optimum=0.0,
        target=0.01,
        minimizer=np.ones(dim),
    )


def minimax(dim: int = 10) -> Problem:
    """The largest absolute value, ``max_i |x_i - 1|``.

    Optimum 0 at ``x = (1, ..., 1)``; the start is that of ``quadratic``. The gradient is nonzero
    only in the worst coordinate. Reducing its error raises no other, but the gradient moves to the
    next only when that is the worst, so it turns by a right angle again and again; averages of past
    gradients point at coordinates that are no longer the worst.

    There is no curvature to set the target, which is the least value at distance 0.01: a maximum is
    at least the Euclidean norm over ``sqrt(dim)``, so that is ``0.01 / sqrt(dim)``. Source: such
    maxima are the functions that resist every subgradient method in Nesterov, "Introductory
    lectures on convex optimization" (2004), section 3.2.1.
    """
    return Problem(
        name="minimax",
        difficulty="Only the worst coordinate has a gradient, and the worst keeps changing.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: jnp.max(jnp.abs(jnp.asarray(x) - 1.0)),
        optimum=0.0,
        target=0.01 / math.sqrt(dim),
        minimizer=np.ones(dim),
    )


def staircase(dim: int = 10, slope: float = 0.1, height: float = 0.1) -> Problem:
    """A quadratic in steps, ``slope q + (1 - slope) height floor(q / height)``, ``q = |y|^2 / 2``.

    With ``y = x - 1`` the optimum is 0 at ``x = (1, ..., 1)``; the start is that of ``quadratic``.
    The value stays within ``(1 - slope) height`` of ``q``, but most of its fall is in the jumps,
    and the gradient ``slope y`` does not see these: at the default it is a tenth of the average
    slope. An optimizer that takes only the direction of the gradient is not misled, but one that
    relates it to the value is: Polyak's step makes the distance to the minimizer about four times
    as large. Below the last step the value is ``slope q``, with the curvature ``slope`` that sets
    the target. Source: the step function F3 of De Jong, "An analysis of the behavior of a class of
    genetic adaptive systems" (1975), here with a slope on every step.
    """
    if not 0 < slope <= 1 or height <= 0:
        raise ValueError(f"need 0 < slope <= 1 and a positive height, got {slope} and {height}")

    def value(x: Params) -> jax.Array:
        q = jnp.sum((jnp.asarray(x) - 1.0) ** 2) / 2
        return slope * q + (1 - slope) * height * jnp.floor(q / height)

    return Problem(
        name="staircase",
        difficulty="The value falls mostly in jumps, which the gradient does not see.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=value,
        optimum=0.0,
        target=bound(slope),
        minimizer=np.ones(dim),
    )
