"""Problems whose loss is an estimate: noise of several kinds around the same quadratic."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.testing.problems.base import Key, Params, Problem, bound


def _quadratic(x: jax.Array) -> jax.Array:
    return jnp.sum((x - 1.0) ** 2) / 2


def _orthogonal_columns(samples: int, count: int) -> np.ndarray:
    """Data whose columns are orthogonal to each other and have mean square 1."""
    if samples < count:
        raise ValueError(f"need more samples than dimensions, got {samples} and {count - 1}")
    columns, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(samples, count)))
    return columns * math.sqrt(samples)


def _mean_square(
    features: np.ndarray, labels: np.ndarray, x: Params, rows: jax.Array | slice
) -> jax.Array:
    x = jnp.asarray(x)
    a, b = jnp.asarray(features, x.dtype)[rows], jnp.asarray(labels, x.dtype)[rows]
    return jnp.mean((jnp.matmul(a, x, precision="highest") - b) ** 2) / 2


def noisy_least_squares(
    dim: int = 10, samples: int = 256, batch: int = 16, noise: float = 1.0
) -> Problem:
    """Mini-batch least squares, ``mean_i (a_i x - b_i)^2 / 2`` over the rows ``a_i``.

    The columns of the data have mean square 1 and are orthogonal to each other and to the residual,
    of mean square ``noise^2``. The objective is therefore exactly that of :func:`quadratic` plus
    ``noise^2 / 2``, its optimum, and all the difficulty is in the noise: the loss averages over
    ``batch`` rows, drawn with replacement.

    The noise remains at the minimizer, where the gradient of one draw has a mean square of about
    ``noise^2 dim / batch``. Stochastic gradient descent at a fixed rate therefore ends in a noise
    ball, on average about ``rate / 4`` times that above the optimum. The target is the value at
    distance 0.1 from the minimizer, 0.005 above the optimum. At any rate above 0.032 (at the
    defaults) the ball is on average above it, so the rate has to be small or fall; the usual
    distance of 0.01 would test patience instead. Source: Bottou, Curtis and Nocedal, "Optimization
    methods for large-scale machine learning" (2018), section 4.
    """
    columns = _orthogonal_columns(samples, dim + 1)
    features = columns[:, :dim]
    labels = features.sum(axis=1) + noise * columns[:, dim]

    def mean_square(x: Params, rows: jax.Array | slice) -> jax.Array:
        return _mean_square(features, labels, x, rows)

    return Problem(
        name="noisy_least_squares",
        difficulty="Gradients are noisy, and stay so at the minimizer.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: mean_square(x, slice(None)),
        optimum=noise**2 / 2,
        target=noise**2 / 2 + bound(1.0, radius=0.1),
        minimizer=np.ones(dim),
        noisy=lambda x, key: mean_square(x, jax.random.randint(key, (batch,), 0, samples)),
    )


def interpolation(dim: int = 10, samples: int = 256) -> Problem:
    """Least squares that fit exactly, ``mean_i (a_i x - b_i)^2 / 2`` with ``b_i = sum(a_i)``.

    The rows ``a_i`` are those of :func:`noisy_least_squares`, without a residual: the objective is
    exactly that of ``quadratic``, with optimum 0 at ``x = (1, ..., 1)``. The loss is that of one
    random row. All rows agree at the minimizer, so the noise is multiplicative: it vanishes
    together with the gradient. Gradient descent at a fixed rate therefore converges as if there
    were no noise. But the noise rules out the rates that suit the curvature 1: as ``|a_i|^2`` is
    ``dim`` on average, gradient descent at rate 1 diverges. Source: Ma, Bassily and Belkin, "The
    power of interpolation: understanding the effectiveness of SGD in modern over-parametrized
    learning" (2018).
    """
    features = _orthogonal_columns(samples, dim + 1)[:, :dim]
    labels = features.sum(axis=1)

    def noisy(x: Params, key: Key) -> jax.Array:
        return _mean_square(features, labels, x, jax.random.randint(key, (1,), 0, samples))

    return Problem(
        name="interpolation",
        difficulty="The noise is as large as the distance to the minimizer, and vanishes there.",
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: _mean_square(features, labels, x, slice(None)),
        optimum=0.0,
        target=bound(1.0),
        minimizer=np.ones(dim),
        noisy=noisy,
    )


def sparse(dim: int = 50, batch: int = 5) -> Problem:
    """The quadratic ``|x - 1|^2 / 2``, seen ``batch`` coordinates at a time.

    The loss is ``dim / batch`` times the sum over ``batch`` coordinates, drawn without replacement;
    the gradient in all others is zero. Optimum 0 at ``x = (1, ..., 1)``; the start is that of
    ``quadratic``. A nonzero gradient is ``dim / batch`` times too large, to make up for the zeros,
    and a moving average of the two keeps moving a coordinate long after its last nonzero gradient.
    The noise vanishes at the minimizer, so a fixed rate is enough: gradient descent at the rate
    ``batch / dim`` solves each coordinate when it is first drawn. Source: Duchi, Hazan and Singer,
    "Adaptive subgradient methods for online learning and stochastic optimization" (2011), on sparse
    gradients.
    """
    if not 1 <= batch <= dim:
        raise ValueError(f"need 1 <= batch <= dim, got {batch} and {dim}")

    def noisy(x: Params, key: Key) -> jax.Array:
        seen = jax.random.permutation(key, dim)[:batch]
        return _quadratic(jnp.asarray(x)[seen]) * (dim / batch)

    return _noisy_quadratic(
        "sparse",
        "A gradient is zero in most coordinates, because they were not drawn.",
        dim,
        target=bound(1.0),
        noisy=noisy,
    )


def heavy_tails(dim: int = 10, index: float = 1.5) -> Problem:
    """The quadratic ``|x - 1|^2 / 2`` under noise of infinite variance.

    The loss adds ``z (x - 1)`` and so the gradient ``z``, whose entries have random signs and a
    size above ``s`` with probability ``(1 + s)^-index`` (Lomax). With an ``index`` between 1 and 2
    the mean exists, so the loss is unbiased, but the variance does not: the largest of ``n`` draws
    is of order ``n^(1 / index)``, and one step can undo all before it. Single draws dominate the
    averages of gradients and of their squares. Optimum 0 at ``x = (1, ..., 1)``; the start is that
    of ``quadratic``.

    The noise remains at the minimizer, so the target is that of :func:`noisy_least_squares`, the
    value at distance 0.1. Sources: Simsekli, Sagun and Gurbuzbalaban, "A tail-index analysis of
    stochastic gradient noise in deep neural networks" (2019); Zhang et al., "Why are adaptive
    methods good for attention models?" (2020).
    """
    if not 1 < index <= 2:
        raise ValueError(f"need 1 < index <= 2, got {index}")

    def noisy(x: Params, key: Key) -> jax.Array:
        x = jnp.asarray(x)
        sign_key, size_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, (dim,), x.dtype)
        quantiles = 1.0 - jax.random.uniform(size_key, (dim,), x.dtype)  # in (0, 1]
        noise = signs * (quantiles ** (-1 / index) - 1.0)
        return _quadratic(x) + jnp.sum(noise * (x - 1.0))

    return _noisy_quadratic(
        "heavy_tails",
        "The noise of the gradients has no variance: any draw may dwarf all others.",
        dim,
        target=bound(1.0, radius=0.1),
        noisy=noisy,
    )


def rare_gradients(dim: int = 10, probability: float = 0.1) -> Problem:
    """The quadratic ``|x - 1|^2 / 2`` with many misleading gradients and rare large correct ones.

    The loss adds ``sum_i (B_i / probability - 1) d_i (x_i - 1)``, where ``d`` is the unit vector
    along (1, ..., 1) and each ``B_i`` is 1 with the given probability and otherwise 0. That is
    unbiased, with optimum 0 at ``x = (1, ..., 1)``; the start is that of ``quadratic``. But nine of
    ten gradients of a coordinate (at the default) lead to ``1 + d_i``, and the tenth leads back
    with nine times the force. At ``x = 1 + d`` the value is 1/2. An optimizer that shrinks rare
    large gradients relative to the others, by sign, clipping or division by a short moving average
    of squares, ends near there.

    The noise remains at the minimizer, so the target is that of :func:`noisy_least_squares`, the
    value at distance 0.1. Source: Reddi, Kale and Kumar, "On the convergence of Adam and beyond"
    (2018), section 3.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"need 0 < probability <= 1, got {probability}")

    def noisy(x: Params, key: Key) -> jax.Array:
        x = jnp.asarray(x)
        drawn = jax.random.bernoulli(key, probability, (dim,)).astype(x.dtype)
        pull = jnp.sum((drawn / probability - 1.0) * (x - 1.0)) / math.sqrt(dim)
        return _quadratic(x) + pull

    return _noisy_quadratic(
        "rare_gradients",
        "Most gradients are misleading, and rare large ones make up for it.",
        dim,
        target=bound(1.0, radius=0.1),
        noisy=noisy,
    )


def _noisy_quadratic(
    name: str, difficulty: str, dim: int, *, target: float, noisy: Callable[..., Any]
) -> Problem:
    """The quadratic ``|x - 1|^2 / 2``, whose gradients have this noise."""
    return Problem(
        name=name,
        difficulty=difficulty,
        init=lambda key: 1.0 + jax.random.normal(key, (dim,)),
        value=lambda x: _quadratic(jnp.asarray(x)),
        optimum=0.0,
        target=target,
        minimizer=np.ones(dim),
        noisy=noisy,
    )
