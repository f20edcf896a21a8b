"""Equations with a symmetric matrix, which may be indefinite, by products with it alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.numerics import norm_in_range, ratio


class _Lanczos(NamedTuple):
    """The state after some products; of pairs, the later comes second."""

    x: jax.Array
    basis: tuple[jax.Array, jax.Array]
    directions: tuple[jax.Array, jax.Array]
    length: jax.Array
    cosines: tuple[jax.Array, jax.Array]
    sines: tuple[jax.Array, jax.Array]
    residual: jax.Array
    steps: jax.Array


def minres(product: Callable, b: jax.Array, tol: float, max_steps: int) -> jax.Array:
    """The x for which the residual of A x = b is the shortest in a Krylov space.

    For symmetric A; `cg` is for those that are positive definite too. It stops at a residual of
    `tol` times the length of b, or after `max_steps` products; the caller checks which.

    Args:
        product: x -> A x, of real vectors.
        b: a real vector.
        tol: the relative residual to stop at.
        max_steps: the largest number of products.

    Source: Paige and Saunders 1975.
    """
    length, zero, one = norm_in_range(b), jnp.zeros((), b.dtype), jnp.ones((), b.dtype)
    none = jnp.zeros_like(b)

    def should_continue(old: _Lanczos) -> jax.Array:
        return (jnp.abs(old.residual) > tol * length) & (old.steps < max_steps)

    def one_step(old: _Lanczos) -> _Lanczos:
        (before, v), (d_before, d_last) = old.basis, old.directions
        (c_before, c), (s_before, s) = old.cosines, old.sines
        image = product(v)
        diagonal = jnp.vdot(v, image, precision=lax.Precision.HIGHEST)
        rest = image - diagonal * v - old.length * before
        after = norm_in_range(rest)
        # The last column of the tridiagonal matrix, rotated twice, and the rotation that ends it.
        first, second = s_before * old.length, s * diagonal + c_before * c * old.length
        third = c * diagonal - c_before * s * old.length
        pivot = jnp.hypot(third, after)
        cosine, sine = ratio(third, pivot), ratio(after, pivot)
        direction = ratio(v - first * d_before - second * d_last, pivot)
        return _Lanczos(
            old.x + cosine * old.residual * direction,
            (v, ratio(rest, after)),
            (d_last, direction),
            after,
            (c, cosine),
            (s, sine),
            -sine * old.residual,
            old.steps + 1,
        )

    start = _Lanczos(
        *(none, (none, ratio(b, length)), (none, none), length),
        *((one, one), (zero, zero), length, jnp.int32(0)),
    )
    return lax.while_loop(should_continue, one_step, start).x
