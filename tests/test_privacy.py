"""Differentially private gradients: against the definition, optax, and the noise's distribution."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import strategies as st

import optfn

KEY = jax.random.key(7)
SHAPES = {"w": (2, 3), "deep": {"b": (4,), "s": ()}}


def grads_of(rows, seed=0):
    rng = np.random.default_rng(seed)

    def draw(shape):
        return rng.normal(size=(rows, *shape)).astype(np.float32)

    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def clipped_sum(grads, bound):
    """By the definition, example by example, in float64; and how many were shrunk."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda g: np.asarray(g, np.float64), grads))
    sums, shrunk = [np.zeros(g.shape[1:]) for g in leaves], 0
    for i in range(len(leaves[0])):
        norm = np.sqrt(sum(np.sum(g[i] ** 2) for g in leaves))
        factor = min(1, bound / norm) if norm else 1
        shrunk += factor < 1
        sums = [s + factor * g[i] for s, g in zip(sums, leaves, strict=True)]
    return treedef.unflatten(sums), shrunk


def assert_close(a, b, rtol=1e-6):
    """To the rounding of sums of a few examples, of entries as large as the largest in the tree."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    largest = max(np.abs(y).max() for y in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * largest)


private_mean = jax.jit(optfn.private_mean)
noisy_mean = jax.jit(optfn.noisy_mean)


# Clipping.


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    st.sampled_from([1, 5]),
    st.just(0.0) | st.floats(1e-30, 1e3),
    st.integers(0, 100),
    st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_sum_is_that_of_the_clipped_examples(rows, bound, seed, size):
    grads = jax.tree.map(lambda g: g * np.float32(size), grads_of(rows, seed))
    bound = bound * size  # what is below float32's normal numbers may be zero
    bound = float(np.float32(bound)) if bound > 1e-30 else 0.0
    expected, shrunk = clipped_sum(grads, bound)
    total, count = global_clip(grads, bound)
    assert_close(total, expected)
    assert count == shrunk and count.dtype == jnp.int32


global_clip = jax.jit(optfn.per_example_global_norm_clip)
layer_clip = jax.jit(optfn.per_example_layer_norm_clip, static_argnames="uniform")


@pytest.mark.parametrize("uniform", [True, False])
def test_clips_are_optaxs(uniform):
    grads = grads_of(6)
    expected, count = optax.per_example_global_norm_clip(jax.tree.leaves(grads), 1.5)
    total, own_count = global_clip(grads, 1.5)
    assert_close(jax.tree.leaves(total), expected)
    assert own_count == count

    expected, counts = optax.per_example_layer_norm_clip(grads, 1.5, uniform)
    total, own_counts = layer_clip(grads, 1.5, uniform=uniform)
    assert_close(total, expected)
    assert own_counts == counts


@pytest.mark.parametrize("uniform", [True, False])
def test_no_example_adds_more_than_the_bound_by_layers(uniform):
    total, counts = layer_clip(grads_of(1), 0.01, uniform=uniform)
    np.testing.assert_allclose(optfn.global_norm(total), 0.01, rtol=1e-6)
    assert jax.tree.leaves(counts) == [1, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_example_that_is_not_finite_adds_nothing_and_counts(value):
    """Whatever it is, its share has to be bounded."""
    grads = grads_of(4)
    grads["w"][2] = value
    others = jax.tree.map(lambda g: np.delete(g, 2, 0), grads)
    expected, shrunk = clipped_sum(others, 1.0)
    total, count = global_clip(grads, 1.0)
    assert_close(total, expected)
    assert count == shrunk + 1
    total, counts = layer_clip(grads, 1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(total))
    assert counts["w"] == 4


def test_an_example_whose_norm_is_no_float32_number_is_clipped_like_others():
    grads = grads_of(4)
    grads["w"][2] = 3e38
    assert not np.isfinite(optfn.global_norm(grads["w"][2]))
    expected, shrunk = clipped_sum(grads, 1.0)
    total, count = global_clip(grads, 1.0)
    assert_close(total, expected)
    assert count == shrunk
    total, counts = layer_clip({"w": grads["w"]}, 1.0)
    assert_close(total, clipped_sum({"w": grads["w"]}, 1.0)[0])
    assert counts["w"] == 4


def test_a_zero_gradient_and_a_bound_of_zero():
    grads = grads_of(3)
    zeros = jax.tree.map(np.zeros_like, grads)
    for g, bound, count in ((zeros, 1.0, 0), (zeros, 0.0, 0), (grads, 0.0, 3)):
        total, found = global_clip(g, bound)
        assert not any(x.any() for x in jax.tree.leaves(total))
        assert found == count


# The mean.


@pytest.mark.parametrize("rows", [1, 5])
def test_mean_without_noise_is_the_definition_and_optaxs(rows):
    grads = grads_of(rows)
    mean = private_mean(grads, 1.5, 0.0, KEY)
    assert_close(mean, jax.tree.map(lambda x: x / rows, clipped_sum(grads, 1.5)[0]))
    theirs = optax.contrib.differentially_private_aggregate(1.5, 0.0, KEY)
    assert_close(mean, theirs.update(grads, theirs.init(None))[0])


def test_without_a_bound_and_noise_the_mean_is_the_plain_one():
    grads = grads_of(3)
    found = optfn.private_mean(grads, jnp.inf, 0.0, KEY)
    jax.tree.map(lambda x, g: np.testing.assert_allclose(x, g.mean(0), rtol=1e-6), found, grads)


@pytest.mark.filterwarnings('ignore:"seed" is deprecated')
def test_steps_without_noise_are_those_of_optaxs_dpsgd():
    params = jax.tree.map(lambda g: jnp.ones(g.shape[1:]), grads_of(1))
    theirs = optax.contrib.dpsgd(0.1, 0.5, 0.0, seed=0, momentum=0.9)
    tx = optfn.sgd(0.1, 0.9)
    states = tx.init(params), theirs.init(params)
    for i in range(3):
        grads = grads_of(4, seed=i)
        updates, mine = tx.update(private_mean(grads, 0.5, 0.0, KEY), states[0], params)
        expected, other = theirs.update(grads, states[1], params)
        assert_close(updates, expected)
        states = mine, other


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_noise_has_the_distribution_it_should(dtype):
    """Its standard deviation is noise_multiplier * l2_norm_clip / batch_size, in each real."""
    n = 20000
    grads = {"a": jnp.zeros((4, n), dtype), "none": None, "b": jnp.zeros((4, n), dtype)}
    mean = private_mean(grads, 3.0, 2.0, KEY)
    complexes = dtype == jnp.complex64
    assert {x.dtype for x in jax.tree.leaves(mean)} == {jnp.dtype(dtype if complexes else "f4")}
    draws = [np.ravel(mean[k].view(jnp.float32)) for k in "ab"]
    noise = np.concatenate(draws) / (3.0 * 2.0 / 4)
    assert noise.size == 2 * n * (1 + complexes)
    # The keys are fixed, so these hold or do not; 5 standard errors each.
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert scipy.stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(*draws)[0, 1]) < 5 / np.sqrt(n)
    if complexes:
        parts = np.stack([mean["a"].real, mean["a"].imag])
        assert abs(np.corrcoef(parts)[0, 1]) < 5 / np.sqrt(n)


def test_noise_is_of_the_key_and_the_path_alone():
    zeros = {"a": jnp.zeros((4, 5)), "b": jnp.zeros((4, 5))}
    one = private_mean(zeros, 1.0, 1.0, KEY)
    again = private_mean(zeros, 1.0, 1.0, KEY)
    np.testing.assert_array_equal(one["a"], again["a"])
    alone = private_mean({"b": zeros["b"]}, 1.0, 1.0, KEY)
    np.testing.assert_array_equal(one["b"], alone["b"])
    other = private_mean(zeros, 1.0, 1.0, jax.random.fold_in(KEY, 1))
    assert (one["a"] != one["b"]).all() and (one["a"] != other["a"]).all()
    old = private_mean(zeros, 1.0, 1.0, jax.random.PRNGKey(7))
    np.testing.assert_array_equal(old["a"], one["a"])


def test_batch_size_is_what_is_divided_by():
    """Also of a batch that chance left empty."""
    grads = grads_of(4)
    half = private_mean(grads, 1.0, 0.5, KEY, 8)
    assert_close(jax.tree.map(lambda x: 2 * x, half), private_mean(grads, 1.0, 0.5, KEY))
    empty = private_mean(grads_of(0), 1.0, 0.5, KEY, 8)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    assert_close(empty, private_mean(zeros, 1.0, 0.5, KEY, 8))


def test_a_batch_in_pieces_gets_its_noise_once():
    params, rows = {"w": jnp.asarray([0.3, -0.2])}, jnp.arange(12.0).reshape(6, 2)

    def grads(params, rows):
        return jax.vmap(jax.grad(lambda p, x: jnp.sum(jnp.sin(p["w"] * x))), (None, 0))(
            params, rows
        )

    def clipped(params, rows):
        return optfn.per_example_global_norm_clip(grads(params, rows), 1.0)

    pieces = jax.jit(optfn.microbatch(clipped, 1, 2, accumulator="sum"))
    total, count = pieces(params, rows)
    whole = private_mean(grads(params, rows), 1.0, 0.7, KEY)
    assert_close(noisy_mean(total, 1.0, 0.7, KEY, 6), whole)
    assert 0 < count <= 6


def test_a_sweep_over_the_noise_and_the_bound():
    grads = grads_of(3)
    lanes = jax.vmap(lambda c, s: private_mean(grads, c, s, KEY))
    found = lanes(jnp.asarray([0.5, 2.0]), jnp.asarray([0.0, 1.0]))
    for i, (clip, noise) in enumerate([(0.5, 0.0), (2.0, 1.0)]):
        own = jax.tree.map(lambda x, i=i: x[i], found)
        assert_close(own, private_mean(grads, clip, noise, KEY))


def test_in_double_precision(x64):
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float64), grads_of(5))
    mean = private_mean(grads, 1.5, 0.0, KEY)
    assert {x.dtype for x in jax.tree.leaves(mean)} == {jnp.dtype("float64")}
    expected = jax.tree.map(lambda x: x / 5, clipped_sum(grads, 1.5)[0])
    assert_close(mean, expected, rtol=1e-14)
    single = jax.eval_shape(optfn.private_mean, grads_of(5), 1.5, 1.0, KEY)
    assert {x.dtype for x in jax.tree.leaves(single)} == {jnp.dtype("float32")}


# Wrong input.

GRADS = grads_of(3)
WRONG = {
    "a scalar": (
        lambda: optfn.private_mean({"a": {"b": jnp.ones(())}}, 1.0, 1.0, KEY),
        ValueError,
        "the gradient at 'a/b' is a scalar: per-example gradients have a first axis of examples",
    ),
    "different numbers": (
        lambda: optfn.per_example_global_norm_clip({"a": jnp.ones(2), "b": jnp.ones(3)}, 1.0),
        ValueError,
        "the gradient at 'b' is of 3 examples, at 'a' of 2",
    ),
    "no leaves": (
        lambda: optfn.per_example_layer_norm_clip({"a": None}, 1.0),
        ValueError,
        "the gradients have no leaves.",
    ),
    "integers": (
        lambda: optfn.private_mean({"a": jnp.ones(2, int)}, 1.0, 1.0, KEY),
        TypeError,
        "the gradient at 'a' has dtype int32",
    ),
    "a negative bound": (
        lambda: optfn.private_mean(GRADS, -1.0, 1.0, KEY),
        ValueError,
        "l2_norm_clip must be not negative, found -1.0.",
    ),
    "a negative bound of layers": (
        lambda: optfn.per_example_layer_norm_clip(GRADS, -1.0),
        ValueError,
        "global_l2_norm_clip must be not negative, found -1.0.",
    ),
    "negative noise": (
        lambda: optfn.private_mean(GRADS, 1.0, -1.0, KEY),
        ValueError,
        "noise_multiplier must be not negative, found -1.0.",
    ),
    "an array for a number": (
        lambda: optfn.private_mean(GRADS, 1.0, jnp.ones(2), KEY),
        ValueError,
        "noise_multiplier must be a scalar, found shape (2,).",
    ),
    "no examples": (
        lambda: optfn.private_mean(grads_of(0), 1.0, 1.0, KEY),
        ValueError,
        "batch_size must be above 0, found 0.",
    ),
    "a seed for a key": (
        lambda: optfn.private_mean(GRADS, 1.0, 1.0, 7),
        TypeError,
        "key must be one key of jax.random, found 7.",
    ),
    "many keys": (
        lambda: optfn.private_mean(GRADS, 1.0, 1.0, jax.random.split(KEY)),
        TypeError,
        "key must be one key of jax.random, found",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_a_sentence(name):
    call, error, sentence = WRONG[name]
    with pytest.raises(error) as caught:
        call()
    assert sentence in str(caught.value)
