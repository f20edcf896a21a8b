"""Singular vectors of matrices."""

import jax
import jax.numpy as jnp

from optfn.core.numerics import norm_of
from optfn.linalg.lapack import svd


def leading_vectors(x: jax.Array, rank: int, like: jax.Array | None = None) -> jax.Array:
    """The left singular vectors of the largest singular values, signed as other ones are.

    A singular vector has no sign of its own, or phase if it is complex: each is turned to where its
    product with the vector of its number in `like` is positive, so that what was averaged along
    that one goes on. They count as constants in derivatives.

    Args:
        x: matrices `[..., rows, columns]`, of any range.
        rank: how many vectors, at most the shorter side.
        like: vectors `[..., rows, rank]`; those that are zero turn nothing.

    Returns:
        An array `[..., rows, rank]` with orthonormal columns.
    """
    x = jax.lax.stop_gradient(x)
    u, _, _ = svd(x / norm_of(x).scale)
    u = u[..., :rank]
    if like is None:
        return u
    same = jnp.sum(u.conj() * jax.lax.stop_gradient(like), axis=-2, keepdims=True)
    size = jnp.abs(same)
    return u * jnp.where(size > 0, same / jnp.where(size > 0, size, 1), 1)
