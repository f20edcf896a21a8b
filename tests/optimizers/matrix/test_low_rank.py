"""GaLore and APOLLO against their oracles, optax and theorems about projections."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.adam import adam as adam_oracle
from oracles.low_rank import apollo as apollo_oracle
from oracles.low_rank import galore as galore_oracle
from recorded import assert_on_path, path, paths, problem

import optfn
from optfn.core.randomness import key_at, leaf_keys

RATE = 0.02
ROWS = {"6x4": True, "4x6": False, "5x5": False}  # of the larger side


def rates(grads):
    return np.linspace(RATE, RATE / 2, len(grads))


SCHEDULE = optfn.schedules.linear(RATE, RATE / 2, 24)


@pytest.mark.parametrize("gap", [4, 100])
@pytest.mark.parametrize("side", ["larger", "smaller"])
@pytest.mark.parametrize("rank", [2, 9])
def test_galore_equals_its_oracle(gap, side, rank, x64):
    tx = optfn.galore(SCHEDULE, rank, gap, 0.25, weight_decay=0.1, side=side)
    for shape, found in paths(tx).items():
        p0, grads = problem(shape)
        rows = ROWS[shape] == (side == "larger") if shape != "5x5" else False
        wanted = galore_oracle(
            p0, grads, rates(grads), min(rank, *p0.shape), gap, 0.25, weight_decay=0.1, rows=rows
        )
        assert_on_path(found, wanted, p0)


@pytest.mark.parametrize(
    ("gap", "ours", "theirs"),
    [
        (100, None, None),  # one basis for all steps
        (4, optfn.scale_by_sign(), optax.scale_by_sign()),  # without averages no sign matters
    ],
)
def test_galore_follows_optax(gap, ours, theirs, x64):
    other = optax.contrib.galore(RATE, 2, gap, 0.5, theirs, weight_decay=0.1)

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            updates, state = other.update(g, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        return jax.lax.scan(step, (params, other.init(params)), grads)[1]

    kernels = ({shape: jnp.asarray(problem(shape)[i]).mT for shape in ROWS} for i in (0, 1))
    wanted = run(*kernels)
    # optax decomposes in single precision.
    for shape, found in paths(optfn.galore(RATE, 2, gap, 0.5, ours, weight_decay=0.1)).items():
        assert_on_path(found, np.asarray(wanted[shape].mT), problem(shape)[0], 1e-5)


def test_galore_of_full_rank_is_adam_in_a_rotated_basis(x64):
    p0, grads = problem("5x5")
    found = path(optfn.galore(RATE, 5, 100, side="rows"), p0, grads)
    basis = np.linalg.svd(grads[0])[0]
    rotated = adam_oracle(basis.T @ p0, np.einsum("ji,tjk->tik", basis, grads), RATE)
    assert_on_path(found, basis @ rotated, p0, 1e-10)


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_is_rotated_with_its_gradients(name, x64):
    """On the projected side, and over changes of the basis, whose signs are no matter of chance."""
    p0, grads = problem("6x4")
    tx = {
        "galore": optfn.galore(RATE, 2, 4, side="rows"),
        "apollo": optfn.apollo(RATE, 2, 4, proj="svd", side="rows"),
    }[name]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    found = path(tx, turn @ p0, turn @ grads)
    assert_on_path(found, turn @ path(tx, p0, grads), p0, 1e-9)


KINDS = {
    "galore": lambda views: optfn.galore(RATE, 2, 4, views=views),
    "galore smaller": lambda views: optfn.galore(RATE, 2, 4, side="smaller", views=views),
    "apollo": lambda views: optfn.apollo(RATE, 2, 4, proj="svd", views=views),
}


@jax.jit
def _run(tx, params, grads):
    def step(carry, g):
        carry = optfn.step(tx, carry[0], g, carry[1])
        return carry, carry[0]

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


@pytest.mark.parametrize("name", KINDS)
def test_a_stack_equals_its_slices_and_a_view_its_transpose(name, x64):
    p0, grads = problem("6x4")
    many = jnp.stack([p0, 2 * p0[::-1]]), jnp.stack([grads, -grads[::-1]], axis=1)
    stacked = KINDS[name](optfn.matrices({"*": optfn.MatrixAxes(-2, -1)}))
    found = _run(stacked, {"w": many[0]}, {"w": many[1]})["w"]
    for i in range(2):
        own = _run(stacked, {"w": many[0][i]}, {"w": many[1][:, i]})["w"]
        assert_on_path(*map(np.asarray, (found[:, i], own, many[0][i])))
    turned = KINDS[name](optfn.matrices({"*": optfn.MatrixAxes(-1, -2)}))
    other = _run(turned, {"w": many[0].mT}, {"w": many[1].mT})["w"]
    np.testing.assert_allclose(other.mT, found, rtol=1e-11)


LARGER = {"side": "larger", "max_growth": 1.5}, {"growth": 1.5}
MINI = (
    {"rank": 1, "scale_type": "tensor", "scale": 128.0, "b2": 0.99},
    {"channels": False, "scale": 128.0, "b2": 0.99},
)


@pytest.mark.parametrize("proj", ["random", "svd"])
@pytest.mark.parametrize(
    ("shape", "here", "there"),
    [("6x4", {}, {}), ("4x6", {}, {}), ("5x5", {}, {}), ("6x4", *LARGER), ("4x6", *MINI)],
)
def test_apollo_equals_its_oracle(shape, proj, here, there, x64):
    p0, grads = problem(shape)
    rank, gap = here.get("rank", 3), 4
    rows = False if shape == "5x5" else ROWS[shape] == (here.get("side") == "larger")
    side = p0.shape[0] if rows else p0.shape[1]
    draws = None
    if proj == "random":
        keys = [
            leaf_keys(key_at(7.0, step, ""), "scale_by_apollo", {"kernel": 0})[0]
            for step in range(len(grads))
        ]
        draws = [np.asarray(jax.random.normal(key, (rank, side), jnp.float64)) for key in keys]
    tx = optfn.apollo(SCHEDULE, **{"rank": rank, **here}, proj=proj, update_proj_gap=gap, seed=7)
    wanted = apollo_oracle(p0, grads, rates(grads), draws, rank, gap, rows=rows, **there)
    assert_on_path(path(tx, p0, grads), wanted, p0)


def test_apollo_mini_is_apollo_of_rank_one(x64):
    p0, grads = problem("6x4")
    whole = optfn.apollo(RATE, 1, scale=128.0, scale_type="tensor", weight_decay=0.1)
    mini = optfn.apollo_mini(RATE, weight_decay=0.1)
    np.testing.assert_array_equal(path(mini, p0, grads), path(whole, p0, grads))


def test_apollo_of_full_rank_scales_channels_as_adam_does(x64):
    """At the first step, where Adam's norm of a channel is the same in every basis."""
    _, grads = problem("6x4")
    g = {"kernel": jnp.asarray(grads[0].T)}
    tx = optfn.scale_by_apollo(4, proj="svd", eps=1e-30, side="columns")
    u, _ = tx.update(g, tx.init(g))
    adam, _ = optfn.scale_by_adam(eps=0.0).update(g, optfn.scale_by_adam().init(g))
    norms = [np.linalg.norm(x["kernel"], axis=0) for x in (u, adam, g)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)
    along_g = (u["kernel"] * g["kernel"]).sum(0)
    np.testing.assert_allclose(along_g, norms[0] * norms[2], rtol=1e-11)


def test_a_norm_grows_by_one_percent_at_most():
    tx = optfn.scale_by_apollo(2, max_growth=1.01)
    sizes = jnp.asarray([1.0, 1.0, 100.0, 0.1, 10.0])
    g = {"kernel": jnp.asarray(problem("6x4")[1][0], jnp.float32)}
    state, norms = tx.init(g), []
    for i, size in enumerate(sizes, start=1):
        u, state = tx.update({"kernel": size * g["kernel"]}, state)
        correction = np.sqrt(1 - 0.999**i) / (1 - 0.9**i)
        norms.append(np.linalg.norm(u["kernel"]) / correction)
    assert np.all(np.diff(norms) <= 0.01 * np.asarray(norms[:-1]) * (1 + 1e-4))
    np.testing.assert_allclose(state.slots["scale_by_apollo"].size["kernel"], norms[-1], rtol=1e-5)


def test_a_first_gradient_of_zero_does_not_hold_back_the_next():
    tx = optfn.scale_by_apollo(2)
    g = {"kernel": jnp.asarray(problem("6x4")[1][0], jnp.float32)}
    _, state = tx.update(jax.tree.map(jnp.zeros_like, g), tx.init(g))
    u, _ = tx.update(g, state)
    assert np.linalg.norm(u["kernel"]) > 0.1


def test_a_projection_is_drawn_again_only_where_it_is_renewed():
    """Seen by an update that is the same for the same projection."""
    tx = optfn.scale_by_apollo(1, 3, b1=0.0, b2=0.0, max_growth=float("inf"))
    g = {"kernel": jnp.asarray(problem("6x4")[1][0], jnp.float32)}
    state, seen = tx.init(g), []
    for _ in range(6):
        u, state = tx.update(g, state)
        seen.append(np.asarray(u["kernel"]))
    for i, j, same in [(0, 1, True), (1, 2, True), (2, 3, False), (3, 5, True)]:
        assert np.allclose(seen[i], seen[j], rtol=1e-5) == same


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (4, 1), (0, 3)])
def test_of_any_size_it_is_finite(shape):
    row = np.arange(1.0, 1 + shape[-1])
    one = jnp.asarray(np.outer(np.ones(shape[0]), row), jnp.float32)  # of rank 1
    for tx in (
        optfn.galore(0.1, 2, 2),
        optfn.apollo(0.1, 2, 2),
        optfn.apollo(0.1, 2, 2, proj="svd"),
    ):
        for size in (0.0, 1e-30, 1.0, 1e25):
            found = _run(tx, {"w": one}, {"w": size * jnp.stack([one] * 3)})
            assert jnp.isfinite(found["w"]).all()


def test_state_is_that_of_the_projections():
    shape = jax.ShapeDtypeStruct
    params = {"kernel": shape((256, 1024), jnp.bfloat16)}  # 1024 outputs
    r, n, m = 16, 1024, 256

    def numbers(tx):
        (row,) = optfn.summary(tx, params).rows
        return row.state_bytes / 4

    assert numbers(optfn.galore(0.1, r)) == 2 * r * m + r * n
    assert numbers(optfn.galore(0.1, r, side="smaller")) == 2 * r * n + r * m
    assert numbers(optfn.apollo(0.1, r)) == 2 * r * n + 1
    assert numbers(optfn.apollo(0.1, r, proj="svd")) == 2 * r * n + r * m + 1
    assert numbers(optfn.apollo_mini(0.1)) == 2 * n + 1
    assert numbers(optfn.adam(0.1)) == 2 * n * m


def test_a_decomposition_stays_under_a_condition_in_lanes():
    g = {"kernel": jnp.ones((6, 4))}

    def three_lanes(tx):
        def run(rate):
            one = optfn.replace(tx, learning_rate=rate)
            return one.update(g, one.init(g), g)[0]

        return jax.make_jaxpr(jax.vmap(run))(jnp.ones(3))

    for tx in (optfn.galore(0.1, 2), optfn.galore(0.1, 2, side="smaller")):
        names = [eqn.primitive.name for eqn in three_lanes(tx).jaxpr.eqns]
        assert "svd" not in names


@pytest.mark.parametrize(
    "base",
    [
        *(optfn.adamw(0.1), optfn.lamb(1.0), optfn.chain(optfn.scale_by_sophia())),
        optfn.monitor(optfn.adam(0.1)),
    ],
)
def test_refuses_what_needs_params(base):
    with pytest.raises(ValueError, match=r"galore\(base_optimizer=\.\.\.\): .* needs"):
        optfn.galore(0.1, base_optimizer=base)


def test_what_is_no_matrix_has_the_inner_optimizer_or_one_of_its_own():
    params = {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}
    grads = jax.tree.map(lambda p: 0.3 * p, params)

    def moved(tx):
        return optfn.step(tx, params, grads, tx.init(params))[0]["bias"]

    np.testing.assert_allclose(moved(optfn.galore(0.1, 2)), moved(optfn.adam(0.1)), rtol=1e-6)
    np.testing.assert_allclose(moved(optfn.apollo(0.1, 2)), moved(optfn.adam(0.1)), rtol=1e-5)
    for tx in (
        optfn.galore(0.1, 2, rest=optfn.sgd(1.0)),
        optfn.apollo(0.1, 2, rest=optfn.sgd(1.0)),
    ):
        np.testing.assert_allclose(moved(tx), 0.7, rtol=1e-6)
