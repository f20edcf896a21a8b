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
from optfn import schedules, storage

if not hasattr(nnx, "as_pure"):
    pytest.skip("needs a newer Flax than the oldest jax has", allow_module_level=True)

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


CODECS = {
    "int8": storage.int8(),
    "by slot": {"mu": storage.fp8(), "nu": storage.factored()},
}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_stored_slots_train_as_on_bare_arrays(codec):
    """Each part of a format is a variable of its own, as every array of a state is."""
    tx = optfn.store(optfn.adamw(0.02), codec, leaves=lambda path, leaf: leaf.ndim > 1)
    params, state = train(tx, steps=3)

    @jax.jit
    def walked(pure, boxed):
        def body(carry, _):
            model = nnx.merge(graph, carry[0])
            grads = nnx.as_pure(nnx.grad(loss)(model))
            return optfn.step(tx, carry[0], grads, carry[1]), None

        alone = jax.lax.scan(body, (pure, tx.init(pure)), length=3)[0]
        return alone, optfn.step(tx, boxed, boxed, tx.init(boxed))

    graph, boxed = nnx.split(Network(), nnx.Param)
    (alone, its), (_, in_boxes) = walked(nnx.as_pure(boxed), boxed)
    assert_same_params(params, alone)
    assert jax.tree.structure(state) == jax.tree.structure(nnx.as_pure(its))
    assert jax.tree.structure(in_boxes) == jax.tree.structure(tx.init(boxed))
    assert jax.tree.map(jnp.shape, nnx.as_pure(in_boxes)) == jax.tree.map(jnp.shape, its)
    back = optfn.convert_state(optfn.adamw(0.02), in_boxes, boxed)
    assert jax.tree.structure(back) == jax.tree.structure(optfn.adamw(0.02).init(boxed))


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


def per_leaf(value):
    """A tree of values as `jax.tree.map` over the model's state makes it: in its variables."""
    return jax.tree.map(value, nnx.state(Network(), nnx.Param))


def is_kernel(x):
    return x.ndim > 1


# Every argument that takes a value for each leaf, with values that differ.
TAKERS = {
    "adamw": (lambda v: optfn.adamw(0.1, mask=v), is_kernel),
    "lion": (lambda v: optfn.lion(0.1, weight_decay=0.1, mask=v), is_kernel),
    "lamb": (lambda v: optfn.lamb(0.1, weight_decay=0.1, mask=v), is_kernel),
    "lars": (lambda v: optfn.lars(0.1, 0.1, v, trust_ratio_mask=v), is_kernel),
    "stable_adamw": (lambda v: optfn.stable_adamw(0.1, weight_decay=0.1, mask=v), is_kernel),
    "adam_mini": (
        lambda v: optfn.adam_mini(0.1, block_axes=v),
        lambda x: (1,) if is_kernel(x) else (),
    ),
    "cautious decay": (
        lambda v: optfn.chain(optfn.add_cautious_decay(0.1, v), optfn.scale_by_learning_rate(0.1)),
        is_kernel,
    ),
    "layer decay": (
        lambda v: optfn.chain(optfn.sgd(0.1), optfn.scale_by_layer_decay(0.5, v)),
        lambda x: 1 if is_kernel(x) else 2,
    ),
    "freeze": (lambda v: optfn.freeze(optfn.adam(0.1), v), is_kernel),
    "masked": (
        lambda v: optfn.chain(
            optfn.masked(optfn.scale_by_adam(), v), optfn.scale_by_learning_rate(0.1)
        ),
        is_kernel,
    ),
    "partition": (
        lambda v: optfn.partition({"a": optfn.adam(0.1), "b": optfn.sgd(0.1)}, v),
        lambda x: "a" if is_kernel(x) else "b",
    ),
}


@pytest.mark.parametrize("name", TAKERS)
def test_values_per_leaf_may_be_in_variables(name):
    """In `nnx.Optimizer`, which inits with variables and updates without; and in loops of both."""
    make, value = TAKERS[name]
    boxed = make(per_leaf(value))
    assert repr(boxed) == repr(make(nnx.as_pure(per_leaf(value))))
    expected = make(lambda path, leaf: value(leaf))

    model, reference = Network(), Network()
    for net, tx in ((model, boxed), (reference, expected)):
        optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
        for _ in range(2):
            optimizer.update(net, nnx.grad(loss)(net))
    jax.tree.map(np.testing.assert_array_equal, params_of(model), params_of(reference))

    params = nnx.state(Network(), nnx.Param)
    for p in (params, nnx.as_pure(params)):
        new, _ = optfn.step(boxed, grads=p, state=boxed.init(p), params=p)
        old, _ = optfn.step(expected, grads=p, state=expected.init(p), params=p)
        jax.tree.map(np.testing.assert_array_equal, new, old)


READERS = {
    "schedule_free": optfn.schedule_free_sgd(0.1),
    "ema_of_params": optfn.ema_of_params(optfn.adam(0.1), 0.5),
    "lookahead": optfn.lookahead(optfn.sgd(0.1), 3, 0.5),
    "partition": optfn.partition(
        {"kernel": optfn.schedule_free_sgd(0.1), "rest": optfn.sgd(0.1)}, label
    ),
    "skipping": optfn.skip_nonfinite(optfn.adam(0.1)),
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_the_state_reads_it_in_and_out_of_variables(name):
    tx, model = READERS[name], Network()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(loss)(model))
    params, state = nnx.state(model, nnx.Param), optimizer.opt_state
    bare_params, bare_state = nnx.as_pure(params), nnx.as_pure(state)
    expected = optfn.evaluation_params(tx, bare_state, bare_params)
    stage = next(iter(bare_state.slots))
    fresh = optfn.reset(tx, bare_state, bare_params, stage)
    for s in (state, bare_state):
        assert optfn.hyperparameters(tx, s) == optfn.hyperparameters(tx, bare_state)
        assert optfn.metrics(tx, s) == optfn.metrics(tx, bare_state)
        for p in (params, bare_params):
            found = optfn.evaluation_params(tx, s, p)
            assert jax.tree.structure(found) == jax.tree.structure(p)
            jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(found), expected)
            found = optfn.reset(tx, s, p, stage)
            assert jax.tree.structure(found) == jax.tree.structure(s)
            jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(found), fresh)


def test_variables_beside_bare_arrays_are_refused_with_the_way_out():
    tx, boxed = optfn.adamw(0.1), nnx.state(Network(), nnx.Param)
    bare = nnx.as_pure(boxed)
    calls = [
        lambda: tx.update(bare, tx.init(boxed), bare),
        lambda: optfn.adam(0.1).update(bare, optfn.adam(0.1).init(boxed)),
        lambda: tx.update(bare, tx.init(bare), boxed),
        lambda: tx.update(boxed, tx.init(bare), boxed),
        lambda: optfn.step(tx, grads=boxed, state=tx.init(boxed), params=bare),
        lambda: optfn.apply_updates(boxed, bare),
        lambda: optfn.apply_updates(bare, boxed),
        lambda: optfn.schedule_free_sgd(0.1).update(
            bare, optfn.schedule_free_sgd(0.1).init(boxed), bare
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"nnx\.as_pure\(\.\.\.\)"):
            call()


def test_a_minimum_has_the_variables_of_its_start():
    start = nnx.state(Network(), nnx.Param)
    result = optfn.minimize(lambda p: sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(p)), start)
    assert jax.tree.structure(result.x) == jax.tree.structure(start)
    assert result.converged


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
