"""Problems with a symmetry of the parameters, and so with many minimizers."""

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Key, Params, Problem, bound


def scale_invariant(dim: int = 10, norm: float = 10.0) -> Problem:
    """Weights whose direction alone counts, ``|x / |x| - d|^2 / 2`` with a fixed ``d``.

    ``d`` is the unit vector along (1, ..., 1). The value is 1 minus the cosine of the angle to it.
    Optimum 0 at every positive multiple of ``d``; not unique, so there is no ``minimizer``. The
    start has the given norm and a random direction. The gradient is orthogonal to ``x`` and of size
    ``sin(angle) / |x|``. So the rate that suits gradient descent is proportional to ``|x|^2``, and
    each of its steps increases ``|x|``, which the value never shows. The curvature at norm 1, which
    is 1, sets the target: the value at an angle of 0.01. Source: van Laarhoven, "L2 regularization
    versus batch and weight normalization" (2017).
    """
    if dim < 2 or norm <= 0:
        raise ValueError(f"need dim >= 2 and a positive norm, got {dim} and {norm}")

    def init(key: Key) -> jax.Array:
        direction = jax.random.normal(key, (dim,))
        return norm * direction / jnp.linalg.norm(direction)

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.sum((x / jnp.linalg.norm(x) - dim**-0.5) ** 2) / 2

    return Problem(
        name="scale_invariant",
        difficulty="The norm does not change the value, but sets the size of the gradients.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(1.0),
    )


def rayleigh(dim: int = 10, gap: float = 0.1) -> Problem:
    """A Rayleigh quotient, ``sum_i h_i x_i^2 / sum_i x_i^2``.

    The eigenvalues ``h_i`` are 0 and evenly spaced values from ``gap`` to 1. Optimum 0, the least
    eigenvalue, at all multiples of the first unit vector; not unique, so there is no ``minimizer``.
    Every other eigenvector is a stationary point too: the last is a maximum and all between are
    saddles, with as many ways down as there are smaller eigenvalues. The start has a random
    direction and norm 1. The least curvature at a minimizer of norm 1 is ``2 gap``, apart from the
    zero along the ray; it sets the target. Source: Absil, Mahony and Sepulchre, "Optimization
    algorithms on matrix manifolds" (2008), chapter 4.
    """
    if dim < 2 or not 0 < gap <= 1:
        raise ValueError(f"need dim >= 2 and 0 < gap <= 1, got {dim} and {gap}")
    eigenvalues = np.concatenate([[0.0], np.linspace(gap, 1.0, dim - 1)])

    def init(key: Key) -> jax.Array:
        direction = jax.random.normal(key, (dim,))
        return direction / jnp.linalg.norm(direction)

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.sum(jnp.asarray(eigenvalues, x.dtype) * x**2) / jnp.sum(x**2)

    return Problem(
        name="rayleigh",
        difficulty="Every eigenvector is a stationary point, and all but two of them are saddles.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(2 * gap),
    )


def factorization(dim: int = 4, offset: float = 1e-3) -> Problem:
    """A symmetric factorization, ``|X X^T - M|^2 / 4`` with ``M = diag(4, 1, 0, ..., 0)``.

    ``X`` has two columns, as many as the rank of ``M``. Optimum 0 at ``X = diag(2, 1)`` on top of
    zeros, and at its product with any orthogonal matrix; not unique, so there is no ``minimizer``.
    The start is normally distributed with standard deviation ``offset`` around zero, which is a
    saddle of value 17/4. Gradient descent falls from there to the next saddle, at which only the
    large eigenvalue is found and the value is 1/4, and only then to the minimum. The least
    curvature there, apart from the zero of the rotation, is 1, and sets the target. Source: Ge, Lee
    and Ma, "Matrix completion has no spurious local minimum" (2016).
    """
    if dim < 2:
        raise ValueError(f"need dim >= 2, got {dim}")
    matrix = np.diag([4.0, 1.0] + [0.0] * (dim - 2))

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        product = jnp.matmul(x, x.T, precision="highest")
        return jnp.sum((product - jnp.asarray(matrix, x.dtype)) ** 2) / 4

    return Problem(
        name="factorization",
        difficulty="One saddle leads to the next: the parts of the solution are found in turn.",
        init=lambda key: offset * jax.random.normal(key, (dim, 2)),
        value=value,
        optimum=0.0,
        target=bound(1.0),
    )


def deep_chain(depth: int = 10) -> Problem:
    """A deep linear net with one unit per layer, ``(x_1 x_2 ... x_depth - 1)^2 / 2``.

    Optimum 0 wherever the product is 1; not unique, so there is no ``minimizer``. The start is
    uniform between 0.4 and 0.6, where the product is about ``2^-depth``, so all gradients are about
    ``2^(1 - depth)``: they vanish with the depth. At a minimizer the curvature across the surface
    of minimizers is the sum of ``1 / x_i^2``. It is least, ``depth``, where all ``x_i`` are equal;
    that caps the rate at ``2 / depth`` and sets the target. Source: Shamir, "Exponential
    convergence time of gradient descent for one-dimensional deep linear neural networks" (2019).
    """
    if depth < 2:
        raise ValueError(f"need depth >= 2, got {depth}")

    return Problem(
        name="deep_chain",
        difficulty="Gradients vanish with the depth, being products of many small factors.",
        init=lambda key: jax.random.uniform(key, (depth,), minval=0.4, maxval=0.6),
        value=lambda x: (jnp.prod(jnp.asarray(x)) - 1.0) ** 2 / 2,
        optimum=0.0,
        target=bound(depth),
    )
