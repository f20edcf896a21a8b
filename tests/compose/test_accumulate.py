"""Gradient accumulation: the law that an update is one with the mean, and what may stand around."""

import re
from functools import partial, reduce
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optfn
from optfn import schedules

ROUNDS = 3
PARAMS = {"w": np.float32([[1.0, -2.0], [0.5, 3.0]]), "b": np.float32([0.25, -1.0])}
GRADS = {
    name: np.random.default_rng(0).normal(size=(12, *p.shape)).astype(np.float32)
    for name, p in PARAMS.items()
}


@jax.jit
def run(tx, params, grads, extra_args=None):
    """The updates and states after each call, from gradients [n, ...] and extra args [n]."""

    def step(carry, now):
        params, state = carry
        updates, state = tx.update(now[0], state, params, **(now[1] or {}))
        return (optfn.apply_updates(params, updates), state), (updates, state)

    return jax.lax.scan(step, (params, tx.init(params)), (grads, extra_args))[1]


def sums_in_order(grads, k):
    """The sums of k gradients each, in the arithmetic of their dtype."""
    return jax.tree.map(lambda g: reduce(np.add, [g[i::k] for i in range(k)]), grads)


def mean_in_order(grads, k):
    return jax.tree.map(lambda total: total / total.dtype.type(k), sums_in_order(grads, k))


def last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def slots_of(state):
    return state.slots["accumulate"]


RATE = schedules.piecewise_constant([0.1, 0.02, 0.3], [1, 2])
INNER = {
    "adamw": optfn.adamw(RATE, weight_decay=0.1),
    "sgd": optfn.sgd(RATE, momentum=0.9),
    "chain": optfn.chain(optfn.clip_by_global_norm(0.3), optfn.scale_by_lion(), optfn.sgd(0.1)),
    "partition": optfn.partition(
        {"x": optfn.adam(RATE), "y": optfn.sgd(0.1)}, {"w": "x", "b": "y"}
    ),
    "freeze": optfn.freeze(optfn.adam(0.1), {"w": False, "b": True}),
    "schedule_free": optfn.schedule_free_adamw(0.1),
    "sam": optfn.sam(optfn.sgd(0.1), optfn.chain(optfn.normalize(), optfn.sgd(0.05))),
}


# The law.


@pytest.mark.parametrize("name", INNER)
def test_an_update_is_one_with_the_mean_of_the_gradients_summed_in_order(name):
    """Bit for bit, with all that is inside, whose schedules count its own updates.

    Operation by operation, as a compiler may contract products and sums in one place and not in
    another.
    """
    k = 4
    with jax.disable_jit():
        updates, states = run(optfn.accumulate(INNER[name], k), PARAMS, GRADS)
        expected, inner = run(INNER[name], PARAMS, mean_in_order(GRADS, k))
    equal(jax.tree.map(lambda u: u[k - 1 :: k], updates), expected)
    equal(jax.tree.map(lambda x: x[k - 1 :: k], slots_of(states).inner), inner)
    between = jax.tree.map(lambda u: np.delete(u, np.s_[k - 1 :: k], axis=0), updates)
    assert all(not u.any() for u in jax.tree.leaves(between))


@pytest.mark.parametrize("k", [3, 4])
def test_the_sum_is_in_order_in_a_compiled_program_too(k):
    """Bit for bit, and the mean to one rounding: it may be a product with 1 / k there."""
    sums, _ = run(optfn.accumulate(optfn.chain(), k, use_grad_mean=False), PARAMS, GRADS)
    equal(jax.tree.map(lambda u: u[k - 1 :: k], sums), sums_in_order(GRADS, k))
    means, _ = run(optfn.accumulate(optfn.chain(), k), PARAMS, GRADS)
    jax.tree.map(
        lambda u, mean: np.testing.assert_allclose(u[k - 1 :: k], mean, rtol=2**-23),
        *(means, mean_in_order(GRADS, k)),
    )


def test_every_one_is_the_optimizer_itself():
    tx = optfn.sgd(RATE)
    equal(run(optfn.accumulate(tx, 1), PARAMS, GRADS)[0], run(tx, PARAMS, GRADS)[0])


@pytest.mark.parametrize("mean", [True, False])
def test_multi_steps_goes_the_same_way(mean):
    """Not its bits: its mean is a running one."""
    ours = optfn.accumulate(optfn.adamw(0.1), 3, use_grad_mean=mean)
    theirs = optax.MultiSteps(optax.adamw(0.1), 3, use_grad_mean=mean).gradient_transformation()
    assert_as_optax(ours, theirs, GRADS)


def assert_as_optax(ours, theirs, grads):
    def step(carry, g):
        params, state = carry
        updates, state = theirs.update(g, state, params)
        return (optax.apply_updates(params, updates), state), updates

    start = jax.tree.map(jnp.asarray, PARAMS)
    expected = jax.lax.scan(step, (start, theirs.init(start)), grads)[1]
    found, states = run(ours, PARAMS, grads)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected
    )
    return states


def test_a_schedule_for_every_counts_updates_as_that_of_multi_steps_does():
    every = schedules.piecewise_constant([1, 3, 2], [2, 4])
    theirs = optax.MultiSteps(optax.sgd(0.1, 0.9), lambda step: every(step).astype(jnp.int32))
    ours = optfn.accumulate(optfn.sgd(0.1, 0.9), every)
    states = assert_as_optax(ours, theirs.gradient_transformation(), GRADS)
    updated = [1, 1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(slots_of(states).has_updated, np.bool_(updated))


def test_skipping_is_that_of_multi_steps_with_skip_not_finite():
    grads = {name: g.copy() for name, g in GRADS.items()}
    grads["w"][1, 0, 0], grads["b"][2, 1], grads["b"][7] = np.nan, np.inf, -np.inf
    ours = optfn.accumulate(optfn.adam(0.1), 3)
    theirs = optax.MultiSteps(optax.adam(0.1), 3, should_skip_update_fn=optax.skip_not_finite)
    states = assert_as_optax(ours, theirs.gradient_transformation(), grads)
    assert slots_of(states).skipped.tolist() == [0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert int(slots_of(states).inner.step[-1]) == 3


def test_apply_every_is_a_sum_without_an_optimizer():
    ours = optfn.accumulate(optfn.chain(), 3, use_grad_mean=False)
    assert_as_optax(ours, optax.apply_every(3), GRADS)


# When it is due.


@jax.jit
def counts(every, grads):
    tx = optfn.accumulate(optfn.sgd(1.0), every)
    updates, states = run(tx, np.float32(0), grads)
    slots = slots_of(states)
    return updates, slots.micro_step, slots.skipped, slots.has_updated, slots.inner.step


@settings(deadline=None, max_examples=60)
@example(2.625, [*range(12)])
@example(2.375, [*range(12)])
@given(
    st.floats(0, 6, width=32),
    st.lists(
        st.one_of(st.integers(-100, 100), st.sampled_from([np.nan, np.inf])),
        min_size=12,
        max_size=12,
    ),
)
def test_counts_are_those_of_a_plain_loop(every, grads):
    found = counts(jnp.float32(every), np.float32(grads))
    added, skipped, steps, expected = [], 0, 0, []
    for g in np.float32(grads):
        update, ran = np.float32(0), False
        if np.isfinite(g):
            added.append(g)
            if len(added) >= np.round(every):
                total = added[0]
                for x in added[1:]:
                    total = total + x
                update, ran, added, steps = -total / np.float32(len(added)), True, [], steps + 1
        else:
            skipped += 1
        expected.append((update, len(added), skipped, ran, steps))
    (updates, *ours), (plain_updates, *plain) = found, zip(*expected, strict=True)
    np.testing.assert_allclose(updates, plain_updates, rtol=2**-23)  # compiled, it may be a product
    equal(ours, plain)


def test_every_may_change_in_the_middle_of_a_round():
    """Below what is there already, the next gradient makes it due."""
    tx = optfn.accumulate(optfn.sgd(1.0), 10)
    state = tx.init(jnp.zeros(()))
    for g in (1.0, 2.0, 3.0):
        _, state = tx.update(jnp.float32(g), state)
    update, state = optfn.replace(tx, every=2).update(jnp.float32(6), state)
    assert float(update) == -3
    assert slots_of(state).has_updated


def test_every_is_swept_by_vmap():
    whole = [1.0, 2.0, 3.0, 4.0]
    batch = optfn.stack([optfn.accumulate(INNER["adamw"], k) for k in whole])
    swept = jax.vmap(run, (optfn.in_axes(batch), None, None))(batch, PARAMS, GRADS)[0]
    for i, k in enumerate(whole):
        alone = run(optfn.accumulate(INNER["adamw"], k), PARAMS, GRADS)[0]
        for name in PARAMS:
            np.testing.assert_allclose(swept[name][i], alone[name], rtol=1e-5, atol=1e-7)


def test_one_program_serves_every_number_of_gradients():
    tx = optfn.accumulate(optfn.sgd(0.1), 2)
    run(tx, PARAMS, GRADS)
    before = run._cache_size()
    updates, _ = run(optfn.replace(tx, every=6), PARAMS, GRADS)
    assert run._cache_size() == before
    assert updates["b"].any(axis=1).sum() == 2


# The state.


def test_what_is_in_the_state_says_how_far_it_is():
    tx = optfn.accumulate(optfn.adam(0.1), 2)
    bad = {"w": PARAMS["w"], "b": np.float32([1.0, np.nan])}
    state, seen = tx.init(PARAMS), []
    for g in (PARAMS, bad, PARAMS, bad, PARAMS):
        _, state = tx.update(g, state, PARAMS)
        slots = slots_of(state)
        seen.append(
            (
                int(slots.micro_step),
                int(slots.skipped),
                bool(slots.has_updated),
                int(slots.inner.step),
            )
        )
    assert seen == [(1, 0, False, 0), (1, 1, False, 0), (0, 1, True, 1), (0, 2, False, 1),
                    (1, 2, False, 1)]  # fmt: skip
    assert int(state.step) == 5
    np.testing.assert_array_equal(slots_of(state).sum["b"], PARAMS["b"])


def test_inner_slots_have_names_and_numbers_of_the_inner_step():
    every = schedules.piecewise_constant([2, 5], [1])
    tx = optfn.accumulate(optfn.adam(RATE), every)
    _, states = run(tx, PARAMS, GRADS)
    state = jax.tree.map(lambda x: x[2], states)  # the second round has begun
    assert slots_of(state).inner.slots["scale_by_adam"].mu["w"].shape == (2, 2)
    values = optfn.hyperparameters(tx, state)
    assert float(values["every"]) == 5
    assert float(values["learning_rate"]) == np.float32(0.02)
    assert "accumulate.scale_by_adam.b1" in values
    named = optfn.accumulate(optfn.adam(RATE), 2).named("outer")
    assert set(named.init(PARAMS).slots) == {"outer"}


@pytest.mark.parametrize("name", ["schedule_free", "sam"])
def test_evaluation_params_reach_inside(name):
    tx, k = optfn.accumulate(INNER[name], 4), 4
    (params, state), (plain, inner) = (
        (optfn.apply_updates(PARAMS, jax.tree.map(lambda u: u.sum(0), updates)), last(states))
        for updates, states in (
            run(tx, PARAMS, GRADS),
            run(INNER[name], PARAMS, mean_in_order(GRADS, k)),
        )
    )
    found = optfn.evaluation_params(tx, state, params)
    expected = optfn.evaluation_params(INNER[name], inner, plain)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), found, expected
    )
    assert not np.allclose(found["b"], params["b"], atol=1e-4)


# Weights.


def test_weights_make_the_mean_of_all_examples():
    """Against float64 NumPy, over micro-batches of different sizes."""
    sizes = np.float32([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])
    tx = optfn.accumulate(optfn.sgd(1.0), 4, weighted=True)
    updates, states = run(tx, PARAMS, GRADS, {"weight": sizes})
    for name, g in GRADS.items():
        rounds = np.float64(g).reshape(3, 4, -1)
        w = np.float64(sizes).reshape(3, 4, 1)
        mean = (w * rounds).sum(1) / w.sum(1)
        # Four products and sums of float32, and a division.
        np.testing.assert_allclose(
            updates[name][3::4].reshape(3, -1), -mean, rtol=1e-6, atol=6 * 2**-24
        )
    assert slots_of(states).weight[3::4].tolist() == [9, 22, 21]
    total, _ = run(
        optfn.accumulate(optfn.sgd(1.0), 4, weighted=True, use_grad_mean=False),
        *(PARAMS, GRADS, {"weight": sizes}),
    )
    np.testing.assert_allclose(total["b"][3], updates["b"][3] * 9, rtol=1e-6)


def test_equal_weights_are_none():
    plain, _ = run(optfn.accumulate(optfn.adam(0.1), 4), PARAMS, GRADS)
    same = optfn.accumulate(optfn.adam(0.1), 4, weighted=True)
    equal(run(same, PARAMS, GRADS, {"weight": np.full(12, 2.0, np.float32)})[0], plain)


def test_weights_of_zero_do_not_divide():
    tx = optfn.accumulate(optfn.adam(0.1), 2, weighted=True)
    updates, states = run(tx, PARAMS, GRADS, {"weight": np.float32([0, 0, 0, 3] + [0] * 8)})
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, states)))
    assert not updates["w"][:3].any()
    alone, _ = optfn.adam(0.1).update(
        jax.tree.map(lambda g: g[3], GRADS), last_of_two_zero_steps(optfn.adam(0.1)), PARAMS
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[3], y, rtol=1e-5), updates, alone)


def last_of_two_zero_steps(tx):
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    return tx.update(zeros, tx.init(PARAMS), PARAMS)[1]


def test_a_weight_that_is_not_finite_is_skipped_and_a_value_is_not():
    tx = optfn.accumulate(optfn.polyak_sgd(1.0), 2, weighted=True)
    weight = np.float32([1, np.nan, 1, np.inf] + [1] * 8)
    value = np.float32([np.nan] + [1.0] * 11)
    updates, states = run(tx, PARAMS, GRADS, {"weight": weight, "value": value})
    assert slots_of(states).skipped.tolist() == [0, 1, 1, *[2] * 9]
    for params in ({}, {"w": jnp.zeros((0, 2))}):  # where no entry tells
        _, state = tx.update(params, tx.init(params), params, weight=np.nan, value=1.0)
        assert slots_of(state).skipped == 1
    updated = np.flatnonzero(slots_of(states).has_updated)
    assert updated.tolist() == [2, 5, 7, 9, 11]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, states)))


# Extra arguments.


class by_key(optfn.Leafwise):
    """Noise from the caller's key."""

    extra_args: ClassVar = {"key": "key"}

    def update_leaf(self, g, slots, param, t, *, key):
        return jax.random.normal(key, g.shape, g.dtype), slots


def loss(params):
    return jnp.sum(jnp.sin(params["w"]) ** 2) + jnp.sum(jnp.cos(params["b"]))


@pytest.mark.parametrize(
    ("inner", "make"),
    [
        (optfn.polyak_sgd(1.0), lambda i: {"value": jnp.float32(i + 1)}),
        (
            optfn.sophia(0.1, hessian_diagonal_fn=optfn.given_hessian_diagonal()),
            lambda i: {"hessian_diag": jax.tree.map(lambda p: p**2 + i, PARAMS)},
        ),
        (optfn.chain(by_key(), optfn.sgd(1.0)), lambda i: {"key": jax.random.key(i)}),
        (
            optfn.partition({"x": optfn.sophia(0.1), "y": optfn.sgd(0.1)}, {"w": "x", "b": "y"}),
            lambda i: {"obj_fn": lambda p: (i + 1) * loss(p)},
        ),
    ],
    ids=["scalar", "tree", "key", "function in a partition"],
)
def test_extra_arguments_are_those_of_the_call_that_is_due(inner, make):
    k = 2

    @partial(jax.jit, static_argnums=0)
    def last_updates(tx, grads, places):
        state = tx.init(PARAMS)
        for n, i in enumerate(places):
            g = jax.tree.map(lambda g, n=n: g[n], grads)
            updates, state = tx.update(g, state, PARAMS, **make(i))
        return updates

    found = last_updates(optfn.accumulate(inner, k), GRADS, jnp.arange(4))
    expected = last_updates(inner, mean_in_order(GRADS, k), jnp.asarray([1, 3]))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected
    )


# Precision.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_many_tiny_gradients_do_not_vanish_in_low_precision(dtype):
    """Each is less than half a unit in the last place of the sum: 1 + 1000 * 2^-12."""
    n = 1000
    grads = jnp.concatenate([jnp.ones((1, 2), dtype), jnp.full((n, 2), 2.0**-12, dtype)])
    exact = (1 + n * 2.0**-12) / (n + 1)
    params = jnp.zeros(2, dtype)
    wide = optfn.accumulate(optfn.sgd(1.0), n + 1)
    updates, states = run(wide, params, grads)
    assert updates.dtype == dtype
    assert slots_of(states).sum.dtype == jnp.float32
    np.testing.assert_allclose(np.float64(updates[-1]), -exact, rtol=float(jnp.finfo(dtype).eps))
    narrow = optfn.accumulate(optfn.sgd(1.0), n + 1, accumulator_dtype=jnp.bfloat16)
    updates, states = run(narrow, params, grads)
    assert slots_of(states).sum.dtype == jnp.bfloat16
    assert np.float64(updates[-1, 0]) > -0.9 * exact


def test_a_sum_has_the_range_of_float32():
    with pytest.raises(TypeError, match="must have the range of float32, found float16"):
        optfn.accumulate(optfn.sgd(0.1), 2, accumulator_dtype="float16")


@pytest.mark.parametrize(
    "wrap",
    [lambda tx: optfn.accumulate(tx, 2), optfn.skip_nonfinite, optfn.skip_spikes],
    ids=["accumulate", "skip_nonfinite", "skip_spikes"],
)
def test_a_loss_scale_that_would_not_see_what_overflows_is_refused(wrap):
    inside = optfn.chain(optfn.clip(1.0), optfn.loss_scale(optfn.adam(0.1)))
    with pytest.raises(ValueError, match=r"loss_scale inside of .* put loss_scale around"):
        wrap(inside)
    optfn.loss_scale(wrap(optfn.adam(0.1)))


def test_accumulator_dtypes():
    dtypes = ["bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)]
    makes = [optfn.accumulate(optfn.sgd(0.1), 2, accumulator_dtype=d) for d in dtypes]
    assert len({jax.tree.structure(tx) for tx in makes}) == 1
    assert "accumulator_dtype='bfloat16'" in repr(makes[0])
    params = {"r": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.complex64)}
    for name, real in (
        ("bfloat16", jnp.bfloat16),
        ("complex64", jnp.complex64),
        (None, jnp.float32),
    ):
        tx = optfn.accumulate(optfn.sgd(0.1), 2, accumulator_dtype=name)
        state = tx.init(params)
        _, after = tx.update(params, state, params)
        for s in (state, after):
            dtypes = {k: x.dtype for k, x in slots_of(s).sum.items()}
            assert dtypes == {"r": real, "c": jnp.complex64}


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_a_sum_in_another_dtype_needs_no_promotion(dtype):
    tx = optfn.accumulate(optfn.sgd(1.0), 2, use_grad_mean=False, accumulator_dtype=dtype)
    params = jnp.zeros(2)
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        for share in (1.0, jnp.nan, 2.0):
            updates, state = tx.update(jnp.full(2, share), state, params)
    np.testing.assert_array_equal(updates, -3.0)


def test_a_float64_accumulator_of_float32_gradients(x64):
    params = jnp.zeros(1, jnp.float32)
    grads = jnp.asarray([[1.0]] + [[2.0**-26]] * 64, jnp.float32)
    tx = optfn.accumulate(optfn.sgd(1.0), 65, use_grad_mean=False, accumulator_dtype="float64")
    updates, _ = run(tx, params, grads)
    assert updates.dtype == jnp.float32
    assert float(updates[-1, 0]) == -(1 + 2.0**-20)


# What the program does.


def computations(text):
    """The computations of a compiled program: its entry's name, and by name their lines."""
    found, name, entry = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name:
            found[name].append(line)
    return entry, found


def reachable(start, found, skip=()):
    """All that runs from these computations, without what the lines with `skip` call."""
    todo, seen = list(start), set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            lines = [x for x in found[name] if not any(s in x for s in skip)]
            todo += [word for x in lines for word in re.findall(r"%([\w.\-]+)", x) if word in found]
    return seen


def test_between_updates_the_optimizer_costs_nothing():
    """Its square roots are in one branch of the only conditional, and no array is copied for it."""
    tx = optfn.accumulate(optfn.adam(0.1), 4)
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones(64)}

    step = jax.jit(partial(optfn.step, tx), donate_argnums=(0, 2))
    text = step.lower(params, params, tx.init(params)).compile().as_text()
    assert not re.search(r"= f32\[64,64\]\S* copy\(", text)
    entry, found = computations(text)
    conditionals = [x for lines in found.values() for x in lines if " conditional(" in x]
    assert len(conditionals) == 1
    branches = [w for w in re.findall(r"%([\w.\-]+)", conditionals[0]) if w in found]
    assert len(branches) == 2

    def has_root(names):
        return any("sqrt" in line for name in names for line in found[name])

    assert not has_root(reachable([entry], found, skip=[" conditional("]))
    assert sorted(has_root(reachable([branch], found)) for branch in branches) == [False, True]


def test_state_and_params_can_be_donated():
    tx = optfn.accumulate(optfn.adam(0.1), 2)
    step = jax.jit(partial(optfn.step, tx), donate_argnums=(0, 2))
    params = jax.tree.map(jnp.array, PARAMS)
    state = tx.init(params)
    for i in range(4):
        params, state = step(params, jax.tree.map(lambda g, i=i: g[i], GRADS), state)
    updates, _ = run(tx, PARAMS, jax.tree.map(lambda g: g[:4], GRADS))
    expected = jax.tree.map(lambda p, u: p + u[1] + u[3], PARAMS, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_sum_lies_where_its_param_does(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    specs = {"w": P("x", "y"), "b": P("y"), "s": P()}
    shapes = {"w": (8, 4), "b": (4,), "s": (3,)}
    params = {
        k: jax.device_put(jnp.ones(shapes[k]), NamedSharding(mesh, spec))
        for k, spec in specs.items()
    }
    tx = optfn.accumulate(optfn.adam(0.1), 2)
    update = jax.jit(tx.update)
    states = [tx.init(params), jax.jit(tx.init)(params)]
    for _ in range(2):
        updates, state = update(params, states[-1], params)
        states.append(state)
    assert [bool(slots_of(s).has_updated) for s in states] == [False, False, False, True]
    for state in states:
        slots = slots_of(state)
        for tree in (slots.sum, slots.inner.slots["scale_by_adam"].mu, updates):
            for k, x in tree.items():
                assert x.sharding.is_equivalent_to(params[k].sharding, x.ndim), k


# Around and inside.


def test_beside_it_in_a_chain_stages_see_every_micro_gradient():
    """A clip before it clips each of them, one inside their mean."""
    grads = np.float32([[3.0], [-1.0]])
    outside = optfn.chain(optfn.clip(1.0), optfn.accumulate(optfn.sgd(1.0), 2))
    inside = optfn.accumulate(optfn.chain(optfn.clip(0.5), optfn.sgd(1.0)), 2)
    assert run(outside, np.zeros(1, np.float32), grads)[0].tolist() == [[0], [0]]
    assert run(inside, np.zeros(1, np.float32), grads)[0].tolist() == [[0], [-0.5]]


def test_in_a_partition_it_accumulates_its_own_leaves():
    tx = optfn.partition(
        {"slow": optfn.accumulate(optfn.adam(0.1), 2), "fast": optfn.sgd(0.1)},
        {"w": "slow", "b": "fast"},
    )
    grads = GRADS | {"b": np.where(np.arange(12)[:, None] == 1, np.nan, GRADS["b"])}
    updates, states = run(tx, PARAMS, grads)
    alone, _ = run(optfn.accumulate(optfn.adam(0.1), 2), {"w": PARAMS["w"]}, {"w": GRADS["w"]})
    equal(updates["w"], alone["w"])
    assert np.isnan(updates["b"][1]).all()
    slots = states.slots["partition"]["slow"]["accumulate"]
    assert slots.sum["b"] is None
    assert not slots.skipped.any()


def test_accumulations_nest():
    tx = optfn.accumulate(optfn.accumulate(optfn.sgd(1.0), 2), 3)
    updates, states = run(tx, PARAMS, GRADS)
    whole, _ = run(optfn.accumulate(optfn.sgd(1.0), 6), PARAMS, GRADS)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), updates, whole
    )
    assert slots_of(slots_of(states).inner).inner.step[-1] == 2


class Layer(eqx.Module):
    kernel: jax.Array
    bias: jax.Array | None
    size: int = eqx.field(static=True)

    def __call__(self, x):
        raise RuntimeError("a module of params was called")


@pytest.mark.parametrize("inner", [optfn.adam(0.1), optfn.chain()])
def test_modules_and_none_and_empty_leaves(inner):
    params = [Layer(jnp.ones((2, 2)), None, 2), None, jnp.zeros((0, 3)), {}]
    tx = optfn.accumulate(inner, 2)
    update = jax.jit(tx.update)
    first, state = update(params, tx.init(params), params)
    second, _ = update(params, state, params)
    expected, _ = inner.update(params, inner.init(params), params)
    equal(second, expected)
    assert not first[0].kernel.any()
    assert jax.tree.structure(first) == jax.tree.structure(params)


@pytest.mark.parametrize("how", ["float0", "integer"])
@pytest.mark.parametrize("frozen", ["inside", "outside"])
def test_integer_leaves_are_frozen(how, frozen):
    params = {"w": jnp.ones(2), "table": jnp.arange(3)}
    mask = {"w": False, "table": True}
    if how == "float0":
        grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    else:
        grads = {"w": 2 * params["w"], "table": jnp.ones(3, int)}
    if frozen == "inside":
        tx = optfn.accumulate(optfn.freeze(optfn.sgd(0.1), mask), 2)
    else:
        tx = optfn.freeze(optfn.accumulate(optfn.sgd(0.1), 2), mask)
    state = tx.init(params)

    @jax.jit
    def twice(state):
        seen = params
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            assert updates["table"].dtype == grads["table"].dtype
            seen = optfn.apply_updates(seen, updates)
        return seen, state

    after, state = twice(state)
    np.testing.assert_allclose(after["w"], [0.8, 0.8])
    np.testing.assert_array_equal(after["table"], params["table"])
    if frozen == "inside":
        assert slots_of(state).sum["table"] is None


def test_inside_optax_and_optax_inside():
    tx = optfn.accumulate(optfn.from_optax(optax.adam(0.1)), 4)
    expected = mean_in_order(GRADS, 4)
    ours, _ = run(tx, PARAMS, GRADS)
    theirs = optax.adam(0.1)
    state = theirs.init(PARAMS)
    for i in range(ROUNDS):
        updates, state = theirs.update(jax.tree.map(lambda g, i=i: g[i], expected), state)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[4 * i + 3], y, rtol=1e-5), ours, updates
        )
    chained = optax.chain(optax.scale(1.0), optfn.to_optax(optfn.accumulate(optfn.adam(0.1), 2)))
    updates, _ = chained.update(PARAMS, chained.init(PARAMS), PARAMS)
    assert all(not u.any() for u in jax.tree.leaves(updates))


# Bad input.


def test_bad_input():
    tx = optfn.accumulate(optfn.adam(0.1), 2)
    state = tx.init(PARAMS)
    for dtype in ("int32", "no dtype", 3):
        with pytest.raises(
            TypeError,
            match=r"accumulate\(accumulator_dtype=\.\.\.\) must be a floating point dtype",
        ):
            optfn.accumulate(optfn.adam(0.1), 2, accumulator_dtype=dtype)
    with pytest.raises(
        TypeError, match=r"accumulate\(transform=\.\.\.\) must be an optfn transform"
    ):
        optfn.accumulate(optax.adam, 2)
    with pytest.raises(TypeError, match="misses the extra argument 'weight'"):
        weighted = optfn.accumulate(optfn.adam(0.1), 2, weighted=True)
        weighted.update(PARAMS, weighted.init(PARAMS), PARAMS)
    with pytest.raises(
        ValueError, match=r"the slots accumulate\.sum and updates are different trees"
    ):
        tx.update({"w": PARAMS["w"]}, state)
    with pytest.raises(ValueError, match="at 'b' updates have shape"):
        tx.update(PARAMS | {"b": np.ones(1, np.float32)}, state)
    with pytest.raises(TypeError, match="the gradient at 'b' has dtype int32"):
        tx.update(PARAMS | {"b": np.ones(2, np.int32)}, state, PARAMS)
    with pytest.raises(ValueError, match="was it made by another optimizer"):
        tx.update(PARAMS, optfn.adam(0.1).init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"masked\(...\) alone is no optimizer"):
        optfn.accumulate(optfn.masked(optfn.sgd(0.1), True), 2).init(PARAMS)
