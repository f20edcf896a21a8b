"""Oracles of PSGD with Kronecker products, given the probes."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, ema, per_step

SINGLE_EPS = 2.0**-23


def spectral_bound(a: np.ndarray, products: int = 2) -> float:
    """From below, by the power iteration, started at the column of largest norm."""
    v = a[:, np.argmax(np.sum(a * a, axis=0))]
    for _ in range(products):
        v = a @ (v / np.linalg.norm(v))
    return float(np.linalg.norm(v))


def is_due(probabilities: ArrayLike) -> list[bool]:
    """At which steps, if it is due as soon as there were 1 / probability since the last time."""
    since, due = 0, []
    for p in np.atleast_1d(probabilities):
        since += 1
        due.append(since + 1e-9 >= 1 / p)
        since = 0 if due[-1] else since
    return due


def kron(
    p: ArrayLike,
    grads: ArrayLike,
    probes: ArrayLike,
    lr: ArrayLike,
    probabilities: ArrayLike = 1.0,
    b1: float = 0.9,
    precond_lr: float = 0.1,
    init_scale: float = 1.0,
    weight_decay: float = 0.0,
    diagonal: tuple[bool, bool] = (False, False),
) -> np.ndarray:
    """Kron, without balancing, which is not seen in the products."""
    p, grads, probes = double(p), double(grads), double(probes)
    q = [np.sqrt(init_scale) * np.eye(n) for n in p.shape]
    due, path = is_due(np.broadcast_to(probabilities, len(grads))), []
    for m, v, now, rate in zip(ema(grads, b1), probes, due, per_step(lr, grads), strict=True):
        if now:
            m = m + np.sqrt(SINGLE_EPS) * np.mean(abs(m)) * v
            a = q[0] @ m @ q[1].T
            b = np.linalg.inv(q[0]).T @ v @ np.linalg.inv(q[1])
            for i, (x, y) in enumerate(((a, b), (a.T, b.T))):
                forward, backward = x @ x.T, y @ y.T
                if diagonal[i]:
                    forward, backward = np.diag(np.diag(forward)), np.diag(np.diag(backward))
                    size = np.max(forward + backward)
                else:
                    size = spectral_bound(forward + backward)
                q[i] = q[i] - precond_lr * np.triu(forward - backward) @ q[i] / size
        u = q[0].T @ q[0] @ m @ q[1].T @ q[1]
        u = u * min(1.0, 1.1 / np.sqrt(np.mean(u * u)))
        p = p - rate * (u + weight_decay * p)
        path.append(p)
    return np.stack(path)


def kron_of_entries(
    p: ArrayLike, grads: ArrayLike, probes: ArrayLike, lr: ArrayLike, probabilities: ArrayLike = 1.0
) -> np.ndarray:
    """The same for a vector, whose preconditioner is diagonal."""
    p, grads, probes = double(p), double(grads), double(probes)
    q, path = np.ones_like(p), []
    due = is_due(np.broadcast_to(probabilities, len(grads)))
    for m, v, now in zip(ema(grads, 0.9), probes, due, strict=True):
        if now:
            m = m + np.sqrt(SINGLE_EPS) * np.mean(abs(m)) * v
            a, b = (q * m) ** 2, (v / q) ** 2
            q = q - 0.1 * q * (a - b) / np.max(a + b)
        u = q * q * m
        p = p - lr * u * min(1.0, 1.1 / np.sqrt(np.mean(u * u)))
        path.append(p)
    return np.stack(path)


def mean_of_noise(p: np.ndarray, q: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E[h h^T] of h = p n q^T, with independent entries n of these standard deviations."""
    both = np.kron(p, q)
    covariance = both @ np.diag(deviation.ravel() ** 2) @ both.T
    return np.einsum("ijkj->ik", covariance.reshape(*deviation.shape, *deviation.shape))


def rotated(q: np.ndarray) -> np.ndarray:
    """exp(a r) q to second order, with the a that makes it most symmetric, at most 1/8."""
    r = q.T - q
    if not r.any():
        return q
    r = r / spectral_bound(r, 4)
    slope, bend = np.trace(r @ q), np.trace(r @ r @ q)
    a = min(-slope / bend, 1 / 8) if bend < 0 else 1 / 8
    return q + a * r @ q + a * a / 2 * r @ r @ q


def psgd_pro(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    probabilities: ArrayLike = 1.0,
    b1: float = 0.9,
    precond_lr: float = 0.1,
    beta_lip: float = 0.9,
    damping: float = 1e-9,
    init_scale: float | None = None,
    weight_decay: float = 0.0,
    diagonal: tuple[bool, bool] = (False, False),
    limits: tuple[float, float] = (2.0, 10.0),
) -> np.ndarray:
    """PSGD PRO (Li's `psgd_torch`), with the mean of the damping noise instead of the noise."""
    p, grads = double(p), double(grads)
    q = [np.sqrt(init_scale or 1) * np.eye(n) for n in p.shape]
    bounds, started, path = [0.0, 0.0], init_scale is not None, []
    due = is_due(np.broadcast_to(probabilities, len(grads)))
    for m, now, rate in zip(ema(grads, b1), due, per_step(lr, grads), strict=True):
        if now:
            if not started:
                scale = (np.mean(m**4) + damping**4) ** (-1 / 8)
                q, started = [np.sqrt(scale) * x for x in q], True
            deviation = damping + 2.0**-52 * abs(m)
            left, right = (x.T @ x for x in q)
            h = left @ m @ right.T
            noise = (
                mean_of_noise(left, right, deviation),
                mean_of_noise(right, left, deviation.T),
            )
            for i, x in enumerate((h, h.T)):
                found, wanted = x @ x.T + noise[i], x.shape[1]
                if diagonal[i]:
                    found = np.diag(np.diag(found))
                size = (np.max(found) if diagonal[i] else spectral_bound(found, 4)) + wanted
                bounds[i] = max(beta_lip * bounds[i] + (1 - beta_lip) * size, size)
                q[i] = q[i] - precond_lr / bounds[i] * (found @ q[i] - wanted * q[i])
                q[i] = rotated(q[i])
        u = q[0].T @ q[0] @ m @ q[1].T @ q[1]
        u = u * min(1.0, limits[0] / np.sqrt(np.mean(u * u)))
        p = p - rate * (np.clip(u, -limits[1], limits[1]) + weight_decay * p)
        path.append(p)
    return np.stack(path)
