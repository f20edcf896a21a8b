"""Oracles of Shampoo and SPlus, for a matrix whose rows are the outputs."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, per_step


def inverse_root(a: np.ndarray, exponent: float, eps: float) -> np.ndarray:
    """(a + eps I)^-exponent, through a singular value decomposition, which is never negative."""
    u, s, _ = np.linalg.svd(a)
    return (u * (s + eps) ** -exponent) @ u.T


def shampoo(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 1.0,
    eps: float = 1e-12,
    weight_decay: float = 0.0,
    frequency: int = 1,
    start: int | None = None,
    exponent: float = 0.25,
    graft_b2: float = 0.999,
    graft_eps: float = 1e-8,
) -> np.ndarray:
    """Distributed Shampoo (Shi et al. 2023) with Adam's norms."""
    p, grads = double(p), double(grads)
    start = frequency if start is None else start
    n, m = p.shape
    mu, nu = np.zeros_like(p), np.zeros_like(p)
    factors, roots, path = [np.zeros((n, n)), np.zeros((m, m))], [np.eye(n), np.eye(m)], []
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), start=1):
        weight, correction = (1 - b2, 1 - b2**t) if b2 < 1 else (1, 1)
        factors = [b2 * f + weight * x for f, x in zip(factors, (g @ g.T, g.T @ g), strict=True)]
        mu, nu = b1 * mu + (1 - b1) * g, graft_b2 * nu + (1 - graft_b2) * g**2
        if t == start or (t > start and t % frequency == 0):
            roots = [inverse_root(f / correction, exponent, eps) for f in factors]
        mean = mu / (1 - b1**t)
        u = mean / (np.sqrt(nu / (1 - graft_b2**t)) + graft_eps)
        if t >= start:
            d = roots[0] @ mean @ roots[1]
            u = d * np.linalg.norm(u) / np.linalg.norm(d)
        p = p - rate * (u + weight_decay * p)
        path.append(p)
    return np.stack(path)


def splus(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.01,
    every: int = 100,
) -> np.ndarray:
    """SPlus (Frans et al. 2025)."""
    p, grads = double(p), double(grads)
    n, m = p.shape
    mu, path = np.zeros_like(p), []
    factors, bases = [np.zeros((n, n)), np.zeros((m, m))], [np.eye(n), np.eye(m)]
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), start=1):
        mu = b1 * mu + (1 - b1) * g
        left, right = bases
        u = left @ np.sign(left.T @ mu @ right) @ right.T
        pairs = zip(factors, (g @ g.T, g.T @ g), strict=True)
        factors = [b2 * f + (1 - b2) * x for f, x in pairs]
        if t == 1 or t % every == 0:
            bases = [np.linalg.svd(f)[0] for f in factors]
        s = 2 * rate / (n + m)
        p = (1 - s * weight_decay) * (p - s * u)
        path.append(p)
    return np.stack(path)
