"""Shampoo and SPlus against their oracles, the authors' paths and theorems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.shampoo import shampoo as shampoo_oracle
from oracles.shampoo import splus as splus_oracle
from programs import conditionals_with
from recorded import GOLDEN, assert_on_path, path, paths, problem

import optfn
from optfn import linalg

RATE = 0.01
GRAFTING = optfn.scale_by_adam(0.9, 0.999, 1e-12)


def directions(tx, grads):
    """What a stage makes of the gradients, as matrices whose rows are the outputs."""
    return np.asarray(applied(tx, jnp.asarray(grads).mT).mT)


@jax.jit
def applied(tx, grads):
    def step(state, g):
        u, state = tx.update({"kernel": g}, state)
        return state, u["kernel"]

    return jax.lax.scan(step, tx.init({"kernel": grads[0]}), grads)[1]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"eps": 1e-3}, {"eps": 1e-3}),
        ({"b2": 0.9, "precondition_frequency": 3}, {"b2": 0.9, "frequency": 3}),
        (
            {"start_preconditioning_step": 5, "precondition_frequency": 4, "exponent": 0.5},
            {"start": 5, "frequency": 4, "exponent": 0.5},
        ),
        ({"b1": 0.0, "eps": 1e-6}, {"b1": 0.0, "eps": 1e-6}),
    ],
)
def test_params_equal_shampoo_s_oracle_s(here, there, x64):
    here, there = {"eps": 1e-4, **here}, {"eps": 1e-4, **there}
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    for shape, found in paths(optfn.shampoo(rates, weight_decay=0.1, **here)).items():
        p0, grads = problem(shape)
        lr = np.linspace(RATE, RATE / 2, len(grads))
        assert_on_path(found, shampoo_oracle(p0, grads, lr, weight_decay=0.1, **there), p0)


def test_walks_the_recorded_path_of_distributed_shampoo(x64):
    tx = optfn.shampoo(
        RATE,
        b2=0.999,
        weight_decay=0.1,
        precondition_frequency=3,
        max_preconditioner_dim=6,
        grafting=GRAFTING,
    )
    # The authors compute roots in single precision.
    for shape, found in paths(tx, ("5x5", "6x4")).items():
        assert_on_path(found, GOLDEN[f"shampoo_meta/{shape}"], problem(shape)[0], 1e-7)


@pytest.mark.parametrize("shape", ["5x5"])
@pytest.mark.parametrize("every", [1, 4, 100])
def test_params_equal_splus_s_oracle_s(every, shape, x64):
    p0, grads = problem(shape)
    found = path(optfn.splus(0.1, inverse_every=every), p0, grads)
    assert_on_path(found, splus_oracle(p0, grads, 0.1, every=every), p0)


def test_walks_the_recorded_path_of_splus(x64):
    p0, grads = problem("5x5")
    found = path(optfn.splus(0.1, inverse_every=4), p0, grads)
    assert_on_path(found, GOLDEN["splus/5x5"], p0)


@pytest.mark.parametrize("shape", ["6x4", "4x6", "5x5"])
def test_shampoo_without_memory_is_the_polar_factor(shape, x64):
    _, grads = problem(shape)
    tx = optfn.scale_by_shampoo(b1=0.0, b2=0.0, eps=0.0)
    found = directions(tx, grads)
    np.testing.assert_allclose(found, linalg.polar(jnp.asarray(grads)), atol=1e-7)


DIRECTIONS = {
    "shampoo": optfn.scale_by_shampoo(b2=0.9, eps=1e-3, precondition_frequency=2),
    "splus": optfn.scale_by_splus(inverse_every=2),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_rotations_of_both_sides_rotate_the_direction(name, x64):
    _, grads = problem("5x5")
    left, right = (
        np.linalg.qr(side)[0] for side in np.random.default_rng(0).normal(size=(2, 5, 5))
    )
    plain, rotated = (directions(DIRECTIONS[name], g) for g in (grads, left @ grads @ right))
    # The bases of the first update of SPlus are the axes.
    np.testing.assert_allclose(rotated[1:], (left @ plain @ right)[1:], atol=1e-8)


def test_all_entries_of_splus_are_of_one_size_in_its_basis(x64):
    _, grads = problem("5x5")
    tx, params = optfn.scale_by_splus(inverse_every=2), {"kernel": jnp.zeros((5, 5))}
    state = tx.init(params)
    for g in grads[:4]:
        slots = state.slots["scale_by_splus"]
        left, right = slots.rows_basis["kernel"], slots.columns_basis["kernel"]
        u, state = tx.update({"kernel": jnp.asarray(g.T)}, state)
        np.testing.assert_allclose(abs(left.T @ u["kernel"].T @ right), 1.0, rtol=1e-12)


def test_blocks_are_matrices_of_their_own_and_their_padding_changes_nothing(x64):
    p0, grads = problem("5x5")
    options = {"b2": 0.9, "precondition_frequency": 2, "weight_decay": 0.1}
    found = path(optfn.shampoo(RATE, max_preconditioner_dim=3, **options), p0, grads)
    whole = optfn.shampoo(RATE, **options)
    for rows in (slice(0, 3), slice(3, 5)):
        for columns in (slice(0, 3), slice(3, 5)):
            own = path(whole, p0[rows, columns], grads[:, rows, columns])
            assert_on_path(found[:, rows, columns], own, p0[rows, columns], 1e-9)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_stack_equals_its_slices_and_a_view_its_transpose(name, x64):
    grads = problem("5x5")[1][:12]
    stacked = jnp.asarray(grads.reshape(2, 6, 5, 5).swapaxes(0, 1))
    each = [directions(DIRECTIONS[name], part) for part in (grads[:6], grads[6:])]
    tx = DIRECTIONS[name]
    for view, turned in (
        (optfn.MatrixAxes(-1, -2), stacked.mT),
        (optfn.MatrixAxes(-2, -1), stacked),
    ):
        found = applied(dataclasses.replace(tx, views=view), turned)
        found = found.mT if view.rows == (-1,) else found
        np.testing.assert_allclose(found, np.stack(each, 1), atol=1e-9)


@pytest.mark.parametrize("long", ["rows", "columns", "both"])
def test_a_long_side_has_the_diagonal_of_its_factor(long, x64):
    g = np.random.default_rng(0).normal(size={"rows": (5, 3), "columns": (3, 5)}.get(long, (5, 5)))
    tx = optfn.scale_by_shampoo(b1=0.0, b2=0.0, max_square_dim=4)
    sides = []
    for side in (g, g.T):
        gram = side @ side.T
        w, q = np.linalg.eigh(np.diag(np.diag(gram)) if len(side) > 4 else gram)
        sides.append((q * w**-0.25) @ q.T)
    np.testing.assert_allclose(directions(tx, g[None])[0], sides[0] @ g @ sides[1], rtol=1e-7)
    shapes = jax.tree.map(jnp.shape, tx.init({"kernel": jnp.asarray(g.T)}).slots)
    slots = shapes["scale_by_shampoo"]
    wanted = [(n,) if n > 4 else (n, n) for n in g.shape]
    assert [slots.rows["kernel"], slots.columns["kernel"]] == wanted


TXS = {
    "shampoo": optfn.shampoo(RATE),
    "shampoo in blocks": optfn.shampoo(RATE, max_preconditioner_dim=2),
    "shampoo with diagonals": optfn.shampoo(RATE, max_square_dim=1),
    "splus": optfn.splus(0.1, inverse_every=1),
}


# bfloat16 has the range of float32.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in TXS for dtype in (jnp.float32, jnp.float16)]
    + [(name, jnp.bfloat16) for name in ("shampoo", "splus")],
)
def test_every_gradient_gives_a_finite_step(name, dtype):
    most, least = (6e4, 6e-8) if dtype == jnp.float16 else (1e25, 1e-30)
    plain = {
        "w": np.ones((3, 2)),
        "row": np.eye(1, 4),
        "column": np.eye(4, 1),
        "no": np.ones((0, 3)),
    }
    params = {path: {"kernel": jnp.ones(g.shape, dtype)} for path, g in plain.items()}
    for size in (0.0, 1.0, most, least):
        g = {path: {"kernel": jnp.asarray(size * g, dtype)} for path, g in plain.items()}
        for u in jax.tree.leaves(three_steps(TXS[name], params, g)):
            assert u.dtype == dtype and jnp.isfinite(u).all() and (abs(u) < 1).all()


@jax.jit
def three_steps(tx, params, g):
    def step(_, carry):
        return tx.update(g, carry[1], params)

    return jax.lax.fori_loop(0, 3, step, (g, tx.init(params)))[0]


def test_a_gradient_out_of_range_is_forgotten():
    g = jnp.asarray([[1.0, 2.0], [0.5, -1.0]])
    for tx, fields in ((DIRECTIONS["shampoo"], ("rows_root",)), (DIRECTIONS["splus"], ("rows",))):
        state = tx.init({"kernel": g})
        for size in (1.0, 1e25, 1.0, 1.0):
            _, state = tx.update({"kernel": size * g}, state)
        (slots,) = state.slots.values()
        for field in fields:
            assert jnp.isfinite(getattr(slots, field)["kernel"]).all()


@pytest.mark.parametrize("name", ["shampoo", "splus"])
def test_in_lanes_the_decomposition_stays_in_one_conditional(name):
    tx = DIRECTIONS[name]
    params = {"kernel": jnp.ones((3, 3))}
    lanes = jnp.arange(4)

    def lane(i):
        own = optfn.replace(tx, b2=0.9 + 0.01 * i)
        state = own.init(params)._replace(step=i)
        return own.update(params, state)[0]

    jaxpr = jax.make_jaxpr(jax.vmap(lane))(lanes).jaxpr
    assert [len(found) for found in conditionals_with("eigh", jaxpr)] == [0, 1]


@pytest.mark.parametrize("name", ["shampoo", "splus"])
def test_lanes_with_frequencies_of_their_own_equal_single_runs(name):
    field = {"shampoo": "precondition_frequency", "splus": "inverse_every"}[name]
    grads = jnp.asarray(problem("5x5")[1][:8], jnp.float32)

    def run(every):
        return applied(optfn.replace(DIRECTIONS[name], **{field: every}), grads)

    every = jnp.asarray([2.0, 5.0, 100.0])
    singles = jnp.stack([jax.jit(run)(n) for n in every])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(every), singles, atol=1e-4)
    assert len(np.unique(np.round(singles[:, -1], 3), axis=0)) == 3
