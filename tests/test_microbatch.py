"""Micro-batches in one call: the results of the whole batch, in the memory of a part of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.microbatching import AccumulationType
from optax_faults import wrong_in_optax

import optfn
from optfn import microbatch

ROWS = 12
RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(ROWS, 3)), "y": RNG.normal(size=(ROWS,))}
PARAMS = {"w": RNG.normal(size=(3, 4)), "v": RNG.normal(size=(4,))}


def in_dtype(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def predict(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) @ params["v"]


def loss(params, batch):
    """The mean of the squared errors; and of each row the prediction, and how many are positive."""
    predicted = predict(params, batch)
    aux = {"predicted": predicted, "positive": jnp.sum(predicted > 0)}
    return jnp.mean((predicted - batch["y"]) ** 2), aux


def plain_loss(params, batch):
    return loss(params, batch)[0]


value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
plain_grad = jax.jit(jax.grad(plain_loss))
EACH = (("mean", {"predicted": "concat", "positive": "sum"}), "mean")


def close(a, b, rtol, atol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]


# The results of the whole batch.


@pytest.mark.parametrize("size", [1, 3, 4, 12])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_gradient_is_that_of_the_whole_batch(size, transform, x64):
    params, batch = in_dtype(PARAMS, jnp.float64), in_dtype(BATCH, jnp.float64)
    expected = value_and_grad(params, batch)
    found = transform(microbatch(value_and_grad, 1, size, EACH))(params, batch)
    close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_mean_is_the_default():
    """optax's is a sum, which makes gradients and a loss larger by the number of micro-batches."""
    params, batch = in_dtype(PARAMS, jnp.float32), in_dtype(BATCH, jnp.float32)
    grad = jax.jit(jax.value_and_grad(plain_loss))
    expected = grad(params, batch)
    close(microbatch(grad, 1, 3)(params, batch), expected, rtol=1e-5, atol=1e-7)
    theirs = optax.microbatch(grad, 1, 3)(params, batch)
    close(theirs, jax.tree.map(lambda x: 4 * x, expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 6])
@pytest.mark.parametrize("name", ["mean", "sum", "concat"])
def test_results_are_those_of_optax(name, size):
    functions = {
        "mean": lambda a, b: (jnp.mean(a * b), {"k": a.mean(0)}),
        "sum": lambda a, b: (jnp.sum(a * b), {"k": a.sum(0)}),
        "concat": lambda a, b: (a * b, {"k": a}),
    }
    fun = jax.jit(functions[name])
    a, b = (jnp.asarray(RNG.normal(size=(ROWS, 2)), jnp.float32) for _ in range(2))
    found = microbatch(fun, (0, 1), size, name)(a, b)
    theirs = optax.microbatch(fun, (0, 1), size, AccumulationType[name.upper()])(a, b)
    close(found, fun(a, b), rtol=1e-5, atol=1e-6)
    close(found, theirs, rtol=1e-5, atol=1e-6)


def test_none_for_a_size_is_the_function_itself():
    assert microbatch(loss, 1, None) is loss


def test_it_keeps_name_and_text_of_the_function():
    wrapped = microbatch(loss, 1, 3)
    assert (wrapped.__name__, wrapped.__doc__) == (loss.__name__, loss.__doc__)
    params = in_dtype(PARAMS, jnp.float32)
    microbatch(
        partial(jax.jit(loss), params), 0, 3, ("mean", {"predicted": "concat", "positive": "sum"})
    )(BATCH)


def test_arguments_by_position_by_name_and_along_other_axes():
    a = jnp.asarray(RNG.normal(size=(ROWS, 4, 5)), jnp.float32)
    b = a.transpose(1, 0, 2)

    @jax.jit
    def fun(a, b):
        return jnp.einsum("nij,knj->ik", a, b)

    expected = fun(a, b)
    make = partial(microbatch, fun, microbatch_size=2, accumulator="sum")
    for found in (
        make(argnums=(0, 1), in_axes=(0, 1))(a, b),
        make(argnums=(1, 0), in_axes=(1, 0))(a, b),
        make(argnums=(0, -1), in_axes=(-3, -2))(a, b),
        make(argnums=0, argnames="b", in_axes=(0, 1))(a, b=b),
        make(argnums=(), argnames=("b", "a"), in_axes=(1, 0))(a=a, b=b),
    ):
        close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_may_be_keys_and_an_argument_may_hold_anything():
    keys = jax.random.split(jax.random.key(0), ROWS)

    def fun(how, keys, scale):
        draws = jax.vmap(lambda key: scale["by"] * jax.random.normal(key, (2,)))(keys)
        return how(draws), None, draws

    arguments = (jnp.sum, keys, {"by": 2.0, "unused": "text"})
    found = microbatch(fun, 1, 3, ("sum", None, "concat"))(*arguments)
    expected = fun(*arguments)
    assert found[1] is None
    close((found[0], found[2]), (expected[0], expected[2]), rtol=1e-6, atol=1e-6)


def test_gradients_of_integers_are_handed_on():
    params = {"w": jnp.ones(3), "table": jnp.arange(4)}
    batch = jnp.asarray(BATCH["x"], jnp.float32)
    grad = jax.jit(jax.grad(lambda p, x: jnp.mean((x @ p["w"]) ** 2), allow_int=True))
    found = microbatch(grad, 1, 3)(params, batch)
    expected = grad(params, batch)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)
    assert found["table"].dtype == expected["table"].dtype == jax.dtypes.float0


# Precision.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("accumulator", ["mean", "sum"])
def test_low_precision_is_summed_in_float32(dtype, accumulator):
    """Against float64: one rounding of the result. optax adds up in the dtype of the parts."""
    rows = jnp.asarray(1 + RNG.uniform(size=2048), dtype)
    fun = getattr(jnp, accumulator)
    exact = getattr(np, accumulator)(np.asarray(rows, np.float64))
    found = jax.jit(microbatch(fun, 0, 1, accumulator))(rows)
    theirs = jax.jit(optax.microbatch(fun, 0, 1, AccumulationType[accumulator.upper()]))(rows)
    eps = float(jnp.finfo(dtype).eps)
    assert found.dtype == dtype
    assert abs(float(found) / exact - 1) < eps
    wrong_in_optax(not abs(float(theirs) / exact - 1) < 8 * eps)


# Batches that are filled up.


@jax.jit
def evaluate_first(params, batch, real):
    return microbatch(value_and_grad, 1, 3, EACH, num_real_microbatches=real)(params, batch)


@pytest.mark.parametrize("real", [0, 1, 3, 4])
@pytest.mark.parametrize("traced", [True, False])
def test_only_the_first_rows_count(real, traced):
    size = 3
    params, batch = in_dtype(PARAMS, jnp.float32), in_dtype(BATCH, jnp.float32)
    first = np.arange(ROWS) < real * size
    filled = {
        k: jnp.asarray(np.where(first.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan))
        for k, x in batch.items()
    }
    evaluate = evaluate_first if traced else evaluate_first.__wrapped__
    (value, aux), grads = jax.device_get(evaluate(params, filled, real))
    if real == 0:
        assert float(value) == 0
        assert all(not x.any() for x in jax.tree.leaves((aux, grads)))
        return
    part = jax.tree.map(lambda x: np.asarray(x)[: real * size], batch)
    (expected, aux_expected), grads_expected = value_and_grad(params, part)
    close((value, grads), (expected, grads_expected), rtol=1e-5, atol=1e-7)
    assert aux["positive"] == aux_expected["positive"]
    np.testing.assert_allclose(
        aux["predicted"][: real * size], aux_expected["predicted"], rtol=1e-6
    )
    assert not aux["predicted"][real * size :].any()


def test_a_traced_number_is_held_to_what_there_is():
    rows = jnp.arange(6.0)
    evaluate = jax.jit(lambda n: microbatch(jnp.mean, 0, 2, num_real_microbatches=n)(rows))
    assert [float(evaluate(n)) for n in (-1, 0, 1, 3, 99)] == [0, 0, 0.5, 2.5, 2.5]


def test_a_mean_is_over_the_micro_batches_that_were_evaluated():
    """optax's is over all, unless one asks for its RUNNING_MEAN."""
    rows = jnp.full(8, 3.0)
    evaluate = partial(microbatch, jnp.mean, 0, 2, num_real_microbatches=2)
    assert float(evaluate()(rows)) == 3
    theirs = optax.microbatch(jnp.mean, 0, 2, AccumulationType.MEAN, num_real_microbatches=2)
    wrong_in_optax(float(theirs(rows)) == 1.5)
    running = optax.microbatch(
        jnp.mean, 0, 2, AccumulationType.RUNNING_MEAN, num_real_microbatches=2
    )
    assert float(running(rows)) == 3


# Transformations.


@pytest.mark.parametrize("real", [None, 2])
def test_gradients_go_through(real, x64):
    """By the params and by the batch, from outside."""
    params, batch = in_dtype(PARAMS, jnp.float64), in_dtype(BATCH, jnp.float64)
    rows = ROWS if real is None else real * 4
    part = jax.tree.map(lambda x: np.asarray(x)[:rows], batch)
    expected = jax.jit(jax.grad(plain_loss, (0, 1)))(params, part)

    @jax.jit
    def total(params, batch, real):
        return microbatch(plain_loss, 1, 4, num_real_microbatches=real)(params, batch)

    by_params, by_batch = jax.device_get(jax.jit(jax.grad(total, (0, 1)))(params, batch, real))
    close(by_params, expected[0], rtol=1e-12, atol=1e-14)
    for name, x in by_batch.items():
        np.testing.assert_allclose(x[:rows], expected[1][name], rtol=1e-12, atol=1e-14)
        assert not x[rows:].any()


def test_vmap_over_batches_and_over_the_number():
    params = in_dtype(PARAMS, jnp.float32)
    many = jax.tree.map(lambda x: jnp.asarray(np.stack([x, 2 * x]), jnp.float32), BATCH)
    micro = microbatch(plain_grad, 1, 3)
    found = jax.device_get(jax.jit(jax.vmap(micro, (None, 0)))(params, many))
    for i in range(2):
        expected = plain_grad(params, jax.tree.map(lambda x, i=i: np.asarray(x)[i], many))
        close(jax.tree.map(lambda x, i=i: x[i], found), expected, rtol=1e-5, atol=1e-6)
    rows = jnp.arange(6.0)
    sums = jax.vmap(lambda n: microbatch(jnp.sum, 0, 2, "sum", num_real_microbatches=n)(rows))(
        jnp.arange(4)
    )
    assert sums.tolist() == [0, 1, 6, 15]


def test_the_function_is_traced_once():
    traces = []

    def fun(params, batch):
        traces.append(None)
        return plain_loss(params, batch)

    params, batch = in_dtype(PARAMS, jnp.float32), in_dtype(BATCH, jnp.float32)
    jax.jit(microbatch(jax.value_and_grad(fun), 1, 3)).lower(params, batch)
    assert len(traces) == 1


# Memory.


def test_memory_falls_with_the_micro_batch():
    """Of what a deep network keeps for its gradient, by XLA's own account."""
    rows, width, depth = 256, 64, 8
    params = jax.ShapeDtypeStruct((depth, width, width), jnp.float32)
    batch = jax.ShapeDtypeStruct((rows, width), jnp.float32)

    def deep(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    def needed(size):
        step = microbatch(jax.value_and_grad(deep), 1, size)
        compiled = jax.jit(step).lower(params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, *parts = [needed(size) for size in (None, 64, 16)]
    activations, weights = rows * width * depth * 4, depth * width * width * 4
    assert whole > activations
    assert whole > parts[0] > parts[1]
    # What is left is the gradient of the weights, of a part and summed, and a part's activations.
    assert parts[1] < 3 * weights + 2 * activations / 16


def test_a_gradient_from_outside_needs_a_checkpoint():
    rows = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((64, 64), jnp.float32)

    def deep(w, x):
        for _ in range(6):
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    def needed(fun):
        compiled = jax.jit(jax.grad(microbatch(fun, 1, 16))).lower(w, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(jax.checkpoint(deep)) < needed(deep) / 2


def test_micro_batches_are_every_nth_row_or_consecutive_rows():
    x = jnp.arange(6.0)

    def neighbours(x):
        return x[:-1] @ x[1:]

    spread = microbatch(neighbours, 0, 3, "sum")(x)
    assert float(spread) == (0 * 2 + 2 * 4) + (1 * 3 + 3 * 5)
    consecutive = microbatch(neighbours, 0, 3, "sum", num_real_microbatches=2)(x)
    assert float(consecutive) == (0 * 1 + 1 * 2) + (3 * 4 + 4 * 5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_every_device_has_its_share_of_every_micro_batch(kind):
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(kind,))
    rows = jax.device_put(jnp.arange(32.0).reshape(16, 2), NamedSharding(mesh, P("data")))
    params = jax.device_put(jnp.ones((2,)), NamedSharding(mesh, P()))

    def fun(params, x):
        return jnp.mean((x @ params) ** 2), 2 * x

    step = jax.jit(
        microbatch(jax.value_and_grad(fun, has_aux=True), 1, 8, (("mean", "concat"), "mean"))
    )
    expected = jax.value_and_grad(fun, has_aux=True)(*jax.device_get((params, rows)))
    (value, doubled), grads = step(params, rows)
    close(((value, doubled), grads), expected, rtol=1e-5)
    assert doubled.sharding.is_equivalent_to(rows.sharding, 2)
    text = step.lower(params, rows).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text


# Bad input.

X = np.ones((6, 2), np.float32)


def two(batch, other, flag=None):
    return jnp.sum(batch["x"]) + jnp.sum(other)


WRONG = {
    "a size that is none": (
        lambda: microbatch(two, 0, 0),
        ValueError,
        r"microbatch\(microbatch_size=\.\.\.\) must be a whole number above 0, found 0",
    ),
    "no batch": (lambda: microbatch(two, (), 2), ValueError, "needs the argnums or the argnames"),
    "an axis too few": (
        lambda: microbatch(two, (0, 1), 2, in_axes=(0,)),
        ValueError,
        r"microbatch\(in_axes=\.\.\.\) has 1 axes for the 2 arguments",
    ),
    "an accumulator that is none": (
        lambda: microbatch(two, 0, 2, ("mean", "median")),
        ValueError,
        r"microbatch\(accumulator=\.\.\.\) must be one of .*, found 'median'",
    ),
    "a batch that does not divide": (
        lambda: microbatch(jnp.mean, 0, 4)(X),
        ValueError,
        r"microbatch\(microbatch_size=4\): a batch of 6 rows is not divisible by it",
    ),
    "no rows": (
        lambda: microbatch(jnp.mean, 0, 4)(X[:0]),
        ValueError,
        r"a batch of 0 rows is not divisible by it",
    ),
    "different numbers of rows": (
        lambda: microbatch(two, (0, 1), 2)({"x": X}, X[:4]),
        ValueError,
        "the argument 'batch' at 'x' has 6 rows along axis 0, the argument 'other' has 4 rows",
    ),
    "different numbers of rows in one": (
        lambda: microbatch(two, 0, 2)({"x": X, "z": [X[:4]]}, X),
        ValueError,
        "the argument 'batch' at 'x' has 6 .* the argument 'batch' at 'z/0' has 4 rows",
    ),
    "different numbers of rows, by name": (
        lambda: microbatch(two, 0, 2, argnames="other", in_axes=(0, 1))({"x": X}, other=X),
        ValueError,
        "'batch' at 'x' has 6 rows along axis 0, the argument 'other' has 2 rows along axis 1",
    ),
    "a scalar": (
        lambda: microbatch(two, 0, 2)({"x": 1.0}, X),
        ValueError,
        r"the argument 'batch' at 'x' has shape \(\), and no axis 0 of rows",
    ),
    "text": (
        lambda: microbatch(two, 0, 2)({"x": "text"}, X),
        TypeError,
        "the argument 'batch' at 'x' must be an array, found str",
    ),
    "no arrays": (
        lambda: microbatch(two, 0, 2)({}, X),
        ValueError,
        "found no array in the arguments 'batch'",
    ),
    "a position that is none": (
        lambda: microbatch(two, (0, 1), 2)({"x": X}, other=X),
        ValueError,
        "has 1, but the call has 1 positional arguments",
    ),
    "a name that is none": (
        lambda: microbatch(two, (), 2, argnames="batch")({"x": X}, X),
        ValueError,
        r"microbatch\(argnames=\.\.\.\) has 'batch', which the call does not pass by keyword",
    ),
    "a tree of accumulators that does not fit": (
        lambda: microbatch(lambda x: {"a": x.sum()}, 0, 2, {"b": "sum"})(X),
        ValueError,
        r"microbatch\(accumulator=\.\.\.\) does not fit the results: it has no value at 'a'",
    ),
    "a concatenation of scalars": (
        lambda: microbatch(lambda x: {"a": x.sum()}, 0, 2, "concat")(X),
        ValueError,
        r"the result at 'a' has shape \(\) for a micro-batch of 2 rows",
    ),
    "a mean of counts": (
        lambda: microbatch(lambda x: (x.sum(), (x > 0).sum()), 0, 2)(X),
        TypeError,
        r"the result at '1' has dtype int32, of which there is no mean; give 'sum' or 'concat'",
    ),
    "a sum of switches": (
        lambda: microbatch(lambda x: (x > 0).all(), 0, 2, "sum")(X),
        TypeError,
        r"the result at the root has dtype bool, of which there is no sum",
    ),
    "too many": (
        lambda: microbatch(jnp.mean, 0, 2, num_real_microbatches=4)(X),
        ValueError,
        r"microbatch\(num_real_microbatches=\.\.\.\) is 4, of 3 micro-batches",
    ),
    "a fraction": (
        lambda: microbatch(jnp.mean, 0, 2, num_real_microbatches=1.5)(X),
        TypeError,
        r"microbatch\(num_real_microbatches=\.\.\.\) must be a whole number, found float32\[\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(name):
    call, error, sentence = WRONG[name]
    with pytest.raises(error, match=sentence):
        call()


def test_with_an_optimizer_it_is_a_step_on_the_whole_batch():
    """And so is accumulation, which sees one micro-batch at a time."""
    params, batch = in_dtype(PARAMS, jnp.float32), in_dtype(BATCH, jnp.float32)
    grad, tx = jax.grad(plain_loss), optfn.sgd(0.1)
    whole, _ = optfn.step(tx, params, grad(params, batch), tx.init(params))
    at_once, _ = optfn.step(tx, params, microbatch(grad, 1, 3)(params, batch), tx.init(params))
    close(at_once, whole, rtol=1e-5, atol=1e-6)
    slow = optfn.accumulate(tx, 4)
    state, after = slow.init(params), params
    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[3 * i : 3 * i + 3], batch)
        after, state = optfn.step(slow, after, grad(after, part), state)
    close(after, whole, rtol=1e-5, atol=1e-6)
