"""PSGD PRO against its oracle and theorems about whitening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.kron import psgd_pro as psgd_pro_oracle
from recorded import assert_on_path, paths, problem

import optfn

RATE = 0.02


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        ({"memory_save_mode": "none"}, {"diagonal": (False, False)}),
        ({"memory_save_mode": "all_diag"}, {"diagonal": (True, True)}),
        ({"damping": 0.1, "memory_save_mode": "none"}, {"damping": 0.1, "diagonal": (False,) * 2}),
        ({"damping": 0.1}, {"damping": 0.1}),
        (
            {"b1": 0.5, "beta_lip": 0.5, "precond_lr": 0.4},
            {"b1": 0.5, "beta_lip": 0.5, "precond_lr": 0.4},
        ),
        (
            {"preconditioner_update_probability": 0.3, "precond_init_scale": 0.5},
            {"probabilities": 0.3, "init_scale": 0.5},
        ),
        ({"max_update_rms": 0.5, "max_update": 0.7}, {"limits": (0.5, 0.7)}),
    ],
)
def test_params_equal_the_oracle_s(here, there, x64):
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    for shape, found in paths(optfn.psgd_pro(rates, weight_decay=0.1, **here)).items():
        p0, grads = problem(shape)
        r, c = p0.shape
        lr = np.linspace(RATE, RATE / 2, len(grads))
        own = {"diagonal": (r > c, r < c)} | there
        assert_on_path(found, psgd_pro_oracle(p0, grads, lr, weight_decay=0.1, **own), p0)


@jax.jit
def run(tx, arrays):
    """The last state and all updates."""

    def step(state, g):
        updates, state = tx.update({"w": g}, state)
        return state, updates["w"]

    return jax.lax.scan(step, tx.init({"w": arrays[0]}), arrays)


def stage(view, *args, **kwargs):
    return optfn.whiten_by_pro(*args, views=optfn.matrices(default=view), **kwargs)


ROWS_FIRST, ROWS_LAST = optfn.MatrixAxes(-2, -1), optfn.MatrixAxes(-1, -2)


def test_a_stack_equals_its_slices_and_a_view_its_transpose(x64):
    g = jnp.asarray(np.random.default_rng(1).normal(size=(25, 3, 6, 4)))
    _, whole = run(stage(ROWS_FIRST), g)
    for i in range(3):
        _, single = run(stage(ROWS_FIRST), g[:, i])
        np.testing.assert_allclose(single, whole[:, i], atol=1e-12)
    _, turned = run(stage(ROWS_LAST), g.swapaxes(-1, -2))
    np.testing.assert_allclose(turned.swapaxes(-1, -2), whole, atol=1e-12)


def test_it_whitens_with_symmetric_factors(x64):
    rng = np.random.default_rng(3)
    a, b = (
        np.linalg.qr(rng.normal(size=(n, n)))[0] * np.geomspace(0.3, 3, n) @ rng.normal(size=(n, n))
        for n in (3, 4)
    )
    grads = a @ rng.normal(size=(6000, 3, 4)) @ b.T
    rates = optfn.schedules.exponential(0.1, 1000, 0.5)
    tx = stage(ROWS_FIRST, 1.0, rates, memory_save_mode="none")
    state, _ = run(tx, jnp.asarray(grads))
    slots = state.slots["whiten_by_pro"]
    left, right = (np.asarray(q["w"]) for q in (slots.left, slots.right))
    for q in (left, right):
        np.testing.assert_allclose(q, q.T, atol=0.01 * abs(q).max())
        assert (np.linalg.eigvalsh(q + q.T) > 0).all()
    whitened = left.T @ left @ grads @ right.T @ right
    before, after = (x.reshape(len(grads), -1) for x in (grads, whitened))
    assert np.linalg.cond(before.T @ before) > 1e3
    eigenvalues = np.linalg.eigvalsh(after.T @ after / len(grads))
    np.testing.assert_allclose(eigenvalues, 1, atol=0.25)


def test_damping_bounds_the_preconditioner(x64):
    grads = jnp.asarray(1e-6 * np.random.default_rng(4).normal(size=(2000, 3, 3)))
    state, _ = run(stage(ROWS_FIRST, 1.0, damping=0.1), grads)
    slots = state.slots["whiten_by_pro"]
    both = np.kron(*(np.asarray(q["w"]).T @ np.asarray(q["w"]) for q in (slots.left, slots.right)))
    np.testing.assert_allclose(np.linalg.eigvalsh(both), 10, rtol=0.01)


@pytest.mark.parametrize("shape", [(6, 4), (1, 5), (5, 1), (0, 3)])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e25])
@pytest.mark.parametrize("init_scale", [None, 1.0])
def test_updates_of_any_size_are_finite(shape, scale, init_scale):
    rng = np.random.default_rng(5)
    g = scale * np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))  # of rank 1
    tx = optfn.scale_by_psgd_pro(
        precond_init_scale=init_scale, views=optfn.matrices(default=ROWS_FIRST)
    )
    state, updates = run(tx, jnp.asarray([g] * 300, jnp.float32))
    for x in (*jax.tree.leaves(state), updates):
        assert np.isfinite(x).all()
    assert not updates.size or np.max(abs(updates)) <= 10
    assert bool(updates[-1].any()) == bool(scale and g.size)
