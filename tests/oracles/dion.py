"""Oracles of Dion and Dion2."""

from math import ceil

import numpy as np
from numpy.typing import ArrayLike

from oracles.muon import newton_schulz
from oracles.paths import double, per_step

# Amsel et al. 2025, of a matrix whose norm is divided out 2 % too large.
POLAR_EXPRESS = [
    (8.156554524902461 / 1.02, -22.48329292557795 / 1.02**3, 15.878769915207462 / 1.02**5),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def dion(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    basis: ArrayLike,
    mu: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> np.ndarray:
    """Dion (Ahn et al. 2025, algorithm 1) of a matrix with at least as many rows as columns.

    A wide matrix is transposed before, and `basis` belongs to the transposed one.
    """
    p, grads, q = double(p), double(grads), double(basis)
    rows, columns = p.shape
    is_wide = rows < columns
    momentum, path = np.zeros_like(p), []
    for g, rate in zip(grads, per_step(lr, grads), strict=True):
        momentum = momentum + g
        x = momentum.T if is_wide else momentum
        left, _ = np.linalg.qr(x @ q)
        right = x.T @ left
        done = left @ right.T
        q = right / (np.sqrt(np.sum(right**2, axis=0)) + epsilon)
        u = left @ q.T
        momentum = momentum - (1 - mu) * (done.T if is_wide else done)
        p = (1 - rate * weight_decay) * p
        p = p - rate * np.sqrt(rows / columns) * (u.T if is_wide else u)
        path.append(p)
    return np.stack(path)


def dion2(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    fraction: float = 0.25,
    ef_decay: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> np.ndarray:
    """Dion2 (Ahn et al. 2025) of a matrix whose rows are the outputs."""
    p, grads = double(p), double(grads)
    rows, columns = p.shape
    axis = 0 if rows <= columns else 1
    momentum, path = np.zeros_like(p), []
    for g, rate in zip(grads, per_step(lr, grads), strict=True):
        momentum = momentum + g
        order = np.argsort(-np.sum(abs(momentum), axis=1 - axis))
        chosen = np.sort(order[: max(1, ceil(fraction * p.shape[axis]))])
        at = np.ix_(chosen, range(columns)) if axis == 0 else np.ix_(range(rows), chosen)
        u = newton_schulz(momentum[at], POLAR_EXPRESS, epsilon)
        momentum[at] *= ef_decay
        p = (1 - rate * weight_decay) * p
        p[at] -= rate * np.sqrt(rows / columns) * u
        path.append(p)
    return np.stack(path)
