"""Oracles of GaLore and APOLLO, of a matrix whose rows are the outputs."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, per_step


def leading_vectors(x: np.ndarray, rank: int, old: np.ndarray | None) -> np.ndarray:
    u = np.linalg.svd(x, full_matrices=False)[0][:, :rank]
    return u if old is None else u * np.where((u * old).sum(0) < 0, -1.0, 1.0)


def galore(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    rank: int = 128,
    gap: int = 200,
    scale: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    rows: bool = True,
) -> np.ndarray:
    """GaLore (Zhao et al. 2024) with Adam; of the projected side the rows, or the columns."""
    p, grads = double(p), double(grads)
    basis, m, v, path = None, 0.0, 0.0, []
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), start=1):
        x = g if rows else g.T
        if (t - 1) % gap == 0:
            basis = leading_vectors(x, rank, basis)
        r = basis.T @ x
        m = b1 * m + (1 - b1) * r
        v = b2 * v + (1 - b2) * r * r
        u = scale * basis @ (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))
        p = p - rate * ((u if rows else u.T) + weight_decay * p)
        path.append(p)
    return np.stack(path)


def apollo(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    projections: ArrayLike | None,
    rank: int = 256,
    gap: int = 200,
    scale: float = 1.0,
    channels: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    growth: float = 1.01,
    rows: bool = True,
) -> np.ndarray:
    """APOLLO (Zhu et al. 2025), with a standard normal matrix for each step or singular vectors."""
    p, grads = double(p), double(grads)
    basis, last, m, v, path = None, None, 0.0, 0.0, []
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), start=1):
        x = g if rows else g.T
        if projections is None and (t - 1) % gap == 0:
            basis = leading_vectors(x, rank, basis)
        low = basis.T if projections is None else projections[t - 1 - (t - 1) % gap] / rank**0.5
        r = low @ x
        m = b1 * m + (1 - b1) * r
        v = b2 * v + (1 - b2) * r * r
        direction = m / (np.sqrt(v) + eps)
        axis = 0 if channels else None
        factor = np.linalg.norm(direction, axis=axis) / (np.linalg.norm(r, axis=axis) + 1e-8)
        scaled = x * factor
        norm = np.linalg.norm(scaled)
        if last is not None:
            limiter = max(norm / (last + 1e-8), growth) / growth
            scaled, norm = scaled / limiter, norm / limiter
        last = norm
        u = scale**0.5 * scaled * np.sqrt(1 - b2**t) / (1 - b1**t)
        p = p - rate * ((u if rows else u.T) + weight_decay * p)
        path.append(p)
    return np.stack(path)
