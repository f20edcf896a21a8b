"""Equinox: params are callable modules with None in place of what is no array.

The oracle is the same training with optax's optimizer.
"""

from collections.abc import Callable
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interop.rates import FORMS, GRADS, PARAMS, assert_one_trace_serves_all

import optfn
from optfn import schedules

RNG = np.random.default_rng(0)
INPUTS, TARGETS = (RNG.normal(size=(8, n)).astype(np.float32) for n in (3, 2))


class Network(eqx.Module):
    """Callable, and its arrays stand among a function and a number."""

    hidden: eqx.nn.Linear
    activation: Callable
    out: eqx.nn.Linear
    gain: float = 1.0

    def __call__(self, x):
        return self.gain * self.out(self.activation(self.hidden(x)))


@cache
def network():
    keys = jax.random.split(jax.random.key(0))
    return Network(eqx.nn.Linear(3, 4, key=keys[0]), jnp.tanh, eqx.nn.Linear(4, 2, key=keys[1]))


def loss(model):
    return jnp.mean((jax.vmap(model)(INPUTS) - TARGETS) ** 2)


def train(tx, steps=5):
    """The params after some steps; what is no array passes through the loop beside them."""

    @eqx.filter_jit
    def run(tx, model):
        params, rest = eqx.partition(model, eqx.is_inexact_array)

        def step(carry, _):
            params, state = carry
            grads = eqx.filter_grad(loss)(eqx.combine(params, rest))
            updates, state = tx.update(grads, state, params)
            return (eqx.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    return run(tx, network())


def assert_same_params(ours, theirs):
    """Within what numbers rounded in another order make of a few steps of 0.02."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), ours, theirs)


def matrices():
    """A module of bools: it is callable, and is a tree all the same."""
    params = eqx.filter(network(), eqx.is_inexact_array)
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def weights():
    return lambda path, leaf: path.endswith("weight")


@pytest.mark.parametrize("mask", [matrices, weights])
def test_a_mask_equals_optax(mask):
    ours = optfn.adamw(schedules.linear(0.02, 0.0, 6), weight_decay=0.1, mask=mask())
    # optax takes every callable for a function of the params.
    theirs = optax.adamw(
        optax.linear_schedule(0.02, 0.0, 6), weight_decay=0.1, mask=lambda params: matrices()
    )
    assert_same_params(train(optfn.as_arrays(ours)), train(theirs))


def test_labels_of_a_module_equal_optax():
    labels = jax.tree.map(lambda matrix: "matrix" if matrix else "rest", matrices())
    ours = optfn.partition({"matrix": optfn.adam(0.02), "rest": optfn.sgd(0.02, 0.9)}, labels)
    theirs = optax.partition(
        {"matrix": optax.adam(0.02), "rest": optax.sgd(0.02, 0.9)}, lambda params: labels
    )
    assert_same_params(train(ours), train(theirs))


def test_a_module_as_a_schedule():
    """Any callable pytree is a schedule, and its numbers are leaves of the optimizer."""

    class Halving(eqx.Module):
        start: jax.Array

        def __call__(self, step):
            return self.start * 0.5**step

    traces = []

    @eqx.filter_jit
    def step(tx):
        traces.append(None)
        return tx.update(GRADS, tx.init(PARAMS)._replace(step=jnp.int32(2)))[0]

    for start in (1.0, 3.0):
        tx = optfn.sgd(Halving(jnp.float32(start)))
        np.testing.assert_allclose(step(tx), -start / 4 * GRADS, rtol=1e-6)
    tx = optfn.replace(tx, **{"learning_rate.function.start": 8.0})
    np.testing.assert_allclose(step(tx), -2 * GRADS, rtol=1e-6)
    assert len(traces) == 1


def counted_step():
    """A step from PARAMS along GRADS under `eqx.filter_jit`, and its number of traces."""
    traces = []

    @eqx.filter_jit
    def step(tx):
        traces.append(None)
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        return eqx.apply_updates(PARAMS, updates)

    return step, lambda: len(traces)


@pytest.mark.parametrize("form", FORMS)
def test_fifty_rates_as_arrays_are_one_trace(form):
    step, count = counted_step()
    assert_one_trace_serves_all(lambda tx: step(optfn.as_arrays(tx)), form, count)


def test_floats_are_constants_to_filter_jit():
    """The framework's own rule, the reason for `as_arrays` above."""
    step, count = counted_step()
    for rate in (0.1, 0.2, 0.3):
        step(optfn.adam(rate))
    assert count() == 3


class Counting(eqx.Module):
    """A model with a leaf that is no param: an integer, a switch, a key, a text, a function."""

    w: jax.Array
    other: object


OTHERS = {
    "an integer": 3,
    "an integer array": jnp.arange(3),
    "a switch": True,
    "a random key": jax.random.key(0),
    "a text": "same",
    "a function": jax.nn.relu,
    "a jitted function": jnp.tanh,
    "an object": object(),
}
RULES = {
    "adam": optfn.adam(0.1),
    "sgd": optfn.sgd(0.1),
    "dog": optfn.dog(),
    "accumulate": optfn.accumulate(
        optfn.adam(0.1), 1
    ),  # else it would wait for the second gradient
    "from_optax": optfn.from_optax(optax.adam(0.1)),
}


# What optax's own rules take, they get.
LEFT_TO_OPTAX = ("an integer", "an integer array", "a switch", "a random key")


@pytest.mark.parametrize("other", OTHERS)
def test_a_whole_model_is_refused_with_the_way_out(other):
    model = Counting(jnp.ones(2), OTHERS[other])
    params = eqx.filter(model, eqx.is_inexact_array)
    rules = [
        tx for name, tx in RULES.items() if not (name == "from_optax" and other in LEFT_TO_OPTAX)
    ]
    calls = [lambda tx=tx: tx.init(model) for tx in rules]
    for tx in rules:
        state = tx.init(params)
        calls += [
            lambda tx=tx, state=state: tx.update(params, state, model),
            lambda tx=tx, state=state: tx.update(model, state, params),
            lambda tx=tx, state=state: tx.update(model, state, model),
        ]
    calls += [
        lambda: optfn.apply_updates(model, params),
        lambda: optfn.minimize(lambda p: jnp.sum(p.w**2), model),
        lambda: optfn.reset(RULES["adam"], RULES["adam"].init(params), model, "scale_by_adam"),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="'other'") as caught:
            call()
        assert "eqx.filter(model, eqx.is_inexact_array)" in str(caught.value)


def test_the_shapes_of_a_whole_model_are_refused_with_the_way_out():
    model = eqx.filter_eval_shape(lambda: eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)))
    with pytest.raises(TypeError, match=r"eqx\.filter\(model, eqx\.is_inexact_array\)"):
        optfn.adam(0.1).init(model)
