"""The direction of L-BFGS-B against the paper with B written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn.optimizers.quasi_newton.box import Box
from optfn.optimizers.quasi_newton.lbfgsb import scale_by_lbfgsb


def model_of(pairs, g, size):
    """B from theta I by the BFGS formula, once a pair, oldest first."""
    theta = max(np.linalg.norm(g), 1)
    if pairs:
        s, y = pairs[-1]
        theta = y @ y / (s @ y)
    B = theta * np.eye(size)
    for s, y in pairs:
        B += np.outer(y, y) / (s @ y) - B @ np.outer(s, s) @ B / (s @ B @ s)
    return B


def direction(x, g, lower, upper, B):
    """From x to the end of the step: piece by piece to the Cauchy point, then over a subspace."""

    def bound(d):
        return np.where(d > 0, upper, lower)

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
        return projected - x
    step = end - c
    room = np.where(step != 0, (bound(step) - c) / np.where(step != 0, step, 1), np.inf)
    return c + min(room.min(), 1) * step - x


@pytest.mark.parametrize("seed", range(3))
def test_the_direction_is_the_paper_s(seed, x64):
    """Along a path on which entries meet their bounds and leave them, and the memory fills."""
    rng = np.random.default_rng(seed)
    n, m = 8, 3
    root = rng.normal(size=(n, n)) * np.geomspace(1, 10, n)
    matrix, b = root @ root.T / n + 0.1 * np.eye(n), 10 * rng.normal(size=n)
    lower, upper = -abs(rng.normal(size=n)), abs(rng.normal(size=n))
    lower[0], upper[1], lower[2] = -np.inf, np.inf, upper[2]
    tx, x = scale_by_lbfgsb(m), np.clip(rng.normal(size=n), lower, upper)
    state, pairs, before, on_bounds = tx.init(jnp.asarray(x)), [], None, set()
    update = jax.jit(tx.update)
    for step in range(12):
        g = matrix @ x - b
        if before is not None:
            s, y = x - before[0], g - before[1]
            pairs = [*pairs, (s, y)][-m:] if s @ y > 1e-15 * (y @ y) else pairs
        before = x, g
        u, state = update(jnp.asarray(g), state, jnp.asarray(x), box=Box(lower, upper))
        wanted = direction(x, g, lower, upper, model_of(pairs, g, n))
        np.testing.assert_allclose(-u, wanted, rtol=1e-8, atol=1e-9)
        rate = 1 if step % 2 else 0.7
        x = np.clip(x + rate * wanted, lower, upper)
        on_bounds.add(((x == lower) | (x == upper)).sum())
    assert len(on_bounds) > 2


@pytest.mark.parametrize("side", [0.0, None, np.zeros(2)])
def test_bounds_of_another_shape_are_refused(side):
    tx, x = scale_by_lbfgsb(), jnp.zeros(3)
    with pytest.raises(ValueError, match="the lower bounds"):
        tx.update(x, tx.init(x), x, box=Box(side, jnp.ones(3)))


def test_without_bounds_it_is_the_direction_of_lbfgs(x64):
    params = {"a": jnp.asarray([[1.0, -2.0, 0.5]]), "n": None, "b": jnp.asarray(3.0)}
    far = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), params)
    given = {"box": Box(jax.tree.map(jnp.negative, far), far)}
    loss = lambda p: sum(jnp.sum(jnp.cosh(x)) for x in jax.tree.leaves(p))  # noqa: E731
    grad = jax.jit(jax.grad(loss))
    ends = []
    for tx in (optfn.scale_by_lbfgs(3), scale_by_lbfgsb(3)):
        p, state = params, tx.init(params)
        update = jax.jit(tx.update)
        for _ in range(6):
            u, state = update(grad(p), state, p, **given)
            p = jax.tree.map(lambda x, u: x - 0.5 * u, p, u)
        ends.append(p)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), *ends)
