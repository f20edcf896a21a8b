"""What the oracles are made of: sequences over all steps, and the descent along them.

As the gradients are given beforehand, whole sequences over time are written as the papers write
them: `ema` is y_t = b y_{t-1} + (1-b) x_t for all t at once, with y_t / (1 - b^t) where debiased.
"""

import numpy as np
from numpy.typing import ArrayLike


def double(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def squared(x: np.ndarray) -> np.ndarray:
    return np.real(x * x.conj())


def per_step(x: ArrayLike, grads: np.ndarray) -> np.ndarray:
    """One number, or one per step, as [T, 1, ..., 1]: it broadcasts against `grads`."""
    return np.broadcast_to(double(x), len(grads)).reshape(-1, *[1] * (grads.ndim - 1))


def count(grads: np.ndarray) -> np.ndarray:
    """t = 1, ..., T against `grads`."""
    return per_step(np.arange(1, len(grads) + 1), grads)


def negate(
    p: ArrayLike, directions: np.ndarray, lr: ArrayLike, weight_decay: ArrayLike = 0.0
) -> np.ndarray:
    """p <- p - lr * (u + weight_decay * p)."""
    p, path = double(p), []
    rates, decays = per_step(lr, directions), per_step(weight_decay, directions)
    for u, rate, decay in zip(directions, rates, decays, strict=True):
        p = p - rate * (u + decay * p)
        path.append(p)
    return np.stack(path)


def ema(grads: ArrayLike, decay: float, debias: bool = True, *, initial: float = 0.0) -> np.ndarray:
    """y <- decay * y + (1 - decay) * g, divided by 1 - decay^t where debiased."""
    grads = double(grads)
    y, out = np.full_like(grads[0], initial), []
    for g in grads:
        y = decay * y + (1 - decay) * g
        out.append(y)
    averages = np.stack(out)
    return averages / (1 - decay ** count(grads)) if debias else averages


def trace(grads: ArrayLike, decay: float, nesterov: bool = False) -> np.ndarray:
    """v <- decay * v + g; the update is v, or g + decay * v for Nesterov's."""
    grads = double(grads)
    v, out = np.zeros_like(grads[0]), []
    for g in grads:
        v = decay * v + g
        out.append(g + decay * v if nesterov else v)
    return np.stack(out)


def norm(x: np.ndarray) -> float:
    """The Euclidean norm, of entries of any size."""
    largest = np.max(abs(x), initial=0.0)
    return 0.0 if largest == 0 else largest * np.sqrt(np.sum(squared(x / largest)))


def optimistic(directions: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """alpha * u_t + beta * (u_t - u_{t-1}), with no change at first."""
    return alpha * directions + beta * np.diff(directions, axis=0, prepend=directions[:1])
