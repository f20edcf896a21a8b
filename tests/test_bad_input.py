"""Wrong input gets a sentence: which argument or path, what was found, what was wanted."""

import types
from typing import Any, NamedTuple

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.stages import add_noise, every_kth, halve_until_lower, newton
from flax.core import FrozenDict

import optfn
from optfn import schedules

PARAMS = {"layer": {"w": jnp.ones((2, 3)), "b": jnp.ones(4)}, "s": jnp.ones(())}
GRADS = jax.tree.map(lambda p: 0.1 * p, PARAMS)
ADAM = optfn.adam(0.1)
STATE = ADAM.init(PARAMS)


def put(tree, path, value):
    """The tree with another value at "a/b"."""
    key, _, rest = path.partition("/")
    return {**tree, key: put(tree[key], rest, value) if rest else value}


def without(tree, path):
    key, _, rest = path.partition("/")
    if rest:
        return {**tree, key: without(tree[key], rest)}
    return {k: v for k, v in tree.items() if k != key}


def update(tx=ADAM, grads=GRADS, state=None, params=PARAMS, **extra_args):
    """One update, from the optimizer's own state unless another is given."""
    return tx.update(grads, tx.init(PARAMS) if state is None else state, params, **extra_args)


def check(call, error, *sentence):
    """The call raises this error, whose text has all these parts; a library's own errors do not."""
    with pytest.raises(error) as caught:
        call()
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    for part in sentence:
        assert part in text, f"{part!r} is not in:\n{text}"


def table(cases):
    return pytest.mark.parametrize(
        ("call", "error", "sentence"),
        [pytest.param(call, error, sentence, id=name) for name, (call, error, *sentence) in cases],
    )


# Trees that do not fit.

OTHER_TREES = {
    "a leaf too many": (
        lambda: update(grads=put(GRADS, "layer/z", jnp.ones(1))),
        ValueError,
        "params and updates are different trees: only updates has an entry at 'layer/z'.",
    ),
    "a leaf too few": (
        lambda: update(grads=without(GRADS, "layer/b")),
        ValueError,
        "params and updates are different trees: only params has an entry at 'layer/b'.",
    ),
    "a leaf too few, without params": (
        lambda: update(grads=without(GRADS, "layer/b"), params=None),
        ValueError,
        "the slots scale_by_adam.mu and updates are different trees: ",
        "only the slots scale_by_adam.mu has an entry at 'layer/b'.",
    ),
    "None for an array": (
        lambda: update(grads=put(GRADS, "layer/b", None)),
        ValueError,
        "at 'layer/b' updates has None, params has an array.",
    ),
    "None for an array, without params": (
        lambda: update(grads=put(GRADS, "layer/b", None), params=None),
        ValueError,
        "at 'layer/b' updates has None, the slots scale_by_adam.mu has an array.",
    ),
    "an array for None": (
        lambda: update(params=put(PARAMS, "layer/b", None)),
        ValueError,
        "at 'layer/b'",
        "updates have shape (4,), params have None",
    ),
    "a dict for an array": (
        lambda: update(params=put(PARAMS, "layer/b", {"k": jnp.ones(4)})),
        ValueError,
        "at 'layer/b'",
        "params have a dict",
    ),
    "an array for a dict": (
        lambda: update(grads=put(GRADS, "layer", jnp.ones(4))),
        ValueError,
        "at 'layer'",
        "params have a dict",
    ),
    "an array for a dict, without params": (
        lambda: update(grads=put(GRADS, "layer", jnp.ones(4)), params=None),
        ValueError,
        "at 'layer'",
        "scale_by_adam.mu",
        "dict",
    ),
    "an array for a tuple, without params": (
        lambda: ADAM.update({"a": jnp.ones(2)}, ADAM.init({"a": (jnp.ones(2), jnp.ones(2))})),
        ValueError,
        "at 'a'",
        "scale_by_adam.mu",
        "tuple",
    ),
    "a list for a tuple": (
        lambda: optfn.sgd(0.1).update([GRADS], optfn.sgd(0.1).init((PARAMS,)), (PARAMS,)),
        ValueError,
        "at the root updates has a list, params has a tuple.",
    ),
    "FrozenDict gradients": (
        lambda: update(grads=FrozenDict(GRADS)),
        ValueError,
        "at the root updates has a FrozenDict, params has a dict.",
    ),
    "FrozenDict params": (
        lambda: update(params=FrozenDict(PARAMS)),
        ValueError,
        "at the root updates has a dict, params has a FrozenDict.",
    ),
    "a FrozenDict inside": (
        lambda: update(grads=put(GRADS, "layer", FrozenDict(GRADS["layer"])), params=None),
        ValueError,
        "at 'layer' updates has a FrozenDict, the slots scale_by_adam.mu has a dict.",
    ),
    "apply_updates: a leaf too few": (
        lambda: optfn.apply_updates(PARAMS, without(GRADS, "layer/b")),
        ValueError,
        "updates and params are different trees: only params has an entry at 'layer/b'.",
    ),
    "apply_updates: None for an array": (
        lambda: optfn.apply_updates(PARAMS, put(GRADS, "layer/b", None)),
        ValueError,
        "at 'layer/b'",
        "None",
    ),
    "apply_updates: a dict for an array": (
        lambda: optfn.apply_updates(PARAMS, put(GRADS, "layer/b", {"k": jnp.ones(4)})),
        ValueError,
        "at 'layer/b'",
        "a dict",
    ),
    "an extra tree without a leaf": (
        lambda: update(newton(), curvature=without(GRADS, "layer/b"), damping=1.0),
        ValueError,
        "the extra argument 'curvature' and updates are different trees: "
        "only updates has an entry at 'layer/b'.",
    ),
    "an extra tree with None": (
        lambda: update(newton(), curvature=put(GRADS, "layer/b", None), damping=1.0),
        ValueError,
        "the extra argument 'curvature'",
        "at 'layer/b'",
        "None",
    ),
    "an extra tree in a partition": (
        lambda: update(
            optfn.partition({"x": newton(), "y": ADAM}, {"layer": "x", "s": "y"}),
            curvature=without(GRADS, "s"),
            damping=1.0,
        ),
        ValueError,
        "the extra argument 'curvature'",
        "'s'",
    ),
    "a mask": (
        lambda: update(optfn.adamw(0.1, mask={"layer": {"w": True}, "s": True})),
        ValueError,
        "adamw(mask=...) does not fit the params: it has no value at 'layer/b'.",
    ),
    "a mask with an entry too many": (
        lambda: update(optfn.adamw(0.1, mask={"layer": True, "s": True, "z": True})),
        ValueError,
        "adamw(mask=...)",
        "it has a value at 'z', where the params have no entry.",
    ),
    "a mask that goes deeper": (
        lambda: update(optfn.freeze(ADAM, {"layer": True, "s": {"k": True}})),
        ValueError,
        "freeze(mask=...) does not fit the params: at 's' it has a dict, the params have an array.",
    ),
    "a FrozenDict mask": (
        lambda: update(optfn.adamw(0.1, mask=FrozenDict({"layer": True, "s": True}))),
        ValueError,
        "adamw(mask=...)",
        "at the root it has a FrozenDict, the params have a dict.",
    ),
    "labels": (
        lambda: optfn.partition({"x": ADAM}, {"layer": "x"}).init(PARAMS),
        ValueError,
        "partition(labels=...) does not fit the params: it has no value at 's'.",
    ),
}


@table(OTHER_TREES.items())
def test_trees_that_do_not_fit(call, error, sentence):
    check(call, error, *sentence)


def test_modules_that_differ_in_static_parts_are_named_as_such():
    class Layer(eqx.Module):
        w: jax.Array
        size: int = eqx.field(static=True)

    params, grads = Layer(jnp.ones(2), 2), Layer(jnp.ones(2), 3)
    tx = optfn.sgd(0.1)
    check(
        lambda: tx.update(grads, tx.init(params), params),
        ValueError,
        "params and updates are different trees: they differ in static parts.",
    )


# Shapes that do not fit.


@pytest.fixture
def silent_promotion():
    """The setting of most users: (1,) and (4, 1), and a scalar too, broadcast without a word."""
    with jax.numpy_rank_promotion("allow"):
        yield


def with_shape(shape):
    return put(GRADS, "layer/b", jnp.ones(shape))


shapes = pytest.mark.parametrize("shape", [(1,), (), (5,), (4, 1)], ids=str)
directions = pytest.mark.parametrize(
    "tx",
    [
        optfn.scale_by_adam(),
        optfn.scale_by_lion(),
        optfn.scale_by_rms(),
        optfn.scale_by_rss(),
        optfn.trace(0.9),
        optfn.ema(0.9),
    ],
    ids=lambda tx: tx.name,
)


@shapes
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
@pytest.mark.parametrize("tx", [optfn.sgd(0.1), optfn.adamw(0.1)], ids=["sgd", "adamw"])
def test_gradients_of_another_shape_than_the_params(shape, transform, tx, silent_promotion):
    check(
        lambda: transform(tx.update)(with_shape(shape), tx.init(PARAMS), PARAMS),
        ValueError,
        "at 'layer/b'",
        f"updates have shape {shape}",
        "params have shape (4,)",
    )


@shapes
@directions
def test_gradients_of_another_shape_than_the_slots(shape, tx, silent_promotion):
    """Without params the slots are the only ones to compare with."""
    check(
        lambda: tx.update(with_shape(shape), tx.init(PARAMS)),
        (ValueError, TypeError),
        f"{shape}",
        "at 'layer/b'",
    )


@shapes
@directions
def test_slots_of_another_shape_than_the_params(shape, tx, silent_promotion):
    check(
        lambda: tx.update(GRADS, tx.init(with_shape(shape)), PARAMS),
        (ValueError, TypeError),
        "(4,)",
        "at 'layer/b'",
    )


@shapes
def test_an_extra_tree_of_another_shape(shape, silent_promotion):
    check(
        lambda: update(newton(), curvature=with_shape(shape), damping=1.0),
        (ValueError, TypeError),
        "at 'layer/b'",
        "curvature",
        f"{shape}",
        "(4,)",
    )


def test_a_scalar_argument_that_is_an_array(silent_promotion):
    """It would multiply the entries of a leaf that happens to have its length."""
    check(
        lambda: update(newton(), curvature=GRADS, damping=jnp.ones(4)),
        (ValueError, TypeError),
        "the extra argument 'damping'",
        "(4,)",
    )


@pytest.mark.parametrize(
    ("value", "found"), [(None, "None"), ("loss", "str"), (0.5j, "complex"), ({}, "dict")]
)
def test_a_scalar_argument_that_is_no_number(value, found):
    check(
        lambda: update(newton(), curvature=GRADS, damping=value),
        (ValueError, TypeError),
        "the extra argument 'damping'",
        found,
    )


def test_a_function_argument_that_is_no_function():
    check(
        lambda: update(halve_until_lower(), value_fn=jnp.ones(())),
        TypeError,
        "the extra argument 'value_fn' must be a function",
    )


@shapes
def test_updates_of_another_shape_than_the_params(shape, silent_promotion):
    check(
        lambda: optfn.apply_updates(PARAMS, with_shape(shape)),
        ValueError,
        "'layer/b'",
        f"shape {shape}",
        "shape (4,)",
    )


# Dtypes that cannot be optimized.


def check_integer_gradient(tx, dtype):
    check(
        lambda: update(tx, grads=put(GRADS, "layer/b", jnp.ones(4, dtype))),
        TypeError,
        f"the gradient at 'layer/b' has dtype {jnp.dtype(dtype)}",
        "only floating point and complex",
        "freeze",
    )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_], ids=lambda d: d.__name__)
def test_gradients_that_are_no_floats(dtype):
    check_integer_gradient(ADAM, dtype)


@pytest.mark.parametrize(
    "tx",
    [
        optfn.sgd(0.1),
        optfn.chain(optfn.clip_by_global_norm(1.0), optfn.sgd(0.1)),
        optfn.chain(optfn.from_optax(optax.clip(1.0)), optfn.sgd(0.1)),
        optfn.from_optax(optax.sgd(0.1)),
        optfn.partition({"x": ADAM, "y": optfn.sgd(0.1)}, {"layer": "x", "s": "y"}),
    ],
    ids=["sgd", "global norm", "optax in a chain", "optax alone", "partition"],
)
def test_an_integer_gradient_is_refused_by_whatever_comes_first(tx):
    check_integer_gradient(tx, jnp.int32)


def test_a_fraction_added_to_an_integer_param():
    check(
        lambda: optfn.apply_updates({"n": jnp.arange(3)}, {"n": jnp.full(3, 0.5)}),
        TypeError,
        "at 'n'",
        "the param has dtype int32",
        "the update float32",
    )


def test_a_gradient_that_jax_could_not_take():
    """An integer param has a gradient of dtype float0."""
    grads = jax.grad(lambda p: jnp.sum(p["w"]) + 0 * p["n"], allow_int=True)(
        {"w": jnp.ones(2), "n": jnp.asarray(1)}
    )
    tx = optfn.sgd(0.1)
    check(
        lambda: tx.update(grads, tx.init(grads["w"])),
        TypeError,
        "the gradient at 'n' has dtype",
        "float0",
    )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_], ids=lambda d: d.__name__)
def test_params_that_are_no_floats(dtype):
    check(
        lambda: ADAM.init(put(PARAMS, "layer/b", jnp.ones(4, dtype))),
        TypeError,
        f"the param at 'layer/b' has dtype {jnp.dtype(dtype)}",
        "freeze",
    )


def test_python_numbers_as_leaves():
    """Floats are fine, as everywhere in jax; an int is an integer gradient."""
    tx = optfn.sgd(0.5)
    updates, _ = tx.update({"a": 2.0}, tx.init({"a": 1.0}), {"a": 1.0})
    assert updates["a"] == -1.0
    check(lambda: tx.update({"a": 2}, tx.init({"a": 1.0})), TypeError, "gradient at 'a'", "int")


def test_leaves_that_are_no_numbers():
    check(lambda: ADAM.init({"a": "kernel"}), TypeError, "'a'", "str")
    check(lambda: update(grads=put(GRADS, "s", "zero")), TypeError, "'s'", "str")


def test_numpy_arrays_are_served_quietly():
    """Double precision, as NumPy makes it, with x64 off: jax rounds it without a word, so do we."""
    params, grads = (jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in (PARAMS, GRADS))
    tx = optfn.adamw(0.1)
    expected, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    for g, p in ((grads, params), (GRADS, params), (grads, PARAMS)):
        updates, _ = tx.update(g, tx.init(p), p)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)
    assert optfn.apply_updates(params, grads)["s"] == np.float32(1.1)


@pytest.mark.parametrize("tx", [ADAM, optfn.sgd(0.1)], ids=["adam", "sgd"])
def test_complex_gradients_of_real_params(tx):
    check(
        lambda: update(tx, grads=put(GRADS, "layer/b", 1j * jnp.ones(4))),
        (TypeError, ValueError),
        "'layer/b'",
        "complex",
    )


# States and arguments in the wrong place.

WRONG_STATES = {
    "of another optimizer": (
        lambda: update(optfn.lion(0.1), state=STATE),
        ValueError,
        "'scale_by_lion'",
        "was the state made by another optimizer?",
    ),
    "of an optimizer without the wrapper": (
        lambda: update(optfn.sam(ADAM, optfn.sgd(0.1)), state=STATE),
        ValueError,
        "the state has no slots for 'sam', only for ['scale_by_adam']",
    ),
    "evaluation params of an optimizer without the wrapper": (
        lambda: optfn.evaluation_params(optfn.schedule_free_sgd(0.1), STATE, PARAMS),
        ValueError,
        "the state has no slots for 'schedule_free', only for ['scale_by_adam']",
    ),
    "of params with another structure": (
        lambda: update(
            optfn.prodigy(),
            state=optfn.prodigy().init(PARAMS | {"s": {"inner": jnp.ones(())}}),
        ),
        ValueError,
        "at 's'",
        "a dict",
    ),
    "of params without a leaf": (
        lambda: update(optfn.prodigy(), state=optfn.prodigy().init(PARAMS | {"s": None})),
        ValueError,
        "'s'",
        "None",
    ),
    "of integers": (
        lambda: optfn.prodigy().init(PARAMS | {"s": jnp.ones((), jnp.int32)}),
        TypeError,
        "the param at 's' has dtype int32",
    ),
    "of integers in a wrapper": (
        lambda: optfn.mechanize(optfn.freeze(ADAM, lambda path, leaf: path == "s")).init(
            PARAMS | {"s": jnp.ones((), jnp.int32)}
        ),
        TypeError,
        "the param at 's' has dtype int32",
    ),
    "of one with fewer stages": (
        lambda: update(state=optfn.sgd(0.1).init(PARAMS)),
        ValueError,
        "'scale_by_adam'",
        "was the state made by another optimizer?",
    ),
    "of one with more stages": (
        lambda: update(optfn.sgd(0.1), state=STATE),
        ValueError,
        "the state has slots ['scale_by_adam'], this optimizer's are []",
        "was the state made by another optimizer?",
    ),
    "of another with the same name": (
        lambda: update(
            optfn.chain(optfn.trace(0.9).named("x")), state=optfn.ema(0.9).named("x").init(PARAMS)
        ),
        ValueError,
        "the state's slots for 'x' are Ema, this optimizer's are Trace",
    ),
    "of another group": (
        lambda: update(
            optfn.partition({"x": ADAM}, "x"),
            state=optfn.partition({"x": optfn.lion(0.1)}, "x").init(PARAMS),
        ),
        ValueError,
        "'scale_by_adam'",
        "was the state made by another optimizer?",
    ),
    "of optax": (
        lambda: update(state=optax.adam(0.1).init(PARAMS)),
        TypeError,
        "state must be the State that init returns, found tuple",
    ),
    "params and state swapped": (
        lambda: ADAM.update(GRADS, PARAMS, STATE),
        TypeError,
        "state must be the State that init returns, found dict",
        "the order is update(grads, state, params)",
    ),
    "gradients and state swapped": (
        lambda: ADAM.update(STATE, GRADS, PARAMS),
        TypeError,
        "state must be the State that init returns, found dict",
    ),
    "none": (
        lambda: ADAM.update(GRADS, None, PARAMS),
        TypeError,
        "state must be the State that init returns, found NoneType",
    ),
    "the slots alone": (
        lambda: ADAM.update(GRADS, STATE.slots, PARAMS),
        TypeError,
        "state must be the State that init returns, found dict",
    ),
    "hyperparameters of state and optimizer": (
        lambda: optfn.hyperparameters(STATE, ADAM),
        TypeError,
        "must be",
        "found ",
    ),
    "hyperparameters of an optax optimizer": (
        lambda: optfn.hyperparameters(optax.adam(0.1), STATE),
        TypeError,
        "optfn transform, found GradientTransformationExtraArgs",
    ),
}


@table(WRONG_STATES.items())
def test_states_that_do_not_fit(call, error, sentence):
    check(call, error, *sentence)


TAKING_A_STATE = {
    "update": lambda state: ADAM.update(GRADS, state, PARAMS),
    "to_optax": lambda state: optfn.to_optax(ADAM).update(GRADS, state, PARAMS),
    "step": lambda state: optfn.step(ADAM, grads=GRADS, state=state, params=PARAMS),
    "metrics": lambda state: optfn.metrics(ADAM, state),
    "hyperparameters": lambda state: optfn.hyperparameters(ADAM, state),
    "evaluation_params": lambda state: optfn.evaluation_params(ADAM, state, PARAMS),
    "reset": lambda state: optfn.reset(ADAM, state, PARAMS, "scale_by_adam"),
    "raise_if_gave_up": optfn.raise_if_gave_up,
    "current_loss_scale": optfn.current_loss_scale,
    "value_and_grad_from_state": lambda state: optfn.value_and_grad_from_state(
        lambda p: jnp.sum(p["s"])
    )(PARAMS, state=state),
}


def as_containers(tree):
    """What a checkpoint gives without a target: dicts in the place of named tuples."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    return {k: as_containers(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


@pytest.mark.parametrize("name", TAKING_A_STATE)
@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_checkpoint_restored_without_a_target(kind, name):
    restored = as_containers(STATE)
    restored = restored if kind is dict else kind(restored.values())
    check(
        lambda: TAKING_A_STATE[name](restored),
        (TypeError, ValueError),
        "restore with tx.init(params) as the target",
    )


def test_a_checkpoint_restored_with_a_state_around_untyped_slots():
    check(
        lambda: update(state=optfn.State(**as_containers(STATE))),
        ValueError,
        "the state's slots for 'scale_by_adam' are dict, this optimizer's are Moments",
        "restore with tx.init(params) as the target",
    )


READS_NOTHING = {"polyak_sgd"}  # its slots are for metrics, and come back typed


@pytest.mark.parametrize("name", sorted(cases.OPTIMIZERS.keys() - READS_NOTHING))
def test_every_optimizer_says_so_of_untyped_slots(name):
    tx = cases.OPTIMIZERS[name]
    state = tx.init(PARAMS)
    restored = state._replace(slots=as_containers(state.slots))
    given = cases.EXTRA_ARGS.get(name, {})
    given = given(GRADS, PARAMS) if callable(given) else given
    if jax.tree.structure(restored) == jax.tree.structure(state):
        return  # there are no types to lose
    check(
        lambda: tx.update(GRADS, restored, PARAMS, **given),
        ValueError,
        "restore with tx.init(params) as the target",
    )


# Missing and unknown arguments of an update.

MISSING = {
    "params": (
        lambda: update(optfn.adamw(0.1), params=None),
        ValueError,
        "add_decayed_weights needs the params: call update(grads, state, params).",
    ),
    "params of a named stage": (
        lambda: update(optfn.add_decayed_weights(0.1).named("decay"), params=None),
        ValueError,
        "decay needs the params",
    ),
    "params in a wrapper": (
        lambda: update(every_kth(optfn.freeze(optfn.adamw(0.1), True)), params=None),
        ValueError,
        "add_decayed_weights needs the params",
    ),
    "an extra argument": (
        lambda: update(newton(), damping=1.0),
        TypeError,
        "update() misses the extra argument 'curvature'; declared: curvature, damping.",
    ),
    "a misspelled extra argument": (
        lambda: update(newton(), curvatur=GRADS, damping=1.0, value=1.0),
        TypeError,
        "update() misses the extra argument 'curvature'; declared: curvature, damping; did you "
        "mean it by 'curvatur'?",
    ),
    "the order of update in step": (
        lambda: optfn.step(ADAM, GRADS, STATE, PARAMS),
        TypeError,
        "state must be the State that init returns, found dict",
        "the order is step(tx, params, grads, state).",
    ),
    "params after the state in step": (
        lambda: optfn.step(ADAM, STATE, GRADS, PARAMS),
        TypeError,
        "the order is step(tx, params, grads, state).",
    ),
}


@table(MISSING.items())
def test_arguments_that_are_missing_or_unknown(call, error, sentence):
    check(call, error, *sentence)


# Numbers that are none.

RATE = "adam(learning_rate=...)"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0.1", "str: '0.1'"),
        (None, "NoneType"),
        (True, "the bool True"),
        (np.bool_(False), "the bool False"),
        (0.1j, "complex: 0.1j"),
        ([0.1, 0.2], "list: [0.1, 0.2]"),
        ({"a": 0.1}, "dict"),
        (ADAM, "chain"),
        (jnp.asarray(True), "an array of bool"),
        (np.asarray([0.1j]), "an array of complex128"),
        (np.asarray(["a"]), "an array of <U1"),
        (jax.random.key(0), "an array of key<fry>"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_learning_rate_that_is_no_number(value, found):
    check(lambda: optfn.adam(value), TypeError, RATE, found)


def test_a_tree_in_place_of_a_number_is_not_dumped():
    """`adam(params)` is an easy mistake; its params are no part of the message."""
    params = {f"layer{i}": jnp.arange(64.0) for i in range(50)}
    with pytest.raises(TypeError) as error:
        optfn.adam(params)
    assert RATE in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "nan",
    [float("nan"), np.nan, np.float32("nan"), np.asarray(np.nan), np.asarray([0.1, np.nan])],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (optfn.adam, RATE),
        (lambda x: optfn.adam(0.1, b2=x), "adam(b2=...)"),
        (optfn.clip_by_global_norm, "clip_by_global_norm(max_norm=...)"),
        (lambda x: schedules.cosine(x, 10), "cosine(init_value=...)"),
        (lambda x: schedules.cosine(1.0, x), "cosine(total_steps=...)"),
        (lambda x: optfn.replace(ADAM, b1=x), "replace(b1=...)"),
    ],
    ids=["rate", "b2", "norm", "schedule", "steps", "replace"],
)
def test_nan_as_a_constant(build, name, nan):
    check(lambda: build(nan), ValueError, name, "NaN")


def test_nan_among_the_numbers_of_a_schedule():
    check(
        lambda: schedules.piecewise_constant([1.0, float("nan")], [3]),
        ValueError,
        "piecewise_constant(values=...), element 1, is NaN",
    )


@pytest.mark.parametrize("negative", [-1.0, np.float32(-1)])
def test_zero_and_negative_numbers_are_numbers(negative):
    """Signs are not policed: they may be swept, traced and meant. Zero is always finite."""
    climbing, _ = update(optfn.sgd(negative))
    np.testing.assert_array_equal(climbing["s"], GRADS["s"])
    zero = optfn.chain(
        optfn.clip_by_global_norm(0), optfn.adamw(0, b1=0, b2=0, eps_root=0, weight_decay=0)
    )
    updates, _ = update(zero)
    assert all(not u.any() for u in jax.tree.leaves(updates))


def test_no_number_at_all_where_a_sequence_is_wanted():
    check(
        lambda: schedules.piecewise_constant(1.0, [3]),
        TypeError,
        "piecewise_constant(values=...) must be a sequence of numbers, found float: 1.0.",
    )


# Schedules where there are none.


class counted(optfn.Leafwise):
    times: int = optfn.static(default=3)
    mode: Any = optfn.static(default="a", choices=("a", "b"))


SWITCHES = {
    "a schedule": schedules.constant(1.0),
    "a number": 1,
    "an array": jnp.asarray(True),
    "a function": lambda step: step > 3,
    "None": None,
    "text": "yes",
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false(name):
    check(
        lambda: optfn.adam(0.1, nesterov=SWITCHES[name]),
        TypeError,
        "adam(nesterov=...)",
        "it must be True or False, found ",
    )


STATICS = {
    "a schedule as a count": (
        lambda: counted(schedules.constant(3)),
        TypeError,
        "counted(times=...)",
        "schedule",
    ),
    "an array as a count": (
        lambda: counted(jnp.asarray(3)),
        TypeError,
        "counted(times=...) is static and must be a Python value, found an array.",
    ),
    "a list as a count": (
        lambda: counted([3]),
        TypeError,
        "counted(times=...) is static and must hash, found list: [3].",
    ),
    "a traced count": (
        lambda: jax.jit(lambda n: counted(n).times)(3),
        TypeError,
        "counted(times=...) is static and must be a Python value",
    ),
    "an unknown choice": (
        lambda: counted(mode="c"),
        ValueError,
        "counted(mode=...) must be one of ('a', 'b'), found str: 'c'.",
    ),
    "a schedule as a choice": (
        lambda: schedules.one_cycle(peak_value=1.0, total_steps=10, anneal=schedules.constant(1.0)),
        ValueError,
        "one_cycle(anneal=...) must be one of ('cosine', 'linear')",
    ),
    "a static name for replace": (
        lambda: optfn.replace(ADAM, nesterov=True),
        ValueError,
        "no hyperparameter is named 'nesterov'",
    ),
    "a schedule for replace": (
        lambda: optfn.replace(ADAM, learning_rate=schedules.constant(1.0)),
        TypeError,
        "replace(learning_rate=...)",
        "found constant",
    ),
}


@table(STATICS.items())
def test_statics_that_are_none(call, error, sentence):
    check(call, error, *sentence)


def test_a_schedule_as_the_largest_rate():
    rate = schedules.warmup_cosine(1.0, 10, 100)
    for stage in (optfn.descend_with_corrected_decay, optfn.descend_with_independent_decay):
        sentence = "(max_learning_rate=...) must be a number, the largest rate of the schedule"
        check(lambda stage=stage: stage(rate, rate, 0.1), TypeError, sentence)


@pytest.mark.parametrize("count", [True, 0, 1.5, "2"])
def test_counts_that_are_none(count):
    check(lambda: optfn.mechanize(ADAM, num_betas=count), ValueError, "mechanize(num_betas=...)")
    optfn.mechanize(ADAM, num_betas=np.int64(3))


PAIRS = {
    "one decay": (
        lambda: optfn.prodigy(betas=0.9),
        TypeError,
        "prodigy(betas=...) must be a pair of decays, found 0.9.",
    ),
    "three decays": (
        lambda: optfn.dadapt_adamw(betas=(0.9, 0.99, 0.999)),
        TypeError,
        "dadapt_adamw(betas=...) must be a pair of decays, found (0.9, 0.99, 0.999).",
    ),
    "a first step of an unknown kind": (
        lambda: optfn.dog(init_step=("far", 1)),
        TypeError,
        "dog(init_step=...) must be a pair of one of ('distance', 'learning_rate', 'heuristic')",
        "found ('far', 1)",
    ),
    "a first step that is no number": (
        lambda: optfn.dog(init_step=("distance", "far")),
        TypeError,
        "dog(init_step=...) must be a number",
    ),
}


@table(PAIRS.items())
def test_pairs_that_are_none(call, error, sentence):
    check(call, error, *sentence)


SCHEDULES = {
    "that returns nothing": (lambda step: None, "None"),
    "that returns a vector": (lambda step: jnp.ones(3), "has shape (3,)"),
    "that is a schedule's name": (schedules.cosine, "cosine"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_function_that_is_no_schedule(name):
    """At construction or at the update, an error that names the number it stands for."""
    function, found = SCHEDULES[name]
    check(
        lambda: update(optfn.sgd(function)),
        (TypeError, ValueError),
        "learning_rate",
        found,
    )


# A batch of optimizers used as one.


@pytest.mark.parametrize(
    "tx",
    [
        optfn.stack([optfn.sgd(0.1), optfn.sgd(0.2)]),
        optfn.sgd(jnp.asarray([0.1, 0.2])),
        optfn.sgd(schedules.cosine(jnp.asarray([0.1, 0.2]), 10)),
        optfn.sgd(schedules.constant(jnp.asarray([0.1, 0.2]))),
        optfn.sgd(schedules.warmup_cosine(0.1, jnp.asarray([1, 2]), 10)),
        optfn.sgd(schedules.piecewise_constant([jnp.asarray([0.1, 0.2]), 1.0], [3])),
    ],
    ids=["stack", "array", "cosine", "constant", "warmup", "piecewise"],
)
def test_a_stacked_optimizer_needs_vmap(tx):
    state = optfn.sgd(0.1).init(PARAMS)
    check(
        lambda: update(tx, state=state),
        ValueError,
        "scale_by_learning_rate.learning_rate has shape (2,), but a hyperparameter is a scalar",
        "vmap over the optimizer with in_axes(tx)",
    )


def test_a_batch_of_numbers_of_the_initial_state_needs_vmap_too():
    """It would fill a leaf that happens to have its length."""
    tx = optfn.rmsprop(0.1, initial_scale=jnp.arange(4.0))
    check(
        lambda: tx.init({"b": jnp.ones(4)}),
        ValueError,
        "scale_by_rms.initial_scale has shape (4,), but a hyperparameter is a scalar",
    )


def test_a_batch_of_seeds_needs_vmap_too():
    check(
        lambda: update(add_noise(jnp.arange(3))),
        ValueError,
        "add_noise.seed has shape (3,), but a hyperparameter is a scalar",
    )


# Values per leaf.


def of_three(path, leaf, step):
    raise AssertionError


MASKS = {
    "a function of three arguments": (
        lambda: optfn.adamw(0.1, mask=of_three),
        TypeError,
        "adamw(mask=...) takes a tree, a function (path, leaf) -> value or a "
        "function params -> tree",
        "found the function of_three(path, leaf, step)",
    ),
    "labels from three arguments": (
        lambda: optfn.partition({"x": ADAM}, of_three),
        TypeError,
        "partition(labels=...)",
        "of_three(path, leaf, step)",
    ),
    "an array for a leaf": (
        lambda: optfn.adamw(0.1, mask={"layer": jnp.ones(4, bool), "s": True}),
        TypeError,
        "adamw(mask=...) at 'layer' must be one hashable value per leaf, found Array",
    ),
    "a traced value": (
        lambda: jax.jit(lambda m: optfn.freeze(ADAM, m).init(PARAMS))(True),
        TypeError,
        "freeze(mask=...) at the root must be known when the program is traced",
    ),
    "a function that returns an array": (
        lambda: update(optfn.freeze(ADAM, lambda path, leaf: leaf > 0)),
        TypeError,
        "freeze(mask=...) at 'layer/b' must be",
    ),
    "no mask for freeze": (
        lambda: optfn.freeze(ADAM, None),
        TypeError,
        "freeze(mask=...) must be a tree or a function",
    ),
    "no labels": (
        lambda: optfn.partition({"x": ADAM}, None),
        TypeError,
        "partition(labels=...) must be a tree or a function, found None.",
    ),
}


@table(MASKS.items())
def test_values_per_leaf_that_are_none(call, error, sentence):
    check(call, error, *sentence)


def forgets_to_return(path, leaf):
    leaf.ndim > 1  # noqa: B015


@pytest.mark.parametrize(
    ("mask", "found"),
    [(forgets_to_return, "None"), ("kernel", "'kernel'")],
    ids=["function without return", "text"],
)
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda mask: optfn.adamw(0.1, mask=mask), "adamw(mask=...)"),
        (lambda mask: optfn.freeze(ADAM, mask), "freeze(mask=...)"),
        (lambda mask: optfn.chain(optfn.masked(optfn.trace(0.9), mask), ADAM), "masked(mask=...)"),
    ],
    ids=["decay", "freeze", "masked"],
)
def test_a_mask_is_true_or_false(build, name, mask, found):
    """A function that forgets its return would silently switch the decay off."""
    check(lambda: update(build(mask)), (TypeError, ValueError), name, found)


@pytest.mark.parametrize("face", ["init", "update"])
def test_labels_that_no_transform_has(face):
    labels = {"layer": {"w": "x", "b": "z"}, "s": 3}
    tx = optfn.partition({"x": ADAM, "y": optfn.sgd(0.1)}, labels)
    state = optfn.partition({"x": ADAM, "y": optfn.sgd(0.1)}, "x").init(PARAMS)
    check(
        lambda: tx.init(PARAMS) if face == "init" else tx.update(GRADS, state, PARAMS),
        ValueError,
        "partition: 2 leaves have a label that is none of ['x', 'y']",
        "'layer/b' is 'z'",
        "'s' is 3",
    )


def test_many_unknown_labels_are_not_all_listed():
    params = {f"layer{i}": jnp.ones(1) for i in range(1000)}
    with pytest.raises(ValueError, match="1000 leaves have a label") as error:
        optfn.partition({"x": ADAM}, lambda path, leaf: path).init(params)
    assert len(str(error.value)) < 400


def test_a_mask_that_does_not_fit_is_found_before_the_first_update():
    """Of a stage without state too."""
    check(
        lambda: optfn.adamw(0.1, mask={"layer": True}).init(PARAMS),
        ValueError,
        "adamw(mask=...) does not fit the params: it has no value at 's'.",
    )


# Rules that are none.


class Moment(NamedTuple):
    moment: Any


def rule(**members):
    return type("mine", (optfn.Leafwise,), members)


def stateful_rule(update_leaf, init_leaf=lambda self, param: Moment(param)):
    return rule(Slots=Moment, init_leaf=init_leaf, update_leaf=update_leaf)()


RULES = {
    "init_leaf without Slots": (
        lambda: rule(init_leaf=lambda self, param: Moment(param)),
        "mine defines init_leaf",
        "Slots",
    ),
    "random with a key of its own": (
        lambda: rule(random=True, extra_args={"key": "key"}),
        "mine is random",
        "key",
    ),
    "no slots returned": (
        lambda: update(stateful_rule(lambda self, g, slots, param, t: g)),
        "mine.update_leaf must return (update, slots)",
        "at 'layer/b'",
    ),
    "None for slots": (
        lambda: update(stateful_rule(lambda self, g, slots, param, t: (g, None))),
        "mine.update_leaf must give slots of type Moment, found NoneType",
        "at 'layer/b'",
    ),
    "an array for slots": (
        lambda: update(stateful_rule(lambda *args: None, lambda self, param: param)),
        "mine.init_leaf must give slots of type Moment, found",
        "at 'layer/b'",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_that_are_none(name):
    call, *sentence = RULES[name]
    check(call, TypeError, *sentence)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**24])
def test_a_seed_that_would_be_another_seeds_twin(seed):
    """As float32 numbers -1 and 0.5 are cut to 0, and 2**24 + 1 is 2**24."""
    check(lambda: update(add_noise(seed)), ValueError, "add_noise.seed must be a whole number")


# Transforms that are none.

STAGES = {
    "a function of optax's in a chain": (
        lambda: optfn.chain(ADAM, optax.adam),
        TypeError,
        "chain(...), stage 1, must be an optfn transform, found function adam; call it",
    ),
    "a pair of functions in a wrapper": (
        lambda: optfn.masked(types.SimpleNamespace(init=None, update=None), True),
        TypeError,
        "masked(transform=...) must be an optfn transform, found SimpleNamespace",
        "optax.GradientTransformation(init, update)",
    ),
    "one argument under two names": (
        lambda: optfn.masked(transform=ADAM, inner=ADAM, mask=True),
        TypeError,
        "masked(transform=..., inner=...) are the same argument",
    ),
    "a list in a chain": (
        lambda: optfn.chain([ADAM]),
        TypeError,
        "chain(...), stage 0, must be an optfn transform, found list",
    ),
    "None in a chain": (
        lambda: optfn.chain(None),
        TypeError,
        "chain(...), stage 0, must be an optfn transform, found NoneType",
    ),
    "a function in a chain": (
        lambda: optfn.chain(optfn.adam),
        TypeError,
        "chain(...), stage 0, must be an optfn transform, found function",
    ),
    "a list of transforms": (
        lambda: optfn.partition([ADAM], "x"),
        TypeError,
        "partition(transforms=...) must be a dict {label: transform}.",
    ),
    "no transforms": (
        lambda: optfn.partition({}, "x"),
        TypeError,
        "partition(transforms=...) must be a dict {label: transform}.",
    ),
    "labels that are neither text nor numbers": (
        lambda: optfn.partition({1.5: ADAM}, 1.5),
        TypeError,
        "partition(...): labels are strings, whole numbers or members of an enum, found 1.5.",
    ),
    "labels that read the same": (
        lambda: optfn.partition({1: ADAM, "1": ADAM}, 1),
        ValueError,
        "partition(transforms=...): two labels read the same in [1, '1']",
    ),
    "mask and transform swapped": (
        lambda: optfn.freeze(True, ADAM),
        TypeError,
        "freeze(transform=...) must be an optfn transform, found bool",
    ),
    "optfn through from_optax": (
        lambda: optfn.from_optax(ADAM),
        TypeError,
        "from_optax(...) got an optfn transform, which needs no conversion.",
    ),
    "a function through from_optax": (
        lambda: optfn.from_optax(optax.adam),
        TypeError,
        "from_optax(...) must be an optax transformation, found function adam.",
    ),
    "optax through to_optax": (
        lambda: optfn.to_optax(optax.adam(0.1)),
        TypeError,
        "to_optax(tx=...) must be an optfn transform, found GradientTransformationExtraArgs",
    ),
    "momentum for nesterov": (
        lambda: optfn.sgd(0.1, nesterov=True),
        ValueError,
        "sgd(nesterov=True) needs a momentum",
    ),
}


@table(STAGES.items())
def test_transforms_that_are_none(call, error, sentence):
    check(call, error, *sentence)


@pytest.mark.parametrize(
    "call",
    [
        lambda: optfn.chain(optfn.scale_by_adam),
        lambda: optfn.masked(optfn.scale_by_adam, True),
        lambda: optfn.from_optax(optfn.scale_by_adam),
    ],
    ids=["chain", "masked", "from_optax"],
)
def test_a_class_without_its_parentheses(call):
    """It has an `update`, so it looks like an optax transformation."""
    with pytest.raises(TypeError) as error:
        call()
    assert "scale_by_adam" in str(error.value)
    assert "use from_optax" not in str(error.value)


@table(
    [
        (
            "a norm below 0",
            (
                lambda: optfn.clip_by_norm(-1.0),
                ValueError,
                "clip_by_norm(max_norm=...) must be at least 0, found -1.0.",
            ),
        ),
        (
            "a decay that grows",
            (
                lambda: optfn.scale_by_layer_decay(1.5, 2),
                ValueError,
                "scale_by_layer_decay(decay=...) must be from 0 to 1, found 1.5.",
            ),
        ),
        (
            "slow params that overshoot",
            (
                lambda: optfn.lookahead(ADAM, 5, 1.5),
                ValueError,
                "lookahead(slow_step_size=...) must be from 0 to 1, found 1.5.",
            ),
        ),
    ]
)
def test_numbers_out_of_their_range(call, error, sentence):
    check(call, error, *sentence)
