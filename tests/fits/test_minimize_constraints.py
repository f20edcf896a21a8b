"""Minima under constraints: by the conditions of Karush, Kuhn and Tucker, and beside SciPy's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import of_benchmarks, rosenbrock
from scipy import optimize

import optfn
from optfn import Constraint, Status

fits = of_benchmarks("fits")


def missed_by(x, slope, values, jacobian, y, lower, upper):
    """By how much a point and multipliers miss each condition; all in NumPy."""
    stationary = abs(slope + jacobian.T @ y).max()
    outside = np.maximum(np.maximum(lower - values, values - upper), 0).max()
    wrong_sign = np.where(y > 0, ~np.isfinite(upper), (y < 0) & ~np.isfinite(lower)).any()
    bound = np.where(y > 0, upper, np.where(y < 0, lower, values))
    return max(stationary, outside, abs(values - bound).max(), 1.0 * wrong_sign)


def quadratic(x, matrix, b, rows, *_):
    return x @ matrix @ x / 2 - b @ x


def linear(x, matrix, b, rows, *_):
    return rows @ x


@jax.jit
@jax.vmap
def solve(start, matrix, b, rows, lower, upper):
    constraint = Constraint(linear, lower, upper)
    args = matrix, b, rows
    return optfn.minimize(quadratic, start, constraints=constraint, args=args, tol=1e-8)


def random_quadratics(seed, count, n=5, m=4):
    """Each with an equation and constraints of one side, the other and both, which can hold."""
    rng = np.random.default_rng(seed)
    root, rows = rng.normal(size=(count, n, n)), rng.normal(size=(count, m, n))
    matrix, b = root.swapaxes(1, 2) @ root + 0.1 * np.eye(n), 5 * rng.normal(size=(count, n))
    values = np.einsum("kij,kj->ki", rows, rng.normal(size=(count, n)))
    width = abs(rng.normal(size=(count, m)))
    lower, upper = values - width, values + width
    lower[:, 0] = upper[:, 0] = values[:, 0]
    lower[:, 1], upper[:, 2] = -np.inf, np.inf
    return rng.normal(size=(count, n)), matrix, b, rows, lower, upper


def test_random_quadratics_meet_the_conditions_of_a_minimum(x64):
    """In lanes, each in its own rounds; and one is SciPy's."""
    problems = random_quadratics(0, 40)
    found = jax.tree.map(np.asarray, solve(*problems))
    assert found.converged.all(), str(found)
    for i, (_, matrix, b, rows, lower, upper) in enumerate(zip(*problems, strict=True)):
        x, y = found.x[i], found.multipliers[i]
        missed = missed_by(x, matrix @ x - b, rows @ x, rows, y, lower, upper)
        assert missed <= 1.001e-8
        assert found.violation[i] <= 1e-8
    assert (found.multipliers[:, 1:] > 0).any() and (found.multipliers[:, 1:] < 0).any()
    assert (found.multipliers[:, 1:] == 0).any()
    assert len(set(found.steps)) > 3
    start, matrix, b, rows, lower, upper = (x[0] for x in problems)
    there = optimize.minimize(
        lambda x: x @ matrix @ x / 2 - b @ x,
        start,
        method="trust-constr",
        hess=lambda x: matrix,
        constraints=optimize.LinearConstraint(rows, lower, upper),
        options={"gtol": 1e-9, "xtol": 1e-12},
    )
    np.testing.assert_allclose(found.x[0], there.x, atol=1e-5)
    np.testing.assert_allclose(found.value[0], there.fun, rtol=1e-7)


def hs71(x, shift):
    return x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2], {"sum": jnp.sum(x)}


def hs71_product(x, shift):
    return jnp.prod(x)


def hs71_squares(x, shift):
    return {"norm": jnp.sum(x**2) - shift}


HS71 = {"product": Constraint(hs71_product, 25), "squares": Constraint(hs71_squares, 0, 0)}


def solve_hs71(shift, upper=5.0):
    start = jnp.asarray([1.0, 5.0, 5.0, 1.0])
    return optfn.minimize(
        hs71,
        start,
        bounds=(1, upper),
        constraints=HS71,
        args=(shift,),
        has_aux=True,
        tol=1e-9,
    )


@pytest.mark.slow
def test_bounds_constraints_and_outputs_in_trees(x64):
    """Problem 71 of Hock and Schittkowski, whose first entry is on its bound."""
    found = jax.jit(solve_hs71)(40.0)
    assert found.converged
    np.testing.assert_allclose(found.x, [1, 4.74299963, 3.82114998, 1.37940829], rtol=1e-7)
    np.testing.assert_allclose(found.value, 17.0140173, rtol=1e-8)
    np.testing.assert_allclose(found.aux["sum"], found.x.sum())
    assert found.multipliers["product"] < 0
    assert "constraints missed by at most" in str(found)


@pytest.mark.slow
def test_the_derivatives_of_a_minimum_and_of_its_multipliers(x64):
    found = jax.jit(solve_hs71)(40.0)

    def answer(shift):
        end = solve_hs71(shift)
        return jnp.stack([end.value, end.x @ jnp.arange(4.0), end.multipliers["product"]])

    answers = jax.jit(jax.vmap(answer))(40 + 1e-3 * jnp.asarray([-1.0, 1.0]))
    wanted = (answers[1] - answers[0]) / 2e-3
    np.testing.assert_allclose(jax.jit(jax.jacrev(answer))(40.0), wanted, rtol=1e-5)
    # The multiplier is the slope of the value by the bound.
    np.testing.assert_allclose(wanted[0], -found.multipliers["squares"]["norm"], rtol=1e-5)


@pytest.mark.slow
def test_how_it_ends():
    """In lanes: a minimum, none that is feasible, crossed bounds, no number, none at all."""

    def f(x, sign):
        return sign * jnp.sum(x)

    @jax.jit
    @jax.vmap
    def run(start, lower, upper, sign):
        circle = Constraint(lambda x, *_: jnp.sum(x**2), lower, upper)
        return optfn.minimize(f, start, constraints=[circle], args=(sign,), tol=1e-3)

    inf, nan = np.inf, np.nan
    found = run(
        np.array([[0.5, 0.2], [0.5, 0.2], [0.5, 0.2], [nan, 0.2], [0.5, 0.2]]),
        np.array([0.0, -2.0, 2.0, 0.0, 1.0]),
        np.array([2.0, -1.0, 1.0, 2.0, inf]),
        np.array([1.0, 1.0, 1.0, 1.0, -1.0]),
    )
    ends = [
        Status.CONVERGED,
        Status.INFEASIBLE,
        Status.BOUNDS_CROSSED,
        Status.NOT_FINITE,
        Status.UNBOUNDED,
    ]
    assert found.status.tolist() == ends, str(found)
    assert found.steps[2] == found.steps[3] == 0
    np.testing.assert_allclose(found.x[0], -1, atol=2e-3)
    np.testing.assert_allclose(found.multipliers[0][0], 0.5, rtol=1e-3)
    np.testing.assert_allclose(found.violation[1], 1, atol=1e-2)
    assert "nearer to holding" in str(found).splitlines()[1]


@pytest.mark.slow
def test_a_tolerance_below_the_digits_of_float32_does_not_take_all_steps():
    """It ends where no line search finds a lower value, or where it finds one again and again."""
    circle = Constraint(lambda x: jnp.sum(x**2), 1, 1)
    run = partial(optfn.minimize, rosenbrock, constraints=circle, tol=1e-9, max_steps=10_000)
    found = jax.jit(jax.vmap(run))(np.random.default_rng(0).normal(size=(12, 4)).astype("f4"))
    assert set(found.status.tolist()) == {Status.LINE_SEARCH_FAILED, Status.STALLED}
    assert np.median(found.steps) <= 1000 and (found.steps <= 5000).all()
    assert (found.violation <= 4e-4).all() and (found.grad_norm <= 1e-2).all()
    assert "tol is too small for the dtype" in str(found)


@pytest.mark.slow
def test_gradients_of_one_s_own_frozen_params_and_single_precision():
    calls = []

    def own(p, a):
        calls.append(1)
        return jax.value_and_grad(f)(p, a)

    def f(p, a):
        return jnp.sum((p["x"] - a) ** 2) + 0 * p["n"]

    start = {"x": jnp.zeros(2), "n": jnp.asarray(1)}
    tx = optfn.freeze(optfn.lbfgs(), {"x": False, "n": True})
    on_line = Constraint(lambda p, a: p["x"][0] + p["n"] * p["x"][1], 1, 1)
    found = optfn.minimize(
        lambda p, a: f(p, a), start, tx, constraints=on_line, args=(2.0,), tol=1e-4
    )
    assert found.converged
    np.testing.assert_allclose(found.x["x"], 0.5, atol=1e-3)
    np.testing.assert_allclose(found.multipliers, 3, atol=1e-2)
    free = optfn.minimize(
        lambda x, a: jnp.sum((x - a) ** 2),
        jnp.zeros(2),
        value_and_grad=lambda x, a: (jnp.sum((x - a) ** 2), 2 * (x - a)),
        constraints=(Constraint(lambda x, a: x[0] - x[1], upper=-1),),
        args=(2.0,),
        tol=1e-4,
    )
    assert free.converged
    np.testing.assert_allclose(free.x, [1.5, 2.5], atol=1e-3)


@pytest.mark.parametrize(
    ("constraints", "error", "match"),
    [
        (
            {"type": "eq", "fun": len},
            TypeError,
            r"an optfn.Constraint.*Constraint\(g, 0, 0\)",
        ),
        (optimize.NonlinearConstraint(len, 0, 1), TypeError, "found NonlinearConstraint"),
        (lambda x: x, TypeError, "must be an optfn.Constraint.*found function"),
        (Constraint(1.0, 0), TypeError, r"Constraint\(fun=...\) must be a function, found float"),
        (Constraint(jnp.sum), ValueError, "a Constraint needs bounds"),
        (Constraint(jnp.sum, 1, 0), ValueError, "at the root: the lower bound 1.0 is not at most"),
        (Constraint(jnp.sum, np.zeros(2)), ValueError, r"it has shape \(2,\), the constraint has"),
        (Constraint(lambda x: {"a": x}, {"b": 0}), ValueError, "does not fit the constraint"),
        (Constraint(lambda x: x > 0, 0), TypeError, "real floating point arrays, found bool"),
        (Constraint(lambda x: x * 1j, 0), TypeError, "real floating point arrays, found complex64"),
        (Constraint(lambda x: "no", 0), TypeError, "no|str"),
    ],
)
def test_what_is_refused(constraints, error, match):
    with pytest.raises(error, match=match):
        optfn.minimize(lambda x: jnp.sum(x**2), jnp.zeros(3), constraints=constraints)


@pytest.mark.slow
def test_a_function_that_falls_faster_than_a_penalty_rises(x64):
    above = Constraint(lambda x: x, -1)
    found = optfn.minimize(lambda x: x**3 + x, 0.5, constraints=above, tol=1e-8)
    assert found.converged
    np.testing.assert_allclose([found.x, found.multipliers], [-1, -4], rtol=1e-7)


@pytest.mark.slow
def test_no_constraints_are_none():
    found = optfn.minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(2), constraints=[])
    assert found.converged
    assert found.multipliers == [] and found.violation == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", fits.HS)
def test_it_is_the_minimum_of_slsqp(number, x64):
    f, start, bounds, *_ = fits.HS[number]
    own = fits.constraints_of(number)
    sides = None if bounds is None else tuple(np.asarray(x, float) for x in bounds)
    start = np.asarray(start, float)
    found = optfn.minimize(f, start, bounds=sides, constraints=own, tol=1e-8, max_steps=5000)
    _, there, _ = fits.constrained(number)
    assert found.converged, str(found)
    np.testing.assert_allclose(found.value, there.value, rtol=1e-7, atol=1e-7)
    slope = np.asarray(jax.grad(f)(found.x))
    lower, upper, rows, values, y = [], [], [np.zeros((0, len(start)))], [], []
    for name, c in own.items():
        values.append(c.fun(found.x))
        rows.append(jax.jacfwd(c.fun)(found.x))
        y.append(found.multipliers[name])
        lower.append(np.zeros_like(y[-1]))
        upper.append(np.zeros_like(y[-1]) if name == "eq" else np.full_like(y[-1], np.inf))
    rows = np.concatenate(rows)
    if sides is not None:  # whose multipliers are what is left of the slope
        left = slope + rows.T @ np.concatenate(y)
        at = np.where(found.x == sides[0], np.minimum(-left, 0), 0)
        at = np.where(found.x == sides[1], np.maximum(-left, 0), at)
        slope = slope + at
    parts = map(np.concatenate, (values, y, lower, upper))
    values, y, lower, upper = parts
    assert missed_by(found.x, slope, values, rows, y, lower, upper) <= 1.01e-8
