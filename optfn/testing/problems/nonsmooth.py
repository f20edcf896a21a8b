"""Problems without a derivative everywhere: kinks, maxima and jumps."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Params, Problem, bound


def kinks(dim: int = 10) -> Problem:
    """The sum of absolute values, ``sum_i |x_i - 1|``.

    Optimum 0 at ``x = (1, ..., 1)``; the start is that of ``quadratic``. The gradient has only
    entries of size 1, however close the minimum is. Gradient descent of a fixed rate hence
    ends by stepping to and fro over the kink, and so does every optimizer whose steps shrink
    only with the gradient; the rate has to fall.

    There is no curvature for the target, which is the least value at distance 0.01 itself: no sum
    of absolute values is less than the Euclidean norm, so that is 0.01. Source: Shor, "Minimization
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

    Optimum 0 at ``x = (1, ..., 1)``; the start is that of ``quadratic``. The gradient tells of the
    worst coordinate alone and is zero in all others. Going down on one raises none, but only when
    it is no longer the worst does the next come to light, so that the gradient turns by a right
    angle again and again; averages of past gradients point at what is no longer the worst.

    There is no curvature for the target, which is the least value at distance 0.01 itself: no
    maximum is less than the Euclidean norm over ``sqrt(dim)``, so that is ``0.01 / sqrt(dim)``.
    Source: such maxima are the functions that resist every subgradient method in Nesterov,
    "Introductory lectures on convex optimization" (2004), section 3.2.1.
    """
    return Problem(
        name="minimax",
        difficulty="Only the worst coordinate is seen, and which one that is keeps changing.",
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
    and the gradient ``slope y`` knows nothing of these: it is a tenth (at the default) of the slope
    that the value has over a distance. An optimizer that takes the gradient for no more than a
    direction is not misled, and one that relates it to the value is: Polyak's step lands about four
    times as far from the minimizer. Below the last step the value is ``slope q``, with the
    curvature ``slope`` that sets the target. Source: the step function F3 of De Jong, "An analysis
    of the behavior of a class of genetic adaptive systems" (1975), here with a slope on every step.
    """
    if not 0 < slope <= 1 or height <= 0:
        raise ValueError(f"need 0 < slope <= 1 and a positive height, got {slope} and {height}")

    def value(x: Params) -> jax.Array:
        q = jnp.sum((jnp.asarray(x) - 1.0) ** 2) / 2
        return slope * q + (1 - slope) * height * jnp.floor(q / height)

    return Problem(
        name="staircase",
        difficulty="The value falls mostly in jumps, of which the gradient tells nothing.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=value,
        optimum=0.0,
        target=bound(slope),
        minimizer=np.ones(dim),
    )
