"""Inverse roots of symmetric matrices, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from optfn import linalg

RNG = np.random.default_rng(0)


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return jnp.asarray((q * np.asarray(eigenvalues)) @ q.T)


A = [3.0, 1.0, 0.2, 1e-3]


@pytest.mark.parametrize("root", [linalg.inverse_root, linalg.inverse_root_newton])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_its_p_th_power_is_the_inverse(root, p, x64):
    stack = jnp.stack([symmetric(A), 1e6 * symmetric(A, 1), jnp.eye(4)])
    power = jnp.linalg.matrix_power(root(stack, p), p)
    np.testing.assert_allclose(power @ stack, np.broadcast_to(np.eye(4), stack.shape), atol=1e-10)


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_newton_s_is_that_of_the_eigenvalues(p, eps, x64):
    stack = jnp.stack([symmetric(A), 1e-6 * symmetric(A, 1), jnp.diag(jnp.asarray(A))])
    found = linalg.inverse_root_newton(stack, p, eps)
    np.testing.assert_allclose(found, linalg.inverse_root(stack, p, eps), rtol=1e-8, atol=1e-10)
    slices = [linalg.inverse_root_newton(a, p, eps) for a in stack]
    np.testing.assert_allclose(found, slices, rtol=1e-12)


def test_any_positive_number_is_a_root_and_it_may_be_traced(x64):
    a = symmetric(A)
    w, q = np.linalg.eigh(a)
    for p, found in zip(
        [0.5, 2.5],
        jax.vmap(linalg.inverse_root, (None, 0))(a, jnp.asarray([0.5, 2.5])),
        strict=True,
    ):
        np.testing.assert_allclose(found, (q * w ** (-1 / p)) @ q.T, rtol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("root", [linalg.inverse_root, linalg.inverse_root_newton])
def test_zero_and_rank_deficient_matrices_have_finite_roots(root, dtype):
    column = jnp.asarray(RNG.normal(size=(5, 1)), dtype)
    stack = jnp.stack([jnp.zeros((5, 5), dtype), column @ column.T, jnp.ones((5, 5), dtype)])
    for eps in (0.0, 1e-3):
        found = root(stack, 4, eps)
        assert found.dtype == dtype and jnp.isfinite(found).all()
    assert not root(stack, 4, 0.0)[0].any()
    np.testing.assert_allclose(root(stack, 4, 1e-3)[0], 1e-3**-0.25 * np.eye(5), rtol=1e-2)
    assert root(jnp.zeros((2, 0, 0)), 2).shape == (2, 0, 0)


def test_without_eps_it_is_the_root_of_the_pseudo_inverse(x64):
    a = symmetric([4.0, 1.0, 0.0, 0.0])
    found = linalg.inverse_root(a, 2)
    np.testing.assert_allclose(found @ found, np.linalg.pinv(a), atol=1e-10)


def test_a_padding_of_zeros_changes_nothing(x64):
    a = symmetric([2.0, 1.0, 0.0])
    padded = linalg.inverse_root(jnp.pad(a, (0, 2)), 4, 1e-12)
    np.testing.assert_allclose(padded[:3, :3], linalg.inverse_root(a, 4, 1e-12), rtol=1e-9)


def test_what_is_not_finite_is_seen():
    assert jnp.isnan(linalg.inverse_root(jnp.full((2, 2), jnp.nan), 2, 1e-3)).any()


@pytest.mark.parametrize("root", [linalg.inverse_root, linalg.inverse_root_newton])
def test_derivatives_are_right_where_eigenvalues_coincide(root, x64):
    for a in (symmetric(A), 2 * jnp.eye(3), symmetric([1.0, 1.0, 3.0])):
        # An antisymmetric part is none of the matrix.
        check_grads(lambda x: root((x + x.T) / 2, 4, 1e-3), (a,), order=1, eps=1e-6)


def test_derivatives_by_the_root_and_by_eps(x64):
    a = symmetric(A)
    check_grads(lambda p, eps: linalg.inverse_root(a, p, eps), (3.0, 0.1), order=1)


def test_a_rank_deficient_matrix_has_finite_derivatives():
    a = jnp.ones((4, 4))
    for eps in (0.0, 1e-12):
        grad = jax.grad(lambda x, eps=eps: linalg.inverse_root(x, 4, eps)[0, 0])(a)
        assert jnp.isfinite(grad).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"inverse_root\(a\) needs square"):
        linalg.inverse_root(jnp.ones((2, 3)), 2)
    with pytest.raises(ValueError, match=r"p=\.\.\.\) must be a positive whole number"):
        linalg.inverse_root_newton(jnp.eye(2), 2.5)
