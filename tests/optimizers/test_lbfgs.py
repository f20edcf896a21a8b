"""L-BFGS and its line searches; the oracle of the direction is with the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from functions import counted, rosenbrock
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wrong_elsewhere import error_in_optax, wrong_in_optax

import optfn
from optfn.optimizers.quasi_newton.search import Evaluations
from optfn.testing import checks

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0]), "n": None}
ZOOM = optfn.scale_by_zoom_linesearch(20, initial_guess_strategy="one")
BACKTRACKING = optfn.scale_by_backtracking_linesearch(20, store_grad=True)
each_search = pytest.mark.parametrize("search", [ZOOM, BACKTRACKING], ids=["zoom", "backtracking"])


def tree_loss(params):
    """Convex, of a tree."""
    return sum(jnp.sum(jnp.cosh(p) + p**2) for p in jax.tree.leaves(params))


def found(state):
    """What the last line search left."""
    (search,) = (s for name, s in state.slots.items() if name.endswith("linesearch"))
    return search


def searched(tx, f, params, steps):
    """The params after so many steps, the last state, and whether any search failed."""
    value_and_grad = optfn.value_and_grad_from_state(f)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, grad = value_and_grad(params, state=state)
            grad = optax.tree.conj(grad)
            given = {"value": value, "grad": grad, "value_fn": f}
            params, state = optfn.step(tx, params, grad, state, **given)
            return (params, state), found(state).info.failed

        (end, state), failed = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return end, state, failed.any()

    return run(params)


def once(search, updates, params, f, grad=None, state=None):
    """One update of a search alone."""
    value, gradient = jax.value_and_grad(f)(params)
    grad = gradient if grad is None else grad
    state = search.init(params) if state is None else state
    return search.update(updates, state, params, value=value, grad=grad, value_fn=f)


# The direction.


def test_with_exact_steps_it_takes_conjugate_directions(x64):
    """As conjugate gradients do, so that a quadratic of n dimensions is solved in n steps."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix = root @ root.T + np.eye(6)
    tx = optfn.lbfgs(memory_size=6, linesearch=None)
    x = jnp.asarray(rng.normal(size=6))
    state, directions = tx.init(x), []
    for _ in range(6):
        g = matrix @ x
        u, state = tx.update(g, state, x)
        directions.append(np.asarray(u / jnp.linalg.norm(u)))
        x = x - (g @ u) / (u @ matrix @ u) * u
    products = np.array(directions) @ matrix @ np.array(directions).T
    assert abs(products - np.diag(np.diag(products))).max() < 1e-9 * np.diag(products).max()
    assert abs(matrix @ x).max() < 1e-9


@pytest.mark.parametrize("scaled", [True, False])
def test_the_path_is_optax_s_where_the_function_is_convex(scaled, x64):
    """And all pairs are remembered, in optax too."""
    params = {k: PARAMS[k].astype(float) for k in ("w", "b")}
    paths = []
    for library in (optfn, optax):
        tx = library.lbfgs(0.1, 3, scaled, linesearch=None)
        there, state = params, tx.init(params)
        step = jax.jit(lambda p, s, tx=tx: tx.update(jax.grad(tree_loss)(p), s, p))
        for _ in range(20):
            updates, state = step(there, state)
            there = optax.apply_updates(there, updates)
        paths.append(there)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), *paths)


def test_with_a_search_the_path_is_optax_s_while_the_first_rate_is_good(x64):
    params = jnp.asarray([0.3, -0.2, 0.1])
    ours, state, failed = searched(optfn.lbfgs(), tree_loss, params, 5)
    assert not failed
    value_and_grad = optax.value_and_grad_from_state(tree_loss)
    tx = optax.lbfgs()
    there, their_state = params, tx.init(params)

    @jax.jit
    def step(there, state):
        value, grad = value_and_grad(there, state=state)
        given = {"value": value, "grad": grad, "value_fn": tree_loss}
        updates, state = tx.update(grad, state, there, **given)
        return optax.apply_updates(there, updates), state

    for _ in range(5):
        there, their_state = step(there, their_state)
    assert abs(ours - params).max() > 0.1
    np.testing.assert_allclose(ours, there, atol=1e-12)
    np.testing.assert_allclose(found(state).value, their_state[-1].value, rtol=1e-14)


def test_a_pair_without_curvature_is_not_remembered():
    tx = optfn.scale_by_lbfgs(memory_size=2)
    params, g = jnp.asarray([1.0, 2.0]), jnp.asarray([0.3, 0.4])
    _, first = tx.update(g, tx.init(params), params)
    for y in (jnp.asarray([-1.0, 0.0]), jnp.asarray([0.0, 1.0]), jnp.asarray([jnp.inf, 0.0])):
        _, state = tx.update(g + y, first, params + jnp.asarray([1.0, 0.0]))
        memory = state.slots["scale_by_lbfgs"]
        assert not memory.inverse.any()
        assert memory.row == memory.scale == 0
    u, state = tx.update(g + 1, first, params + 1)
    assert state.slots["scale_by_lbfgs"].row == 1
    np.testing.assert_allclose(u, g + 1, rtol=1e-6)  # the Hessian is the identity

    theirs = optax.scale_by_lbfgs(memory_size=2)
    later, moved = g - jnp.asarray([1.0, 0.0]), params + jnp.asarray([1.0, 0.0])
    with jax.numpy_rank_promotion("allow"):  # as optax needs it
        _, state = theirs.update(g, theirs.init(params), params)
        u, _ = theirs.update(later, state, moved)
    assert jnp.vdot(u, later) < 0  # uphill


def test_a_step_that_went_nowhere_forgets_all():
    tx = optfn.scale_by_lbfgs()
    params, g = jnp.asarray([1.0, 2.0]), jnp.asarray([0.3, 0.4])
    _, state = tx.update(g, tx.init(params), params)
    u, state = tx.update(3 * g, state, params + g)
    np.testing.assert_allclose(u, 1.5 * g, rtol=1e-6)
    u, state = tx.update(3 * g, state, params + g)
    np.testing.assert_allclose(u, 3 * g / 1.5, rtol=1e-6)  # of length 1
    assert not state.slots["scale_by_lbfgs"].inverse.any()


def test_hypergradients_of_the_direction_are_finite():
    checks.check_hypergradients(checks.Subject(optfn.lbfgs(0.1, linesearch=None), {}))


def test_derivatives_forward_go_through_a_search(x64):
    """By a number of the function, and equal to the difference of two runs."""

    def end(scale):
        tx = optfn.lbfgs(memory_size=2)
        x = jnp.asarray([0.3, -0.2])
        f = lambda x: jnp.sum(jnp.cosh(scale * x) + jnp.asarray([1.0, 3.0]) * x**2)  # noqa: E731

        def step(carry, _):
            x, state = carry
            value, grad = jax.value_and_grad(f)(x)
            return optfn.step(tx, x, grad, state, value=value, grad=grad, value_fn=f), None

        return jax.lax.scan(step, (x, tx.init(x)), length=2)[0][0][0]

    end = jax.jit(end)
    _, slope = jax.jvp(end, (1.0,), (1.0,))
    np.testing.assert_allclose(slope, (end(1 + 1e-6) - end(1 - 1e-6)) / 2e-6, rtol=1e-5)


# The line searches.


@jax.jit
def searches_from(frequencies, start, direction):
    """Value and gradient of a random function; for each search its step, end and the two there."""

    def f(x):
        return jnp.sum(jnp.sin(frequencies * x) + 0.1 * x**4)

    value, grad = jax.value_and_grad(f)(start)
    ends = []
    for search in (ZOOM, BACKTRACKING):
        step, state = once(search, direction, start, f)
        ends.append((step, found(state), *jax.value_and_grad(f)(start + step)))
    return value, grad, ends


numbers = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(np.array)


@given(numbers, numbers, numbers, st.floats(-3, 3))
@settings(max_examples=100, deadline=None)
def test_accepted_steps_satisfy_their_conditions(frequencies, start, direction, size):
    """Along any direction, also uphill, of any size; and what is kept is what is there."""
    with jax.enable_x64(True):
        found = searches_from(frequencies, start, direction * 10.0**size)
        value, grad, ends = jax.tree.map(np.asarray, found)
    for i, (step, end, value_there, grad_there) in enumerate(ends):
        assert end.info.evaluations.value <= 21
        np.testing.assert_allclose(end.value, value_there, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(end.grad, grad_there, rtol=1e-9, atol=1e-12)
        if end.info.failed:
            assert value_there <= value + 1e-6 * abs(value)
            continue
        slope, slope_there = grad @ step, grad_there @ step
        assert slope < 0
        enough = value_there <= value + 1e-4 * slope + 1e-14
        flat = slope_there <= (2e-4 - 1) * slope and value_there <= value + 1e-6 * abs(value)
        assert enough or (i == 0 and flat)
        assert abs(slope_there) <= 0.9 * abs(slope) * (1 + 1e-12) or i == 1


@each_search
def test_what_is_not_finite_is_too_far(search):
    """A step of 1000 where the logarithm ends at 3."""

    def barrier(x):
        return jnp.sum(x - 2 * jnp.log(x))

    params = jnp.asarray([3.0, 4.0])
    search = optfn.replace(search, **{next(iter(dict(search.fields("number")))): 50})
    updates, state = once(search, jnp.asarray([-1000.0, 0.0]), params, barrier)
    assert not found(state).info.failed
    assert barrier(params + updates) < barrier(params)


@each_search
def test_uphill_it_goes_along_the_negative_gradient(search):
    params = jnp.asarray([1.0, 0.2])
    grad = jax.grad(tree_loss)(params)
    updates, state = once(search, 5 * grad, params, tree_loss)
    assert not found(state).info.failed
    np.testing.assert_allclose(updates / updates[0], grad / grad[0], rtol=1e-6)
    assert tree_loss(params + updates) < tree_loss(params)


@each_search
def test_a_zero_direction_is_no_step(search):
    """As a learning rate of zero wants it."""
    params = jnp.asarray([1.0, 0.2])
    updates, state = once(search, jnp.zeros(2), params, tree_loss)
    assert not updates.any()
    assert found(state).info.evaluations == (0, 0)
    np.testing.assert_array_equal(found(state).value, tree_loss(params))


@each_search
def test_a_search_that_finds_nothing_says_so_and_stays(search):
    """The gradient that it is given is wrong."""
    params = jnp.asarray([1.0, 2.0])
    updates, state = once(search, params, params, jnp.sum, grad=-jnp.ones(2))
    end = found(state)
    assert end.info.failed
    assert end.learning_rate == 0
    assert end.value == 3
    assert end.info.evaluations.value == (20 if search is ZOOM else 21)
    assert not updates.any()
    np.testing.assert_array_equal(end.grad, -jnp.ones(2))


@pytest.mark.parametrize("name", ["zoom", "backtracking"])
def test_a_search_goes_on_after_one_that_found_nothing(name):
    """In optax 0.2.8 a rate of 0 is the first to try from then on."""
    params, failed = jnp.asarray([1.0, 2.0]), {}
    for library in (optfn, optax):
        search = getattr(library, f"scale_by_{name}_linesearch")(5)
        nowhere = lambda p: jnp.where(jnp.all(p == params), jnp.sum(p), jnp.nan)  # noqa: E731
        _, state = once(search, -params, params, nowhere)
        updates, _ = once(search, -params, params, tree_loss, state=state)
        failed[library] = not updates.any()
    assert not failed[optfn]
    wrong_in_optax(failed[optax])


def test_a_relative_tolerance_of_a_negative_loss_is_one():
    """In optax 0.2.8 it asks for more there."""
    params, updates = jnp.asarray([1.0]), jnp.asarray([-0.1])
    moved = {}
    for library in (optfn, optax):
        search = library.scale_by_backtracking_linesearch(3, rtol=0.1)
        _, state = once(search, updates, params, lambda p: jnp.sum(p**2) - 100)
        moved[library] = state
    assert found(moved[optfn]).learning_rate == 1
    wrong_in_optax(moved[optax].learning_rate < 1)


@pytest.mark.parametrize(("tolerance", "good"), [(1e-6, True), (0.0, False), (None, False)])
def test_a_value_may_be_higher_for_rounding_s_sake(tolerance, good):
    """By its last digit, where the slope falls as it should."""
    params = jnp.asarray([1e-3])

    def f(x):
        slope_only = jnp.sum(x**2 - jax.lax.stop_gradient(x**2))
        return 1e6 + slope_only + jnp.where(jnp.all(x == params), 0, 0.0625)

    search = optfn.scale_by_zoom_linesearch(5, approx_dec_rtol=tolerance)
    _, state = once(search, -params, params, f)
    assert found(state).info.failed != good


def test_the_largest_rate_is_accepted_where_the_function_still_falls():
    search = optfn.scale_by_zoom_linesearch(20, max_learning_rate=3.0)
    updates, state = once(search, -jnp.ones(2), jnp.ones(2), jnp.sum)
    assert not found(state).info.failed
    np.testing.assert_allclose(updates, -3.0)


def test_searches_take_the_numbers_of_evaluations_that_they_count():
    f, calls = counted(rosenbrock)
    params = jnp.asarray([-1.2, 1.0])
    value, grad = jax.value_and_grad(rosenbrock)(params)
    for search in (ZOOM, BACKTRACKING, optfn.scale_by_backtracking_linesearch(20)):
        calls.update(value=0, grad=0)
        given = {"value": value, "grad": grad, "value_fn": f}
        _, state = jax.jit(
            lambda s, search=search, given=given: search.update(-grad, s, params, **given)
        )(search.init(params))
        jax.effects_barrier()
        assert found(state).info.evaluations == Evaluations(calls["value"], calls["grad"])
        assert calls["value"] > 2
        kept = {ZOOM: calls["value"], BACKTRACKING: 1}.get(search, 0)
        assert calls["grad"] == kept


# In a training loop.


def test_value_and_gradient_come_from_the_state():
    tx = optfn.lbfgs()
    x = jnp.asarray([-1.2, 1.0])
    value_and_grad = optfn.value_and_grad_from_state(rosenbrock)
    state = tx.init(x)
    value, grad = value_and_grad(x, state=state)
    np.testing.assert_allclose(value, rosenbrock(x), rtol=1e-6)
    x, state = optfn.step(tx, x, grad, state, value=value, grad=grad, value_fn=rosenbrock)
    np.testing.assert_allclose(value_and_grad(x, state=state)[0], rosenbrock(x), rtol=1e-5)
    np.testing.assert_allclose(found(state).grad, jax.grad(rosenbrock)(x), rtol=1e-5)
    # It is the state that it looks at.
    other = state._replace(slots={"a": found(state)._replace(value=jnp.asarray(7.0))})
    assert value_and_grad(x, state=other)[0] == 7


LABELS = {"w": "search", "b": "sgd", "n": "sgd"}


def test_a_search_works_inside_of_a_partition():
    """optax 0.2.8 gives it the whole gradient and the part's updates."""
    value, grads = jax.value_and_grad(tree_loss)(PARAMS)
    given = {"value": value, "grad": grads, "value_fn": tree_loss}
    tx = optfn.partition({"search": optfn.lbfgs(), "sgd": optfn.sgd(0.01)}, LABELS)
    updates, state = tx.update(grads, tx.init(PARAMS), PARAMS, **given)
    # The same on 'w' alone, with 'b' as it is.
    part = {"w": PARAMS["w"]}
    own = {"grad": {"w": grads["w"]}, "value_fn": lambda p: tree_loss(PARAMS | p)}
    alone = optfn.lbfgs()
    expected, _ = alone.update(own["grad"], alone.init(part), part, value=value, **own)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.01 * grads["b"], rtol=1e-6)
    # All params have moved: value and gradient are taken anew.
    params = optfn.apply_updates(PARAMS, updates)
    value, grad = optfn.value_and_grad_from_state(tree_loss)(params, state=state)
    np.testing.assert_allclose(value, tree_loss(params), rtol=1e-6)
    assert jax.tree.structure(grad) == jax.tree.structure(params)

    theirs = optax.partition({"search": optax.lbfgs(), "sgd": optax.sgd(0.01)}, LABELS)
    with error_in_optax(ValueError):
        theirs.update(grads, theirs.init(PARAMS), PARAMS, **given)


def test_frozen_params_are_no_part_of_the_search():
    tx = optfn.freeze(optfn.lbfgs(), {"w": False, "b": True, "n": None})
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(
        lambda p, s: optfn.step(
            *(tx, p, jax.grad(tree_loss)(p), s),
            **{"value": tree_loss(p), "grad": jax.grad(tree_loss)(p), "value_fn": tree_loss},
        )
    )
    for _ in range(12):
        params, state = step(params, state)
    np.testing.assert_array_equal(params["b"], PARAMS["b"])
    np.testing.assert_allclose(params["w"], 0, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_it_converges_in_the_precision_of_the_params(dtype):
    rng = np.random.default_rng(1)
    matrix, target = rng.normal(size=(8, 3)), rng.normal(size=8)
    if dtype == jnp.complex64:
        matrix, target = matrix + 1j * rng.normal(size=(8, 3)), target * (1 - 2j)
    wanted = np.linalg.lstsq(matrix, target, rcond=None)[0]
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    matrix, target = jnp.asarray(matrix, wide), jnp.asarray(target, wide)

    def loss(x):
        return jnp.sum(optfn.abs_sq(matrix @ x.astype(wide) - target))

    x, state, _ = searched(optfn.lbfgs(), loss, jnp.zeros(3, dtype), 20)
    tolerance = 0.02 if dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(np.asarray(x, complex), wanted, atol=tolerance)
    assert found(state).value.dtype == jnp.float32
    assert state.slots["scale_by_lbfgs"].steps.dtype == wide


def test_bad_input():
    with pytest.raises(ValueError, match=r"memory_size=\.\.\.\) must be a whole number above 0"):
        optfn.lbfgs(memory_size=0)
    with pytest.raises(ValueError, match=r"initial_guess_strategy=\.\.\.\) must be one of"):
        optfn.scale_by_zoom_linesearch(5, initial_guess_strategy="two")
    tx = optfn.lbfgs()
    state, x = tx.init(jnp.ones(2)), jnp.ones(2)
    with pytest.raises(TypeError, match="misses the extra argument 'grad'"):
        tx.update(x, state, x, value=1.0, value_fn=rosenbrock)
    given = {"value": 1.0, "grad": x, "value_fn": rosenbrock}
    with pytest.raises(ValueError, match="needs the params"):
        tx.update(x, state, **given)
    with pytest.raises(
        ValueError, match=r"the shapes \[\(3,\)\], the memory of scale_by_lbfgs \[\(2,\)\]"
    ):
        optfn.scale_by_lbfgs().update(jnp.ones(3), state, jnp.ones(3))
    from_state = optfn.value_and_grad_from_state(rosenbrock)
    with pytest.raises(ValueError, match="found 0 line searches"):
        from_state(x, state=optfn.sgd(0.1).init(x))
    without = optfn.chain(optfn.sgd(1.0), optfn.scale_by_backtracking_linesearch(5))
    with pytest.raises(ValueError, match="found one that keeps no gradient"):
        from_state(x, state=without.init(x))


COMPLEX = {
    "lbfgs": lambda library: library.lbfgs(),
    "backtracking": lambda library: library.chain(
        library.sgd(0.02), library.scale_by_backtracking_linesearch(30, store_grad=True)
    ),
    "zoom": lambda library: library.chain(library.sgd(1.0), library.scale_by_zoom_linesearch(20)),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_a_loop_over_complex_params_is_written_as_for_optax(name):
    """The gradient from the state is jax's, at every step; `update` takes its conjugate."""
    matrix = jnp.asarray([[1, -2], [3, 4], [-4 + 2j, 5 - 3j], [-2 - 2j, 6]], jnp.complex64)
    target = jnp.asarray([1, 2j, -1, 1 + 1j], jnp.complex64)

    def f(z):
        return jnp.sum(optfn.abs_sq(matrix @ z["z"] - target)) + jnp.sum((z["x"] - 2.0) ** 2)

    start = {"z": jnp.asarray([1 - 1j, 1j], jnp.complex64), "x": jnp.ones(2)}
    ends = []
    for library in (optfn, optax):
        tx, value_and_grad = COMPLEX[name](library), library.value_and_grad_from_state(f)

        def step(carry, _, tx=tx, value_and_grad=value_and_grad, library=library):
            z, state = carry
            value, grad = value_and_grad(z, state=state)
            up = optax.tree.conj(grad)
            # optax's backtracking alone takes jax's own gradient as the argument.
            shown = grad if library is optax and name == "backtracking" else up
            updates, state = tx.update(up, state, z, value=value, grad=shown, value_fn=f)
            return (library.apply_updates(z, updates), state), (z, value, grad)

        run = jax.jit(lambda z, tx=tx, step=step: jax.lax.scan(step, (z, tx.init(z)), length=6))
        (end, _), (seen, values, grads) = run(start)
        there = jax.vmap(jax.grad(f))(seen)
        jax.tree.map(
            lambda g, h: np.testing.assert_allclose(g, h, rtol=1e-3, atol=1e-4), grads, there
        )
        assert values[-1] < values[0] / 2
        ends.append((end, values))
    jax.tree.map(lambda g, h: np.testing.assert_allclose(g, h, rtol=2e-3, atol=1e-3), *ends)


def test_minimize_needs_no_conjugates():
    f = lambda z: optfn.abs_sq(z - (1 + 2j)) + optfn.abs_sq(z**2 - (1 + 2j) ** 2)  # noqa: E731
    result = optfn.minimize(f, jnp.complex64(0.5 - 0.5j))
    assert result.converged
    np.testing.assert_allclose(result.x, 1 + 2j, atol=1e-4)
