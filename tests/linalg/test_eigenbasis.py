"""Eigenbases of any symmetric matrix, and how power steps follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optfn import linalg


def symmetric(seed, *shape, rank=None):
    x = np.random.default_rng(seed).normal(size=(*shape, shape[-1]))
    x = x[..., :rank] if rank else x
    return x @ np.swapaxes(x, -1, -2)


MATRICES = {
    "any": symmetric(0, 2, 4),
    "singular": symmetric(0, 2, 4, rank=2),
    "zero": np.zeros((2, 4, 4)),
    "identity": np.broadcast_to(np.eye(4), (2, 4, 4)),
    "huge": 1e37 * symmetric(0, 2, 4) / 100,
    "tiny": 1e-36 * symmetric(0, 2, 4),
    "one": np.full((2, 1, 1), 3.0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_every_basis_is_orthonormal_and_in_order(name):
    a = jnp.asarray(MATRICES[name], jnp.float32)
    q = linalg.eigenbasis(a)
    refined, order = linalg.refined_eigenbasis(a, q)
    for basis in (q, refined, linalg.power_step(a, q)):
        eye = np.broadcast_to(np.eye(a.shape[-1]), a.shape)
        np.testing.assert_allclose(basis.mT @ basis, eye, atol=1e-5)
    scale = np.max(abs(MATRICES[name])) or 1
    wide = np.asarray(q, np.float64)
    found = np.swapaxes(wide, -1, -2) @ (MATRICES[name] / scale) @ wide
    values = np.linalg.eigvalsh(MATRICES[name] / scale)[..., ::-1]
    np.testing.assert_allclose(found, values[..., None] * np.eye(a.shape[-1]), atol=1e-5)
    assert (np.sort(order, axis=-1) == np.arange(a.shape[-1])).all()


def test_power_steps_reach_the_eigenvectors_in_order(x64):
    a = jnp.asarray(symmetric(1, 3, 4))
    q = jnp.broadcast_to(jnp.eye(4), a.shape)
    for _ in range(300):
        q, order = linalg.refined_eigenbasis(a, q)
    np.testing.assert_array_equal(order, np.broadcast_to(np.arange(4), (3, 4)))
    np.testing.assert_allclose(
        abs(q.mT @ linalg.eigenbasis(a)), jnp.broadcast_to(jnp.eye(4), a.shape), atol=1e-8
    )


def test_the_order_says_which_columns_continue_which(x64):
    a = jnp.diag(jnp.asarray([1.0, 3.0, 2.0]))
    q, order = linalg.refined_eigenbasis(a, jnp.eye(3))
    np.testing.assert_array_equal(order, [1, 2, 0])
    np.testing.assert_allclose(abs(q), jnp.eye(3)[:, order], atol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_derivatives_are_those_of_differences(dtype, x64):
    rng = np.random.default_rng(2)

    def draw():
        x = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
        x = x @ x.conj().T
        return jnp.asarray(x if dtype == jnp.complex128 else x.real, dtype)

    a, da = draw(), draw()
    q = linalg.eigenbasis(draw())

    def projector(a):
        """Of the first eigenvectors: it does not depend on their phases."""
        v = linalg.eigenbasis(a)[:, :2]
        return v @ v.conj().T

    def step(a):
        return linalg.power_step(a, q)

    h = 1e-5
    for function in (projector, step):
        slope = jax.jvp(function, (a,), (da,))[1]
        wanted = (function(a + h * da) - function(a - h * da)) / (2 * h)
        np.testing.assert_allclose(slope, wanted, atol=1e-7)


@pytest.mark.parametrize("name", MATRICES)
def test_derivatives_are_finite(name):
    a = jnp.asarray(MATRICES[name], jnp.float32)

    def total(share):
        q = linalg.eigenbasis(share * a)
        q, _ = linalg.refined_eigenbasis(share * a + a, q)
        return jnp.sum(linalg.power_step(a, q))

    assert abs(jax.grad(total)(0.5)) < 1e3


@pytest.mark.parametrize("function", [linalg.eigenbasis, lambda a: linalg.power_step(a, a)])
def test_refuses_oblong_matrices(function):
    with pytest.raises(ValueError, match=r"square matrices, found an array of shape \(2, 3\)"):
        function(jnp.ones((2, 3)))


def test_nan_is_not_hidden():
    a = jnp.full((2, 2), jnp.nan)
    assert jnp.isnan(linalg.eigenbasis(a)).any()
    assert jnp.isnan(linalg.power_step(a, jnp.eye(2))).any()
