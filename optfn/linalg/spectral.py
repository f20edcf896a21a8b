"""Estimates of the spectral norm."""

from functools import partial

import jax
import jax.numpy as jnp

from optfn.core.numerics import norms_along, ratio


@partial(jax.jit, static_argnames=("steps",))
def spectral_norm_bound(x: jax.Array, steps: int = 2) -> jax.Array:
    """A lower bound of the largest singular value of symmetric or skew-symmetric matrices.

    By the power iteration, from the column of largest norm; so of a matrix of rank one it is exact,
    and never below that column's norm.

    Args:
        x: `[..., n, n]`, one matrix or a stack, equal to its adjoint or to minus its adjoint.
        steps: the number of products with x.

    Returns:
        An array `[..., 1, 1]`, real; 0 for a matrix of zeros.
    """
    norm = norms_along((-2, -1), x)
    x = ratio(x, norm.scale)
    sizes = norms_along(-2, x).value
    largest = jnp.argmax(sizes, axis=-1, keepdims=True)
    v = jnp.take_along_axis(x, largest, axis=-1)
    for _ in range(steps):
        v = x @ ratio(v, norms_along(-2, v).value)
    return norm.scale * norms_along(-2, v).value
