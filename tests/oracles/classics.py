"""Oracles of gradient descent with its momenta, of signs, and of sums and averages of squares."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, ema, negate, optimistic, per_step, squared, trace


def sgd(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    momentum: float | None = None,
    nesterov: bool = False,
) -> np.ndarray:
    """Gradient descent, with heavy-ball momentum (Polyak 1964; Sutskever et al. 2013)."""
    directions = double(grads) if momentum is None else trace(grads, momentum, nesterov)
    return negate(p, directions, lr)


def momentum(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    *,
    bias_correction: bool = False,
) -> np.ndarray:
    """Momentum as an average: v <- b1 * v + (1 - b1) * g, p <- p - lr * v."""
    return negate(p, ema(grads, b1, bias_correction), lr)


def rmsprop(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> np.ndarray:
    """RMSprop (Hinton 2012), centered (Graves 2013): g / sqrt(s + eps), or g / (sqrt(s) + eps).

    The momentum accumulates steps that are already scaled by the rate of their time.
    """
    grads = double(grads)
    s = ema(squared(grads), decay, bias_correction, initial=initial_scale)
    if centered:
        s = np.maximum(s - squared(ema(grads, decay, bias_correction)), 0)
    steps = per_step(lr, grads) * grads / (np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps)
    if momentum is not None:
        steps = trace(steps, momentum, nesterov)
    return negate(p, steps, 1.0)


def adagrad(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    eps_in_sqrt: bool = True,
) -> np.ndarray:
    """Adagrad (Duchi et al. 2011): g / sqrt(sum g^2 + eps), zero as long as the sum is zero.

    `eps_in_sqrt=False` is g / (sqrt(sum g^2) + eps).
    """
    grads = double(grads)
    total = initial_accumulator_value + np.cumsum(squared(grads), axis=0)
    scale = np.sqrt(total + eps) if eps_in_sqrt else np.sqrt(total) + eps
    return negate(p, np.divide(grads, scale, out=np.zeros_like(grads), where=total > 0), lr)


def adadelta(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """Adadelta (Zeiler 2012, Algorithm 1), of the gradient of an L2 penalty too."""
    p, path = double(p), []
    s = x = np.zeros(p.shape)
    for g, rate in zip(double(grads), per_step(lr, double(grads)), strict=True):
        g = g + weight_decay * p
        s = rho * s + (1 - rho) * squared(g)
        u = np.sqrt(x + eps) / np.sqrt(s + eps) * g
        x = rho * x + (1 - rho) * squared(u)
        p = p - rate * u
        path.append(p)
    return np.stack(path)


def rprop(
    p: ArrayLike,
    grads: ArrayLike,
    lr: float,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> np.ndarray:
    """Rprop without weight backtracking, which forgets a gradient whose sign has turned.

    Igel & Huesken 2003, Rprop- with the reset of iRprop-. Complex signs are z / |z|.
    """
    signs = np.sign(double(grads))
    size, last = np.full(signs[0].shape, float(lr)), np.zeros_like(signs[0])
    directions = []
    for sign in signs:
        agreement = np.real(sign * last.conj())
        size = np.where(agreement > 0, np.clip(size * eta_plus, min_step_size, max_step_size), size)
        size = np.where(
            agreement < 0, np.clip(size * eta_minus, min_step_size, max_step_size), size
        )
        last = np.where(agreement < 0, 0, sign)
        directions.append(size * last)
    return negate(p, np.stack(directions), 1.0)


def sign_sgd(p: ArrayLike, grads: ArrayLike, lr: ArrayLike) -> np.ndarray:
    """Sign descent (Bernstein et al. 2018, Algorithm 1)."""
    return negate(p, np.sign(double(grads)), lr)


def signum(p: ArrayLike, grads: ArrayLike, lr: ArrayLike, beta: float = 0.9) -> np.ndarray:
    """Signum (Bernstein et al. 2018, Algorithm 2)."""
    return negate(p, np.sign(ema(grads, beta, debias=False)), lr)


def lion(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: ArrayLike = 1e-3,
) -> np.ndarray:
    """Lion (Chen et al. 2023, Algorithm 2): the sign of the old average mixed with the gradient.

    The sign of a complex number is z / |z|.
    """
    grads = double(grads)
    m = ema(grads, b2, debias=False)
    m_before = np.concatenate([np.zeros_like(m[:1]), m[:-1]])
    return negate(p, np.sign(b1 * m_before + (1 - b1) * grads), lr, weight_decay)


def noisy_sgd(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    eta: float = 0.0,
    gamma: float = 0.55,
    seed: int = 0,
) -> np.ndarray:
    """Gradient descent with noise (Neelakantan et al. 2015), of which only none is reproducible."""
    assert eta == 0
    return negate(p, double(grads), lr)


def sm3(p: ArrayLike, grads: ArrayLike, lr: ArrayLike, momentum: float = 0.9) -> np.ndarray:
    """SM3-II (Anil et al. 2019) with slices along every axis, as loops over the entries."""
    grads = double(grads)
    shape = grads.shape[1:]
    sums = [np.zeros(n) for n in shape]
    directions = []
    for g in grads:
        new, u = [np.zeros(n) for n in shape], np.zeros_like(g)
        for i in np.ndindex(shape):
            s = min(sums[k][i[k]] for k in range(len(shape))) + squared(g[i])
            u[i] = g[i] / np.sqrt(s + 1e-8) if s > 0 else 0
            for k in range(len(shape)):
                new[k][i[k]] = max(new[k][i[k]], s)
        sums = new
        directions.append(u)
    return negate(p, ema(np.stack(directions), momentum, debias=False), lr)


def optimistic_gradient_descent(
    p: ArrayLike, grads: ArrayLike, lr: ArrayLike, alpha: float = 1.0, beta: float = 1.0
) -> np.ndarray:
    """Optimistic gradient descent (Mokhtari et al. 2020)."""
    return negate(p, optimistic(double(grads), alpha, beta), lr)


def qhm(
    p: ArrayLike, grads: ArrayLike, lr: ArrayLike, b1: float = 0.999, v1: float = 0.7
) -> np.ndarray:
    """Quasi-hyperbolic momentum (Ma & Yarats 2019, section 3)."""
    grads = double(grads)
    return negate(p, v1 * ema(grads, b1, debias=False) + (1 - v1) * grads, lr)


def madgrad(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
) -> np.ndarray:
    """MADGRAD (Defazio & Jelassi 2022, Algorithm 1), with eps added to the rate too."""
    x0, grads = double(p), double(grads)
    x, s, v, path = x0, np.zeros_like(grads[0]), np.zeros(grads.shape[1:]), []
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), 1):
        g = g + weight_decay * x
        c = (rate + eps) * np.sqrt(t)
        v = v + c * squared(g)
        s = s + c * g
        z = x0 - s / (np.cbrt(v) + eps)
        x = momentum * x + (1 - momentum) * z
        path.append(x)
    return np.stack(path)
