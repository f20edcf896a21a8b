"""Least squares: where runs end, beside SciPy's and by the conditions of a minimum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import of_benchmarks
from scipy import optimize

import optfn
from optfn import Status

fits = of_benchmarks("fits")

T = np.linspace(0, 4, 30)
NOISE = np.random.default_rng(0).normal(size=30)
Y = 2 * np.exp(-0.7 * T) + 0.3 + 0.05 * NOISE
OUTLIERS = Y + np.where(np.arange(30) % 7 == 3, 1.5, 0)
START = {"a": 1.0, "k": 1.0, "c": 0.0}


def decay(p, t, y):
    return p["a"] * jnp.exp(-p["k"] * t) + p["c"] - y


def flat_decay(x, t, y):
    return np.asarray(x[0] * np.exp(-x[2] * t) + x[1] - y)


def scipy_s(y, **given):
    """The entries in the order of the keys of the tree."""
    options = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-12, "x_scale": "jac"}
    return optimize.least_squares(flat_decay, [1, 0, 1], args=(T, y), **options | given)


def flat(x):
    return np.array([x[key] for key in sorted(x)])


SLOW = [
    pytest.param(loss, marks=pytest.mark.slow) for loss in ("linear", "huber", "cauchy", "arctan")
]


@pytest.mark.parametrize("loss", ["soft_l1", *SLOW])
def test_a_fit_with_outliers_is_scipy_s(loss, x64):
    found = optfn.minimize_residuals(
        decay, START, args=(T, OUTLIERS), loss=loss, scale=0.1, tol=1e-9
    )
    there = scipy_s(OUTLIERS, loss=loss, f_scale=0.1)
    assert found.converged, str(found)
    np.testing.assert_allclose(found.value, there.cost, rtol=1e-8)
    np.testing.assert_allclose(flat(found.x), there.x, rtol=1e-5, atol=1e-6)
    assert found.evaluations.value == 1 + found.steps


@pytest.mark.slow
def test_bounds_both_solvers_and_the_derivatives_of_the_answer(x64):
    """The offset is on its bound, the rate is free, the amplitude is fixed by equal bounds."""
    lower, upper = {"a": 1.8, "k": None, "c": 0.45}, {"a": 1.8, "k": 3.0, "c": None}

    @partial(jax.jit, static_argnums=2)
    def solve(y, low, solver="qr"):
        bounds = lower | {"c": low}, upper
        return optfn.minimize_residuals(
            decay, START, bounds=bounds, args=(T, y), solver=solver, tol=1e-10
        )

    found = solve(Y, 0.45)
    assert found.converged and found.start_moved
    assert found.x["a"] == 1.8 and found.x["c"] == 0.45
    slope = jax.grad(lambda k: jnp.sum(decay(found.x | {"k": k}, T, Y) ** 2) / 2)(found.x["k"])
    assert abs(slope) <= 1.001e-10
    by_products = solve(Y, 0.45, "cg")
    assert by_products.converged
    np.testing.assert_allclose(flat(by_products.x), flat(found.x), atol=1e-9)

    def rate(y, low):
        return solve(y, low).x["k"]

    along = np.cos(T)
    moved = jax.jit(jax.vmap(rate))(
        np.stack([Y - 1e-5 * along, Y + 1e-5 * along, Y, Y]),
        np.array([0.45, 0.45, 0.45 - 1e-5, 0.45 + 1e-5]),
    )
    by_y, by_low = jax.grad(rate, (0, 1))(Y, 0.45)
    np.testing.assert_allclose(by_y @ along, (moved[1] - moved[0]) / 2e-5, rtol=1e-5)
    np.testing.assert_allclose(by_low, (moved[3] - moved[2]) / 2e-5, rtol=1e-5)


def rosenbrock(x, scale):
    return {"valley": 10 * (x[1:] - x[:-1] ** 2) * scale, "rest": 1 - x[:-1]}, jnp.sum(x)


def test_lanes_stop_by_themselves_and_say_why():
    """A valley, a start at the minimum, no number, crossed bounds, and one that takes longer."""

    @jax.jit
    @jax.vmap
    def run(start, scale, lower):
        return optfn.minimize_residuals(
            rosenbrock,
            start,
            bounds=(lower, None),
            args=(scale,),
            has_aux=True,
            tol=1e-3,
            max_steps=50,
        )

    starts = jnp.asarray([[-1.2, 1.0], [1.0, 1.0], [jnp.nan, 1.0], [0.0, 0.0], [0.0, 0.0]])
    lower = jnp.asarray([-9.0, -9.0, -9.0, jnp.nan, 2.0])
    found = run(starts, jnp.ones(5), lower)
    ends = [Status.CONVERGED] * 2 + [Status.NOT_FINITE, Status.BOUNDS_CROSSED, Status.CONVERGED]
    assert found.status.tolist() == ends, str(found)
    assert found.steps.tolist()[1:4] == [0] * 3 and found.steps[0] > 3
    np.testing.assert_allclose(found.x[0], 1, atol=1e-3)
    np.testing.assert_allclose(found.aux[0], 2, atol=1e-3)
    np.testing.assert_allclose(found.x[4], [2, 4], atol=1e-3)
    assert found.start_moved.tolist() == [False, False, False, False, True]


@pytest.mark.slow
def test_complex_params_empty_trees_wide_problems_and_closures(x64):
    def f(z):
        return jnp.stack([z - (1 + 2j), 2 * (z - (1 + 2j))])

    found = optfn.minimize_residuals(f, jnp.asarray(0j), tol=1e-10)
    assert found.converged
    np.testing.assert_allclose(found.x, 1 + 2j, rtol=1e-9)
    empty = optfn.minimize_residuals(lambda p: jnp.ones(2), {})
    assert empty.converged and empty.value == 1 and empty.x == {}
    wide = optfn.minimize_residuals(lambda x: jnp.sum(x) - 1, jnp.zeros(3), tol=1e-10)
    np.testing.assert_allclose(wide.x, 1 / 3, rtol=1e-6)

    def of(c):
        return optfn.minimize_residuals(lambda x: jnp.stack([x - c, x]), 0.0, tol=1e-12).x

    np.testing.assert_allclose(jax.grad(of)(3.0), 0.5, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(jax.jit(of))(3.0), 0.5, rtol=1e-9)


def test_params_of_16_bits_keep_their_dtype():
    x = {"x": jnp.zeros(2, jnp.bfloat16)}
    found = optfn.minimize_residuals(lambda p: p["x"].astype(jnp.float32) - 2, x, tol=1e-2)
    assert found.converged and found.x["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.x["x"].astype(float), 2)


def identity(x):
    return x


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"x0": jnp.asarray([1, 2])}, TypeError, "x0 at the root has dtype int32"),
        (
            {"args": [1.0]},
            TypeError,
            r"must be a tuple, as in args=\(data,\), found list",
        ),
        ({"fun": 3.0}, TypeError, r"minimize_residuals\(fun=...\) must be a function, found float"),
        ({"fun": lambda x: "no"}, TypeError, "the residual .* must be an array, found str"),
        ({"fun": lambda x: x > 0}, TypeError, "must give floating point residuals, found bool"),
        (
            {"fun": lambda x: (x, x)},
            TypeError,
            "gives a pair with has_aux=True alone; resid",
        ),
        ({"has_aux": True}, TypeError, r"must give a pair \(residuals, aux\) with has_aux=True"),
        ({"loss": "l2"}, ValueError, r"loss=...\) must be one of \('linear', .*found 'l2'"),
        ({"solver": "lsmr"}, ValueError, r"solver=...\) must be one of .*found 'lsmr'"),
        ({"scale": 0}, ValueError, r"scale=...\) must be positive, found 0"),
        ({"tol": np.nan}, ValueError, r"tol=...\) is NaN"),
        ({"max_steps": -1}, ValueError, r"max_steps=...\) must be at least 0, found -1"),
        ({"args": ("mode",)}, TypeError, r"args=...\) must hold arrays and numbers, found str"),
        ({"max_steps": np.ones(2)}, ValueError, r"max_steps=...\) must be one number, found shape"),
        ({"bounds": (1, 0)}, ValueError, "at the root: the lower bound 1.0 is not at most"),
        ({"bounds": ({"a": 1}, None)}, ValueError, "does not fit x0"),
        ({"bounds": [(0, 1)] * 2}, TypeError, r"must be a pair \(lower, upper\)"),
    ],
)
def test_what_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        optfn.minimize_residuals(**{"fun": identity, "x0": jnp.zeros(2)} | given)


# A second minimum, which More, Garbow and Hillstrom list beside that of SciPy's run: their f / 2.
OTHER_MINIMA = {"trigonometric in a box": 2.79506e-5 / 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*fits.MGH, *(f"{name} in a box" for name in fits.BOXES)])
def test_it_is_the_minimum_of_least_squares(name, x64):
    ours, theirs = fits.fit(name)
    wanted = max(theirs.value, OTHER_MINIMA.get(name, 0.0))
    assert ours.value <= wanted + 1e-8 * max(wanted, 1)
