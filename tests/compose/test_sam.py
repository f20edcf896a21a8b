"""Sharpness-aware minimization: rounds of steps uphill and one down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn

CURVATURES = jnp.asarray([1.0, 4.0, 9.0])
START = jnp.asarray([1.0, -1.0, 0.5])


def loss(params):
    return jnp.sum(CURVATURES * params["w"] ** 2) / 2 + jnp.sum(jnp.cos(params["b"]))


PARAMS = {"w": START, "b": jnp.asarray([0.3, 2.0])}
gradient = jax.grad(loss)


def run(tx, steps, **extra_args):
    """The params after each update, and the last state."""

    @jax.jit
    def step(state, params):
        updates, state = tx.update(gradient(params), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    params, state, path = PARAMS, tx.init(PARAMS), []
    for _ in range(steps):
        params, state = step(state, params)
        path.append(params)
    return path, state


def adversary(library, momentum=None):
    normalize = library.normalize if library is optfn else library.contrib.normalize
    return library.chain(normalize(), library.sgd(0.05, momentum))


@pytest.mark.parametrize("period", [2, 3])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("opaque", [True, False])
def test_paths_are_optax_s(period, reset, opaque):
    extra_args = {"grad_fn": lambda params, i: gradient(params)} if opaque else {}
    here = optfn.sam(optfn.adam(1e-2), adversary(optfn, 0.9), period, reset, opaque)
    there = optax.contrib.sam(optax.adam(1e-2), adversary(optax, 0.9), period, reset, opaque)
    ours, theirs = (run(tx, 12, **extra_args)[0] for tx in (here, there))
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-6), a, b)


def test_a_step_is_taken_with_the_gradient_from_up_there():
    """p - rate * grad(p + rho * grad(p) / ||grad(p)||), in both forms."""
    g = gradient(PARAMS)
    up = jax.tree.map(lambda p, x: p + 0.05 * x / optfn.global_norm(g), PARAMS, g)
    wanted = jax.tree.map(lambda p, x: p - 0.1 * x, PARAMS, gradient(up))
    alternating = optfn.sam(optfn.sgd(0.1), adversary(optfn))
    at_once = optfn.sam(optfn.sgd(0.1), adversary(optfn), opaque_mode=True)
    there, down = run(alternating, 2)[0]
    (whole,), _ = run(at_once, 1, grad_fn=lambda params, i: gradient(params))
    for found, expected in ((there, up), (down, wanted), (whole, wanted)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)


@pytest.mark.parametrize("opaque", [True, False])
def test_a_round_of_one_gradient_is_the_optimizer_itself(opaque):
    """optax 0.2.8 steps from the params of the round before, where updates take turns."""
    extra_args = {"grad_fn": lambda params, i: gradient(params)} if opaque else {}
    plain = run(optfn.adam(1e-2), 5)[0]
    rounds = run(optfn.sam(optfn.adam(1e-2), adversary(optfn), 1, True, opaque), 5, **extra_args)[0]
    for a, b in zip(plain, rounds, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), a, b)
    theirs = run(optax.contrib.sam(optax.adam(1e-2), adversary(optax), 1), 5)[0]
    assert abs(np.asarray(theirs[-1]["w"] - plain[-1]["w"])).max() > 1e-2


def test_the_optimizer_inside_counts_rounds_and_so_do_its_schedules():
    rate = optfn.schedules.piecewise_constant([0.1, 0.0], [1])
    tx = optfn.sam(optfn.sgd(rate, momentum=0.9), adversary(optfn), sync_period=3)
    path, state = run(tx, 9)
    assert int(state.step) == 9
    assert int(state.slots["sam"].optimizer.step) == 3
    name = "sam.optimizer.scale_by_learning_rate.learning_rate"
    assert float(optfn.hyperparameters(tx, state)[name]) == 0
    for name in PARAMS:  # the second round and the third have no rate
        np.testing.assert_allclose(path[2][name], path[5][name], atol=1e-7)
        np.testing.assert_allclose(path[2][name], path[8][name], atol=1e-7)


def test_a_model_is_evaluated_where_the_round_began():
    tx = optfn.sam(optfn.sgd(0.1), adversary(optfn), sync_period=3)
    state, params = tx.init(PARAMS), PARAMS
    for i in range(7):
        evaluated = optfn.evaluation_params(tx, state, params)
        if i % 3 == 0:
            began = params
        jax.tree.map(np.testing.assert_array_equal, evaluated, began)
        params, state = optfn.step(tx, params, gradient(params), state)


def test_a_zero_gradient_leaves_the_params():
    """optax 0.2.8's `normalize` divides zero by zero."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for library, finite in ((optfn, True), (optax, False)):
        tx = adversary(library)
        updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates)) == finite


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_normalized_updates_have_norm_one(size):
    grads = {"a": np.float32(size) * np.float32([3, 0]), "b": np.complex64([4j * size])}
    updates, _ = optfn.normalize().update(grads, optfn.normalize().init(grads))
    np.testing.assert_allclose(updates["a"], [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [0.8j], rtol=1e-6)


def test_gradients_are_averaged_over_a_named_axis():
    tx = optfn.sam(optfn.sgd(0.1), adversary(optfn), opaque_mode=True, batch_axis_name="batch")
    shifts = jnp.asarray([-0.5, 0.5])

    def update(shift):
        def grad_fn(params, i):
            return jax.tree.map(lambda g: g + shift, gradient(params))

        return tx.update(gradient(PARAMS), tx.init(PARAMS), PARAMS, grad_fn=grad_fn)[0]

    many = jax.vmap(update, axis_name="batch")(shifts)
    plain = optfn.sam(optfn.sgd(0.1), adversary(optfn), opaque_mode=True)
    one, _ = plain.update(
        gradient(PARAMS), plain.init(PARAMS), PARAMS, grad_fn=lambda params, i: gradient(params)
    )
    for name in PARAMS:
        np.testing.assert_allclose(many[name], jnp.stack([one[name]] * 2), rtol=1e-5, atol=1e-7)


def test_bad_input():
    with pytest.raises(ValueError, match=r"sync_period=\.\.\.\) must be a whole number above 0"):
        optfn.sam(optfn.sgd(0.1), adversary(optfn), sync_period=0)
    tx = optfn.sam(optfn.sgd(0.1), adversary(optfn), opaque_mode=True)
    state = tx.init(PARAMS)
    with pytest.raises(TypeError, match="misses the extra argument 'grad_fn'"):
        tx.update(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="the gradients of grad_fn"):
        tx.update(PARAMS, state, PARAMS, grad_fn=lambda params, i: {"w": params["w"]})
    alternating = optfn.sam(optfn.sgd(0.1), adversary(optfn))
    alternating.update(PARAMS, alternating.init(PARAMS), PARAMS, grad_fn=None)  # not its own


def test_an_optimizer_with_a_function_among_its_arguments():
    """Its estimate of curvature; in rounds of two it is asked for up and down."""
    tx = optfn.sam(optfn.sophia(0.05, update_interval=1), adversary(optfn))
    path, state = run(tx, 4, obj_fn=loss)
    assert float(loss(path[-1])) < float(loss(PARAMS))
    assert state.slots["sam"].optimizer.slots["scale_by_sophia"].nu["w"].all()


def test_whole_rounds_of_some_leaves():
    """The function is of all params, and its gradients of those that are the optimizer's."""
    inside = optfn.sam(optfn.sgd(0.1), adversary(optfn), opaque_mode=True)
    frozen = optfn.freeze(inside, {"w": False, "b": True})
    path, _ = run(frozen, 3, grad_fn=lambda params, i: gradient(params))
    np.testing.assert_array_equal(path[-1]["b"], PARAMS["b"])
    alone = {"w": START}
    state = inside.init(alone)
    slope = jax.grad(lambda p: jnp.sum(CURVATURES * p["w"] ** 2) / 2)
    for found in path:
        updates, state = inside.update(slope(alone), state, alone, grad_fn=lambda p, i: slope(p))
        alone = optax.apply_updates(alone, updates)
        np.testing.assert_allclose(found["w"], alone["w"], rtol=1e-6, atol=1e-7)
