"""Test problems for optimizers, each named for the one difficulty it poses.

A benchmark that is hard for five reasons at once says little when an optimizer fails on it. The
problems here isolate their reasons: conditioning, orientation, curvature of the valley, a trap,
a saddle, a plateau, noise, and a minimum that lies at infinity. Each is a :class:`Problem`, a
handful of pure functions and the facts needed to judge the outcome::

    problem = rosenbrock()
    params = problem.init(jax.random.key(0))
    grads = jax.grad(problem.loss)(params, jax.random.key(1))
    solved = problem.value(params) <= problem.target

All functions can be transformed by ``jit``, ``grad`` and ``vmap``. Starting points have JAX's
default float dtype, and values have the dtype of the parameters they are given. Data is drawn
with NumPy from a fixed seed, so a problem is the same problem wherever it is built.

Targets follow one rule. With ``h`` the smallest curvature (Hessian eigenvalue) at a minimizer,
parameters at distance ``r`` from it have, to second order, a value of at least
``optimum + h * r**2 / 2``. That bound with ``r = 0.01`` is the target, so an optimizer that
reaches it has located the minimizer to two decimals and not merely walked downhill along the
steep directions. The two exceptions, :func:`noisy_least_squares` and :func:`classifier`, say why.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "ALL",
    "Problem",
    "beale",
    "classifier",
    "ill_conditioned",
    "noisy_least_squares",
    "plateau",
    "quadratic",
    "rosenbrock",
    "rotated",
    "saddle",
]

Key = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A function to minimize, where to start, and how to tell that it is solved.

    Problems are compared and hashed by identity, so that one can be a static argument of
    ``jax.jit`` although it may hold arrays.

    Attributes:
      name: the name of the function that builds the problem.
      difficulty: one sentence on what makes the problem hard.
      init: ``init(key)`` returns the parameters, a tree of arrays, to start from. Where the
        literature fixes a starting point the key is ignored.
      value: ``value(params)`` is the noiseless objective, a scalar.
      optimum: the infimum of ``value``.
      target: an optimizer has solved the problem once ``value`` is at most this.
      minimizer: parameters that attain the optimum, as float64 NumPy arrays, or None where they
        are not unique or do not exist.
      noisy: ``noisy(params, key)`` is an unbiased estimate of ``value(params)`` whose gradient
        is an unbiased estimate of the gradient, or None for a deterministic problem.
    """

    name: str
    difficulty: str
    init: Callable[[Key], Params]
    value: Callable[[Params], jax.Array]
    optimum: float
    target: float
    minimizer: Params | None = None
    noisy: Callable[[Params, Key], jax.Array] | None = None

    def loss(self, params: Params, key: Key) -> jax.Array:
        """What an optimizer gets to see: the estimate drawn with ``key`` if there is noise.

        A deterministic problem ignores the key and returns ``value(params)``.
        """
        return self.value(params) if self.noisy is None else self.noisy(params, key)


def _bound(curvature: float, radius: float = 0.01) -> float:
    """The least excess over the optimum at ``radius`` from a minimizer, to second order."""
    return curvature * radius**2 / 2


def quadratic(dim: int = 10) -> Problem:
    """The isotropic quadratic ``|x - 1|^2 / 2``.

    Optimum 0 at ``x = (1, ..., 1)``, off the origin so that shrinking the parameters is no help.
    The start is normally distributed around the minimizer. One gradient step of rate 1 solves
    it: an optimizer that fails here is broken, not merely slow.
    """
    return Problem(
        name="quadratic",
        difficulty="None: every direction has unit curvature, in any number of dimensions.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: jnp.sum((jnp.asarray(x) - 1.0) ** 2) / 2,
        optimum=0.0,
        target=_bound(1.0),
        minimizer=np.ones(dim),
    )


def ill_conditioned(dim: int = 10, condition: float = 1e3) -> Problem:
    """The axis-aligned quadratic ``sum_i h_i (x_i - 1)^2 / 2``.

    The curvatures ``h_i`` rise geometrically from ``1 / condition`` to 1, which makes
    ``condition`` the condition number of the Hessian. Optimum 0 at ``x = (1, ..., 1)``; the start
    is that of :func:`quadratic`. The steepest direction caps the rate of gradient descent at 2,
    and the flattest then takes on the order of ``condition`` steps. As the axes are those of the
    parameters, an optimizer that scales every coordinate on its own escapes the difficulty;
    compare :func:`rotated`. The classical analysis is in Polyak, "Some methods of speeding up the
    convergence of iteration methods" (1964).
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
        target=_bound(1 / condition),
        minimizer=np.ones(dim),
    )


def rotated(dim: int = 10, condition: float = 1e3) -> Problem:
    """:func:`ill_conditioned` seen through a fixed random rotation about its minimizer.

    The value at ``x`` is that of :func:`ill_conditioned` at ``1 + Q (x - 1)`` with ``Q``
    orthogonal, so optimum, minimizer, spectrum and target are unchanged, and the start drawn
    with a key is the image of the start drawn there. Optimizers that commute with rotations,
    such as gradient descent, trace the same sequence of values on both problems; scaling every
    coordinate on its own helps there but not here. Rotation as a test for a dependence on the
    coordinates: Salomon, "Re-evaluating genetic algorithm performance under coordinate rotation
    of benchmark functions" (1996).
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
    classical start (-1.2, 1) one falls at once to the floor of the valley ``v = u^2`` and has
    then to follow the bend, along which the value falls only from 4 to 0. Source: Rosenbrock,
    "An automatic method for finding the greatest or least value of a function" (1960). Beyond
    two dimensions this is the extended form of Moré, Garbow and Hillstrom, "Testing
    unconstrained optimization software" (1981), problem 21: its minimizer is the only stationary
    point, whereas chaining the terms adds spurious minima and with them a second difficulty.
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
        target=_bound(0.3994),
        minimizer=np.ones(dim),
    )


def beale() -> Problem:
    """Beale's function, ``sum_k (c_k - u (1 - v^k))^2`` for k = 1, 2, 3.

    With ``c = (1.5, 2.25, 2.625)`` the optimum is 0 at (3, 0.5), where the smallest curvature is
    0.3015; the classical start is (1, 1). On the side of negative ``u`` a second valley follows
    ``u (1 - v) = 0.99``: its floor falls outwards for ever, ever more gently, and tends to 0.452.
    A step that overshoots into it is as good as lost, and so is an optimizer that takes a small
    gradient for success. Source: Beale, "On an iterative method for finding a local minimum of a
    function of more than one variable" (1958); start from Moré, Garbow and Hillstrom (1981),
    problem 5.
    """

    def value(x: Params) -> jax.Array:
        u, v = jnp.asarray(x)
        terms = ((1.5, v), (2.25, v**2), (2.625, v**3))
        return sum(((c - u * (1.0 - power)) ** 2 for c, power in terms), jnp.zeros_like(u))

    return Problem(
        name="beale",
        difficulty="Beside the minimum a valley without one leads off to infinity.",
        init=lambda _: jnp.array([1.0, 1.0]),
        value=value,
        optimum=0.0,
        target=_bound(0.3015),
        minimizer=np.array([3.0, 0.5]),
    )


def saddle(dim: int = 2, offset: float = 1e-3) -> Problem:
    """The double well ``(x_1^2 - 1)^2 / 4 + (x_2^2 + ... + x_dim^2) / 2``.

    Optimum 0 at ``(±1, 0, ..., 0)``; not unique, so there is no ``minimizer``. In between, the
    origin is a strict saddle of value 1/4 with curvature -1 along the first axis and 1 along all
    others. The start has a first coordinate of ``±offset`` and the others normally distributed,
    next to the surface from which gradient descent runs into the saddle. The way out grows
    exponentially from ``offset``, and the gradient is of that size when it begins. The bounded
    relative of the saddles in Dauphin et al., "Identifying and attacking the saddle point
    problem in high-dimensional non-convex optimization" (2014).
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
        difficulty="The slope leads into a saddle, where the gradient all but vanishes.",
        init=init,
        value=value,
        optimum=0.0,
        target=_bound(1.0),
    )


def plateau(dim: int = 2, distance: float = 10.0) -> Problem:
    """A dimple in a plain, ``s / (1 + s)`` with ``s = |x - 1|^2 / 2``.

    Optimum 0 at ``x = (1, ..., 1)``, with unit curvature. At distance ``r`` the gradient has the
    norm ``r / (1 + r^2 / 2)^2``: at most 0.46 in the dimple, but 0.004 at the default distance,
    at which the start lies in a random direction. Gradient descent needs about ``distance^4 / 16``
    steps of rate 1, and no greater rate than 2 is stable at the end. The shape is the error
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
        target=_bound(1.0),
        minimizer=np.ones(dim),
    )


def noisy_least_squares(
    dim: int = 10, samples: int = 256, batch: int = 16, noise: float = 1.0
) -> Problem:
    """Mini-batch least squares, ``mean_i (a_i x - b_i)^2 / 2`` over the rows ``a_i``.

    The columns of the data are orthogonal to each other and to the residual, of mean square 1
    and ``noise^2`` respectively. The objective is hence exactly that of :func:`quadratic` plus
    ``noise^2 / 2``, its optimum, and all the difficulty lies in the noise: the loss averages over
    ``batch`` rows, drawn anew with replacement.

    The noise remains at the minimizer, where the gradient of one draw has a mean square of about
    ``noise^2 dim / batch``. Stochastic gradient descent of a fixed rate therefore ends in a
    noise ball, on average about ``rate / 4`` times that above the optimum. The target is the value
    at distance 0.1 from the minimizer, 0.005 above the optimum. The ball of any rate above 0.032
    (at the defaults) is on average above it, so that the rate has to be small or fall; the usual
    distance of 0.01 would be a test of patience instead. The theory is in Bottou, Curtis and
    Nocedal, "Optimization methods for large-scale machine learning" (2018), section 4.
    """
    if samples <= dim:
        raise ValueError(f"need more samples than dimensions, got {samples} and {dim}")
    columns, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(samples, dim + 1)))
    columns *= math.sqrt(samples)
    features = columns[:, :dim]
    labels = features.sum(axis=1) + noise * columns[:, dim]

    def mean_square(x: Params, rows: jax.Array | slice) -> jax.Array:
        x = jnp.asarray(x)
        a, b = jnp.asarray(features, x.dtype)[rows], jnp.asarray(labels, x.dtype)[rows]
        return jnp.mean((jnp.matmul(a, x, precision="highest") - b) ** 2) / 2

    return Problem(
        name="noisy_least_squares",
        difficulty="Gradients are noisy, and stay so at the minimizer.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: mean_square(x, slice(None)),
        optimum=noise**2 / 2,
        target=noise**2 / 2 + _bound(1.0, radius=0.1),
        minimizer=np.ones(dim),
        noisy=lambda x, key: mean_square(x, jax.random.randint(key, (batch,), 0, samples)),
    )


def classifier(hidden: int = 16, samples: int = 64) -> Problem:
    """A small network that has to learn XOR: mean cross-entropy of a two-layer softmax classifier.

    The data are four tight clusters of points around ``(±1, ±1)``, of which opposite ones share a
    label; one layer of ``hidden`` tanh units separates them, no linear classifier does. The
    parameters are a nested dictionary of kernels and biases. Zero parameters are a stationary
    point of value ``log 2``, and swapping hidden units changes nothing. As every example can be
    classified correctly with any confidence, the infimum is 0, but no parameters attain it: the
    weights have to grow for ever, so there is no ``minimizer`` to locate.

    The target is ``log(2) / samples``. A single misclassified example adds at least that to the
    mean, so below it all are classified correctly. Source: Rumelhart, Hinton and Williams,
    "Learning internal representations by error propagation" (1986).
    """
    if samples < 4 or samples % 4:
        raise ValueError(f"need a positive multiple of 4 samples, got {samples}")
    signs = np.tile([[-1, -1], [-1, 1], [1, -1], [1, 1]], (samples // 4, 1))
    points = signs + 0.2 * np.random.default_rng(0).normal(size=signs.shape)
    labels = np.prod(signs, axis=1)

    def layer(key: Key, inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(key, (inputs, outputs)) / math.sqrt(inputs)
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    def init(key: Key) -> Params:
        hidden_key, output_key = jax.random.split(key)
        return {"hidden": layer(hidden_key, 2, hidden), "output": layer(output_key, hidden, 2)}

    def dense(params: Params, inputs: jax.Array) -> jax.Array:
        return inputs @ params["kernel"] + params["bias"]

    def value(params: Params) -> jax.Array:
        params = jax.tree.map(jnp.asarray, params)

        def log_probabilities(point: jax.Array) -> jax.Array:
            features = jnp.tanh(dense(params["hidden"], point))
            return jax.nn.log_softmax(dense(params["output"], features))

        rows = jax.vmap(log_probabilities)(jnp.asarray(points, params["hidden"]["kernel"].dtype))
        return -jnp.mean(jnp.where(labels > 0, rows[:, 1], rows[:, 0]))

    return Problem(
        name="classifier",
        difficulty="A tree of layers, not convex, whose minimum lies at infinity.",
        init=init,
        value=value,
        optimum=0.0,
        target=math.log(2) / samples,
    )


ALL: tuple[Problem, ...] = (
    quadratic(),
    ill_conditioned(),
    rotated(),
    rosenbrock(),
    beale(),
    saddle(),
    plateau(),
    noisy_least_squares(),
    classifier(),
)
"""Every problem, with its default parameters."""
