"""SOAP, KL-Shampoo and KL-SOAP against oracles, the authors' paths and theorems."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.soap import kl as kl_oracle
from oracles.soap import soap as soap_oracle
from recorded import GOLDEN, assert_on_path, path, problem

import optfn


def falling(rate):
    """Halved over the steps; all rates are schedules, so that the paths share programs."""
    return optfn.schedules.linear(rate, rate / 2, 24)


def constant(rate):
    return optfn.schedules.linear(rate, rate, 24)


EVERY = {
    "soap": optfn.soap(constant(3e-3), precondition_frequency=2),
    "kl_shampoo": optfn.kl_shampoo(constant(1e-2), precondition_frequency=2),
    "kl_soap": optfn.kl_soap(constant(1e-2), precondition_frequency=2),
}
RECORDED = {
    "soap_f1": optfn.soap(constant(3e-3), precondition_frequency=1),
    "soap_f10": optfn.soap(),
    "kl_shampoo": optfn.kl_shampoo(constant(1e-2), precondition_frequency=3),
    "kl_soap": optfn.kl_soap(constant(1e-2), precondition_frequency=3),
}


@pytest.mark.parametrize("name", RECORDED)
def test_walks_the_recorded_path(name, x64):
    p0, grads = problem("5x5")
    assert_on_path(path(RECORDED[name], p0, grads), GOLDEN[f"{name}/5x5"], p0)


def gradients(shape, steps=25, seed=0):
    """Of a first one whose singular values are apart, so that its bases are determined."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=(steps, *shape))


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"b1": 0.8, "b2": 0.9, "shampoo_beta": 0.7}, {"b1": 0.8, "b2": 0.9, "shampoo_beta": 0.7}),
        ({"precondition_frequency": 3, "eps": 1e-3}, {"frequency": 3, "eps": 1e-3}),
        (
            {"max_precond_dim": 4, "weight_decay": 0.3},
            {"sides": (False, False), "weight_decay": 0.3},
        ),
    ],
)
def test_soap_equals_its_oracle(here, there, x64):
    p0, grads = gradients((5, 5))
    wanted = soap_oracle(p0, grads, np.linspace(0.02, 0.01, len(grads)), **there)
    assert_on_path(path(optfn.soap(falling(0.02), **here), p0, grads), wanted, p0)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_a_side_that_is_too_long_has_no_basis(shape, x64):
    p0, grads = gradients(shape)
    tx = optfn.soap(max_precond_dim=4, precondition_frequency=2)
    wanted = soap_oracle(p0, grads, frequency=2, sides=tuple(n <= 4 for n in shape))
    assert_on_path(path(tx, p0, grads), wanted, p0)
    sizes = sorted(x.size for x in jax.tree.leaves(tx.init({"kernel": jnp.asarray(p0.T)})))
    assert sizes[-4:] == [4, 4, 10, 10]


@pytest.mark.parametrize("name", ["kl_shampoo", "kl_soap"])
@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"b1": 0.8, "b2": 0.9, "shampoo_beta": 0.7}, {"b1": 0.8, "b2": 0.9, "shampoo_beta": 0.7}),
        ({"precondition_frequency": 1, "eps": 1e-3}, {"frequency": 1, "eps": 1e-3}),
        ({"init_factor": 2.0, "weight_decay": 0.3}, {"init_factor": 2.0, "weight_decay": 0.3}),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_kl_equals_its_oracle(name, here, there, size, x64):
    p0, grads = gradients((5, 5))
    grads = size * grads  # the small ones reach the largest scale
    there = there | {"soap": name == "kl_soap"}
    wanted = kl_oracle(p0, grads, np.linspace(0.02, 0.01, len(grads)), **there)
    assert_on_path(path(getattr(optfn, name)(falling(0.02), **here), p0, grads), wanted, p0)


def test_keeps_the_second_moment_between_refreshes_and_does_not_count_the_first_step(x64):
    """As a SOAP for JAX that is in use does not, whose steps are then thousands of times longer."""
    p0, grads = problem("5x5")
    found = path(optfn.soap(), p0, grads)
    right, wrong = (
        soap_oracle(p0, grads, forgets_nu=fault, counts_the_first=fault) for fault in (False, True)
    )

    def longest(steps):
        return np.max(abs(np.diff(steps, axis=0, prepend=p0[None])))

    assert_on_path(found, right, p0)
    assert longest(wrong) > 100 * longest(found)
    for fault in ("forgets_nu", "counts_the_first"):
        other = soap_oracle(p0, grads, **{fault: True})
        assert np.max(abs(other - found)) > 0.05 * longest(found), fault


def test_in_the_identity_basis_soap_is_adam(x64):
    p0, grads = gradients((4, 3))
    tx = optfn.soap(0.01, eps=0.0, weight_decay=0.0, max_precond_dim=0)
    adam = path(optfn.adam(0.01, 0.95, 0.95, eps=0.0), p0, grads[1:])
    assert_on_path(path(tx, p0, grads)[1:], adam, p0)


@pytest.mark.parametrize("name", EVERY)
def test_a_rotation_of_the_gradients_rotates_the_path(name, x64):
    rng = np.random.default_rng(1)
    p0, grads = gradients((5, 5))
    u, v = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
    found = path(EVERY[name], u @ p0 @ v, u @ grads @ v)
    np.testing.assert_allclose(found, u @ path(EVERY[name], p0, grads) @ v, atol=1e-10)


def test_kl_shampoo_whitens_gradients_of_a_kronecker_covariance(x64):
    rng = np.random.default_rng(2)
    left, right = (
        np.linalg.qr(rng.normal(size=(n, n)))[0] * np.geomspace(0.3, 3, n) for n in (4, 3)
    )
    grads = left @ rng.normal(size=(4000, 4, 3)) @ right.T
    tx = optfn.chain(
        optfn.scale_by_kl_shampoo(
            0.0, 0.998, precondition_frequency=1, views=optfn.MatrixAxes(0, 1)
        )
    )

    @jax.jit
    def run(grads):
        def step(state, g):
            u, state = tx.update(g, state)
            return state, u

        return jax.lax.scan(step, tx.init(grads[0]), grads)[1]

    def moment(x):
        x = np.asarray(x)[2000:].reshape(-1, 12)
        return x.T @ x / len(x)

    whitened = moment(run(jnp.asarray(grads)))
    assert np.linalg.cond(moment(grads)) > 1000
    np.testing.assert_allclose(whitened, np.eye(12), atol=0.15)


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_of_a_vector_one_side_is_both(shape, x64):
    p0, grads = gradients(shape)  # longer ones leave null spaces, in which any basis is right
    tx = optfn.soap(0.01, precondition_frequency=2, eps=1e-2)
    one = soap_oracle(p0, grads, 0.01, frequency=2, eps=1e-2, sides=tuple(n > 1 for n in shape))
    assert_on_path(path(tx, p0, grads), one, p0)


@partial(jax.jit)
def updates_of(tx, grads):
    def step(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    params = jax.tree.map(lambda g: g[0], grads)
    return jax.lax.scan(step, tx.init(params), grads)[1]


@pytest.mark.parametrize("name", EVERY)
def test_a_stack_is_its_slices_and_a_view_its_transpose(name, x64):
    _, grads = gradients((3, 4, 4))
    stack = {"kernel": jnp.asarray(grads)}

    def views(rows, columns):
        return getattr(optfn, f"scale_by_{name}")(views=optfn.MatrixAxes(rows, columns))

    found = updates_of(views(-1, -2), stack)["kernel"]
    for i in range(3):
        one = updates_of(views(-1, -2), {"kernel": stack["kernel"][:, i]})["kernel"]
        np.testing.assert_allclose(found[:, i], one, rtol=1e-9, atol=1e-9)
    turned = updates_of(views(-2, -1), {"kernel": stack["kernel"].mT})["kernel"]
    np.testing.assert_allclose(turned.mT, found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_another_stage_may_follow(name):
    stage = getattr(optfn, f"scale_by_{name}")()
    tx = optfn.chain(stage, optfn.newton_schulz("exact"), optfn.scale_by_learning_rate(0.1))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3)), jnp.float32)
    u = updates_of(tx, {"kernel": grads})["kernel"]
    assert not u[0].any()
    # The smallest singular values need more steps than the table has.
    assert np.all(np.linalg.svd(u[-1])[1] < 0.1001) and np.linalg.norm(u[-1], 2) > 0.0999


@pytest.mark.parametrize("name", EVERY)
def test_lanes_share_one_conditional_around_the_decomposition(name):
    def lane(frequency, grads):
        views = optfn.MatrixAxes(0, 1)
        stage = getattr(optfn, f"scale_by_{name}")(precondition_frequency=frequency, views=views)
        return updates_of(stage, grads)

    lanes = jax.jit(jax.vmap(lane))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 4, 4)), jnp.float32)
    # One for the first gradient and one for the refreshes.
    text = lanes.lower(jnp.ones(3), grads).as_text()
    assert text.count("stablehlo.case") + text.count("stablehlo.if") == 2
    for frequencies in ((2.0, 3.0, 5.0), (3.0, 3.0, 3.0)):
        together = lanes(jnp.asarray(frequencies), grads)
        for frequency, g, found in zip(frequencies, grads, together, strict=True):
            np.testing.assert_array_equal(found, lane(frequency, g))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e25, 3e38])
def test_gradients_of_any_size_give_finite_updates(name, size):
    views = optfn.MatrixAxes(0, 1)
    tx = getattr(optfn, f"scale_by_{name}")(precondition_frequency=2.0, views=views)
    grads = np.random.default_rng(0).uniform(-1, 1, size=(8, 4, 4)).astype(np.float32)
    found = updates_of(tx, jnp.asarray(grads * np.float32(size)))
    assert np.isfinite(found).all()
    if name == "soap" and size > 1:  # huge ones are scaled down, and the direction is the same
        scaled = updates_of(tx, jnp.asarray(grads * np.float32(2**20)))
        rms = [np.sqrt(np.mean(np.square(x))) for x in (found[1:], scaled[1:])]
        assert 0.5 < rms[0] / rms[1] < 2


SHAPES = {jnp.float32: [(3, 1), (1, 3), (3, 2), (0, 3)], jnp.bfloat16: [(3, 2)]}


@pytest.mark.parametrize("name", EVERY)
def test_any_shape_and_low_rank_are_finite(name):
    views = optfn.MatrixAxes(0, 1)
    tx = getattr(optfn, f"scale_by_{name}")(precondition_frequency=1, views=views)
    column = np.random.default_rng(0).normal(size=(4, 3, 1))
    grads = {
        f"{shape} {dtype.__name__}": np.asarray(column[:, : shape[0]] * np.ones(shape), dtype)
        for dtype, shapes in SHAPES.items()
        for shape in shapes
    }
    for key, u in updates_of(tx, grads).items():
        assert np.isfinite(np.asarray(u, np.float32)).all(), key
