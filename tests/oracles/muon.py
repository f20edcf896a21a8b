"""Oracles of Muon."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, per_step

KELLER_JORDAN = [(3.4445, -4.7750, 2.0315)] * 5


def newton_schulz(g: np.ndarray, coefficients: ArrayLike, eps: float = 1e-7) -> np.ndarray:
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.linalg.norm(x) + eps)
    for a, b, c in np.asarray(coefficients):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    coefficients: ArrayLike = KELLER_JORDAN,
    beta: float = 0.95,
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    debias: bool = False,
    scale: str = "width",
) -> np.ndarray:
    """Muon (Jordan et al. 2024) of a matrix whose rows are the outputs."""
    p, grads = double(p), double(grads)
    r, c = p.shape
    factor = {"width": max(1, r / c), "spectral": r / c, "rms": 0.04 * max(r, c)}[scale] ** 0.5
    v, path = np.zeros_like(p), []
    for t, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True), start=1):
        v = beta * v + (1 - beta) * g
        now, ahead = (1 - beta**t, 1 - beta ** (t + 1)) if debias else (1, 1)
        u = beta * v / ahead + (1 - beta) * g / now if nesterov else v / now
        p = p - rate * (factor * newton_schulz(u, coefficients, eps) + weight_decay * p)
        path.append(p)
    return np.stack(path)
