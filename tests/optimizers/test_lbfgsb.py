"""The direction of L-BFGS-B against the paper with B written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import lbfgsb

import optfn
from optfn import Box, scale_by_lbfgsb


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
        wanted = -lbfgsb(x, g, lower, upper, pairs)
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


def test_the_state_is_a_fixed_point_in_the_precision_of_the_params():
    for dtype in (jnp.float32, jnp.bfloat16):
        params = {"a": jnp.ones((2, 3), dtype), "n": None, "b": jnp.zeros((), dtype)}
        given = {"box": Box(*(jax.tree.map(lambda p, s=s: p + s, params) for s in (-1, 1)))}
        tx = scale_by_lbfgsb(2)
        state = jax.eval_shape(tx.init, params)
        step = lambda s, p: tx.update(p, s, p, **given)  # noqa: E731, B023
        updates, after = jax.eval_shape(step, state, params)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)


def test_complex_params_are_refused():
    with pytest.raises(TypeError, match=r"takes real params, found complex64 at 'z'"):
        scale_by_lbfgsb().init({"z": jnp.ones(2, jnp.complex64)})
