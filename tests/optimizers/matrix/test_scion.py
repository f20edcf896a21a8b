"""Scion against its oracle, the authors' paths and the duality of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import scion as oracles
from recorded import GOLDEN, assert_on_path, path, problem

import optfn
from optfn import MatrixAxes
from optfn.optimizers.matrix.scion import NORMS

RATE = 0.02
MATRIX = MatrixAxes(0, 1)


@pytest.mark.parametrize("shape", ["6x4", "4x6", "5x5"])
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_params_equal_the_oracle_s(norm, constrained, shape, x64):
    p0, grads = problem(shape)
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    tx = optfn.scion(rates, norm, 7.0, 0.8, weight_decay=float(constrained))
    lr = np.linspace(RATE, RATE / 2, len(grads))
    wanted = oracles.scion(p0, grads, lr, norm, 7.0, 0.2, constrained)
    assert_on_path(path(tx, p0, grads), wanted, p0)


RECORDED = {
    "scion_spectral": optfn.scion(0.01, "spectral", 5.0),
    "scion_sign_unconstrained": optfn.scion(0.01, "sign", 5.0, weight_decay=0.0),
    "scion_colnorm": optfn.scion(0.01, "column", 1.0),
    "scion_rownorm": optfn.scion(0.01, "row", 1.0),
}


@pytest.mark.parametrize("shape", ["6x4", "4x6"])
@pytest.mark.parametrize("name", RECORDED)
def test_walks_the_recorded_path(name, shape, x64):
    p0, grads = problem(shape)
    assert_on_path(path(RECORDED[name], p0, grads), GOLDEN[f"{name}/{shape}"], p0)


def farthest(norm, g, radius=1.0):
    """The farthest point, with the exact orthogonal factor."""
    tx = optfn.scale_by_lmo(norm, radius, "exact", views=MATRIX)
    return np.asarray(tx.update(jnp.asarray(g), tx.init(jnp.asarray(g)))[0])


@pytest.mark.parametrize("shape", ["6x4", "4x6"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_farthest_point_attains_the_dual_norm(norm, shape, x64):
    """It is in the ball, <g, u> is the dual norm, and no other point of the ball is farther."""
    g = problem(shape)[1][0]
    u = farthest(norm, g)
    dual = oracles.dual_norm_of(norm, g)
    np.testing.assert_allclose(oracles.norm_of(norm, u), 1, rtol=1e-7)
    np.testing.assert_allclose(np.sum(g * u), dual, rtol=1e-7)
    np.testing.assert_allclose(farthest(norm, g, 3.0), 3 * u, rtol=1e-14)
    rng = np.random.default_rng(0)
    for other in [*rng.normal(size=(50, *g.shape)), *(u + 0.1 * rng.normal(size=(50, *g.shape)))]:
        assert np.sum(g * other) / oracles.norm_of(norm, other) <= dual


def test_a_vector_has_its_root_mean_square_as_its_norm(x64):
    tx = optfn.scale_by_lmo("sign", 2.0)
    params = {"bias": jnp.asarray([3.0, -4.0]), "s": jnp.asarray(-5.0)}
    params |= {"embedding": jnp.asarray([[3.0, 4.0], [0.0, 0.0]])}
    updates, _ = tx.update(params, tx.init(params))
    unit = 2 * 2**0.5 / 5
    np.testing.assert_allclose(updates["bias"], [3 * unit, -4 * unit], rtol=1e-7)
    np.testing.assert_allclose(updates["s"], -2, rtol=1e-7)
    np.testing.assert_allclose(updates["embedding"], [[3 * unit, 4 * unit], [0, 0]], rtol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_params_that_start_in_the_ball_stay_there(norm, x64):
    p0, grads = problem("6x4")
    radius, start = 3.0, optfn.start_on_sphere({"kernel": p0.T}, norm, 3.0)["kernel"].T
    np.testing.assert_allclose(oracles.norm_of(norm, np.asarray(start)), radius, rtol=1e-7)
    # Newton's own polynomials leave no singular value above 1.
    tx = optfn.scion(0.5, norm, radius, ns_coeffs="exact")
    for p in path(tx, np.asarray(start), 100 * grads):
        assert oracles.norm_of(norm, p) <= radius * (1 + 1e-7)


def test_params_on_the_sphere_are_the_farthest_points_of_what_they_were(x64):
    p0 = jnp.asarray(problem("6x4")[0])
    params = {"w": jnp.stack([p0.T, 2 + p0.T]), "b": jnp.ones(3), "half": p0.astype(jnp.bfloat16)}
    views = optfn.matrices({"w": MatrixAxes(-1, -2)})
    for norm in NORMS:
        new = optfn.start_on_sphere(params, norm, 5.0, views)
        for old, moved in zip(params["w"], new["w"], strict=True):
            wanted = 5 * farthest(norm, old.T)
            np.testing.assert_allclose(moved.T, wanted, rtol=1e-6, atol=1e-6)
        assert new["b"] is params["b"]
        assert new["half"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"start_on_sphere\(norm=...\) must be one of .*'nuclear'"):
        optfn.start_on_sphere(params, "nuclear")


def test_all_of_a_model_is_in_a_ball():
    """By default signs for embeddings and heads, and vectors of a root mean square."""
    params = {
        "embed": {"embedding": jnp.ones((11, 4))},
        "layer": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
        "norms": {"scale": jnp.ones((2, 4))},
        "head": {"kernel": jnp.ones((4, 11))},
    }
    tx = optfn.scion(1.0)
    at = jax.tree.map(lambda p: p + jnp.arange(p.size).reshape(p.shape) % 3, params)
    new, state = optfn.step(tx, params, at, tx.init(params))
    np.testing.assert_allclose(new["embed"]["embedding"], -3000 / 4, rtol=1e-6)
    np.testing.assert_allclose(new["head"]["kernel"], -3000 / 4, rtol=1e-6)
    for vectors in (new["layer"]["bias"], *new["norms"]["scale"]):
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(vectors))), 50, rtol=1e-5)
    momenta = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sum(x.size for x in momenta) == sum(x.size for x in jax.tree.leaves(params))
