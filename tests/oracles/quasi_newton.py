"""L-BFGS with the inverse Hessian written out, and L-BFGS-B with the Hessian."""

import numpy as np


def lbfgs(p, grads, lr, memory_size=10, scale_init_precond=True, linesearch=None):
    """Liu and Nocedal 1989: H from the identity by the BFGS formula, once a pair, oldest first."""

    def real(x):
        return np.concatenate([x.real, x.imag]) if np.iscomplexobj(x) else x

    def inverse_hessian(pairs, g):
        size = 1.0
        if scale_init_precond:
            size = 1 / max(np.linalg.norm(g), 1)
            if pairs:
                s, y = pairs[-1]
                size = s @ y / (y @ y)
        H, one = size * np.eye(len(g)), np.eye(len(g))
        for s, y in pairs:
            r = 1 / (s @ y)
            H = (one - r * np.outer(s, y)) @ H @ (one - r * np.outer(y, s)) + r * np.outer(s, s)
        return H

    lr = np.broadcast_to(lr, len(grads))
    pairs, before, path = [], None, []
    for g, rate in zip(grads, lr, strict=True):
        here = real(p), real(g)
        if before is not None:
            s, y = here[0] - before[0], here[1] - before[1]
            if not s.any():
                pairs = []
            if s @ y > np.finfo(float).eps * np.linalg.norm(s) * np.linalg.norm(y):
                pairs = [*pairs, (s, y)][-memory_size:]
        before = here
        u = inverse_hessian(pairs, here[1]) @ here[1]
        u = u[: len(p)] + 1j * u[len(p) :] if np.iscomplexobj(p) else u
        p = p - rate * u
        path.append(p)
    return np.array(path)


def lbfgsb(x, g, lower, upper, pairs):
    """Byrd, Lu, Nocedal and Zhu 1995: u of one step, with B written out, from pairs oldest first.

    Piece by piece to the Cauchy point, and over the free entries from there.
    """

    def bound(d):
        return np.where(d > 0, upper, lower)

    theta = max(np.linalg.norm(g), 1)
    if pairs:
        s, y = pairs[-1]
        theta = y @ y / (s @ y)
    B = theta * np.eye(len(x))
    for s, y in pairs:
        B += np.outer(y, y) / (s @ y) - B @ np.outer(s, s) @ B / (s @ B @ s)

    c, d, left = x.copy(), -g.copy(), np.where(g != 0, abs(bound(-g) - x), 0)
    while True:
        times = np.where(d != 0, left / np.where(d != 0, abs(d), 1), np.inf)
        slope, curvature = (g + B @ (c - x)) @ d, d @ B @ d
        if slope >= 0 or not d.any():
            break
        t = min(times.min(), -slope / curvature)
        hit = (times <= t) & (d != 0)
        c = np.where(hit, bound(d), c + t * d)
        left, d = left - t * abs(d), np.where(hit, 0, d)
        if not hit.any():
            break
    free = (c > lower) & (c < upper)
    end = c.copy()
    slope = g + B @ (c - x)
    end[free] -= np.linalg.solve(B[np.ix_(free, free)], slope[free])
    projected = np.clip(end, lower, upper)
    if g @ (projected - x) < 0:
        return x - projected
    step = end - c
    room = np.where(step != 0, (bound(step) - c) / np.where(step != 0, step, 1), np.inf)
    return x - (c + min(room.min(), 1) * step)
