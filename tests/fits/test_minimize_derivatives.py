"""Derivatives of a minimum, and derivatives of one's own in the search for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import rosenbrock

import optfn

START = np.zeros(3)
WEIGHTS = np.array([1.0, 2.0, 5.0])


def energy(x, a, b):
    """Coupled and smooth; strictly convex for these a and b."""
    return jnp.sum((x - a) ** 2) + jnp.sum(x**4) + b["tilt"] * jnp.sum(x[1:] * x[:-1])


def answer(a, b, lower, upper):
    """Of all that a minimum gives, a number."""
    bounds, args = (lower, upper), (a, b)
    found = optfn.minimize(energy, START, bounds=bounds, args=args, tol=1e-12)
    return jnp.sum(WEIGHTS * found.x) + 3 * found.value


@pytest.fixture
def point(x64):
    """The first entry is on its lower bound, the last on its upper one, and one is free."""
    a, b = jnp.asarray([0.5, 0.7, 2.0]), {"tilt": jnp.asarray(0.3), "count": 3}
    return a, b, jnp.asarray([0.4, -1.0, -2.0]), jnp.asarray([2.0, 2.0, 0.6])


def by_differences(f, *args):
    """Central differences of a scalar by every floating point entry of the arguments."""
    flat, tree = jax.flatten_util.ravel_pytree(args)
    moves = 1e-5 * np.eye(len(flat))
    return tree(np.array([(f(*tree(flat + e)) - f(*tree(flat - e))) / 2e-5 for e in moves]))


def test_the_gradient_of_a_minimum_is_that_of_differences(point):
    a, b, lower, upper = point

    def of(a, tilt, lower, upper):
        return answer(a, b | {"tilt": tilt}, lower, upper)

    args = a, b["tilt"], lower, upper
    found, wanted = jax.grad(of, range(4))(*args), by_differences(jax.jit(of), *args)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), found, wanted)
    assert np.count_nonzero(found[2]) == np.count_nonzero(found[3]) == 1
    _, forward = jax.jvp(of, args, jax.tree.map(jnp.ones_like, args))
    np.testing.assert_allclose(forward, sum(np.sum(x) for x in found), rtol=1e-9)


def test_each_lane_has_its_own_active_bounds(point):
    a, b, lower, upper = point
    lowers = jnp.stack([lower, lower - 9, lower + 0.1])
    of = partial(answer, a, b)
    found = jax.jit(jax.vmap(jax.grad(of), (0, None)))(lowers, upper)
    alone = jax.jit(lambda low: of(low, upper))
    for row, low in zip(found, lowers, strict=True):
        wanted = by_differences(alone, low)[0]
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-7)
    assert len({np.count_nonzero(row) for row in np.asarray(found)}) == 2


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_a_function_closes_over_counts(wrap, x64):
    """The minimum of (x - a)^2 + c x^2 is a / (1 + c), and its value a^2 c / (1 + c)."""

    def of(a, c):
        found = optfn.minimize(lambda x: (x - a) ** 2 + c * x**2, 0.0, tol=1e-12)
        return found.x, found.value

    _, pullback = jax.vjp(wrap(of), 2.0, 3.0)
    np.testing.assert_allclose(pullback((1.0, 0.0)), [1 / 4, -2 / 16], rtol=1e-9)
    np.testing.assert_allclose(pullback((0.0, 1.0)), [3.0, 4 / 16], rtol=1e-9)


def test_whole_numbers_and_keys_of_an_outer_trace_may_be_closed_over(x64):
    table, key = jnp.asarray([1.0, 2.0, 4.0]), jax.random.key(0)

    def of(scale, place, key):
        noise = jax.random.normal(key, ())
        found = optfn.minimize(
            lambda x: (x - scale * table[place] - noise - jax.random.normal(key, ())) ** 2, 0.0
        )
        return found.x

    for wrap in (lambda f: jax.grad(jax.jit(f)), lambda f: jax.jit(jax.grad(f))):
        np.testing.assert_allclose(wrap(of)(1.0, 2, key), 4.0, rtol=1e-9)


def test_second_derivatives_complex_params_frozen_ones_and_outputs(x64):
    def of(c):
        def f(p):
            value = jnp.abs(p["z"] - c * (1 + 2j)) ** 2 + jnp.abs(p["z"]) ** 2 * p["w"]
            return value, {"twice": 2 * p["z"], "count": 3}

        start = {"z": jnp.asarray(0j), "w": c}
        tx = optfn.freeze(optfn.lbfgs(), {"z": False, "w": True})
        found = optfn.minimize(f, start, tx, has_aux=True, tol=1e-12)
        return found.x["z"].real + found.aux["twice"].imag

    @jax.jit
    def derivatives(c):
        forward, backward = jax.jacfwd(of), jax.grad(of)
        return {
            "first": [forward(c), backward(c)],
            "second": [d(f)(c) for d in (jax.jacfwd, jax.grad) for f in (forward, backward)],
        }

    # z = c (1 + 2i) / (1 + c), of which this is 5 c / (1 + c).
    found = derivatives(0.5)
    np.testing.assert_allclose(found["first"], 5 / 1.5**2, rtol=1e-8)
    np.testing.assert_allclose(found["second"], -10 / 1.5**3, rtol=1e-6)


def test_an_equation_that_has_no_solution_is_a_nan(x64):
    """The function is flat along x[0] and a moves it there: no minimum for any other a."""

    def of(a):
        f = lambda x: (x[1] - a) ** 2 + a * x[0]  # noqa: E731
        return optfn.minimize(f, jnp.zeros(2)).x[0]

    assert np.isnan(jax.grad(of)(0.0))
    start = jax.grad(lambda x0: optfn.minimize(rosenbrock, x0).x.sum())(jnp.zeros(2))
    np.testing.assert_array_equal(start, 0)


def loop(x, a):
    """A sum by a `while_loop`, which has no gradient backward."""

    def add(carry):
        i, total = carry
        return i + 1, total + (x[i] - a) ** 2

    return jax.lax.while_loop(lambda carry: carry[0] < len(x), add, (0, jnp.zeros((), x.dtype)))[1]


def of_a_module(a, x):
    return jnp.sum((x - a) ** 2)


def forward(f, x, *args):
    grad, value = jax.jacfwd(lambda x: (f(x, *args),) * 2, has_aux=True)(x)
    return value, grad


def test_gradients_of_one_s_own(x64):
    calls = []

    def own(x, a):
        calls.append(1)
        return forward(loop, x, a)

    found = optfn.minimize(loop, jnp.zeros(2), value_and_grad=own, args=(3.0,))
    np.testing.assert_allclose(found.x, 3, atol=1e-5)
    before = len(calls)
    assert before
    optfn.minimize(loop, jnp.zeros(2), value_and_grad=own, args=(4.0,))
    assert len(calls) == before
    end = lambda a: optfn.minimize(loop, jnp.zeros(2), value_and_grad=own, args=(a,)).x.sum()  # noqa: E731
    np.testing.assert_allclose(jax.jvp(end, (3.0,), (1.0,))[1], 2, rtol=1e-9)
    both = (
        jax.tree_util.Partial(f, 3.0) for f in (of_a_module, jax.value_and_grad(of_a_module, 1))
    )
    found = optfn.minimize(next(both), jnp.zeros(2), value_and_grad=next(both))
    np.testing.assert_allclose(found.x, 3, atol=1e-5)
    f = lambda x: (jnp.sum(x**2), 2 * x)  # noqa: E731
    with_aux = {"has_aux": True, "value_and_grad": jax.value_and_grad(f, has_aux=True)}
    tx = optfn.chain(optfn.sgd(1.0), optfn.scale_by_backtracking_linesearch(20))
    found = optfn.minimize(f, jnp.ones(2), tx, **with_aux)
    np.testing.assert_array_equal(found.aux, 2 * found.x)


@pytest.mark.parametrize(
    ("own", "error", "match"),
    [
        (rosenbrock, TypeError, r"minimize\(value_and_grad=\.\.\.\) must give the pair"),
        (
            lambda x: (x, x),
            ValueError,
            r"minimize\(value_and_grad=\.\.\.\) must give a real scalar",
        ),
        (lambda x: (x[0], x[0]), ValueError, r"must give a gradient like x0, found float32\[\]"),
        (
            lambda x: ((x[0], x), x),
            TypeError,
            r"minimize\(value_and_grad=\.\.\.\) gives a pair with",
        ),
    ],
)
def test_bad_gradients_of_one_s_own(own, error, match):
    with pytest.raises(error, match=match):
        optfn.minimize(rosenbrock, jnp.zeros(2), value_and_grad=own)
