"""Flax NNX: `nnx.Optimizer` with the optimizer as its static attribute, and a step with it as data.

The oracle is the same training with optax's optimizer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interop.rates import FORMS, GRADS, PARAMS, assert_one_trace_serves_all

import optfn
from optfn import schedules

RNG = np.random.default_rng(0)
INPUTS, TARGETS = (RNG.normal(size=(8, n)).astype(np.float32) for n in (3, 2))


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


def loss(model):
    return jnp.mean((model(INPUTS) - TARGETS) ** 2)


def params_of(model):
    return nnx.as_pure(nnx.state(model, nnx.Param))


def train(tx, steps=5):
    """The params after some jitted steps with `nnx.Optimizer`, and the optimizer's state."""
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(None)
        optimizer.update(model, nnx.grad(loss)(model))

    model = Network()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(steps):
        step(model, optimizer)
    assert len(traces) == 1
    return params_of(model), nnx.as_pure(optimizer.opt_state)


def assert_same_params(ours, theirs):
    """Within what numbers rounded in another order make of a few steps of 0.02."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), ours, theirs)


HYPERPARAMETERS = {
    "floats": (optfn.adamw(0.02, weight_decay=0.1), 0.02),
    "a schedule": (
        optfn.adamw(schedules.linear(0.02, 0.0, 6), weight_decay=0.1),
        optax.linear_schedule(0.02, 0.0, 6),
    ),
    "an optax schedule": (
        optfn.adamw(optax.linear_schedule(0.02, 0.0, 6), weight_decay=0.1),
        optax.linear_schedule(0.02, 0.0, 6),
    ),
    "arrays": (optfn.to_optax(optfn.as_arrays(optfn.adamw(0.02, weight_decay=0.1))), 0.02),
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_nnx_optimizer_equals_optax(name):
    tx, rate = HYPERPARAMETERS[name]
    ours, state = train(tx)
    theirs, _ = train(optax.adamw(rate, weight_decay=0.1))
    assert_same_params(ours, theirs)
    assert state.step == 5


def test_nnx_optimizer_takes_arrays_only_through_to_optax():
    """The framework's own rule for static attributes, the reason for `to_optax` above."""
    with pytest.raises(ValueError, match="static attribute 'tx'"):
        nnx.Optimizer(Network(), optfn.adam(jnp.float32(0.02)), wrt=nnx.Param)


def test_hyperparameters_of_an_nnx_optimizer():
    tx, _ = HYPERPARAMETERS["a schedule"]
    _, state = train(tx, steps=3)
    np.testing.assert_allclose(optfn.hyperparameters(tx, state)["learning_rate"], 0.01, rtol=1e-6)


def label(path, leaf):
    return "kernel" if path.endswith("kernel") else "rest"


LABELS = {
    "a function": label,
    "a tree": nnx.State(
        {layer: {"kernel": "kernel", "bias": "rest"} for layer in ("hidden", "out")}
    ),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_by_the_names_that_the_model_gives_its_params(labels):
    ours, _ = train(
        optfn.partition({"kernel": optfn.adamw(0.02), "rest": optfn.sgd(0.02, 0.9)}, labels)
    )
    theirs, _ = train(
        optax.partition(
            {"kernel": optax.adamw(0.02), "rest": optax.sgd(0.02, 0.9)}, LABELS["a tree"]
        )
    )
    assert_same_params(ours, theirs)


class Training(nnx.Pytree):
    """A model with its optimizer and the optimizer's state, all of them data."""

    def __init__(self, model, tx):
        self.model = model
        self.tx = nnx.data(tx)
        self.state = nnx.data(tx.init(params_of(model)))


@pytest.mark.parametrize(
    ("convert", "count"), [(optfn.as_arrays, 1), (lambda tx: tx, 3)], ids=["arrays", "floats"]
)
def test_the_rate_changes_without_a_retrace_where_the_optimizer_is_data(convert, count):
    """As arrays: inside `nnx.data` the framework takes floats for constants of the program."""
    traces = []

    @nnx.jit
    def step(training):
        traces.append(None)
        grads = nnx.as_pure(nnx.grad(loss)(training.model))
        params, training.state = optfn.step(
            training.tx, params_of(training.model), grads, training.state
        )
        nnx.update(training.model, params)

    training = Training(Network(), convert(optfn.adam(0.02)))
    rates = jnp.asarray([0.02, 0.005, 0.01])
    for rate in rates:
        training.tx = nnx.data(optfn.replace(training.tx, learning_rate=rate))
        step(training)

    theirs, _ = train(optax.adam(lambda step: rates[step]), steps=3)
    assert_same_params(params_of(training.model), theirs)
    assert len(traces) == count


@pytest.mark.parametrize("form", FORMS)
def test_fifty_rates_are_one_trace(form):
    """The optimizer as an argument of `nnx.jit`, beside the module it updates."""
    traces = []

    @nnx.jit
    def step(tx, model):
        traces.append(None)
        params = params_of(model)
        grads = jax.tree.map(lambda _: jnp.asarray(GRADS), params)
        params, _ = optfn.step(tx, params, grads, tx.init(params))
        nnx.update(model, params)

    def end(tx):
        model = nnx.Dict(x=nnx.Param(jnp.asarray(PARAMS)))
        step(tx, model)
        return model.x[...]

    assert_one_trace_serves_all(end, form, lambda: len(traces))
