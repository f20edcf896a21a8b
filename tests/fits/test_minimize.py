"""Whole runs: where they end, why, after how many evaluations, and in batches."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import counted, rosenbrock
from scipy import optimize

import optfn
from optfn import Status

START = jnp.asarray([-1.2, 1.0])
value, slope = jax.jit(rosenbrock), jax.jit(jax.grad(rosenbrock))


def scipy_s(f, x0):
    value_and_grad = jax.jit(jax.value_and_grad(f))
    options = {"maxcor": 10, "gtol": 1e-8, "ftol": 0, "maxiter": 10000, "maxfun": 20000}
    return optimize.minimize(
        lambda x: tuple(map(np.asarray, value_and_grad(jnp.asarray(x)))),
        *(x0,),
        **{"jac": True, "method": "L-BFGS-B", "options": options},
    )


@pytest.mark.parametrize("n", [2, 10])
def test_it_finds_scipy_s_minimum_with_as_many_evaluations(n, x64):
    x0 = np.tile([-1.2, 1.0], n // 2)
    result = optfn.minimize(rosenbrock, x0, tol=1e-8)
    theirs = scipy_s(rosenbrock, x0)
    assert result.converged
    assert result.grad_norm <= 1e-8
    np.testing.assert_allclose(result.x, theirs.x, atol=1e-7)
    np.testing.assert_allclose(slope(result.x), 0, atol=2e-8)
    assert result.evaluations.value <= 1.1 * theirs.nfev
    assert result.evaluations.grad == result.evaluations.value


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_gradient_of_1e_8_is_reached_where_values_no_longer_fall(offset, x64):
    """Near the minimum the values differ by less than their rounding; SciPy's search ends there."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    matrix, b = q @ np.diag(np.geomspace(1, 1e3, 10)) @ q.T, rng.normal(size=10)

    def f(x):
        return x @ matrix @ x / 2 - b @ x + offset

    result = optfn.minimize(f, np.zeros(10), tol=1e-8)
    assert result.converged
    np.testing.assert_allclose(matrix @ result.x, b, atol=1.1e-8)
    assert abs(scipy_s(f, np.zeros(10)).jac).max() > 1e-8


def test_lanes_are_runs_of_their_own(x64):
    """Each with its own steps, evaluations and end."""
    run = partial(optfn.minimize, rosenbrock, tol=1e-6, max_steps=33)
    starts = jnp.asarray([[-1.2, 1.0], [1.0, 1.0], [1.1, 1.2], [-3.0, 8.0], [jnp.nan, 0.0]])
    batch = jax.jit(jax.vmap(run))(starts)
    alone = [run(start) for start in starts]
    for name in ("steps", "evaluations", "status"):
        wanted = jax.tree.map(lambda *x: np.array(x), *(getattr(one, name) for one in alone))
        jax.tree.map(np.testing.assert_array_equal, getattr(batch, name), wanted)
    np.testing.assert_allclose(batch.x, [one.x for one in alone], rtol=1e-9, atol=1e-9)
    assert len({int(steps) for steps in batch.steps}) == 3
    ends = [Status.MAX_STEPS, *[Status.CONVERGED] * 2, Status.MAX_STEPS, Status.NOT_FINITE]
    assert batch.status.tolist() == ends
    assert len(str(batch).splitlines()) == 5


def test_evaluations_are_those_that_happen():
    f, calls = counted(rosenbrock)
    backtracking = optfn.scale_by_backtracking_linesearch
    for tx in (
        optfn.lbfgs(),
        optfn.adam(0.1),
        optfn.chain(optfn.sgd(1.0), backtracking(20, store_grad=True)),
        optfn.chain(optfn.sgd(1.0), backtracking(20)),
        optfn.chain(optfn.lbfgs(), optfn.scale(0.9)),
        optfn.chain(optfn.lbfgs().named("inner")),
    ):
        calls.update(value=0, grad=0)
        result = optfn.minimize(f, START, tx, max_steps=7, tol=1e-3)
        jax.effects_barrier()
        assert tuple(map(int, result.evaluations)) == (calls["value"], calls["grad"]), tx
        np.testing.assert_allclose(result.value, value(result.x), rtol=1e-5)
        np.testing.assert_allclose(
            result.grad_norm, abs(np.asarray(slope(result.x))).max(), rtol=1e-4
        )


def test_it_says_how_it_ended():
    def end(f, x0=START, **options):
        return optfn.minimize(f, x0, **options)

    done = end(rosenbrock, tol=1e-3)
    assert str(done).startswith("converged: value ")
    assert f"{done.steps} steps, {done.evaluations.value} values and " in str(done)
    assert end(rosenbrock, jnp.ones(2)).steps == 0
    short = end(rosenbrock, max_steps=3)
    assert (short.status, short.steps) == (Status.MAX_STEPS, 3)
    assert not short.converged

    @jax.custom_jvp
    def wrong(x):
        return jnp.sum(x)

    wrong.defjvp(lambda x, dx: (jnp.sum(x[0]), -jnp.sum(dx[0])))
    stuck = end(wrong)
    assert (stuck.status, stuck.steps) == (Status.LINE_SEARCH_FAILED, 2)
    np.testing.assert_array_equal(stuck.x, START)
    lost = end(lambda x: jnp.sum(jnp.log(x)), jnp.ones(1), tx=optfn.sgd(0.6))
    assert lost.status == Status.NOT_FINITE
    for status in (short, stuck, lost):
        assert str(status).startswith("stopped ")


def test_data_and_numbers_are_not_compiled_in():
    traces = []

    def f(x, data):
        traces.append(1)
        return jnp.sum((x - data) ** 2)

    for i, options in enumerate(({}, {"tol": 1e-3}, {"max_steps": 7}, {"tx": optfn.lbfgs(0.5)})):
        if i == 3:
            before = len(traces)
        result = optfn.minimize(f, jnp.zeros(3), args=(jnp.full(3, i),), **options)
        np.testing.assert_allclose(result.x, i, atol=1e-2)
        if i == 0:
            first = len(traces)
        elif i < 3:
            assert len(traces) == first
    assert len(traces) > before  # another optimizer
    partial_f = jax.tree_util.Partial(lambda data, x: jnp.sum((x - data) ** 2), jnp.ones(3))
    np.testing.assert_allclose(optfn.minimize(partial_f, jnp.zeros(3)).x, 1, atol=1e-4)
    shifts = jnp.arange(3.0)
    batch = jax.vmap(lambda c: optfn.minimize(f, jnp.zeros(3), args=(c,)))(shifts)
    np.testing.assert_allclose(batch.x, shifts[:, None] * jnp.ones(3)[None], atol=1e-4)


def test_any_tree_and_any_optimizer():
    params = {"a": jnp.ones(2), "b": (jnp.asarray(2 + 1j), None), "c": jnp.zeros((0, 3))}

    def f(p):
        return jnp.sum((p["a"] - 3) ** 2) + optfn.abs_sq(p["b"][0] - 1j)

    for tx in (None, optfn.adam(optfn.schedules.exponential(0.3, 50, 0.5))):
        result = optfn.minimize(f, params, tx, tol=1e-3)
        assert result.converged
        np.testing.assert_allclose(result.x["a"], 3, atol=1e-3)
        np.testing.assert_allclose(result.x["b"][0], 1j, atol=1e-3)
    assert optfn.minimize(lambda p: jnp.zeros(()), {}).converged


def test_frozen_params_stay_and_do_not_count():
    traces = []

    def f(p):
        traces.append(1)
        return jnp.sum((p["x"] * p["n"] - p["y"]) ** 2) + jnp.sum(p["y"])

    start = {"x": jnp.ones(2), "y": jnp.asarray([2.0, 4.0]), "n": jnp.asarray([1, 2])}
    tx = optfn.freeze(optfn.lbfgs(), {"x": False, "y": True, "n": True})
    result = optfn.minimize(f, start, tx)
    assert result.converged
    np.testing.assert_allclose(result.x["x"], [2, 2], atol=1e-4)
    for name in ("y", "n"):
        np.testing.assert_array_equal(result.x[name], start[name])
    calls = len(traces)
    optfn.minimize(f, start, tx, tol=1e-3)
    assert len(traces) == calls


def test_what_the_function_gives_beside_its_value():
    result = optfn.minimize(lambda x: (jnp.sum(x**2), {"twice": 2 * x}), START, has_aux=True)
    np.testing.assert_array_equal(result.aux["twice"], 2 * result.x)
    plain = optfn.minimize(lambda x: jnp.sum(x**2), START)
    assert plain.aux is None
    assert result.evaluations.value == plain.evaluations.value + 1


def test_bad_input():
    with pytest.raises(TypeError, match=r"x0 at the root has dtype int32"):
        optfn.minimize(rosenbrock, jnp.asarray([1, 2]))
    with pytest.raises(TypeError, match=r"minimize\(tx=\.\.\.\) must be an optfn transform"):
        optfn.minimize(rosenbrock, START, optfn.adam)
    with pytest.raises(TypeError, match=r"the extra argument 'obj_fn'.*value, grad, value_fn"):
        optfn.minimize(rosenbrock, START, optfn.sophia(0.1))
    with pytest.raises(ValueError, match=r"must give a real scalar, found float32\[2\]"):
        optfn.minimize(lambda x: x, START)
    with pytest.raises(ValueError, match=r"must give a real scalar, found complex64\[\]"):
        optfn.minimize(lambda x: jnp.sum(x) * 1j, START)


@dataclasses.dataclass
class Distance:
    to: float

    def __call__(self, x):
        return jnp.sum((x - self.to) ** 2)


@pytest.mark.parametrize(
    ("fun", "options", "error", "match"),
    [
        (None, {}, TypeError, r"fun=\.\.\.\) must be a function, found NoneType"),
        (START, {}, TypeError, r"fun=\.\.\.\) must be a function, found ArrayImpl"),
        (Distance(2.0), {}, TypeError, r"fun=\.\.\.\) must be hashable .*found Distance"),
        (lambda x: None, {}, ValueError, "must give a real scalar, found NoneType"),
        (lambda x: {"loss": 0.0}, {}, ValueError, "must give a real scalar, found dict"),
        (rosenbrock, {"value_and_grad": True}, TypeError, "must be a function, found bool"),
        (rosenbrock, {"tol": None}, TypeError, r"tol=\.\.\.\) must be a number"),
        (rosenbrock, {"tol": np.nan}, ValueError, r"tol=\.\.\.\) is NaN"),
        (rosenbrock, {"tol": np.ones(2)}, ValueError, r"must be one number, found shape \(2,\)"),
        (rosenbrock, {"max_steps": "9"}, TypeError, r"max_steps=\.\.\.\) must be a number"),
    ],
)
def test_what_is_no_function_or_limit_is_named(fun, options, error, match):
    with pytest.raises(error, match=match):
        optfn.minimize(fun, START, **options)


def test_a_result_without_numbers_prints_too():
    shapes = jax.eval_shape(partial(optfn.minimize, rosenbrock), START)
    assert str(shapes) == repr(shapes)


def test_what_is_no_tuple_of_arguments_is_refused():
    with pytest.raises(TypeError, match=r"minimize\(args=\.\.\.\) must be a tuple, as in args="):
        optfn.minimize(lambda x, a: jnp.sum((x - a) ** 2), jnp.zeros(2), args=jnp.ones(2))


@pytest.mark.parametrize("has_aux", [True, False])
def test_a_pair_and_has_aux_go_together(has_aux):
    def fun(x):
        value = jnp.sum(x**2)
        return value if has_aux else (value, x)

    with pytest.raises(TypeError, match="gives a pair with has_aux=True alone; "):
        optfn.minimize(fun, jnp.zeros(2), has_aux=has_aux)
