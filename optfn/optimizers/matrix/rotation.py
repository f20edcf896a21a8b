"""What the rules that work in the eigenbases of a matrix's rows and columns share.

A side without a basis has None for it, and stays as it is.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.numerics import norm_of, shrunk
from optfn.core.placement import Along
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


def along_sides(param: jax.Array, make: Any, longest: float = float("inf")) -> list:
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
