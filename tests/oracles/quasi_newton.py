"""L-BFGS with the inverse Hessian written out."""

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
