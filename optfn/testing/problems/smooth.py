"""Smooth problems with one valley and no noise: conditioning, scales and orientation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Key, Params, Problem, bound


def quadratic(dim: int = 10) -> Problem:
    """The isotropic quadratic ``|x - 1|^2 / 2``.

    Optimum 0 at ``x = (1, ..., 1)``, off the origin so shrinking the parameters does not help. The
    start is normally distributed around the minimizer. One gradient step at learning rate 1 solves
    it: an optimizer that fails here is broken, not merely slow.
    """
    return Problem(
        name="quadratic",
        difficulty="None: every direction has unit curvature, in any number of dimensions.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: jnp.sum((jnp.asarray(x) - 1.0) ** 2) / 2,
        optimum=0.0,
        target=bound(1.0),
        minimizer=np.ones(dim),
    )


def ill_conditioned(dim: int = 10, condition: float = 1e3) -> Problem:
    """The axis-aligned quadratic ``sum_i h_i (x_i - 1)^2 / 2``.

    The curvatures ``h_i`` rise geometrically from ``1 / condition`` to 1, which makes ``condition``
    the condition number of the Hessian. Optimum 0 at ``x = (1, ..., 1)``; the start is that of
    :func:`quadratic`. The steepest direction caps the rate of gradient descent at 2, and the
    flattest then takes on the order of ``condition`` steps. As the axes are those of the
    parameters, an optimizer that scales each coordinate separately escapes the difficulty; compare
    :func:`rotated`. Source: Polyak, "Some methods of speeding up the convergence of iteration
    methods" (1964).
    """
    if dim < 2 or condition < 1:
        raise ValueError(f"need dim >= 2 and condition >= 1, got {dim} and {condition}")
    curvatures = np.geomspace(1 / condition, 1.0, dim)

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.sum(jnp.asarray(curvatures, x.dtype) * (x - 1.0) ** 2) / 2

    return Problem(
        name="ill_conditioned",
        difficulty="Curvatures along the coordinate axes span a factor of `condition`.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=value,
        optimum=0.0,
        target=bound(1 / condition),
        minimizer=np.ones(dim),
    )


def rotated(dim: int = 10, condition: float = 1e3) -> Problem:
    """:func:`ill_conditioned` seen through a fixed random rotation about its minimizer.

    The value at ``x`` is that of :func:`ill_conditioned` at ``1 + Q (x - 1)`` with ``Q``
    orthogonal, so optimum, minimizer, spectrum and target are unchanged, and the start for a key is
    the rotation of the start there. Optimizers that commute with rotations, such as gradient
    descent, trace the same sequence of values on both problems; scaling each coordinate separately
    helps there but not here. Source: Salomon, "Re-evaluating genetic algorithm performance under
    coordinate rotation of benchmark functions" (1996).
    """
    base = ill_conditioned(dim, condition)
    basis, triangle = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))
    rotation = basis * np.sign(np.diag(triangle))  # the signs make it uniformly distributed

    def rotate(x: Params, matrix: np.ndarray) -> jax.Array:
        x = jnp.asarray(x)
        return 1.0 + jnp.matmul(jnp.asarray(matrix, x.dtype), x - 1.0, precision="highest")

    return dataclasses.replace(
        base,
        name="rotated",
        difficulty="Curvatures that span a factor of `condition`, along no coordinate axis.",
        init=lambda key: rotate(base.init(key), rotation.T),
        value=lambda x: base.value(rotate(x, rotation)),
    )


def rosenbrock(dim: int = 2) -> Problem:
    """Rosenbrock's banana, ``sum 100 (v - u^2)^2 + (1 - u)^2`` over consecutive pairs (u, v).

    Optimum 0 at ``x = (1, ..., 1)``, where the Hessian has condition number 2508. From the
    classical start (-1.2, 1) descent falls at once to the floor of the valley ``v = u^2`` and then
    has to follow the bend, along which the value falls only from 4 to 0. Source: Rosenbrock, "An
    automatic method for finding the greatest or least value of a function" (1960). Beyond two
    dimensions this is the extended form of Moré, Garbow and Hillstrom, "Testing unconstrained
    optimization software" (1981), problem 21: its minimizer is the only stationary point, whereas
    chaining the terms adds spurious minima and with them a second difficulty.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"need a positive even dim, got {dim}")

    def value(x: Params) -> jax.Array:
        u, v = jnp.asarray(x).reshape(-1, 2).T
        return jnp.sum(100.0 * (v - u**2) ** 2 + (1.0 - u) ** 2)

    return Problem(
        name="rosenbrock",
        difficulty="The way to the minimum is the flat floor of a narrow valley that bends.",
        init=lambda _: jnp.tile(jnp.array([-1.2, 1.0]), dim // 2),
        value=value,
        optimum=0.0,
        target=bound(0.3994),
        minimizer=np.ones(dim),
    )


def badly_scaled(dim: int = 9, decades: float = 8.0) -> Problem:
    """A quadratic whose coordinates have different units, ``sum_i (x_i / s_i - 1)^2 / 2``.

    The scales ``s_i`` rise geometrically over ``decades`` powers of ten around 1, by default from
    1e-4 to 1e4. Optimum 0 at ``x = s``; the start is ``s`` times that of :func:`quadratic`, so the
    distance of a coordinate is proportional to its scale. Measured in its own unit every coordinate
    has unit curvature; as stored, the curvatures ``1 / s_i^2`` have the condition number 1e16.
    Equal steps for all coordinates, as in sign descent, do not help either: they have to fall from
    1e4 to below 1e-4 on the way. Adam finds the units if its learning rate suits the largest: it
    overshoots in all others first, and the gradients it averages there scale with ``1 / s_i^2``.

    The target departs from the rule in that the distance 0.01 is measured in the coordinates' own
    units, ``x / s``. Source: Dennis and Schnabel, "Numerical methods for unconstrained optimization
    and nonlinear equations" (1983), section 7.1; badly scaled problems also in Moré, Garbow and
    Hillstrom (1981), problems 3 and 4.
    """
    if dim < 2 or decades < 0:
        raise ValueError(f"need dim >= 2 and decades >= 0, got {dim} and {decades}")
    scales = np.geomspace(10 ** (-decades / 2), 10 ** (decades / 2), dim)

    def init(key: Key) -> jax.Array:
        start = 1.0 + jax.random.normal(key, (dim,))
        return start * jnp.asarray(scales, start.dtype)

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.sum((x / jnp.asarray(scales, x.dtype) - 1.0) ** 2) / 2

    return Problem(
        name="badly_scaled",
        difficulty="Each coordinate has its own unit, and the units span many powers of ten.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(1.0),
        minimizer=scales,
    )


def layer_scales(width: int = 4, scales: tuple[float, ...] = (1e-2, 1.0, 1e2)) -> Problem:
    """Layers of different sizes, ``sum_l |w_l / s_l - 1|^2 / 2`` over the leaves ``w_l``.

    The parameters are a dictionary of vectors, and all entries of one vector share a scale ``s_l``.
    Optimum 0 where every entry of ``w_l`` is ``s_l``. The start is normally distributed around the
    minimizer with standard deviation ``s_l / 2``. This is :func:`badly_scaled` with the units made
    visible by the tree: the smaller the weights of a layer, the larger its gradients, and an
    optimizer whose steps are proportional to the norm of each layer escapes the difficulty.

    The target is measured as in :func:`badly_scaled`, at distance 0.01 in the layers' own units.
    Source: You, Gitman and Ginsburg, "Large batch training of convolutional networks" (2017).
    """
    if width < 1 or not scales or min(scales) <= 0:
        raise ValueError(f"need a positive width and positive scales, got {width} and {scales}")
    units = {f"layer_{i}": scale for i, scale in enumerate(scales)}

    def init(key: Key) -> Params:
        keys = jax.random.split(key, len(units))
        return {
            name: unit * (1.0 + jax.random.normal(k, (width,)) / 2)
            for (name, unit), k in zip(units.items(), keys, strict=True)
        }

    def value(params: Params) -> jax.Array:
        terms = [
            jnp.sum((jnp.asarray(params[name]) / unit - 1.0) ** 2) for name, unit in units.items()
        ]
        return sum(terms[1:], terms[0]) / 2

    return Problem(
        name="layer_scales",
        difficulty="Each layer has its own scale, and its gradients have the inverse scale.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(1.0),
        minimizer={name: np.full(width, unit) for name, unit in units.items()},
    )


def powell() -> Problem:
    """Powell's singular function of four variables.

    ``(x_1 + 10 x_2)^2 + 5 (x_3 - x_4)^2 + (x_2 - 2 x_3)^4 + 10 (x_1 - x_4)^4``. Optimum 0 at the
    origin, the only stationary point; the classical start is (3, -1, 0, 1), of value 215. At the
    minimizer the Hessian has the eigenvalues 202, 20, 0 and 0, so along two directions the value
    grows only with the fourth power of the distance. Gradient descent gets no closer than the
    inverse root of the number of steps, with a rate that the other two directions cap at 0.0099.

    The smallest curvature is zero, so the target is the least value at a stated distance. The
    distance is 0.1, not 0.01, where the value is 1e-4 times as large and gradient descent takes 100
    times as long. Source: Powell, "An iterative method for finding stationary values of a function
    of several variables" (1962); Moré, Garbow and Hillstrom (1981), problem 13.
    """

    def value(x: Params) -> jax.Array:
        a, b, c, d = jnp.asarray(x)
        squares = (a + 10.0 * b) ** 2 + 5.0 * (c - d) ** 2
        return squares + (b - 2.0 * c) ** 4 + 10.0 * (a - d) ** 4

    return Problem(
        name="powell",
        difficulty="The Hessian is singular at the minimum: two directions are quartic.",
        init=lambda _: jnp.array([3.0, -1.0, 0.0, 1.0]),
        value=value,
        optimum=0.0,
        target=9.07e-5,
        minimizer=np.zeros(4),
    )
