"""The shared arithmetic: the safe root and the scaled norm."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import optfn
from optfn.core.numerics import WORTH_A_BRANCH, abs_sq, global_norm, root_mean_square, sqrt

EPS = float(jnp.finfo(jnp.float32).eps)


# The safe square root.


@pytest.mark.parametrize("x", [0.0, 1e-30, 0.25, 4.0, 1e30, jnp.inf])
def test_sqrt_is_the_square_root(x):
    # One ulp: XLA's root need not be correctly rounded.
    np.testing.assert_allclose(sqrt(jnp.float32(x)), np.sqrt(np.float32(x)), rtol=EPS)


def test_sqrt_of_nan_and_of_a_negative_number_is_visible():
    assert jnp.isnan(sqrt(jnp.nan))
    assert jnp.isnan(sqrt(-1.0))


def test_the_derivatives_of_sqrt_are_zero_at_zero_and_right_elsewhere():
    x = jnp.asarray([0.0, 0.25, 4.0])
    first = jax.vmap(jax.grad(sqrt))(x)
    second = jax.vmap(jax.grad(jax.grad(sqrt)))(x)
    forward = jax.vmap(lambda x: jax.jvp(jax.grad(sqrt), (x,), (1.0,))[1])(x)
    np.testing.assert_allclose(first, [0, 1, 0.25], rtol=4 * EPS)
    # -1 / (4 x^1.5)
    np.testing.assert_allclose(second, [0, -2, -1 / 32], rtol=4 * EPS)
    np.testing.assert_array_equal(forward, second)


def test_a_root_of_an_always_zero_moment_has_finite_derivatives_of_both_orders():
    """The usual root gives NaN here: infinity times zero."""

    def update(b2, root):
        return (1e-3 / (root(b2 * jnp.zeros(())) + 1e-8)).sum()

    for order in (jax.grad(update), jax.grad(jax.grad(update))):
        assert jnp.isfinite(order(0.999, sqrt))
    assert jnp.isnan(jax.grad(update)(0.999, jnp.sqrt))


def test_abs_sq_is_real_also_for_complex_numbers():
    square = abs_sq(jnp.asarray([3 + 4j, -2j]))
    assert square.dtype == jnp.float32
    np.testing.assert_array_equal(square, [25, 4])


# The scaled norm.


@jax.jit
def norm_with_a_branch(tree):
    """Of so many entries that their largest is looked for only where it is needed."""
    return global_norm([tree, jnp.zeros(WORTH_A_BRANCH)])


norm_jitted = jax.jit(global_norm)
each_way = pytest.mark.parametrize("norm", [global_norm, norm_jitted, norm_with_a_branch])
entries = st.floats(-9, 9, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(entries, min_size=8, max_size=8), st.integers(-30, 36))
def test_global_norm_equals_numpys_in_double_precision_at_any_scale(values, exponent):
    values = np.asarray(values, np.float32) * np.float32(10.0**exponent)
    for function in (norm_jitted, norm_with_a_branch):
        norm = function({"a": values[:3], "b": [values[3:7].reshape(2, 2), values[7]]})
        assert norm.dtype == jnp.float32
        # Eight squares, their sum, the root and two scalings, of half an ulp each.
        np.testing.assert_allclose(norm, np.linalg.norm(values.astype(np.float64)), rtol=8 * EPS)


def test_entries_whose_squares_vanish_count_where_there_are_many():
    """Below 2^-63 squares are no normal numbers; a million of them are 5e-5 of this norm."""
    values = np.full(2**20, 1e-20, np.float32)
    values[0] = 1e-15
    np.testing.assert_allclose(norm_jitted(values), np.linalg.norm(values.astype(float)), rtol=1e-6)


@each_way
@pytest.mark.parametrize("value", [1e25, 1e-25, 1e37, 1e38, 2e-38])
def test_global_norm_neither_overflows_nor_vanishes(norm, value):
    tree = {"a": jnp.full((2, 2), value, jnp.float32), "b": jnp.zeros(3)}
    np.testing.assert_allclose(norm(tree), 2 * value, rtol=1e-6)


@each_way
@pytest.mark.parametrize(
    "tree", [{}, None, {"a": None, "b": jnp.zeros((0, 3))}, {"z": jnp.zeros(2)}]
)
def test_global_norm_of_nothing_and_of_zeros_is_zero(norm, tree):
    result = norm(tree)
    assert result.shape == ()
    assert result.dtype == jnp.float32
    assert result == 0.0


@each_way
def test_global_norm_shows_what_is_not_finite(norm):
    assert norm({"a": jnp.asarray([1.0, jnp.inf])}) == jnp.inf
    assert norm({"a": jnp.asarray([1.0, -jnp.inf])}) == jnp.inf
    assert jnp.isnan(norm({"a": jnp.asarray([1.0, jnp.nan]), "b": jnp.ones(2)}))
    assert jnp.isnan(norm({"a": jnp.asarray([jnp.inf]), "b": jnp.asarray([jnp.nan])}))


@pytest.mark.parametrize(
    ("dtype", "value", "wide"),
    [
        (jnp.float16, 6e4, jnp.float32),
        (jnp.bfloat16, 2.0**100, jnp.float32),
        (jnp.complex64, 3e25 + 4e25j, jnp.float32),
    ],
)
def test_global_norm_is_taken_in_at_least_float32(dtype, value, wide):
    leaf = jnp.full(4, value, dtype)
    norm = global_norm([leaf])
    assert norm.dtype == wide
    np.testing.assert_allclose(norm, 2 * abs(np.asarray(leaf[0], np.complex128)), rtol=1e-6)


def test_global_norm_of_mixed_precision_is_the_widest(x64):
    tree = [jnp.asarray([3.0], jnp.bfloat16), jnp.asarray([4.0], jnp.float64)]
    assert global_norm(tree).dtype == jnp.float64
    assert global_norm(tree[:1]).dtype == jnp.float32


@pytest.mark.parametrize(
    "stage",
    [optfn.clip_by_global_norm(1.0), optfn.normalize(), optfn.normalize_by_update_norm()],
    ids=lambda stage: stage.name,
)
@pytest.mark.parametrize("wide", [0.0, 1e-60, 1e60])
def test_norms_of_mixed_precision_hold_what_the_widest_holds(stage, wide, x64):
    """The narrower float32 has neither 1e-60 nor the least divisor of float64."""
    tree = {"a": jnp.zeros(3, jnp.float32), "b": jnp.full(1, wide, jnp.float64)}
    np.testing.assert_allclose(global_norm(tree), wide, rtol=1e-12)
    updates, _ = stage.update(tree, stage.init(tree))
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates)), updates


def test_global_norm_counts_integers():
    assert global_norm({"a": jnp.asarray([3, 4]), "b": jnp.zeros(2)}) == 5


def test_a_mean_square_is_no_larger_than_the_largest_entry():
    """The norm would overflow."""
    np.testing.assert_allclose(root_mean_square(jnp.full(1000, 3e37)), 3e37, rtol=1e-6)


@each_way
def test_the_derivative_of_global_norm_is_the_direction_and_zero_at_zero(norm):
    gradient = jax.grad(norm)
    for scale in (1e-25, 1.0, 1e25):
        direction = gradient({"a": jnp.asarray([3.0, 0.0]) * scale, "b": -4.0 * scale})
        np.testing.assert_allclose(direction["a"], [0.6, 0], rtol=1e-6)
        np.testing.assert_allclose(direction["b"], -0.8, rtol=1e-6)
    assert not gradient({"a": jnp.zeros(2)})["a"].any()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
@pytest.mark.parametrize(
    ("size", "max_norm"), [(1e25, 1.0), (1e38, 1.0), (1e25, 1e-14), (1e-25, 1e-30)]
)
def test_a_gradient_of_any_finite_size_can_be_clipped(size, max_norm, transform):
    """Neither the norm nor the factor, max_norm / norm, need be a float32 number."""
    tx, grads = optfn.clip_by_global_norm(max_norm), {"a": jnp.full((2, 2), size)}
    updates, _ = transform(tx.update)(grads, tx.init(grads))
    np.testing.assert_allclose(updates["a"], max_norm / 2, rtol=1e-6)
