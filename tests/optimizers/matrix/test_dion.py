"""Dion and Dion2 against their oracles, the authors' paths and theorems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.dion import dion as dion_oracle
from oracles.dion import dion2 as dion2_oracle
from recorded import GOLDEN, SHAPES, assert_on_path, paths, problem

import optfn
from optfn import linalg

RATE = 0.02
STILL = optfn.sgd(0.0)


def first_bases(direction):
    """Of the matrices of `paths`."""
    params = {shape: {"kernel": jnp.asarray(problem(shape)[0].T)} for shape in SHAPES}
    bases = slots(direction.init(params)).basis
    return {shape: np.asarray(basis["kernel"]) for shape, basis in bases.items()}


def slots(state):
    return state.slots["scale_by_dion"]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        ({"rank_fraction": 0.5, "seed": 3}, {}),
        ({"rank_fraction": 0.3, "mu": 0.5, "epsilon": 1e-3}, {"mu": 0.5, "epsilon": 1e-3}),
    ],
)
def test_dion_s_params_equal_the_oracle_s(here, there, x64):
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    bases = first_bases(optfn.scale_by_dion(**here))
    tx = optfn.dion(rates, weight_decay=0.1, rest=STILL, **here)
    for shape, found in paths(tx).items():
        p0, grads = problem(shape)
        assert bases[shape].shape[1] == np.ceil(here.get("rank_fraction", 1.0) * min(p0.shape))
        lr = np.linspace(RATE, RATE / 2, len(grads))
        wanted = dion_oracle(p0, grads, lr, bases[shape], weight_decay=0.1, **there)
        assert_on_path(found, wanted, p0)


@pytest.mark.parametrize(
    "given", [{}, {"fraction": 0.5}, {"fraction": 1.0, "ef_decay": 0.5}, {"epsilon": 1e-3}]
)
def test_dion2_s_params_equal_the_oracle_s(given, x64):
    for shape, found in paths(optfn.dion2(RATE, rest=STILL, **given)).items():
        p0, grads = problem(shape)
        assert_on_path(found, dion2_oracle(p0, grads, RATE, **given), p0)


def test_dion2_walks_the_recorded_path(x64):
    # The authors hold these in single precision, and add epsilon to 1.02 times the norm.
    decay, epsilon, weight_decay = np.float32([0.95, 1e-8, 0.01]).tolist()
    exact = optfn.dion2(0.01, 0.5, decay, epsilon / 1.02, weight_decay=weight_decay)
    for tx, tolerance in ((exact, 1e-11), (optfn.dion2(0.01, 0.5), 5e-8)):
        for shape, found in paths(tx, ("6x4", "4x6")).items():
            assert_on_path(found, GOLDEN[f"dion2/{shape}"], problem(shape)[0], tolerance)


def test_dion2_of_all_rows_is_muon(x64):
    muon = optfn.chain(
        optfn.trace(0.95),
        optfn.newton_schulz("polar_express", 1e-8),
        optfn.scale_by_matrix_shape("spectral"),
        optfn.scale_by_learning_rate(RATE),
    )
    wanted = paths(muon)
    for shape, found in paths(optfn.dion2(RATE, fraction=1.0, weight_decay=0.0)).items():
        assert_on_path(found, wanted[shape], problem(shape)[0])


def matrix_of(singular_values, shape, seed=0):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(shape[0], len(singular_values))))
    v, _ = np.linalg.qr(rng.normal(size=(shape[1], len(singular_values))))
    return u * np.asarray(singular_values) @ v.T, u, v


def directions(tx, g, steps):
    """The last update of a constant gradient, in (out, in), and the state."""
    updates, state = last_of(tx, jnp.asarray(g), steps)
    return np.asarray(updates), state


@jax.jit
def last_of(tx, g, steps):
    def step(_, carry):
        updates, state = tx.update({"kernel": g.T}, carry[1])
        return updates["kernel"].T, state

    return jax.lax.fori_loop(0, steps, step, (g, tx.init({"kernel": g.T})))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_dion_at_full_rank_finds_the_polar_factor(shape, x64):
    g, u, v = matrix_of([4.0, 2.0, 1.0, 0.5], shape)
    found, _ = directions(optfn.scale_by_dion(epsilon=0.0), g, 40)
    np.testing.assert_allclose(found, u @ v.T, atol=1e-10)
    np.testing.assert_allclose(found, linalg.polar(g), atol=1e-10)


def test_dion_at_low_rank_steps_along_the_largest_singular_vectors(x64):
    g, u, v = matrix_of([8.0, 4.0, 0.1, 0.05], (6, 4))
    # With mu = 1 nothing decays, and the directions stay in proportion.
    found, _ = directions(optfn.scale_by_dion(0.5, mu=1.0, epsilon=0.0), g, 40)
    np.testing.assert_allclose(found, u[:, :2] @ v[:, :2].T, atol=1e-10)


def test_what_dion_does_not_apply_stays_in_the_momentum(x64):
    g, _, _ = matrix_of([3.0, 2.0, 1.0, 0.5], (6, 4))
    tx = optfn.scale_by_dion(0.5, mu=0.7)
    state = tx.init({"kernel": jnp.zeros((4, 6))})
    updates, state = tx.update({"kernel": jnp.asarray(g.T)}, state)
    left = np.asarray(updates["kernel"]).T
    momentum = np.asarray(slots(state).momentum["kernel"]).T
    p, _ = np.linalg.qr(left)
    p = p[:, :2]
    np.testing.assert_allclose(p.T @ momentum, 0.7 * p.T @ g, atol=1e-12)
    off = np.eye(6) - p @ p.T
    np.testing.assert_allclose(off @ momentum, off @ g, atol=1e-12)


STAGES = {"dion": optfn.scale_by_dion, "dion2": optfn.scale_by_dion2}


@pytest.mark.parametrize("name", STAGES)
def test_a_stack_equals_its_slices_and_a_view_its_transpose(name, x64):
    g = np.random.default_rng(1).normal(size=(5, 3, 6, 4))

    def run(view, arrays):
        stage = STAGES[name](0.5, views=optfn.matrices(default=view))
        state = stage.init({"w": jnp.zeros_like(arrays[0])})

        def step(state, g):
            updates, state = stage.update({"w": g}, state)
            return state, updates["w"]

        return jax.jit(lambda arrays: jax.lax.scan(step, state, arrays)[1])(arrays)

    whole = run(optfn.MatrixAxes(-2, -1), jnp.asarray(g))
    for i in range(3):
        np.testing.assert_allclose(
            run(optfn.MatrixAxes(-2, -1), jnp.asarray(g[:, i])), whole[:, i], atol=1e-12
        )
    turned = run(optfn.MatrixAxes(-1, -2), jnp.asarray(g.swapaxes(-1, -2)))
    np.testing.assert_allclose(turned.swapaxes(-1, -2), whole, atol=1e-12)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (5, 1), (0, 3)])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e25])
def test_updates_of_any_size_are_finite(name, shape, scale):
    rng = np.random.default_rng(2)
    g = scale * np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))  # of rank 1
    found, state = directions(STAGES[name](0.5), g.astype(np.float32), 3)
    assert all(np.isfinite(x).all() for x in (found, *jax.tree.leaves(state)))
    if scale and g.size:
        assert 0.3 < np.linalg.norm(found) < 1.3
    else:
        assert not found.any()


def test_without_a_gradient_the_basis_stays():
    tx = optfn.scale_by_dion(0.5)
    first = tx.init({"kernel": jnp.zeros((4, 6))})
    _, state = tx.update({"kernel": jnp.zeros((4, 6))}, first)
    np.testing.assert_array_equal(slots(state).basis["kernel"], slots(first).basis["kernel"])


def test_a_gradient_that_starts_late_is_found():
    tx = optfn.scale_by_dion()
    g, u, v = matrix_of([2.0, 1.0], (6, 4))
    grads = jnp.asarray([np.zeros((4, 6))] * 3 + [g.T] * 8, jnp.float32)

    def step(state, g):
        updates, state = tx.update({"kernel": g}, state)
        return state, updates["kernel"]

    _, updates = jax.lax.scan(step, tx.init({"kernel": grads[0]}), grads)
    np.testing.assert_allclose(updates[-1].T, u @ v.T, atol=1e-3)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"rank_fraction=.*at most 1, found 1.5"):
        optfn.dion(0.01, 1.5)
    with pytest.raises(ValueError, match=r"fraction=.*above 0.*found 0"):
        optfn.dion2(0.01, 0)
