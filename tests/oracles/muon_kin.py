"""Oracles of Muon's kin: each is what it makes of the average gradients, one matrix a step."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.muon import KELLER_JORDAN, newton_schulz
from oracles.paths import double, ema, negate


def momentum(grads: ArrayLike, beta: float) -> np.ndarray:
    """Nesterov's average."""
    return beta * ema(grads, beta, debias=False) + (1 - beta) * double(grads)


def over_average_square(
    factors: np.ndarray, b2: float, eps: float, axis: int | None = None, debias: bool = False
) -> np.ndarray:
    """Over the roots of the average squares, of entries or of means over an axis of each matrix."""
    squares = factors**2 if axis is None else np.mean(factors**2, axis=axis, keepdims=True)
    return factors / (np.sqrt(ema(squares, b2, debias)) + eps)


def norms(matrices: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(matrices**2, axis=(1, 2), keepdims=True))


def normuon(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    beta: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    scale: str = "width",
) -> np.ndarray:
    """NorMuon (Li et al. 2025), rows being the outputs."""
    r, c = np.shape(p)
    factor = {"width": max(1, r / c), "rms": 0.04 * max(r, c)}[scale] ** 0.5
    factors = np.stack([newton_schulz(u, KELLER_JORDAN) for u in momentum(grads, beta)])
    w = over_average_square(factors, b2, eps, axis=2)
    return negate(p, factor * w * norms(factors) / (norms(w) + eps), lr, weight_decay)


def adamuon(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> np.ndarray:
    """AdaMuon (Si et al. 2025) as its authors have it."""
    signs = np.sign(momentum(grads, beta))
    factors = np.stack([newton_schulz(u, KELLER_JORDAN) for u in signs])
    w = over_average_square(factors, beta, eps)
    return negate(p, 0.2 * np.size(p) ** 0.5 * w / (norms(w) + eps), lr, weight_decay)


def adamuon_first(
    p: ArrayLike, grads: ArrayLike, lr: ArrayLike, b1: float, b2: float, eps: float
) -> np.ndarray:
    """AdaMuon as its paper had it first: no signs, and a corrected second average."""
    factors = np.stack([newton_schulz(u, KELLER_JORDAN) for u in ema(grads, b1, debias=False)])
    w = over_average_square(factors, b2, eps, debias=True)
    return negate(p, 0.2 * np.size(p) ** 0.5 * w / (norms(w) + eps), lr)


def muon_on_the_hyperball(
    p: ArrayLike, grads: ArrayLike, lr: ArrayLike, beta: float = 0.95
) -> np.ndarray:
    """MuonH (Wen et al. 2025): each step is retracted to the norm that the matrix had."""
    p, path = double(p), []
    for u, rate in zip(momentum(grads, beta), np.broadcast_to(lr, len(grads)), strict=True):
        o = newton_schulz(u, KELLER_JORDAN)
        moved = p - rate * o * np.linalg.norm(p) / np.linalg.norm(o)
        p = moved * np.linalg.norm(p) / np.linalg.norm(moved)
        path.append(p)
    return np.stack(path)


def nanochat(
    p: ArrayLike,
    grads: ArrayLike,
    lr: float,
    coefficients: ArrayLike,
    weight_decay: float,
    beta: float = 0.95,
    b2: float = 0.95,
) -> np.ndarray:
    """Muon as nanochat has it: rows equalized, renormalized, NorMuon's variance, cautious decay."""
    p, u = double(p), momentum(grads, beta)
    r, c = p.shape
    u = u / np.linalg.norm(u, axis=2, keepdims=True) * norms(u) / r**0.5
    # The function divides by the norm itself, so the margin goes into the first polynomial.
    rows = np.asarray(coefficients) / np.r_[[1.01 ** np.array([1, 3, 5])], np.ones((4, 3))]
    factors = np.stack([newton_schulz(x, rows, 0) for x in u])
    factors = factors / norms(factors) * min(r, c) ** 0.5
    w = over_average_square(factors, b2, 0, axis=2 if r >= c else 1)
    steps = w / norms(w) * norms(factors) * max(1, r / c) ** 0.5
    path = []
    for step in steps:
        p = p - lr * (step + weight_decay * p * (step * p >= 0))
        path.append(p)
    return np.stack(path)


def muon_clip(
    params: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    lr: float,
    max_logits: ArrayLike,
    threshold: float,
    alpha: float = 0.5,
    weight_decay: float = 0.1,
) -> dict[str, np.ndarray]:
    """MuonClip (Kimi team 2025) of a query and a key, whose heads are their single rows.

    The largest logits are given, [T, rows].
    """
    path: dict[str, list] = {name: [] for name in params}
    for name, p in params.items():
        power = {"query": alpha, "key": 1 - alpha}[name]
        scale = 0.2 * max(p.shape) ** 0.5
        averages = ema(grads[name], 0.95, debias=False)
        for u, largest in zip(averages, np.asarray(max_logits), strict=True):
            p = p - lr * (scale * newton_schulz(u, KELLER_JORDAN) + weight_decay * p)
            p = p * np.minimum(1, threshold / largest)[:, None] ** power
            path[name].append(p)
    return {name: np.stack(steps) for name, steps in path.items()}
