"""What a run tells while it runs and keeps afterwards, and trees of many leaves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from functions import rosenbrock

import optfn
from optfn import Status
from optfn.fits.joined import SMALL

START = jnp.asarray([-1.2, 1.0])
run = partial(optfn.minimize, rosenbrock, tol=1e-3, max_steps=40)


def as_rows(iterates):
    """Of a list of iterates, or of a trace up to its end: an array of numbers for each field."""
    if isinstance(iterates, optfn.Iterate):
        end = int(np.argmin(iterates.step)) if iterates.step[-1] < 0 else len(iterates.step)
        return [np.asarray(x)[:end] for x in iterates]
    return [np.array(x) for x in zip(*iterates, strict=True)]


def test_a_callback_hears_of_every_point_and_a_trace_keeps_them():
    heard = []
    found = run(START, callback=heard.append, trace=True)
    step, value, grad_norm, step_size, evaluations = as_rows(heard)
    assert isinstance(heard[0], optfn.Iterate) and type(heard[0].value) is float
    np.testing.assert_array_equal(step, np.arange(found.steps + 1))
    assert (value[-1], grad_norm[-1]) == (found.value, found.grad_norm)
    assert evaluations[0] == 1 and evaluations[-1] == found.evaluations.value
    assert (np.diff(evaluations) > 0).all()
    assert step_size[0] == 0 and (step_size[1:] > 0).all()
    np.testing.assert_allclose(value[0], rosenbrock(START), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, as_rows(found.trace), as_rows(heard))
    assert found.trace.step.shape == (41,)
    past = jax.tree.map(lambda row: np.asarray(row[int(found.steps) + 1 :]), found.trace)
    assert (past.step == -1).all() and np.isnan(past.value).all()
    assert run(START).trace is None


def test_every_digit_is_heard_where_one_thread_alone_has_double_precision(x64):
    f = lambda x, a: (x - a) ** 2 + a  # noqa: E731
    for a in np.arange(1, 11) / 7:
        heard = []
        found = optfn.minimize(f, 0.0, args=(a,), callback=heard.append)
        assert heard[-1].value == found.value


def test_step_sizes_are_the_lengths_of_steps():
    ends = [run(START, optfn.sgd(1e-4), max_steps=count) for count in range(4)]
    moves = np.diff(np.stack([end.x for end in ends]), axis=0)
    found = run(START, optfn.sgd(1e-4), max_steps=3, trace=True).trace
    np.testing.assert_allclose(found.step_size[1:], np.linalg.norm(moves, axis=1), rtol=1e-3)


@pytest.mark.slow
def test_lanes_and_programs_are_heard_as_single_runs_are():
    starts = jnp.asarray([[-1.2, 1.0], [1.0, 1.0], [0.5, 0.5]])
    alone = []
    for start in starts:
        run(start, callback=alone.append)
    heard = []
    batch = jax.jit(jax.vmap(partial(run, callback=heard.append, trace=True)))
    for _ in range(2):  # it is compiled once
        heard.clear()
        found = jax.block_until_ready(batch(starts))
        jax.effects_barrier()
        assert sorted(x.step for x in heard) == sorted(x.step for x in alone)
    for i, steps in enumerate(found.steps):
        own = jax.tree.map(lambda row, i=i: row[i], found.trace)
        assert len(as_rows(own)[0]) == steps + 1
    eager = []
    jax.vmap(partial(run, callback=eager.append))(starts)
    assert len(eager) == len(alone)


def test_another_listener_compiles_nothing():
    traces = []

    def f(x):
        traces.append(1)
        return jnp.sum(x**2)

    for _ in range(3):
        heard = []
        optfn.minimize(f, jnp.ones(2), callback=lambda iterate, heard=heard: heard.append(iterate))
        assert heard
        counts = len(traces)
    optfn.minimize(f, jnp.ones(2), callback=print, tol=1e9)
    assert len(traces) == counts


def test_an_error_of_a_callback_is_raised_after_the_run():
    heard = []

    def fails(iterate):
        heard.append(iterate)
        raise KeyError(f"step {iterate.step}")

    with pytest.raises(KeyError, match="step 0"):
        run(START, callback=fails)
    assert len(heard) == 1
    run(START, callback=heard.append)
    assert len(heard) > 2


@pytest.mark.slow
def test_derivatives_go_through_a_run_that_is_watched(x64):
    heard = []

    def end(a):
        f = lambda x: jnp.sum((x - a) ** 2)  # noqa: E731
        return optfn.minimize(f, jnp.zeros(2), callback=heard.append, trace=True).x.sum()

    np.testing.assert_allclose(jax.grad(end)(3.0), 2.0, rtol=1e-9)
    assert heard


def in_rounds(a, **options):
    """A run under a constraint of params in a tree, one of them frozen; it ends at a / 2 - 1."""
    return optfn.minimize(
        lambda p, a: (p["x"] - a) ** 2 + (p["y"] - p["z"]) ** 2,
        {"x": 0.0, "y": 0.0, "z": 3.0},
        optfn.freeze(optfn.lbfgs(), {"x": False, "y": False, "z": True}),
        constraints=optfn.Constraint(lambda p, a: p["x"] + p["y"], 1, 1),
        args=(a,),
        **options,
    )


def test_under_constraints_each_round_is_heard_and_kept(x64):
    heard = []
    found = in_rounds(2.0, callback=heard.append, trace=True)
    step, value, grad_norm, step_size, evaluations = as_rows(heard)
    assert found.converged and 2 < len(heard) < found.steps
    np.testing.assert_allclose((found.x["x"], found.x["y"]), (0, 1), atol=1e-4)
    assert step[0] == step_size[0] == 0 and value[0] == 13 and np.isnan(grad_norm[0])
    assert (step[-1], value[-1]) == (found.steps, found.value)
    assert (grad_norm[-1], evaluations[-1]) == (found.grad_norm, found.evaluations.value)
    assert (np.diff(step) >= 0).all() and (np.diff(evaluations) > 0).all()
    np.testing.assert_allclose(step_size[1], 1, atol=0.1)
    jax.tree.map(np.testing.assert_array_equal, as_rows(found.trace), as_rows(heard))
    assert found.trace.step.shape == (101,)


@pytest.mark.slow
def test_rounds_in_lanes_and_under_derivatives_are_heard(x64):
    alone, counts = [], []
    for a in (2.0, 100.0):
        in_rounds(a, callback=alone.append)
        counts.append(len(alone))
    assert counts[1] != 2 * counts[0]
    heard = []

    def end(a):
        return in_rounds(a, callback=heard.append).x["x"]

    slopes = jax.jit(jax.vmap(jax.grad(end)))(jnp.asarray([2.0, 100.0]))
    jax.effects_barrier()
    np.testing.assert_allclose(slopes, 0.5, rtol=1e-6)
    assert sorted(x.step for x in heard) == sorted(x.step for x in alone)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_progress_in_a_pipe_is_lines(wrap, capsys):
    found = jax.block_until_ready(wrap(partial(run, progress=True))(START))
    jax.effects_barrier()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"step {found.steps}: value ")
    assert f"{found.evaluations.value} evaluations, " in last


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"callback": 3},
            TypeError,
            r"callback=\.\.\.\) must be a function of an Iterate, found int",
        ),
        ({"progress": "yes"}, TypeError, r"progress=\.\.\.\) must be True or False, found str"),
        ({"trace": 1}, TypeError, r"trace=\.\.\.\) must be True or False, found int"),
        ({"has_aux": None}, TypeError, r"has_aux=\.\.\.\) must be True or False, found NoneType"),
        (
            {"trace": True, "max_steps": np.inf},
            ValueError,
            "so max_steps must be finite, found inf",
        ),
        ({"tol": -1e-3}, ValueError, r"tol=\.\.\.\) must be at least 0, found -0\.001"),
        ({"tol": np.float32("nan")}, ValueError, r"tol=\.\.\.\) is NaN: no run ends by"),
        ({"max_steps": -1}, ValueError, r"max_steps=\.\.\.\) must be at least 0, found -1"),
        ({"args": ("mode",)}, TypeError, r"must hold arrays and numbers, found str 'mode' at '0'"),
        ({"args": (1.0, {"a": np.array(["b"])})}, TypeError, r"found an array of <U1 at '1/a'"),
        ({"args": (jnp.sum,)}, TypeError, r"what is no data belongs into the function, as in"),
        ({"tx": "BFGS"}, TypeError, r"minimize\(tx=\.\.\.\) must be an optfn transform, found str"),
    ],
)
def test_what_is_no_option_is_named(options, error, match):
    with pytest.raises(error, match=match):
        run(START, **options)


def test_a_trace_needs_a_known_length():
    with pytest.raises(ValueError, match="max_steps must be known where the run is traced"):
        jax.jit(lambda n: run(START, max_steps=n, trace=True))(3)


@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(optax.adam(0.1), id="adam"),
        pytest.param(optax.lbfgs(), id="lbfgs", marks=pytest.mark.slow),
    ],
)
def test_an_optimizer_of_optax_s_is_taken(tx):
    found = run(START, tx, max_steps=2000)
    assert found.status == Status.CONVERGED
    np.testing.assert_allclose(found.x, 1, atol=1e-2)


# Trees of many leaves.


def equations(jaxpr):
    """The number of all equations, also of inner programs."""
    inner = (x for eqn in jaxpr.eqns for x in jax.tree.leaves(eqn.params, is_leaf=_is_program))
    return len(jaxpr.eqns) + sum(equations(getattr(x, "jaxpr", x)) for x in inner if _is_program(x))


def _is_program(x):
    return hasattr(getattr(x, "jaxpr", x), "eqns")


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(None, id="free"),
        pytest.param((-2.0, 0.8), id="bounded", marks=pytest.mark.slow),
    ],
)
def test_a_hundred_scalars_are_one_vector_to_the_optimizer(bounds):
    """Only the function of them is larger: it is in the program twice, with its gradient."""

    def of_dict(p):
        return rosenbrock(jnp.stack(list(p.values())))

    def program(f, x):
        return jax.make_jaxpr(lambda x: optfn.minimize(f, x, bounds=bounds, tol=1e-3))(x).jaxpr

    start = {f"x{i:03}": jnp.asarray(x) for i, x in enumerate(jnp.tile(START, 50))}
    whole = jnp.tile(START, 50)
    found = optfn.minimize(of_dict, start, bounds=bounds, tol=1e-3)
    wanted = optfn.minimize(rosenbrock, whole, bounds=bounds, tol=1e-3)
    np.testing.assert_allclose(list(found.x.values()), wanted.x, atol=1e-3)
    assert found.evaluations == wanted.evaluations
    own = (
        equations(jax.make_jaxpr(jax.value_and_grad(f))(x).jaxpr)
        for f, x in ((of_dict, start), (rosenbrock, whole))
    )
    more = equations(program(of_dict, start)) - equations(program(rosenbrock, whole))
    of_function = next(own) - next(own)
    # And each scalar is put into the vector and taken out of it, also of the bounds.
    assert more <= 2 * of_function + 12 * 100


@pytest.mark.slow
def test_leaves_keep_their_form_among_others():
    """Large ones, complex ones, narrow ones, empty ones, and none."""
    start = {
        "large": jnp.zeros(SMALL + 1),
        "a": jnp.zeros((2, 2)),
        "b": (jnp.zeros(3), None, jnp.zeros((0, 4))),
        "z": jnp.zeros(2, jnp.complex64),
        "w": jnp.zeros((), jnp.complex64),
        "low": jnp.zeros(2, jnp.bfloat16),
        "lower": jnp.zeros((), jnp.bfloat16),
    }

    def f(p):
        wide = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in jax.tree.leaves(p))
        return sum(jnp.sum(optfn.abs_sq(x - 1)) for x in wide) / 2

    found = jax.jit(partial(optfn.minimize, f))(start)
    assert found.converged
    for x, y in zip(*map(jax.tree.leaves, (found.x, start)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, complex), np.ones(y.shape), atol=1e-2)


@pytest.mark.slow
def test_small_leaves_over_a_mesh_come_back_where_they_were():
    mesh = jax.make_mesh(
        (4,), ("x",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Explicit,)
    )
    with jax.set_mesh(mesh):
        split = jax.sharding.NamedSharding(mesh, jax.P("x"))
        start = {"a": jax.device_put(jnp.arange(8.0), split), "b": jnp.zeros(3)}
        f = lambda p: jnp.sum((p["a"] - 1) ** 2) + jnp.sum((p["b"] - 2) ** 2)  # noqa: E731
        found = jax.jit(partial(optfn.minimize, f))(start)
    np.testing.assert_allclose(found.x["a"], 1, atol=1e-5)
    assert jax.typeof(found.x["a"]).sharding.spec == jax.typeof(start["a"]).sharding.spec


def test_few_params_have_few_pairs():
    """Three times their number, which is as good as ten."""
    for params, pairs in (
        (0.0, 3),
        (jnp.zeros(2), 6),
        (jnp.zeros(2, complex), 10),
        (jnp.zeros(9), 10),
    ):
        for tx in (optfn.scale_by_lbfgs(), optfn.scale_by_lbfgs(3)):
            state = jax.eval_shape(tx.init, params)
            assert len(state.slots["scale_by_lbfgs"].inverse) == min(pairs, tx.memory_size)
