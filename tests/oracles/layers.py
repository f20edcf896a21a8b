"""Oracles of rules about whole arrays."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, ema, negate, norm, per_step, squared


def _trust_ratio(
    p: np.ndarray, u: np.ndarray, min_norm: float, trust_coefficient: float, eps: float
) -> float:
    p_norm, u_norm = max(norm(p), min_norm), max(norm(u), min_norm)
    return trust_coefficient * p_norm / (u_norm + eps) if p_norm > 0 and u_norm > 0 else 1.0


def lars(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> np.ndarray:
    """LARS (You et al. 2017, Algorithm 1): momentum of steps relative to the layer's params."""
    p, grads = double(p), double(grads)
    v, path = np.zeros_like(p), []
    for g, rate in zip(grads, per_step(lr, grads), strict=True):
        u = g + weight_decay * p
        step = rate * _trust_ratio(p, u, 0.0, trust_coefficient, eps) * u
        v = momentum * v + step
        p = p - (step + momentum * v if nesterov else v)
        path.append(p)
    return np.stack(path)


def lamb(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """LAMB (You et al. 2020, Algorithm 2), with the norm itself for phi."""
    p, grads = double(p), double(grads)
    directions = ema(grads, b1) / (np.sqrt(ema(squared(grads), b2) + eps_root) + eps)
    path = []
    for u, rate in zip(directions, per_step(lr, grads), strict=True):
        u = u + weight_decay * p
        p = p - rate * _trust_ratio(p, u, 0.0, 1.0, 0.0) * u
        path.append(p)
    return np.stack(path)


def fromage(p: ArrayLike, grads: ArrayLike, lr: ArrayLike, min_norm: float = 1e-6) -> np.ndarray:
    """Fromage (Bernstein et al. 2020, Algorithm 1)."""
    p, grads = double(p), double(grads)
    path = []
    for g, rate in zip(grads, per_step(lr, grads), strict=True):
        p = (p - rate * _trust_ratio(p, g, min_norm, 1.0, 0.0) * g) / np.sqrt(1 + rate**2)
        path.append(p)
    return np.stack(path)


def novograd(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """NovoGrad (Ginsburg et al. 2019, Algorithm 1): second moments of layers."""
    p, grads = double(p), double(grads)
    squares = [np.sum(squared(g)) for g in grads]
    m, v, path = np.zeros_like(p), squares[0], []
    for g, square, rate in zip(grads, squares, per_step(lr, grads), strict=True):
        v = b2 * v + (1 - b2) * square
        m = b1 * m + g / (np.sqrt(v + eps_root) + eps) + weight_decay * p
        p = p - rate * m
        path.append(p)
    return np.stack(path)


def adafactor(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    weight_decay_rate: float | None = None,
    eps: float = 1e-30,
    factored: bool = True,
) -> np.ndarray:
    """Adafactor (Shazeer & Stern 2018, Algorithms 4 and 5), of a vector or a matrix."""
    p, grads = double(p), double(grads)
    v, m, path = np.zeros(p.shape), np.zeros_like(p), []
    is_matrix = factored and p.ndim == 2 and min(p.shape) >= min_dim_size_to_factor
    row = col = np.zeros(())
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), 1):
        b = 1 - max(t - decay_offset, 1) ** -decay_rate
        square = squared(g) + eps
        v = b * v + (1 - b) * square
        if is_matrix:
            row = b * row + (1 - b) * square.mean(axis=1)
            col = b * col + (1 - b) * square.mean(axis=0)
            v = np.outer(row, col) / row.mean()
        u = g / np.sqrt(v)
        if clipping_threshold is not None:
            u = u / max(1.0, _rms(u) / clipping_threshold)
        u = rate * u
        if multiply_by_parameter_scale:
            u = u * max(_rms(p), 1e-3)
        if momentum is not None:
            u = m = momentum * m + (1 - momentum) * u
        p = p - u - (weight_decay_rate or 0.0) * p
        path.append(p)
    return np.stack(path)


def _rms(x: np.ndarray) -> float:
    return norm(x) / np.sqrt(x.size)


def stable_adamw(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-6,
    clip_threshold: float = 1.0,
    weight_decay: float = 1e-2,
) -> np.ndarray:
    """StableAdamW (Wortsman et al. 2023, Algorithm 2)."""
    p, grads = double(p), double(grads)
    roots = np.sqrt(ema(squared(grads), b2))
    directions = ema(grads, b1) / (roots + eps)
    path = []
    for g, u, root, rate in zip(grads, directions, roots, per_step(lr, grads), strict=True):
        lag = np.sqrt(np.mean(abs(g / np.maximum(root, eps)) ** 2)) / clip_threshold
        p = p - rate / max(1.0, lag) * (u + weight_decay * p)
        path.append(p)
    return np.stack(path)


def adam_mini(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """Adam-mini (Zhang et al. 2024, Algorithm 1): a vector is one block, as is a column."""
    grads = double(grads)
    mean = np.mean(squared(grads), axis=tuple(range(1, max(2, grads.ndim - 1))), keepdims=True)
    return negate(p, ema(grads, b1) / (np.sqrt(ema(mean, b2)) + eps), lr, weight_decay)


def sophia(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    gamma: float = 0.01,
    clip_threshold: float = 1.0,
    update_interval: int = 10,
    hessians: ArrayLike = (),
) -> np.ndarray:
    """Sophia (Liu et al. 2024, Algorithm 3), the estimate after the step as in the authors' code.

    `hessians` are the diagonals at all steps, of which every `update_interval`-th counts.
    """
    p, grads, hessians = double(p), double(grads), double(hessians)
    directions, h = [], np.zeros(p.shape)
    for t, m in enumerate(ema(grads, b1)):
        u = m / np.maximum(gamma * h, eps)
        parts = (np.clip(x, -clip_threshold, clip_threshold) for x in (u.real, u.imag))
        real, imaginary = parts
        directions.append(real + 1j * imaginary if np.iscomplexobj(u) else real)
        if t % update_interval == 0:
            h = b2 * h + (1 - b2) * hessians[t]
    return negate(p, np.stack(directions), lr, weight_decay)
