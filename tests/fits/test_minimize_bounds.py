"""Runs between bounds: where they end, beside SciPy's and by the conditions of a minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import rosenbrock
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

import optfn
from optfn import Status, lbfgsb
from optfn.testing.checks import enable_x64

FREE = np.inf


def violation(x, slope, lower, upper):
    """By how much a point misses the conditions of Karush, Kuhn and Tucker, entry by entry."""
    x, slope, lower, upper = (np.asarray(y, float) for y in (x, slope, lower, upper))
    assert ((lower <= x) & (x <= upper)).all()
    uphill_from_lower = (x == lower) & (slope >= 0)
    uphill_from_upper = (x == upper) & (slope <= 0)
    free_to_move = ~(uphill_from_lower | uphill_from_upper | (lower == upper))
    return np.abs(np.where(free_to_move, slope, 0)).max(initial=0)


def quadratic(x, matrix, b):
    return x @ matrix @ x / 2 - b @ x


def random_quadratics(seed, count, n):
    """With boxes around zero of every kind, and starts inside and outside of them."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(count, n, n)) * np.geomspace(1, 30, n)
    matrix, b = root.swapaxes(1, 2) @ root / n + 0.1 * np.eye(n), 20 * rng.normal(size=(count, n))
    middle, width = 0.3 * rng.normal(size=(2, count, n))
    width = np.where(rng.uniform(size=width.shape) < 0.1, 0, abs(width))
    lower, upper = middle - width, middle + width
    lower[rng.uniform(size=lower.shape) < 0.3] = -FREE
    upper[rng.uniform(size=upper.shape) < 0.3] = FREE
    return rng.normal(size=(count, n)), lower, upper, matrix, b


@jax.jit
@jax.vmap
def solve(x, lower, upper, matrix, b):
    return optfn.minimize(quadratic, x, bounds=(lower, upper), args=(matrix, b), tol=1e-7)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_random_quadratics_end_where_the_conditions_of_a_minimum_hold(seed):
    """A hundred at once, each in its own number of steps."""
    with enable_x64(True):
        start, lower, upper, matrix, b = problems = random_quadratics(seed, 100, 5)
        found = jax.tree.map(np.asarray, solve(*problems))
    assert found.converged.all()
    slopes = np.einsum("kij,kj->ki", matrix, found.x) - b
    for x, slope, low, high in zip(found.x, slopes, lower, upper, strict=True):
        assert violation(x, slope, low, high) <= 1.001e-7
    np.testing.assert_array_equal(
        found.start_moved, ((start < lower) | (start > upper)).any(axis=1)
    )
    assert len(set(found.steps)) > 3


def mixed(x, matrix, b, share):
    """One program for functions of both kinds."""
    return share * rosenbrock(x) + (1 - share) * quadratic(x, matrix, b)


def test_it_finds_scipy_s_minimum_with_as_many_evaluations(x64):
    value_and_grad = jax.jit(jax.value_and_grad(mixed))
    ours, theirs = [], []
    for seed in range(6):
        x, lower, upper, matrix, b = (y[0] for y in random_quadratics(seed, 1, 10))
        share = [1.0, 0.0, 0.5][seed % 3]
        x = np.clip(x, lower, upper)
        args = matrix, b, share
        found = optfn.minimize(mixed, x, bounds=(lower, upper), args=args, tol=1e-8)
        there = optimize.minimize(
            lambda x, *args: tuple(map(np.asarray, value_and_grad(x, *args))),
            *(x, args),
            **{"method": "L-BFGS-B", "jac": True, "bounds": np.stack([lower, upper], 1)},
            options={"maxcor": 10, "gtol": 1e-8, "ftol": 0, "maxiter": 1000, "maxfun": 2000},
        )
        assert found.converged
        np.testing.assert_allclose(found.x, there.x, atol=1e-7)
        np.testing.assert_allclose(found.value, there.fun, rtol=1e-8, atol=1e-8)
        np.testing.assert_array_equal(found.x == lower, there.x == lower)
        ours.append(int(found.evaluations.value))
        theirs.append(there.nfev)
    assert np.exp(np.mean(np.log(np.divide(ours, theirs)))) <= 1.1


def test_bounds_are_trees_prefixes_one_side_or_none():
    """And where no bound is met the steps are those of L-BFGS."""

    def f(p):
        return jnp.sum((p["a"] - 3) ** 2) + jnp.sum((p["b"][0] + 2) ** 2) + p["b"][1] ** 2

    start = {"a": jnp.zeros(2), "b": (jnp.zeros((1, 2)), jnp.asarray(1.0))}
    for bounds, a, b in (
        ((0, {"a": 2, "b": None}), [2, 2], [0, 0]),
        ((None, {"a": np.array([1, 5]), "b": (-4, None)}), [1, 3], [-4, -4]),
        (({"a": None, "b": (np.array([[-1.0, -5.0]]), 0)}, None), [3, 3], [-1, -2]),
        (({"a": 7, "b": -FREE}, {"a": 7, "b": FREE}), [7, 7], [-2, -2]),
    ):
        result = optfn.minimize(f, start, bounds=bounds)
        assert result.converged
        np.testing.assert_allclose(result.x["a"], a, atol=1e-5)
        np.testing.assert_allclose(result.x["b"][0], [b], atol=1e-5)
        assert result.start_moved == (a == [7, 7] or b == [-4, -4])
        assert ("the start was outside the bounds" in str(result)) == result.start_moved
    free, wide = optfn.minimize(f, start), optfn.minimize(f, start, bounds=(-1e9, None))
    assert free.evaluations == wide.evaluations
    assert optfn.minimize(lambda p: jnp.zeros(()), {}, bounds=(0, None)).converged


def test_lanes_stop_by_themselves_and_say_why():
    """Bounds and starts by the lane: a corner, a flat function, crossed bounds, no number."""

    def f(x, scale):
        return jnp.sum(scale * rosenbrock(x))

    @jax.jit
    @jax.vmap
    def run(lower, start, scale):
        bounds = lower, jnp.asarray([0.5, jnp.inf])
        return optfn.minimize(f, start, bounds=bounds, args=(scale,), tol=1e-3)

    lower = jnp.asarray([[-2.0, 1.0], [-2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [jnp.nan, 0.0]])
    start = jnp.asarray([[0.4, 1.0], [0.0, 2.0], [0.0, 1.0], [jnp.nan, 1.0], [0.0, 1.0]])
    found = run(lower, start, jnp.asarray([1.0, 0.0, 1.0, 1.0, 1.0]))
    ends = [
        *[Status.CONVERGED] * 2,
        Status.BOUNDS_CROSSED,
        Status.NOT_FINITE,
        Status.BOUNDS_CROSSED,
    ]
    assert found.status.tolist() == ends
    assert found.steps.tolist()[1:] == [0] * 4
    np.testing.assert_allclose(found.x[0], [0.5, 1.0], atol=1e-6)
    np.testing.assert_array_equal(found.x[1], start[1])
    assert str(found).splitlines()[2].startswith("stopped at the start, as a lower bound")


def test_a_function_without_a_minimum_is_told_from_a_failed_search():
    result = optfn.minimize(lambda x: -jnp.sum(x), jnp.zeros(2))
    assert result.status == Status.UNBOUNDED
    assert "where the value still falls" in str(result)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_it_says_so_soon_in_double_precision(power, x64):
    result = optfn.minimize(lambda x: -jnp.sum(x**power), jnp.full(2, 0.1), tol=1e-12)
    assert result.status == Status.UNBOUNDED
    assert result.steps < 20


def test_bounds_hold_what_falls_for_ever():
    held = optfn.minimize(lambda x: -jnp.sum(x), jnp.zeros(2), bounds=(None, 3.0))
    assert held.converged
    np.testing.assert_array_equal(held.x, 3)


def test_frozen_params_need_no_bounds_and_params_keep_their_precision():
    def f(p):
        return jnp.sum((p["x"].astype(jnp.float32) * p["n"] - 4) ** 2)

    start = {"x": jnp.ones(2, jnp.bfloat16), "n": jnp.asarray([1, 2])}
    tx = optfn.freeze(optfn.lbfgs(), {"x": False, "n": True})
    with pytest.raises(TypeError, match=r"minimize\(bounds=\.\.\.\) needs an optimizer that takes"):
        optfn.minimize(f, start, tx, bounds=(None, 3))
    bounded = optfn.freeze(lbfgsb(), {"x": False, "n": True})
    result = optfn.minimize(f, start, bounded, bounds=({"x": 0.1, "n": None}, 3), tol=1e-2)
    assert result.converged
    assert result.x["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(result.x["x"], jnp.asarray([3, 2], jnp.bfloat16))
    np.testing.assert_array_equal(result.x["n"], start["n"])


ZEROS = {"a": jnp.zeros(2), "b": jnp.zeros(())}


@pytest.mark.parametrize(
    ("bounds", "error", "match"),
    [
        (
            [(0, 1), (0, 1)],
            TypeError,
            r"must be a pair \(lower, upper\).*as SciPy takes them.*float\).T",
        ),
        ((0, 1, 2), TypeError, r"must be a pair \(lower, upper\).*found a tuple of 3"),
        (optimize.Bounds(0, 1), TypeError, r"found SciPy's Bounds b, which are \(b\.lb"),
        (({"a": 0}, None), ValueError, r"the lower bounds in .* it has no value at 'b'"),
        ((None, {"a": 0, "b": 1, "c": 2}), ValueError, r"it has a value at 'c', where x0 have"),
        ((np.zeros(3), None), ValueError, r"at 'a': it has shape \(3,\), x0 has \(2,\)"),
        ((1j, None), TypeError, r"at 'a': bounds are real numbers, found 1j"),
        (("low", None), TypeError, r"at 'a': bounds are real numbers, found 'low'"),
        (({"a": [0, 1], "b": 0}, None), ValueError, r"at 'a' it has a list, x0 have an array"),
        ((2, {"a": 3, "b": 1}), ValueError, r"at 'b': the lower bound 2\.0 is not at most .* 1\.0"),
        ((np.nan, None), ValueError, r"at 'a': the lower bound nan is not at most"),
    ],
)
def test_bounds_that_do_not_fit(bounds, error, match):
    with pytest.raises(error, match=match):
        optfn.minimize(lambda p: jnp.sum(p["a"]) + p["b"], ZEROS, bounds=bounds)


@pytest.mark.parametrize(
    "bounds", [[(0, 1), (None, 2)], ((0, 1), (0, None)), [[0.0, np.float64(1)]]]
)
def test_pairs_for_each_entry_are_told_from_lower_and_upper(bounds):
    with pytest.raises(TypeError, match="a pair for each entry, as SciPy takes them"):
        optfn.minimize(rosenbrock, jnp.zeros(2), bounds=bounds)
    lower, upper = np.array([(0, 1), (-np.inf, 2)], float).T  # as it says
    assert optfn.minimize(rosenbrock, jnp.zeros(2), bounds=(lower, upper), tol=1e-2).converged
    pair = (jnp.zeros(()), jnp.zeros(()))
    f = lambda p: (p[0] - 3) ** 2 + (p[1] + 3) ** 2  # noqa: E731
    found = optfn.minimize(f, pair, bounds=((0, 1), (2, 3)))  # two trees like this pair
    np.testing.assert_allclose(found.x, [2, 1], atol=1e-5)


def test_other_bad_input():
    with pytest.raises(TypeError, match="x0 at the root has dtype int32"):
        optfn.minimize(rosenbrock, jnp.asarray([1, 2]), bounds=(0, 1))
    with pytest.raises(
        TypeError, match="at the root: only real params have bounds, found complex64"
    ):
        optfn.minimize(lambda z: jnp.abs(z), jnp.complex64(1), bounds=(0, 1))
    with pytest.raises(
        TypeError, match=r"moves between bounds: minimize\(bounds=\.\.\.\) is missing"
    ):
        optfn.minimize(rosenbrock, jnp.zeros(2), lbfgsb())
