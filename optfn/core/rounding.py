"""Rounding to a narrower dtype: to nearest, or at random so that the mean is exact."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optfn.core.dtypes import cast, compute_dtype
from optfn.core.randomness import dither

Rounding = Literal["nearest", "stochastic"]


def round_to(x: jax.Array, dtype: Any, key: jax.Array | None = None) -> jax.Array:
    """An array in another real dtype.

    Args:
        x: a real array.
        dtype: the dtype of the result; where it holds every value of `x`, nothing is rounded.
        key: with a key, an entry becomes one of the two numbers around it, each with a probability
            that makes the mean exact. Beyond the range of `dtype`, and where `x` is not finite, the
            result is that of rounding to nearest. None rounds to nearest.
    """
    nearest = cast(x, dtype)
    if key is None or jnp.finfo(dtype).nmant >= jnp.finfo(x.dtype).nmant:
        return nearest
    lower, upper = neighbours(lax.abs(x), dtype)
    size = lax.select(goes_up(key, lower, upper, lax.abs(x)), upper, lower)
    inside = jnp.isfinite(upper) & jnp.isfinite(x)
    return lax.select(inside, cast(lax.select(x < 0, -size, size), dtype), nearest)


def added(param: jax.Array, update: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`param + update`, rounded once, into the dtype of the param; with a key as in `round_to`."""
    with jax.numpy_dtype_promotion("standard"):  # on purpose: the update may be wider
        if key is None or not jnp.issubdtype(param.dtype, jnp.floating):
            return cast(param + update, param.dtype)
        wide = compute_dtype(param.dtype, update.dtype)
        return round_to(cast(param, wide) + update, param.dtype, key)


def neighbours(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The largest number of a dtype that is at most x, which is not negative, and the next one."""
    dtype = jnp.dtype(dtype)
    bits = np.dtype(f"uint{8 * dtype.itemsize}")  # they count the positive numbers in order
    nearest = cast(x, dtype)
    count = lax.bitcast_convert_type(nearest, bits)
    count = count - (cast(nearest, x.dtype) > x).astype(bits)
    lower, upper = (lax.bitcast_convert_type(n, dtype) for n in (count, count + bits.type(1)))
    return cast(lower, x.dtype), cast(upper, x.dtype)


def goes_up(key: jax.Array, lower: jax.Array, upper: jax.Array, x: jax.Array) -> jax.Array:
    """Whether to take the upper one of two numbers around x, so that the mean is x."""
    return dither(key, x) * (upper - lower) < x - lower


def nearest_whole(x: jax.Array) -> jax.Array:
    """The nearest whole number, the even one of two."""
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
