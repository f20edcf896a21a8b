"""Shampoo and SPlus against their oracles, the authors' paths and theorems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.shampoo import shampoo as shampoo_oracle
from oracles.shampoo import splus as splus_oracle
from recorded import GOLDEN, assert_on_path, path, problem

import optfn
from optfn import linalg

RATE = 0.01
GRAFTING = optfn.scale_by_adam(0.9, 0.999, 1e-12)


@pytest.mark.parametrize("shape", ["6x4", "4x6", "5x5"])
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
def test_params_equal_shampoo_s_oracle_s(here, there, shape, x64):
    p0, grads = problem(shape)
    here, there = {"eps": 1e-4, **here}, {"eps": 1e-4, **there}
    rates = optfn.schedules.linear(RATE, RATE / 2, 24)
    found = path(optfn.shampoo(rates, weight_decay=0.1, **here), p0, grads)
    lr = np.linspace(RATE, RATE / 2, len(grads))
    assert_on_path(found, shampoo_oracle(p0, grads, lr, weight_decay=0.1, **there), p0)


@pytest.mark.parametrize("shape", ["5x5", "6x4"])
def test_walks_the_recorded_path_of_distributed_shampoo(shape, x64):
    p0, grads = problem(shape)
    tx = optfn.shampoo(
        RATE,
        b2=0.999,
        weight_decay=0.1,
        precondition_frequency=3,
        max_preconditioner_dim=6,
        grafting=GRAFTING,
    )
    # The authors compute roots in single precision.
    assert_on_path(path(tx, p0, grads), GOLDEN[f"shampoo_meta/{shape}"], p0, 1e-7)


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
