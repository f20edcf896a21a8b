"""Oracles of SOAP, KL-Shampoo and KL-SOAP."""

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import double, per_step


def eigenvectors(a: np.ndarray) -> np.ndarray:
    return np.linalg.eigh(a)[1][:, ::-1]


def soap(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike = 3e-3,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    shampoo_beta: float | None = None,
    frequency: int = 10,
    sides: tuple[bool, bool] = (True, True),
    forgets_nu: bool = False,
    counts_the_first: bool = False,
) -> np.ndarray:
    """SOAP (Vyas et al. 2025) of a matrix.

    Args:
        sides: whether the rows and whether the columns have a basis.
        forgets_nu: a fault: between refreshes the old second moment is kept.
        counts_the_first: a fault: the bias is corrected for the first step, which is skipped.
    """
    p, grads = double(p), double(grads)
    sb = b2 if shampoo_beta is None else shampoo_beta
    bases = [np.eye(n) for n in p.shape]
    factors = [np.zeros((n, n)) for n in p.shape]
    m, v, path = np.zeros_like(p), np.zeros_like(p), []
    for k, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True)):
        refreshes = k > 0 and k % frequency == 0
        if k > 0:
            left, right = bases
            m = b1 * m + (1 - b1) * g
            new_v = b2 * v + (1 - b2) * (left.T @ g @ right) ** 2
            u = left @ ((left.T @ m @ right) / (np.sqrt(new_v) + eps)) @ right.T
            n = k + counts_the_first
            p = p - rate * np.sqrt(1 - b2**n) / (1 - b1**n) * u
            p = p - rate * weight_decay * p
            v = new_v if refreshes or not forgets_nu else v
        for i, gram in enumerate((g @ g.T, g.T @ g)):
            factors[i] = sb * factors[i] + (1 - sb) * gram
            if not sides[i]:
                continue
            if k == 0:
                bases[i] = eigenvectors(factors[i])
            if refreshes:
                order = np.argsort(-np.diag(bases[i].T @ factors[i] @ bases[i]), kind="stable")
                v = np.take(v, order, axis=i)
                bases[i] = np.linalg.qr(factors[i] @ bases[i][:, order])[0]
        path.append(p)
    return np.stack(path)


def kl(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike = 1e-4,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    shampoo_beta: float | None = None,
    frequency: int = 10,
    init_factor: float = 0.1,
    max_clamp_value: float = 4000.0,
    soap: bool = False,
) -> np.ndarray:
    """KL-Shampoo, or KL-SOAP, (Lin et al. 2025) of a matrix."""
    p, grads = double(p), double(grads)
    rows, columns = p.shape
    sb = b2 if shampoo_beta is None else shampoo_beta
    factors = [np.zeros((n, n)) for n in p.shape]
    bases = [np.eye(n) for n in p.shape]
    roots = [np.full(n, init_factor**-0.5) for n in p.shape]
    m, v, path = np.zeros_like(p), np.zeros_like(p), []
    for k, (g, rate) in enumerate(zip(grads, per_step(lr, grads), strict=True)):
        (left, right), (row, column) = bases, roots
        if k == 0:
            grams = g @ g.T / columns, g.T @ g / rows
            factors = [(1 - sb) * gram for gram in grams]
            bases = [eigenvectors(factor) for factor in factors]
            path.append(p)
            continue
        d = left.T @ g @ right
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d**2
        e = np.outer(row, column)
        direction = left.T @ m @ right
        u = direction / (np.sqrt(v) + eps) if soap else direction * e / (1 + e * eps)
        p = p - rate * left @ u @ right.T
        p = p - rate * weight_decay * p
        inverses = left @ np.diag(row**2) @ left.T, right @ np.diag(column**2) @ right.T
        grams = g @ inverses[1] @ g.T / columns, g.T @ inverses[0] @ g / rows
        factors = [sb * a + (1 - sb) * gram for a, gram in zip(factors, grams, strict=True)]
        means = np.mean((d * column) ** 2, axis=1), np.mean((d * row[:, None]) ** 2, axis=0)
        roots = [
            np.minimum(
                (sb / root**2 + (1 - sb) * mean) ** -0.5,
                max(10, min(len(root), max_clamp_value)),
            )
            for root, mean in zip(roots, means, strict=True)
        ]
        if k % frequency == 0:
            bases = [np.linalg.qr(a @ q)[0] for a, q in zip(factors, bases, strict=True)]
        path.append(p)
    return np.stack(path)
