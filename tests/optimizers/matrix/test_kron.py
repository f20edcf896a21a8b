"""Kron against its oracle, which gets the same probes, and theorems about whitening."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.kron import is_due, kron_of_entries, spectral_bound
from oracles.kron import kron as kron_oracle
from recorded import assert_on_path, paths, problem

import optfn
from optfn.optimizers.matrix.kronecker import spectral_norm_bound

RATE = 0.02


def probes(count, shape, stage="whiten_by_kron", leaf="kernel", seed=0, stack=()):
    """The normal numbers that a stage draws for a leaf, whose matrices have this shape."""

    def at(step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        key = jax.random.fold_in(key, zlib.crc32(f"{stage}/{leaf}".encode()))
        if stack:
            draw = jax.vmap(lambda key: jax.random.normal(key, shape))
            return draw(jax.random.split(key, stack))
        return jax.random.normal(key, shape)

    return np.asarray(jax.vmap(at)(jnp.arange(count)))


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        (
            {"preconditioner_update_probability": 0.3, "precond_init_scale": 0.1},
            {"probabilities": 0.3, "init_scale": 0.1},
        ),
        ({"b1": 0.5, "precond_lr": 0.4, "seed": 7}, {"b1": 0.5, "precond_lr": 0.4}),
        ({"max_size_triangular": 5}, {"diagonal": lambda r, c: (r > 5, c > 5)}),
        ({"memory_save_mode": "all_diag"}, {"diagonal": lambda r, c: (True, True)}),
        ({"memory_save_mode": "one_diag"}, {"diagonal": lambda r, c: (r > c, r <= c)}),
        ({"memory_save_mode": "smart_one_diag"}, {"diagonal": lambda r, c: (r > c, r < c)}),
    ],
)
def test_params_equal_the_oracle_s(here, there, x64):
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    for shape, found in paths(optfn.kron(rates, weight_decay=0.1, **here)).items():
        p0, grads = problem(shape)
        lr = np.linspace(RATE, RATE / 2, len(grads))
        drawn = probes(len(grads), p0.shape, leaf=f"{shape}/kernel", seed=here.get("seed", 0))
        own = {k: v(*p0.shape) if callable(v) else v for k, v in there.items()}
        assert_on_path(found, kron_oracle(p0, grads, drawn, lr, weight_decay=0.1, **own), p0)


@jax.jit
def run(tx, params, grads):
    """The params after each step."""

    def step(carry, g):
        params, state = optfn.step(tx, carry[0], g, carry[1])
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def test_vectors_equal_the_oracle_s(x64):
    rng = np.random.default_rng(0)
    p0, grads = rng.normal(size=5), rng.normal(size=(25, 5)) * np.geomspace(0.01, 10, 5)
    tx = optfn.kron(RATE, preconditioner_update_probability=0.5, weight_decay=0.1)
    found = np.asarray(run(tx, {"bias": p0}, {"bias": grads})["bias"])
    drawn = probes(25, (5,), "whiten_entries_by_kron", "bias")
    assert_on_path(found, kron_of_entries(p0, grads, drawn, RATE, 0.5), p0)


def test_a_stack_equals_its_slices(x64):
    rng = np.random.default_rng(1)
    p0, grads = rng.normal(size=(3, 4, 6)), rng.normal(size=(25, 3, 4, 6))
    tx = optfn.kron(RATE, views=optfn.matrices(default=optfn.MatrixAxes(-2, -1)))
    found = np.asarray(run(tx, {"w": p0}, {"w": grads})["w"])
    drawn = probes(25, (4, 6), leaf="w", stack=(3,))
    for i in range(3):
        wanted = kron_oracle(p0[i], grads[:, i], drawn[:, i], RATE)
        assert_on_path(found[:, i], wanted, p0[i])


def test_a_view_equals_its_transpose(x64):
    rng = np.random.default_rng(2)
    p0, grads = rng.normal(size=(4, 6)), rng.normal(size=(25, 4, 6))

    def params(view, p0, grads):
        tx = optfn.kron(RATE, views=optfn.matrices(default=view))
        return np.asarray(run(tx, {"w": p0}, {"w": grads})["w"])

    here = params(optfn.MatrixAxes(-2, -1), p0, grads)
    there = params(optfn.MatrixAxes(-1, -2), p0.T, grads.swapaxes(-1, -2))
    np.testing.assert_allclose(there.swapaxes(-1, -2), here, rtol=1e-12)


def kronecker_stream(shape, count, seed=3):
    """Gradients A N B^T, whose covariance is the Kronecker product of A A^T and B B^T."""
    rng = np.random.default_rng(seed)
    a, b = (
        np.linalg.qr(rng.normal(size=(n, n)))[0] * np.geomspace(0.3, 3, n) @ rng.normal(size=(n, n))
        for n in shape
    )
    return a @ rng.normal(size=(count, *shape)) @ b.T


def test_it_whitens(x64):
    grads = kronecker_stream((3, 4), 6000)
    rates = optfn.schedules.exponential(0.1, 1000, 0.5)
    tx = optfn.whiten_by_kron(1.0, rates, views=optfn.matrices(default=optfn.MatrixAxes(-2, -1)))

    @jax.jit
    def last(grads):
        def step(state, g):
            return tx.update({"w": g}, state)[1], None

        return jax.lax.scan(step, tx.init({"w": grads[0]}), grads)[0]

    slots = last(jnp.asarray(grads)).slots["whiten_by_kron"]
    left, right = (np.asarray(q["w"]) for q in (slots.left, slots.right))
    np.testing.assert_array_equal(np.tril(left, -1), 0)
    before, after = (
        x.reshape(len(grads), -1) for x in (grads, left.T @ left @ grads @ right.T @ right)
    )
    assert np.linalg.cond(before.T @ before) > 1e3
    eigenvalues = np.linalg.eigvalsh(after.T @ after / len(grads))
    np.testing.assert_allclose(eigenvalues, 1, atol=0.25)


@pytest.mark.parametrize("probability", [1.0, 0.5, 0.3, 1 / 49, 0.0])
def test_the_factors_change_when_they_are_due(probability, x64):
    rng = np.random.default_rng(4)
    grads = jnp.asarray(rng.normal(size=(150, 2, 2)))
    changes = np.asarray(_changes(optfn.whiten_by_kron(probability), grads))
    wanted = is_due(np.full(150, probability)) if probability else [False] * 150
    np.testing.assert_array_equal(changes, wanted)


@jax.jit
def _changes(tx, grads):
    def step(state, g):
        new = tx.update({"w": g}, state)[1]
        left = [s.slots["whiten_by_kron"].left["w"] for s in (state, new)]
        return new, jnp.any(left[0] != left[1])

    return jax.lax.scan(step, tx.init({"w": grads[0]}), grads)[1]


def test_a_falling_probability_is_followed(x64):
    schedule = optfn.schedules.exponential(1.0, 20, np.exp(-1), transition_begin=20, end_value=0.1)
    grads = jnp.asarray(np.random.default_rng(5).normal(size=(150, 2, 2)))
    wanted = np.clip(np.exp(-0.05 * (np.arange(150) - 20)), 0.1, 1)
    np.testing.assert_allclose(schedule(np.arange(150)), wanted, rtol=1e-12)
    usual = optfn.whiten_by_kron().preconditioner_update_probability
    steps = np.arange(0, 6000, 50)
    their = np.clip(np.exp(-0.001 * (steps - 500)), 0.03, 1)
    np.testing.assert_allclose(usual(steps), their, rtol=1e-12)
    changes = np.asarray(_changes(optfn.whiten_by_kron(schedule), grads))
    np.testing.assert_array_equal(changes, is_due(wanted))


def test_lanes_of_different_schedules_have_one_condition(x64):
    grads = jnp.asarray(np.random.default_rng(6).normal(size=(30, 2, 3)))
    lanes = jax.vmap(_changes, in_axes=(0, None))
    rates = jnp.asarray([1.0, 0.5, 0.2])
    tx = jax.vmap(optfn.whiten_by_kron)(rates)
    np.testing.assert_array_equal(lanes(tx, grads), [is_due(np.full(30, float(p))) for p in rates])
    # A select has no branch: in the program the triangular solves lie in one, once for each side.
    program = str(jax.make_jaxpr(lanes)(tx, grads))
    assert program.count("triangular_solve[") == 2
    assert program.count("cond[") == 1


@pytest.mark.parametrize("shape", [(6, 4), (1, 5), (5, 1), (0, 3)])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e25])
def test_updates_of_any_size_are_finite(shape, scale):
    rng = np.random.default_rng(7)
    g = scale * np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))  # of rank 1
    params = {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[0])}
    grads = {
        "kernel": jnp.asarray([g] * 300, jnp.float32),
        "bias": jnp.ones((300, shape[0])) * scale,
    }
    steps = run(optfn.kron(1.0), params, grads)
    for x in map(np.asarray, jax.tree.leaves(steps)):
        moves = x[1:] - x[:-1]
        assert np.isfinite(moves).all() and (not x.size or np.max(abs(moves)) < 10)
        assert bool(moves[-1].any()) == bool(scale and x.size)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound_of_the_spectral_norm(sign, x64):
    x = np.random.default_rng(8).normal(size=(3, 5, 5))
    x = x + sign * x.swapaxes(-1, -2)
    found = np.asarray(spectral_norm_bound(x, 4))
    exact = np.linalg.norm(x, 2, axis=(-2, -1))
    assert (found[:, 0, 0] <= exact * (1 + 1e-12)).all()
    assert (found[:, 0, 0] > 0.8 * exact).all()
    np.testing.assert_allclose(found[0, 0, 0], spectral_bound(x[0], 4), rtol=1e-12)
    assert (np.asarray(spectral_norm_bound(x, 12))[:, 0, 0] > 0.95 * exact).all()
    np.testing.assert_array_equal(spectral_norm_bound(jnp.zeros((2, 2))), [[0.0]])
    rank_one = np.outer([1e-100, 2e-100], [1e-100, 2e-100])
    np.testing.assert_allclose(spectral_norm_bound(rank_one), [[5e-200]], rtol=1e-12)
