"""Sophia and its estimates of curvature; its oracle and optax's path are with the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import conditionals_with

import optfn

CURVATURES = {"a": jnp.asarray([[1.0, 4.0], [0.25, 2.0]]), "b": jnp.asarray(3.0)}
START = jax.tree.map(jnp.ones_like, CURVATURES)


def bowl(params):
    return sum(jnp.sum(CURVATURES[k] * p**2) / 2 for k, p in params.items())


def test_hutchinson_s_estimate_is_exact_for_a_diagonal():
    tx = optfn.hutchinson_estimator_diag_hessian()
    found, _ = tx.update(START, tx.init(START), START, obj_fn=bowl)
    jax.tree.map(np.testing.assert_allclose, found, CURVATURES)


def test_hutchinson_s_estimate_is_right_on_average():
    """Of 4000 signs; an entry's deviation is the root of the sum of its row's squares."""
    matrix = jnp.asarray([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 3.0]])
    tx = optfn.hutchinson_estimator_diag_hessian(random_seed=3)
    params = jnp.zeros(3)

    def estimate(step):
        state = tx.init(params)._replace(step=step)
        return tx.update(params, state, params, obj_fn=lambda p: p @ matrix @ p / 2)[0]

    found = np.asarray(jax.vmap(estimate)(jnp.arange(4000)))
    off = np.sqrt((np.asarray(matrix) ** 2).sum(axis=1) - np.diag(matrix) ** 2)
    np.testing.assert_array_less(abs(found.mean(axis=0) - np.diag(matrix)), 4 * off / 4000**0.5)
    np.testing.assert_allclose(found.std(axis=0), off, rtol=0.1)
    other = optfn.hutchinson_estimator_diag_hessian(random_seed=4)
    state = other.init(params)
    differs = other.update(params, state, params, obj_fn=lambda p: p @ matrix @ p / 2)[0]
    assert not np.array_equal(differs, found[0])


def test_a_complex_param_has_the_mean_of_two_curvatures():
    tx = optfn.hutchinson_estimator_diag_hessian()
    params = jnp.asarray([1 + 2j, -1j])
    weights = jnp.asarray([[1.0, 3.0], [5.0, 2.0]])

    def loss(z):
        return jnp.sum(weights[:, 0] * z.real**2 + weights[:, 1] * z.imag**2) / 2

    found, _ = tx.update(params, tx.init(params), params, obj_fn=loss)
    np.testing.assert_allclose(found, weights.mean(axis=1))


def test_with_the_curvature_sophia_takes_newton_s_step(x64):
    """One step to fill the average, whose clipped direction is a sign, and one to the minimum."""
    start = jax.tree.map(lambda c: jnp.asarray(c, float), START)
    tx = optfn.sophia(1.0, b1=0, b2=0, gamma=1, weight_decay=0, clip_threshold=None)
    params, state = start, tx.init(start)
    for _ in range(2):
        grads = jax.grad(bowl)(params)
        params, state = optfn.step(tx, params, grads, state, obj_fn=bowl)
        if state.step == 1:
            params = start
    jax.tree.map(lambda p: np.testing.assert_allclose(p, 0, atol=1e-12), params)


def test_the_estimator_runs_only_when_it_is_due():
    calls = []

    def loss(params):
        jax.debug.callback(lambda: calls.append(1))
        return bowl(params)

    tx = optfn.scale_by_sophia(update_interval=3)
    update = jax.jit(lambda state: tx.update(START, state, START, obj_fn=loss)[1])
    state = tx.init(START)
    counts = []
    for _ in range(7):
        state = update(state)
        jax.effects_barrier()
        counts.append(len(calls))
    assert counts == [1, 1, 1, 2, 2, 2, 3]


def test_in_lanes_the_estimator_stays_in_one_conditional():
    def loss(params):
        return sum(jnp.sum(jnp.cosh(p)) for p in jax.tree.leaves(params))

    def lane(step, interval):
        tx = optfn.scale_by_sophia(update_interval=interval)
        state = tx.init(START)._replace(step=step)
        return tx.update(START, state, START, obj_fn=loss)

    lanes = jnp.arange(4), jnp.asarray([1.0, 2.0, 3.0, 5.0])
    jaxpr = jax.make_jaxpr(jax.vmap(lane))(*lanes).jaxpr
    assert [len(found) for found in conditionals_with("sinh", jaxpr)] == [0, 1]
    together = jax.jit(jax.vmap(lane))(*lanes)
    for i, numbers in enumerate(zip(*lanes, strict=True)):
        single = jax.jit(lane)(*numbers)
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), mine, single)


def test_entries_are_signs_where_curvature_is_negative_and_else_clipped():
    given = optfn.given_hessian_diagonal()
    tx = optfn.scale_by_sophia(b1=0, b2=0, gamma=1, hessian_diagonal_fn=given)
    g = jnp.asarray([0.5, -0.5, 3.0, 0.2])
    h = jnp.asarray([1.0, -1.0, 2.0, 0.0])
    _, state = tx.update(g, tx.init(g), hessian_diag=h)
    updates, _ = tx.update(g, state, hessian_diag=h)
    np.testing.assert_allclose(updates, [0.5, -1.0, 1.0, 1.0])


def test_sophia_with_its_own_estimator_walks_optax_s_path_on_a_diagonal():
    paths = []
    for library, apply in ((optfn, optfn.sophia), (optax, optax.contrib.sophia)):
        tx = apply(1e-2, update_interval=3, gamma=0.5)
        params, state = START, tx.init(START)

        def step(params, state, update=tx.update, library=library):
            updates, state = update(jax.grad(bowl)(params), state, params, obj_fn=bowl)
            return library.apply_updates(params, updates), state

        step = jax.jit(step)
        for _ in range(20):
            params, state = step(params, state)
        paths.append(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *paths)


def test_a_seed_that_is_none_is_refused():
    tx = optfn.hutchinson_estimator_diag_hessian(random_seed=0.5)
    with pytest.raises(ValueError, match=r"random_seed must be a whole number below 2\*\*24"):
        tx.update(START, tx.init(START), START, obj_fn=bowl)


def test_a_complex_curvature_of_real_params_is_refused():
    tx = optfn.given_hessian_diagonal()
    with pytest.raises(TypeError, match="a complex value cannot be stored as float32"):
        tx.update(START, tx.init(START), hessian_diag=jax.tree.map(lambda c: c + 1j, CURVATURES))
