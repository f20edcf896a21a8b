"""Estimates of the spectral norm, and its bounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from optfn import linalg

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(6, 6), (2, 9), (9, 2), (1, 5), (5, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_the_norm_lies_between_the_bounds_and_the_estimate_is_no_larger(shape, scale):
    unit = RNG.normal(size=(20, *shape)).astype(np.float32)
    found = np.linalg.norm(unit, 2, axis=(1, 2))
    lower, upper = (np.asarray(x) / scale for x in linalg.spectral_norm_bounds(scale * unit))
    estimate = np.asarray(linalg.spectral_norm(scale * unit, 30)) / scale
    assert (lower <= found * (1 + 1e-5)).all() and (found <= upper * (1 + 1e-5)).all()
    assert (upper <= min(shape) ** 0.5 * lower * (1 + 1e-5)).all()
    assert (lower <= estimate * (1 + 1e-5)).all() and (estimate <= found * (1 + 1e-5)).all()
    assert (estimate > 0.97 * found).all()


def test_more_steps_come_nearer(x64):
    x = jnp.asarray(RNG.normal(size=(8, 5)))
    found = np.linalg.norm(x, 2)
    missing = [found - float(linalg.spectral_norm(x, steps)) for steps in (0, 2, 8, 200)]
    assert missing == sorted(missing, reverse=True) and missing[-1] < 1e-12 * found


def test_both_bounds_are_exact_with_one_entry_a_row_and_column():
    x = jnp.asarray([[0.0, -3.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(linalg.spectral_norm_bounds(x), 3.0, rtol=1e-6)


def test_the_estimate_of_rank_one_needs_no_step():
    x = jnp.outer(jnp.arange(4.0), jnp.asarray([1.0, -2.0, 3.0]))
    np.testing.assert_allclose(linalg.spectral_norm(x, 0), np.linalg.norm(x, 2), rtol=1e-6)


def test_a_start_without_the_first_singular_vector_still_gives_the_lower_bound():
    # The longest row is a singular vector of its own; the first is that of the column.
    x = jnp.zeros((6, 2)).at[0, 0].set(2.0).at[1:, 1].set(1.0)
    np.testing.assert_allclose(linalg.spectral_norm(x), 5**0.5, rtol=1e-6)


def test_zero_and_empty_matrices_have_norm_zero():
    for x in (jnp.zeros((2, 3, 3)), jnp.zeros((2, 0, 3)), jnp.zeros((2, 3, 0))):
        for found in (linalg.spectral_norm(x), *linalg.spectral_norm_bounds(x)):
            assert found.shape == (2,) and not found.any()


def test_complex_matrices_have_real_norms():
    x = RNG.normal(size=(4, 4)) + 1j * RNG.normal(size=(4, 4))
    found = linalg.spectral_norm(jnp.asarray(x, jnp.complex64), 50)
    np.testing.assert_allclose(found, np.linalg.norm(x, 2), rtol=1e-3)
