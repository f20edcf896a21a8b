"""NorMuon, AdaMuon, Muon on the hyperball and nanochat's Muon, and the stages they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import muon_kin as oracles
from recorded import GOLDEN, SHAPES, assert_on_path, paths, problem

import optfn
from optfn import MatrixAxes, linalg

RATE = 0.02
RATES = np.linspace(RATE, RATE / 2, 25)
SCHEDULE = optfn.schedules.linear(RATE, RATE / 2, 24)
NO_REST = optfn.sgd(0.0)


def first_adamuon(rate):
    """The composition that the docstring of `adamuon` names."""
    return optfn.chain(
        optfn.ema(0.9, debias=False),
        optfn.newton_schulz(),
        optfn.scale_by_rms(0.95, 1e-10, eps_in_sqrt=False, bias_correction=True),
        optfn.normalize_matrices(1e-10),
        optfn.scale_by_matrix_shape("rms", 0.2),
        optfn.scale_by_learning_rate(rate),
    )


def hyperball(rate, **kwargs):
    return optfn.chain(optfn.scale_by_muon(), optfn.hyperball(rate, **kwargs))


PAIRS = {
    "normuon": (
        optfn.normuon(SCHEDULE, weight_decay=0.1),
        lambda p, g: oracles.normuon(p, g, RATES, weight_decay=0.1),
    ),
    "normuon with other numbers": (
        optfn.normuon(SCHEDULE, 0.8, 0.9, 1e-3, consistent_rms=0.2),
        lambda p, g: oracles.normuon(p, g, RATES, 0.8, 0.9, 1e-3, scale="rms"),
    ),
    "adamuon": (
        optfn.adamuon(SCHEDULE),
        lambda p, g: oracles.adamuon(p, g, RATES, weight_decay=0.01),
    ),
    "adamuon with other numbers": (
        optfn.adamuon(SCHEDULE, 0.8, 1e-3, 0.0),
        lambda p, g: oracles.adamuon(p, g, RATES, 0.8, 1e-3),
    ),
    "the first adamuon": (
        first_adamuon(SCHEDULE),
        lambda p, g: oracles.adamuon_first(p, g, RATES, 0.9, 0.95, 1e-10),
    ),
    "muon on the hyperball": (
        hyperball(SCHEDULE),
        lambda p, g: oracles.muon_on_the_hyperball(p, g, RATES),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_params_equal_the_oracle_s(name, x64):
    here, oracle = PAIRS[name]
    for shape, found in paths(here).items():
        p0, grads = problem(shape)
        assert_on_path(found, oracle(p0, grads), p0)


@jax.jit
def clipped_path(tx, params, gradients, logits):
    def step(carry, given):
        g, largest = given
        params, state = optfn.step(tx, carry[0], g, carry[1], max_logits=largest)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), (gradients, logits))[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_params_of_muon_clip_equal_the_oracle_s(alpha, shape, x64):
    p0, grads = problem(shape)
    both = {"query": (p0, grads), "key": (p0[::-1], grads[::-1])}
    params, gradients = ({name: pair[i] for name, pair in both.items()} for i in (0, 1))
    logits = np.random.default_rng(0).uniform(1, 4, size=(len(grads), len(p0)))
    tx = optfn.muon_clip(RATE, 3.0, alpha, head_axis=-1)
    kernels = [
        {name: {"kernel": jnp.asarray(x).mT} for name, x in tree.items()}
        for tree in (params, gradients)
    ]
    found = clipped_path(tx, *kernels, jnp.asarray(logits))
    wanted = oracles.muon_clip(params, gradients, RATE, logits, 3.0, alpha)
    for name, p in params.items():
        assert_on_path(np.asarray(found[name]["kernel"].mT), wanted[name], p)


def test_normuon_walks_the_recorded_path(x64):
    for shape, found in paths(optfn.normuon(RATE, weight_decay=0.1), ("6x4", "4x6")).items():
        assert_on_path(found, GOLDEN[f"normuon/{shape}"], problem(shape)[0])


def test_nanochat_s_muon_is_made_of_stages(x64):
    polynomials = np.asarray(linalg.POLYNOMIALS["polar_express"])
    in_one = polynomials / np.where(np.arange(5)[:, None] == 0, 1.01 ** np.array([1, 3, 5]), 1)
    tx = optfn.chain(
        optfn.ema(0.95, debias=False, nesterov=True),
        optfn.equalize_rows(),
        optfn.newton_schulz(in_one, eps=0.0),
        optfn.normalize_matrices(),
        optfn.scale_by_row_moment(eps=0.0, side="longer"),
        optfn.scale_by_matrix_shape("width"),
        optfn.add_cautious_decay(0.1),
        optfn.scale_by_learning_rate(RATE),
    )
    for shape, found in paths(tx).items():
        p0, grads = problem(shape)
        assert_on_path(found, oracles.nanochat(p0, grads, RATE, polynomials, 0.1), p0)


@pytest.mark.parametrize("side", ["rows", "columns", "longer"])
def test_the_row_moment_keeps_the_norm(side, x64):
    tx = optfn.scale_by_row_moment(eps=0.0, side=side)
    for shape in SHAPES:
        p0, grads = problem(shape)
        state = tx.init({"w": p0})
        for g in grads[:3]:
            updates, state = tx.update({"w": g}, state)
            np.testing.assert_allclose(np.linalg.norm(updates["w"]), np.linalg.norm(g), rtol=1e-13)


def test_the_row_moment_equalizes_rows_of_constant_norms(x64):
    """It divides each row by what it always was, so all are of one norm."""
    g = problem("6x4")[1][0]
    tx = optfn.scale_by_row_moment(views=MatrixAxes(0, 1))
    updates, _ = tx.update(g, tx.init(g))
    equal = optfn.equalize_rows(views=MatrixAxes(0, 1)).update(g, optfn.State(0, {}))[0]
    np.testing.assert_allclose(updates, equal, rtol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(equal, axis=1), np.linalg.norm(g) / 6**0.5)


STACK = optfn.matrices({"w": MatrixAxes(rows=-1, columns=-2)})
FLIPPED = optfn.matrices({"w": MatrixAxes(rows=-2, columns=-1)})


def of_views(views):
    return {
        "normuon": optfn.normuon(RATE, weight_decay=0.1, views=views, rest=NO_REST),
        "adamuon": optfn.adamuon(RATE, views=views, rest=NO_REST),
        "scion": optfn.scion(RATE, views=views),
        "scion of columns": optfn.scion(RATE, "column", views=views),
        "scion of rows": optfn.scion(RATE, "row", views=views),
        "scion of signs": optfn.scion(RATE, "sign", views=views),
        "muon on the hyperball": optfn.partition_matrices(
            optfn.chain(optfn.scale_by_muon(views=views), optfn.hyperball(RATE, views=views)),
            NO_REST,
            views,
        ),
        "equal rows": optfn.partition_matrices(
            optfn.chain(
                optfn.equalize_rows(views=views),
                optfn.scale_by_row_moment(eps=0.0, side="longer", views=views),
                optfn.normalize_matrices(views=views),
                optfn.scale_by_learning_rate(RATE),
            ),
            NO_REST,
            views,
        ),
    }


@jax.jit
def steps(tx, params, grads):
    def step(carry, g):
        params, state = optfn.step(tx, carry[0], g, carry[1])
        return (params, state), None

    return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]


@pytest.mark.parametrize("name", of_views(STACK))
def test_a_stack_equals_its_slices_and_a_view_its_transpose(name, x64):
    p0, grads = problem("6x4")
    p0 = jnp.stack([p0.T, 10 * p0.T + 1, p0.T - 1])
    grads = jnp.stack([grads[:4], grads[4:8], 3 * grads[8:12]], axis=1).mT
    stacked = steps(of_views(STACK)[name], {"w": p0}, {"w": grads})["w"]
    for i, found in enumerate(stacked):
        slice_ = steps(of_views(STACK)[name], {"w": p0[i]}, {"w": grads[:, i]})["w"]
        np.testing.assert_allclose(found, slice_, rtol=1e-11, atol=1e-12)
    flipped = steps(of_views(FLIPPED)[name], {"w": p0.mT}, {"w": grads.mT})["w"]
    np.testing.assert_allclose(flipped.mT, stacked, rtol=1e-11, atol=1e-12)


def test_a_hyperball_for_each_matrix_keeps_their_norms():
    p0 = jnp.asarray(problem("6x4")[0], jnp.float32)
    params = {"w": jnp.stack([p0, 100 * p0, 0 * p0])}
    tx = optfn.chain(optfn.newton_schulz(views=STACK), optfn.hyperball(0.1, views=STACK))
    grads = {"w": jnp.stack([p0 + 1, p0 - 1, p0])}
    new, _ = optfn.step(tx, params, grads, tx.init(params))
    for old, moved in zip(params["w"], new["w"], strict=True):
        np.testing.assert_allclose(jnp.linalg.norm(moved), jnp.linalg.norm(old), rtol=1e-6)
    assert float(jnp.linalg.norm(new["w"][0] - p0)) > 0.05 * float(jnp.linalg.norm(p0))


ODD = {
    "zero": jnp.zeros((3, 4)),
    "rank one": jnp.ones((4, 3)).at[:, 1:].set(0),
    "zero row": jnp.ones((3, 3)).at[1].set(0),
    "row": jnp.ones((1, 5)),
    "column": jnp.ones((5, 1)),
    "empty": jnp.zeros((0, 3)),
}


@jax.jit
def second_updates(tx, grads, params):
    def step(_, carry):
        return tx.update(grads, carry[1], params)

    return jax.lax.fori_loop(0, 2, step, (grads, tx.init(params)))[0]


@pytest.mark.parametrize("name", of_views(optfn.matrices()))
def test_odd_matrices_of_any_size_take_like_steps(name):
    tx, params = of_views(optfn.matrices())[name], jax.tree.map(jnp.ones_like, ODD)
    unit, huge, tiny = (
        second_updates(tx, jax.tree.map(lambda g, size=size: g * size, ODD), params)
        for size in (1.0, 1e25, 1e-30)
    )
    for path_, u in unit.items():
        assert np.all(np.isfinite(u)), path_
        np.testing.assert_allclose(huge[path_], u, rtol=1e-2, atol=1e-5, err_msg=path_)
        # Below eps Newton-Schulz starts from half of it, and ends elsewhere in its band.
        np.testing.assert_allclose(tiny[path_], u, rtol=0.3, atol=1e-5, err_msg=path_)
