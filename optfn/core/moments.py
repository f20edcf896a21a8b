"""Moving averages of gradients, and the correction of their zero initialization."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.dtypes import real_dtype
from optfn.core.placement import Along
from optfn.core.slot_kinds import NonNegative, Signed


class FirstMoment(NamedTuple):
    """The average gradient."""

    mu: Signed


class Moments(NamedTuple):
    """Averages of the gradient and of its squared magnitude, which is real."""

    mu: Signed
    nu: NonNegative


def zero_moments(param: jax.Array) -> Moments:
    return Moments(jnp.zeros_like(param), zeros_like_real(param))


def zeros_like_real(param: jax.Array) -> jax.Array:
    return full_like_real(param, 0)


def full_like_real(param: jax.Array, value: Any) -> jax.Array:
    return jnp.full_like(param, value, real_dtype(param.dtype))


def zeros_along(param: jax.Array, axes: Sequence[int]) -> Along:
    """A real zero for every position along these axes of the param."""
    sides = [param.shape[axis] for axis in axes]
    return Along(jnp.zeros(sides, real_dtype(param.dtype)), tuple(axes))


def average(decay: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    """One step of an exponential moving average."""
    return decay * old + (1 - decay) * new


def debias(average: jax.Array, decay: Any, t: Any) -> jax.Array:
    """The average after t steps, corrected for its zero initialization."""
    return average / (1 - decay**t)


def look_ahead(mean: jax.Array, g: jax.Array, decay: Any, t: Any) -> jax.Array:
    """Nesterov's momentum: the bias-corrected average, one step ahead with the same gradient."""
    return average(decay, debias(mean, decay, t + 1), debias(g, decay, t))
