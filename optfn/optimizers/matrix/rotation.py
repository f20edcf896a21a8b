"""What the rules that work in the eigenbases of a matrix's rows and columns share.

A side without a basis has None for it, and stays as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.moments import average
from optfn.core.numerics import abs_sq, norm_of, propagate_nan, shrunk, sqrt
from optfn.core.placement import Along
from optfn.core.transform import Transform
from optfn.linalg import adjoint

Sides = tuple[Any, Any]


def rotated(x: jax.Array, bases: Sides) -> jax.Array:
    """QL^T X QR: the entries of a matrix in the bases."""
    left, right = bases
    x = x if left is None else adjoint(left) @ x
    return x if right is None else x @ right


def rotated_back(x: jax.Array, bases: Sides) -> jax.Array:
    """QL X QR^T: the inverse of `rotated`."""
    left, right = bases
    x = x if left is None else left @ x
    return x if right is None else x @ adjoint(right)


def along_sides(param: jax.Array, make: Any, longest: float = float("inf")) -> list[Any]:
    """For rows and for columns `make(length)`, a matrix of that length, or None if it is too long.

    Args:
        param: the matrix.
        make: gives an array `[length, length]`.
        longest: the length up to which a side has one.
    """
    return [
        Along(make(length).astype(param.dtype), (axis, None)) if length <= longest else None
        for axis, length in enumerate(param.shape)
    ]


def zeros_of_length(n: int) -> jax.Array:
    return jnp.zeros((n, n))


def with_finite_squares(g: jax.Array) -> jax.Array:
    """A gradient, scaled down if the squares of its products with moderate numbers would overflow.

    In float32 to a norm of 2^48, about 3e14.
    """
    return shrunk(g, norm_of(g), float(jnp.finfo(g.dtype).max) ** 0.375)


def adam_in_bases(
    rule: Any, g: jax.Array, slots: Any, bases: Sides, skipped: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adam's direction without a correction of its start, whose second moment is in the bases.

    Args:
        rule: has b1, b2 and eps.
        g: the gradient.
        slots: have mu and nu.
        bases: of the rows and of the columns.
        skipped: whether this step leaves the moments as they are.

    Returns:
        The direction and the new moments.
    """
    mu = jnp.where(skipped, slots.mu, average(rule.b1, slots.mu, g))
    nu = jnp.where(skipped, slots.nu, average(rule.b2, slots.nu, abs_sq(rotated(g, bases))))
    return rotated_back(rotated(mu, bases) / (sqrt(nu) + rule.eps), bases), mu, nu


def idle_at(skipped: jax.Array, u: jax.Array, g: jax.Array) -> jax.Array:
    """A direction that is zero at a step that only gives the bases, but shows a gradient's NaN."""
    return jnp.where(skipped, propagate_nan(jnp.zeros_like(g), g), u)


def late_optimizer(
    direction: Transform, adam: Transform, descent: Callable[..., Any], views: Any, rest: Any
) -> partition:
    """The optimizer of a direction that begins with the second step.

    Args:
        direction: the stage for matrices.
        adam: the stage for other leaves, if no `rest` is given.
        descent: makes the stage that descends, `start=` being the first step that decays, from 0.
        views: how each leaf is a matrix.
        rest: the optimizer of other leaves, or None.
    """
    others = chain(adam, descent()) if rest is None else rest
    return partition_matrices(chain(direction, descent(start=1)), others, views)
