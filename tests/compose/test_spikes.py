"""Steps skipped because their gradient, or their loss, is far above the last ones."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import optfn

DIRECTION = np.asarray([0.6, -0.8])


@functools.partial(jax.jit, static_argnums=2)
def run(tx, levels, extra_args=()):
    """The updates and slots of each step, with gradients of these norms."""
    params = jnp.zeros(2)

    def step(state, x):
        own = dict.fromkeys(extra_args, x)
        g = jnp.asarray(DIRECTION, x.dtype) * (1 if extra_args else x)
        updates, state = tx.update(g, state, params, **own)
        return state, (updates, state.slots["skip_spikes"])

    return jax.lax.scan(step, tx.init(params), jnp.asarray(levels))[1]


def skipped(tx, levels, extra_args=()):
    return np.asarray(run(tx, levels, extra_args)[1].skips.skipped)


def oracle(levels, threshold=6.0, decay=0.985, warmup=64, most=5, eps=0.01):
    """By the definition, from the list of the levels taken."""
    taken, in_a_row, rows = [], 0, []
    for x in levels:
        weights = decay ** np.arange(len(taken))[::-1]
        spike = False
        if len(taken) >= max(warmup, 1):
            mean = np.average(taken, weights=weights)
            std = np.sqrt(np.average((np.asarray(taken) - mean) ** 2, weights=weights))
            spike = x > mean + threshold * max(std, eps * abs(mean))
        if in_a_row >= most:
            taken, spike = ([], False) if np.isfinite(x) else (taken, spike)
        skip = spike or not np.isfinite(x)
        in_a_row = in_a_row + 1 if skip else 0
        if not skip:
            taken = [*taken, x]
        weights = decay ** np.arange(len(taken))[::-1]
        mean = np.average(taken, weights=weights) if taken else 0.0
        std = np.sqrt(np.average((np.asarray(taken) - mean) ** 2, weights=weights)) if taken else 0
        rows.append((mean, std, weights.sum(), len(taken), skip))
    return [np.asarray(column) for column in zip(*rows, strict=True)]


def noisy(steps=120, seed=0):
    """Norms that fall, with noise, spikes, and a jump to another level for good."""
    rng = np.random.default_rng(seed)
    levels = (1 + 2 / np.arange(1, steps + 1)) * np.exp(0.1 * rng.normal(size=steps))
    levels[[40, 41, 55]] *= 10
    levels[90:] *= 20
    return levels


SMALL = {"threshold": 4.0, "decay": 0.9, "warmup_steps": 10.0, "max_consecutive": 3.0}
OF_ORACLE = {"threshold": 4.0, "decay": 0.9, "warmup": 10, "most": 3}


@pytest.mark.parametrize("watch", ["gradient", "value"])
def test_history_and_verdicts_are_those_of_the_definition(watch, x64):
    tx = optfn.skip_spikes(optfn.sgd(0.1), **SMALL, watch=watch)
    levels = noisy()
    updates, slots = run(tx, levels, ("value",) if watch == "value" else ())
    mean, std, weight, seen, skip = oracle(levels, **OF_ORACLE)
    np.testing.assert_array_equal(slots.skips.skipped, skip)
    np.testing.assert_array_equal(slots.level.seen, seen)
    for found, wanted in (
        (slots.level.mean, mean),
        (slots.level.std, std),
        (slots.level.weight, weight),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-13)
    # The spikes, and three steps of the new level before it is taken for one.
    assert sorted(np.nonzero(skip)[0]) == [40, 41, 55, 90, 91, 92]
    sizes = np.linalg.norm(updates, axis=-1)
    np.testing.assert_allclose(
        sizes, np.where(skip, 0, 0.1 * (1 if watch == "value" else levels)), rtol=1e-12
    )


def test_defaults_are_those_of_the_definition():
    levels = np.float32(noisy(seed=1))
    found = skipped(optfn.skip_spikes(optfn.sgd(0.1)), levels)
    np.testing.assert_array_equal(found, oracle(levels)[-1])
    assert sorted(np.nonzero(found)[0]) == [90, 91, 92, 93, 94]  # all else is in the warm-up


def test_with_decay_one_the_history_is_the_plain_one():
    tx = optfn.skip_spikes(optfn.sgd(0.1), decay=1.0)
    levels = np.float32(np.random.default_rng(0).uniform(1, 2, 50))
    slots = run(tx, levels)[1]
    np.testing.assert_allclose(slots.level.mean[-1], levels.mean(), rtol=1e-6)
    np.testing.assert_allclose(slots.level.std[-1], levels.std(), rtol=1e-5)


@pytest.mark.parametrize("exponent", [-80, 80])
def test_the_size_of_all_gradients_does_not_matter(exponent):
    """Of 1e24 the squares overflow, of 1e-24 they vanish; a power of two changes no rounding."""
    tx = optfn.skip_spikes(optfn.sgd(0.1), **SMALL)
    levels = np.float32(noisy())
    plain, slots = run(tx, levels)[1], run(tx, levels * np.float32(2.0**exponent))[1]
    np.testing.assert_array_equal(slots.skips.skipped, plain.skips.skipped)
    np.testing.assert_allclose(slots.level.std, plain.level.std * 2.0**exponent, rtol=1e-5)


levels = st.lists(
    st.one_of(st.floats(0, 2.0**100, width=32), st.sampled_from([np.nan, np.inf])),
    min_size=30,
    max_size=30,
)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(levels, st.integers(0, 4))
def test_it_never_stops_for_good_while_gradients_are_finite(levels, most):
    """At most `max_consecutive` finite ones in a row are skipped; all others always are."""
    tx = optfn.replace(optfn.skip_spikes(optfn.sgd(0.1), **SMALL), max_consecutive=float(most))
    slots = run(tx, np.float32(levels))[1]
    in_a_row = bad_in_a_row = 0
    for x, skip, gave_up in zip(levels, slots.skips.skipped, slots.skips.gave_up, strict=True):
        if gave_up:
            assert bad_in_a_row or not np.isfinite(x), "only what is not finite makes it give up"
            break
        assert skip or np.isfinite(x)
        in_a_row = in_a_row + 1 if skip else 0
        bad_in_a_row = bad_in_a_row or not np.isfinite(x)
        assert in_a_row <= most
    assert np.isfinite(slots.level.mean).all() and np.isfinite(slots.level.std).all()


def test_what_is_not_finite_is_skipped_from_the_start_and_leaves_no_trace():
    tx = optfn.skip_spikes(optfn.adam(0.1), **SMALL)
    bad = np.ones(30, np.float32)
    bad[[0, 4, 5, 20]] = [np.nan, np.inf, np.nan, np.nan]
    slots, without = run(tx, bad)[1], run(tx, np.ones(26, np.float32))[1]
    np.testing.assert_array_equal(slots.skips.skipped, ~np.isfinite(bad))
    last, wanted = (jax.tree.map(lambda x: x[-1], s) for s in (slots, without))
    jax.tree.map(np.testing.assert_array_equal, last.skips.inner, wanted.skips.inner)
    assert [float(x) for x in last.level] == [float(x) for x in wanted.level]


def test_a_nan_among_small_entries_is_skipped_where_the_loss_is_watched():
    """Even by an optimizer that would take it."""
    tolerant = optfn.chain(optfn.from_optax(optax.zero_nans()), optfn.sgd(0.1))
    tx = optfn.skip_spikes(tolerant, watch="value")
    state = tx.init(jnp.zeros(2))
    for g, value, skip in (([1, np.nan], 1.0, True), ([1, 1], np.nan, True), ([1, 1], -1.0, False)):
        _, state = tx.update(jnp.asarray(g, jnp.float32), state, value=value)
        assert bool(state.slots["skip_spikes"].skips.skipped) == skip


def test_norms_that_hardly_change_are_no_spikes():
    """Their standard deviation is that of rounding."""
    levels = np.full(100, 1 / 3, np.float32)
    levels[50::2] = np.nextafter(levels[0], 1)
    levels[80] *= 1.05
    assert not skipped(
        optfn.skip_spikes(optfn.sgd(0.1), **SMALL | {"threshold": 6.0}), levels
    ).any()
    without = optfn.skip_spikes(optfn.sgd(0.1), **SMALL, eps=0.0)
    assert skipped(without, levels).any()


def test_watching_both_is_wrapping_twice():
    both = optfn.skip_spikes(optfn.skip_spikes(optfn.sgd(0.1), **SMALL), **SMALL, watch="value")
    state, update = both.init(jnp.zeros(2)), jax.jit(both.update)
    taken = []
    for i in range(30):
        g = jnp.ones(2) * (100 if i == 15 else 1)
        updates, state = update(g, state, value=50.0 if i == 20 else 1.0)
        taken.append(bool(updates.any()))
    assert [i for i, yes in enumerate(taken) if not yes] == [15, 20]


def test_bad_input():
    with pytest.raises(ValueError, match=r"skip_spikes\(watch=...\) must be one of"):
        optfn.skip_spikes(optfn.sgd(0.1), watch="loss")
    g = jnp.ones(2)
    tx = optfn.skip_spikes(optfn.sgd(0.1), watch="value")
    with pytest.raises(TypeError, match="misses the extra argument 'value'"):
        tx.update(g, tx.init(g))
    tx = optfn.skip_spikes(optfn.sgd(0.1))
    tx.update(g, tx.init(g), value="not its own")
