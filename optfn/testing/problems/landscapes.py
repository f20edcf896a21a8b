"""Smooth problems whose difficulty is the path to the minimum: traps, saddles, plains and walls."""

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Key, Params, Problem, bound


def beale() -> Problem:
    """Beale's function, ``sum_k (c_k - u (1 - v^k))^2`` for k = 1, 2, 3.

    With ``c = (1.5, 2.25, 2.625)`` the optimum is 0 at (3, 0.5), where the smallest curvature is
    0.3015; the classical start is (1, 1). At negative ``u`` a second valley follows
    ``u (1 - v) = 0.99``: its floor falls outwards ever more gently and tends to 0.452. A step that
    overshoots into it is as good as lost, and so is an optimizer that takes a small gradient for
    success. Source: Beale, "On an iterative method for finding a local minimum of a function of
    more than one variable" (1958); start from Moré, Garbow and Hillstrom (1981), problem 5.
    """

    def value(x: Params) -> jax.Array:
        u, v = jnp.asarray(x)
        terms = ((1.5, v), (2.25, v**2), (2.625, v**3))
        return sum(((c - u * (1.0 - power)) ** 2 for c, power in terms), jnp.zeros_like(u))

    return Problem(
        name="beale",
        difficulty="A second valley, without a minimum, leads off to infinity.",
        init=lambda _: jnp.array([1.0, 1.0]),
        value=value,
        optimum=0.0,
        target=bound(0.3015),
        minimizer=np.array([3.0, 0.5]),
    )


def saddle(dim: int = 2, offset: float = 1e-3) -> Problem:
    """The double well ``(x_1^2 - 1)^2 / 4 + (x_2^2 + ... + x_dim^2) / 2``.

    Optimum 0 at ``(±1, 0, ..., 0)``; not unique, so there is no ``minimizer``. Between them, the
    origin is a strict saddle of value 1/4 with curvature -1 along the first axis and 1 along all
    others. The start has a first coordinate of ``±offset`` and the others normally distributed,
    next to the surface from which gradient descent runs into the saddle. Near the saddle the first
    coordinate, and with it the gradient, grows exponentially from ``offset``. Source: a bounded
    relative of the saddles in Dauphin et al., "Identifying and attacking the saddle point problem
    in high-dimensional non-convex optimization" (2014).
    """
    if dim < 2:
        raise ValueError(f"need dim >= 2, got {dim}")

    def init(key: Key) -> jax.Array:
        sign_key, rest_key = jax.random.split(key)
        first = offset * jax.random.rademacher(sign_key, (1,), float)
        return jnp.concatenate([first, jax.random.normal(rest_key, (dim - 1,))])

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        return (x[0] ** 2 - 1.0) ** 2 / 4 + jnp.sum(x[1:] ** 2) / 2

    return Problem(
        name="saddle",
        difficulty="Descent leads into a saddle, where the gradient all but vanishes.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(1.0),
    )


def plateau(dim: int = 2, distance: float = 10.0) -> Problem:
    """A dimple in a plain, ``s / (1 + s)`` with ``s = |x - 1|^2 / 2``.

    Optimum 0 at ``x = (1, ..., 1)``, with unit curvature. At distance ``r`` the gradient has the
    norm ``r / (1 + r^2 / 2)^2``: at most 0.46 in the dimple, but 0.004 at the default distance. The
    start is at ``distance`` in a random direction. Gradient descent needs about ``distance^4 / 16``
    steps at learning rate 1, and no rate above 2 is stable near the minimum. Source: the error
    function of Geman and McClure, "Statistical methods for tomographic image reconstruction"
    (1987).
    """

    def init(key: Key) -> jax.Array:
        direction = jax.random.normal(key, (dim,))
        return 1.0 + distance * direction / jnp.linalg.norm(direction)

    def value(x: Params) -> jax.Array:
        s = jnp.sum((jnp.asarray(x) - 1.0) ** 2) / 2
        return s / (1.0 + s)

    return Problem(
        name="plateau",
        difficulty="Far from the minimum the gradient points the right way but is tiny.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(1.0),
        minimizer=np.ones(dim),
    )


def monkey_saddle(offset: float = 0.03) -> Problem:
    """A third-order saddle, ``x^3 - 3 x y^2 + 3 (x^2 + y^2)^2 / 4 + 1/4``.

    Optimum 0 at (-1, 0) and (1/2, ±sqrt(3)/2), with curvatures 3 and 9; not unique, so there is no
    ``minimizer``. Between them, at the origin, gradient and Hessian both vanish: three valleys lead
    down from it and three ridges up. The start is at distance ``offset`` from it in a random
    direction. The gradient there is of order ``offset^2``, so leaving takes on the order of
    ``1 / offset`` steps, not ``log(1 / offset)`` as from the strict :func:`saddle`; and no
    curvature shows the way down. Source: the surface is in Hilbert and Cohn-Vossen, "Geometry and
    the imagination" (1932); its role in Anandkumar and Ge, "Efficient approaches for escaping
    higher order saddle points in non-convex optimization" (2016).
    """

    def init(key: Key) -> jax.Array:
        direction = jax.random.normal(key, (2,))
        return offset * direction / jnp.linalg.norm(direction)

    def value(x: Params) -> jax.Array:
        u, v = jnp.asarray(x)
        return u**3 - 3.0 * u * v**2 + 0.75 * (u**2 + v**2) ** 2 + 0.25

    return Problem(
        name="monkey_saddle",
        difficulty="The start is at a saddle whose Hessian vanishes too.",
        init=init,
        value=value,
        optimum=0.0,
        target=bound(3.0),
    )


def himmelblau() -> Problem:
    """Himmelblau's function, ``(u^2 + v - 11)^2 + (u + v^2 - 7)^2``.

    Optimum 0 at four points, (3, 2) and about (-2.805, 3.131), (-3.779, -3.283) and (3.584,
    -1.848); not unique, so there is no ``minimizer``. Between them, near (-0.271, -0.923), is a
    maximum of 181.6. The start is uniform in the square from -5 to 5, so the nearest minimum
    depends on the key. All are equally good, but the mean of two is not: the value there is above
    10. An optimizer has to settle on one, whether it steps or averages. The least curvature at a
    minimum, ``54 - 20 sqrt(2)`` at (3, 2), sets the target. Source: Himmelblau, "Applied nonlinear
    programming" (1972).
    """

    def value(x: Params) -> jax.Array:
        u, v = jnp.asarray(x)
        return (u**2 + v - 11.0) ** 2 + (u + v**2 - 7.0) ** 2

    return Problem(
        name="himmelblau",
        difficulty="Four minima are equally good, and nothing between them is.",
        init=lambda key: jax.random.uniform(key, (2,), minval=-5.0, maxval=5.0),
        value=value,
        optimum=0.0,
        target=bound(54 - 20 * 2**0.5),
    )


def rastrigin(dim: int = 5) -> Problem:
    """Rastrigin's function, ``sum_i y_i^2 + 10 (1 - cos(2 pi y_i))`` with ``y = x - 1``.

    Optimum 0 at ``x = (1, ..., 1)``, where every curvature is ``2 + 40 pi^2``. Every nearby point
    of the integer grid has a local minimum next to it: the nearest, at 0.995 along one coordinate,
    has the value 0.995. The start is uniform in the cube ``|y_i| < 0.4``, inside the basin of the
    minimum, which reaches to 0.5025. Descent is easy as long as no step leaves the basin. A step
    that does ends in a local minimum, from which no gradient leads back. Source: Rastrigin,
    "Systems of extremal control" (1974); for any number of dimensions, Mühlenbein, Schomisch and
    Born, "The parallel genetic algorithm as function optimizer" (1991).
    """

    def value(x: Params) -> jax.Array:
        y = jnp.asarray(x) - 1.0
        return jnp.sum(y**2 + 10.0 * (1.0 - jnp.cos(2 * np.pi * y)))

    return Problem(
        name="rastrigin",
        difficulty="Local minima all around: one step too long cannot be undone.",
        init=lambda key: 1.0 + jax.random.uniform(key, (dim,), minval=-0.4, maxval=0.4),
        value=value,
        optimum=0.0,
        target=bound(2 + 40 * np.pi**2),
        minimizer=np.ones(dim),
    )


def cliff(dim: int = 2, length: int = 21) -> Problem:
    """The exploding gradient of a recurrence, ``sum_i (x_i^length - 1)^2 / 2``.

    ``x_i^length`` is the state of ``h <- x_i h``, the smallest recurrent net, after ``length``
    steps from 1; ``length`` is odd, so the minimizer is unique. Optimum 0 at ``x = (1, ..., 1)``,
    where every curvature is ``length^2``. The start is uniform between 1.2 and 1.4. There the value
    grows as ``x^(2 length)`` and an entry of the gradient is between 3e4 and 3e7, while at the
    minimizer no learning rate above ``2 / length^2``, 0.0045, is stable. At that rate the value
    overflows float32 after one step. A smaller overshoot ends on the plain around 0, where the
    value is 1/2 per coordinate and gradients vanish. Source: Pascanu, Mikolov and Bengio, "On the
    difficulty of training recurrent neural networks" (2013), who clip the norm of the gradient.
    """
    if length < 1 or length % 2 == 0:
        raise ValueError(f"need a positive odd length, got {length}")

    def value(x: Params) -> jax.Array:
        return jnp.sum((jnp.asarray(x) ** length - 1.0) ** 2) / 2

    return Problem(
        name="cliff",
        difficulty="The start is on a cliff, where gradients are many powers of ten too large.",
        init=lambda key: jax.random.uniform(key, (dim,), minval=1.2, maxval=1.4),
        value=value,
        optimum=0.0,
        target=bound(length**2),
        minimizer=np.ones(dim),
    )


def barrier(dim: int = 10, strength: float = 0.1) -> Problem:
    """A linear program behind a logarithmic barrier, ``sum_i x_i - m - m log(x_i / m)``.

    It minimizes the sum of the ``x_i`` subject to ``x_i > 0``, enforced by a barrier of strength
    ``m``. Optimum 0 at ``x = (m, ..., m)``, next to the wall, where every curvature is ``1 / m``.
    Outside the constraints the value is infinite and the gradient zero, so a step across the wall
    is final. The start is uniform between 0.5 and 1.5, where the slope is almost constant: a step
    that is right there is too long near the wall. Source: Fiacco and McCormick, "Nonlinear
    programming: sequential unconstrained minimization techniques" (1968).
    """
    if strength <= 0:
        raise ValueError(f"need a positive strength, got {strength}")

    def value(x: Params) -> jax.Array:
        x = jnp.asarray(x)
        inside = jnp.all(x > 0)
        y = jnp.where(inside, x, strength)
        return jnp.where(inside, jnp.sum(y - strength - strength * jnp.log(y / strength)), jnp.inf)

    return Problem(
        name="barrier",
        difficulty="Close behind the minimum is a wall, and beyond it no gradient.",
        init=lambda key: jax.random.uniform(key, (dim,), minval=0.5, maxval=1.5),
        value=value,
        optimum=0.0,
        target=bound(1 / strength),
        minimizer=np.full(dim, strength),
    )
