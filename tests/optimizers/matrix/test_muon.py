"""Muon against its oracle, the authors' paths, optax and theorems about the polar factor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.muon import KELLER_JORDAN
from oracles.muon import muon as muon_oracle
from recorded import GOLDEN, assert_on_path, path, problem

import optfn
from optfn import linalg

RATE = 0.02


@pytest.mark.parametrize("shape", ["6x4", "4x6", "5x5"])
@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        ({"nesterov": False, "debias": True}, {"nesterov": False, "debias": True}),
        ({"debias": True, "beta": 0.8}, {"debias": True, "beta": 0.8}),
        ({"shape_scale": "spectral", "eps": 0.0}, {"scale": "spectral", "eps": 0.0}),
        ({"consistent_rms": 0.2}, {"scale": "rms"}),
        ({"ns_coeffs": "cans"}, {"coefficients": linalg.POLYNOMIALS["cans"]}),
        ({"ns_steps": 3}, {"coefficients": KELLER_JORDAN[:3]}),
    ],
)
def test_params_equal_the_oracle_s(here, there, shape, x64):
    p0, grads = problem(shape)
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    found = path(optfn.muon(rates, weight_decay=0.1, **here), p0, grads)
    lr = np.linspace(RATE, RATE / 2, len(grads))
    assert_on_path(found, muon_oracle(p0, grads, lr, weight_decay=0.1, **there), p0)


RECORDED = {
    "muon_kj": optfn.muon(RATE, weight_decay=0.1),
    # It takes the larger of the norm and eps.
    "muon_torch": optfn.muon(RATE, weight_decay=0.1, eps=0.0),
    "muon_torch_match_rms": optfn.muon(RATE, weight_decay=0.1, eps=0.0, consistent_rms=0.2),
    "muon_dion_reference": optfn.partition_matrices(
        optfn.chain(
            optfn.trace(0.95, nesterov=True),
            optfn.newton_schulz(eps=1e-8),
            optfn.scale_by_matrix_shape("spectral"),
            optfn.add_decayed_weights(0.1),
            optfn.scale_by_learning_rate(0.01),
        ),
        optfn.sgd(0.0),
    ),
}


@pytest.mark.parametrize("shape", ["6x4", "4x6"])
@pytest.mark.parametrize("name", RECORDED)
def test_walks_the_recorded_path(name, shape, x64):
    p0, grads = problem(shape)
    assert_on_path(path(RECORDED[name], p0, grads), GOLDEN[f"{name}/{shape}"], p0)


@pytest.mark.parametrize("shape", ["6x4", "4x6"])
@pytest.mark.parametrize("rms", [None, 0.2])
@pytest.mark.parametrize("nesterov", [True, False])
def test_follows_optax(shape, rms, nesterov, x64):
    p0, grads = problem(shape)
    theirs = optax.contrib.muon(
        RATE, weight_decay=0.1, consistent_rms=rms, nesterov=nesterov, adam_learning_rate=0.0
    )
    params = {"kernel": jnp.asarray(p0.T)}

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            updates, state = theirs.update({"kernel": g.T}, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params["kernel"].T

        return jax.lax.scan(step, (params, theirs.init(params)), grads)[1]

    ours = optfn.muon(
        RATE, eps=1e-8, weight_decay=0.1, debias=True, consistent_rms=rms, nesterov=nesterov
    )
    # optax rounds the coefficients to single precision when it puts them into the state.
    assert_on_path(path(ours, p0, grads), np.asarray(run(params, jnp.asarray(grads))), p0, 1e-6)


@pytest.mark.parametrize("shape", ["6x4", "4x6", "5x5"])
def test_without_momentum_steps_are_polar_factors(shape, x64):
    """By polynomials that converge, and whatever the size of the gradients."""
    p0, grads = problem(shape)
    rows, columns = p0.shape
    tx = optfn.muon(RATE, "exact", beta=0.0, eps=0.0)
    found = np.diff(path(tx, p0, grads * 1e6), axis=0, prepend=p0[None])
    factors = max(1, rows / columns) ** 0.5 * linalg.polar(jnp.asarray(grads))
    np.testing.assert_allclose(found, -RATE * factors, atol=1e-6)


def test_an_adaptive_step_is_that_of_steepest_descent(x64):
    """The sum of the singular values of each matrix of a stack times its factor; zero of zeros."""
    _, grads = problem("6x4")
    stack = jnp.asarray(np.stack([grads[0], 1e3 * grads[1], 0 * grads[0]]))
    tx = optfn.newton_schulz("exact", 0.0, adaptive=True, views=optfn.MatrixAxes(-2, -1))
    found, _ = jax.jit(tx.update)(stack, None)
    sums = np.linalg.svd(stack, compute_uv=False).sum(-1)
    expected = np.asarray(linalg.polar(stack[:2])) * sums[:2, None, None]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6, atol=1e-6 * sums[1])
    np.testing.assert_array_equal(found[2], 0)
