"""The spectral norm, the largest singular value of a matrix: estimates and bounds."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.dtypes import compute_dtype, real_dtype
from optfn.core.numerics import ratio
from optfn.linalg.adjoint import adjoint


class Bounds(NamedTuple):
    """A number that is not above and one that is not below the spectral norm."""

    lower: jax.Array
    upper: jax.Array


@partial(jax.jit, static_argnames=("steps",))
def spectral_norm(x: jax.Array, steps: int = 12) -> jax.Array:
    """The largest singular value, estimated from below by power iteration.

        v <- x^T (x v) / ||x^T (x v)||        `steps` times;        ||x v||

    It starts from the longest row, so it is the same in every call, and exact for matrices of rank
    one. It is too small by a share of about (s2 / s1)^(2 steps) or less, with s1 and s2 the two
    largest singular values; by more if the longest row has hardly a component along the first
    singular vector, though never below `spectral_norm_bounds(x).lower`.

    Args:
        x: `[..., rows, columns]`, one matrix or a stack, of any scale.
        steps: the number of iterations, 0 or more.

    Returns:
        `[...]`, real and of the dtype of `x`.
    """
    unit, scale = _unit(x, "spectral_norm")
    if not x.size:
        return jnp.zeros(x.shape[:-2], real_dtype(x.dtype))
    longest = jnp.argmax(_lengths(unit, -1), axis=-1, keepdims=True)
    v = jnp.take_along_axis(unit, longest[..., None], axis=-2)
    v = _normalized(adjoint(v))

    def step(v, _):
        return _normalized(adjoint(unit) @ (unit @ v)), None

    v, _ = lax.scan(step, v, length=steps)
    found = jnp.maximum(_lengths((unit @ v)[..., 0], -1), _lower(unit))
    return (found * scale).astype(real_dtype(x.dtype))


@jax.jit
def spectral_norm_bounds(x: jax.Array) -> Bounds:
    """A lower and an upper bound of the largest singular value, from sums over rows and columns.

        lower = max(longest row, longest column, ||x||_F / sqrt(min(rows, columns)))
        upper = min(||x||_F, sqrt(largest sum of |row| * largest sum of |column|))

    Both read the entries once, without a product. The upper one is at most sqrt(min(rows, columns))
    times the lower one, and both are exact for a matrix with one entry in each row and column.

    Args:
        x: `[..., rows, columns]`, one matrix or a stack, of any scale.

    Returns:
        `Bounds(lower, upper)`, each `[...]`, real and of the dtype of `x`.
    """
    unit, scale = _unit(x, "spectral_norm_bounds")
    sums = [jnp.abs(unit).sum(axis).max(-1, initial=0) for axis in (-1, -2)]
    upper = jnp.minimum(_lengths(unit, (-2, -1)), jnp.sqrt(sums[0] * sums[1]))
    dtype = real_dtype(x.dtype)
    return Bounds(*((bound * scale).astype(dtype) for bound in (_lower(unit), upper)))


def _lower(x: jax.Array) -> jax.Array:
    rows, columns = _lengths(x, -1), _lengths(x, -2)
    mean = _lengths(rows, -1) / max(min(x.shape[-2:]), 1) ** 0.5
    return jnp.maximum(mean, jnp.maximum(rows.max(-1, initial=0), columns.max(-1, initial=0)))


def _unit(x: jax.Array, where: str) -> tuple[jax.Array, jax.Array]:
    """Matrices whose largest entry is 1, and what they were divided by."""
    if x.ndim < 2:
        raise ValueError(f"{where}(x) needs a matrix, found an array of shape {x.shape}.")
    wide = x.astype(compute_dtype(x.dtype))
    largest = jnp.max(jnp.abs(wide), (-2, -1), initial=0)
    scale = jnp.where(largest == 0, 1, largest)
    return wide / scale[..., None, None], scale


def _lengths(x: jax.Array, axis: Any) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis))


def _normalized(v: jax.Array) -> jax.Array:
    return ratio(v, _lengths(v, -2)[..., None, :])
