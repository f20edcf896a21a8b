"""Oracles of Scion: the norms, their farthest points, and the descent."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.muon import KELLER_JORDAN, newton_schulz
from oracles.paths import ema, negate

EPS = 1e-8


def farthest(norm: str, g: np.ndarray) -> np.ndarray:
    """The authors' oracle of a matrix whose rows are the outputs."""
    r, c = g.shape
    match norm:
        case "spectral":
            return (r / c) ** 0.5 * newton_schulz(g, KELLER_JORDAN)
        case "sign":
            return np.sign(g) / c
        case "column":
            return g / (np.linalg.norm(g, axis=0, keepdims=True) / r**0.5 + EPS)
        case _:
            return g / (np.linalg.norm(g, axis=1, keepdims=True) * c**0.5 + EPS)


def scion(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    norm: str,
    radius: float,
    momentum: float,
    constrained: bool = True,
) -> np.ndarray:
    """Scion (Pethick et al. 2025); momentum is the share of the newest gradient."""
    averages = ema(grads, 1 - momentum, debias=False)
    directions = np.stack([radius * farthest(norm, m) for m in averages])
    return negate(p, directions, lr, float(constrained))


def norm_of(norm: str, w: np.ndarray) -> float:
    """How large a matrix is as a map, by the definition of each norm."""
    r, c = w.shape
    match norm:
        case "spectral":
            return np.linalg.norm(w, 2) * (c / r) ** 0.5
        case "sign":
            return c * np.max(abs(w))
        case "column":
            return max(np.sqrt(np.mean(column**2)) for column in w.T)
        case _:
            return max(np.sqrt(c * np.sum(row**2)) for row in w)


def dual_norm_of(norm: str, g: np.ndarray) -> float:
    """The largest <g, w> over the unit ball."""
    r, c = g.shape
    match norm:
        case "spectral":
            return np.linalg.norm(g, "nuc") * (r / c) ** 0.5
        case "sign":
            return np.sum(abs(g)) / c
        case "column":
            return sum(r**0.5 * np.linalg.norm(column) for column in g.T)
        case _:
            return sum(np.linalg.norm(row) for row in g) / c**0.5
