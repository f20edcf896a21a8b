"""Steps skipped because a gradient or an update is not finite."""

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.stages import halve_until_lower
from hypothesis import strategies as st

import optfn
from optfn import schedules

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])}
RATE = schedules.linear(0.1, 0.0, 20)
STEPS = 12


def grads_of(steps, bad=(), value=np.nan):
    """Gradients for every step; the bad ones have one entry of this value."""
    rng = np.random.default_rng(0)
    grads = {k: rng.normal(size=(steps, *p.shape)).astype(np.float32) for k, p in PARAMS.items()}
    grads["b"][list(bad), 1] = value
    return grads


@jax.jit
def run(tx, grads):
    """The updates of each step and the last params and state."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optfn.apply_updates(params, updates), state), (updates, state.slots)

    (params, state), (updates, slots) = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), grads)
    return params, state, updates, slots


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


class reciprocal(optfn.Leafwise):
    """Of a zero it makes infinity."""

    def update_leaf(self, g, slots, param, t):
        return 1 / g, slots


def safe(tx=None, max_consecutive=5.0):
    return optfn.skip_nonfinite(optfn.adamw(RATE) if tx is None else tx, max_consecutive)


# Which steps are taken.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_run_with_bad_steps_is_the_run_without_them(value):
    """Bit for bit, with moments, corrections and a schedule that count the steps taken."""
    bad = [0, 3, 4, 11]
    params, state, updates, _ = run(safe(), grads_of(STEPS, bad, value))
    good = jax.tree.map(lambda g: np.delete(g, bad, axis=0), grads_of(STEPS))
    wanted, without, steps, _ = run(safe(), good)
    assert_same_bits(params, wanted)
    skips, never = state.slots["skip_nonfinite"], without.slots["skip_nonfinite"]
    assert_same_bits(skips.inner, never.inner)
    assert (int(state.step), int(skips.inner.step)) == (STEPS, STEPS - 4)
    assert (int(skips.consecutive), int(skips.total), bool(skips.skipped)) == (1, 4, True)
    assert (int(never.consecutive), int(never.total), bool(never.skipped)) == (0, 0, False)
    for name, u in updates.items():
        assert not u[np.asarray(bad)].any()
        np.testing.assert_array_equal(np.delete(u, bad, axis=0), steps[name])
    optfn.raise_if_gave_up(state)


def test_a_finite_run_is_that_of_the_optimizer_itself():
    tx = optfn.adamw(RATE)
    params, state, updates, _ = run(safe(tx), grads_of(STEPS))
    wanted, own, steps, _ = run(tx, grads_of(STEPS))
    for a, b in ((params, wanted), (updates, steps)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    assert int(state.slots["skip_nonfinite"].inner.step) == int(own.step)


def test_an_update_that_is_not_finite_is_skipped_too():
    """With a finite gradient; optax 0.2.8 takes it, and its momentum is infinite for good."""
    grads = grads_of(STEPS, [2, 5], 0.0)
    direction = optfn.chain(reciprocal(), optfn.trace(0.5), optfn.scale_by_learning_rate(1e-3))
    params, state, updates, _ = run(safe(direction), grads)
    wanted, _, _, _ = run(safe(direction), jax.tree.map(lambda g: np.delete(g, [2, 5], 0), grads))
    assert_same_bits(params, wanted)
    assert int(state.slots["skip_nonfinite"].total) == 2
    assert all(not u[2].any() and not u[5].any() for u in updates.values())

    theirs = optax.apply_if_finite(
        optax.chain(
            optax.stateless(lambda g, p: jax.tree.map(jnp.reciprocal, g)), optax.trace(0.5)
        ),
        5,
    )
    state = theirs.init(PARAMS)
    for i in range(4):
        last, state = theirs.update(jax.tree.map(lambda g, i=i: g[i], grads), state, PARAMS)
    assert not np.isfinite(last["b"]).all()


counted = st.lists(st.booleans(), min_size=STEPS, max_size=STEPS)
run_lanes = jax.jit(jax.vmap(lambda tx, grads: run(tx, grads)[1:], in_axes=(None, 0)))


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(counted, st.integers(0, STEPS))
def test_counts_are_those_of_the_bad_steps_until_it_gives_up(bad, most):
    _, _, updates, slots = run(
        optfn.replace(safe(), max_consecutive=float(most)), grads_of(STEPS, np.nonzero(bad)[0])
    )
    consecutive = total = 0
    gave_up, history = False, []
    for is_bad in bad:
        skipped = is_bad or gave_up
        consecutive = consecutive + 1 if skipped else 0
        total += skipped
        gave_up |= consecutive > most
        history.append((consecutive, total, skipped, gave_up))
    skips = slots["skip_nonfinite"]
    found = zip(*map(np.asarray, skips[:4]), strict=True)
    assert [tuple(x.item() for x in row) for row in found] == history
    skipped = np.asarray([row[2] for row in history])
    assert not np.asarray(updates["w"])[skipped].any()
    assert int(skips.inner.step[-1]) == STEPS - total


# Giving up.


def test_it_gives_up_for_good():
    """Updates stay zero and the state as it was, whatever comes; optax 0.2.8 takes the NaNs."""
    bad = [1, 2, 3]
    _, state, updates, slots = run(safe(max_consecutive=2.0), grads_of(STEPS, bad))
    skips = slots["skip_nonfinite"]
    np.testing.assert_array_equal(skips.gave_up, np.arange(STEPS) >= 3)
    assert all(not u[1:].any() and u[0].any() for u in updates.values())
    assert int(state.slots["skip_nonfinite"].inner.step) == 1
    with pytest.raises(FloatingPointError, match="'slots/skip_nonfinite' it skipped the last 11 "):
        optfn.raise_if_gave_up(state)
    _, state, _, _ = run(safe(max_consecutive=3.0), grads_of(STEPS, bad))
    optfn.raise_if_gave_up(state)

    theirs = optax.apply_if_finite(optax.adamw(0.1), 2)
    state = theirs.init(PARAMS)
    for i in range(5):
        last, state = theirs.update(
            jax.tree.map(lambda g, i=i: g[i], grads_of(STEPS, bad)), state, PARAMS
        )
    assert np.isnan(last["b"]).any()  # at a step whose gradient is finite


def test_it_gives_up_at_the_first_bad_step_or_never():
    for most, gave_up in ((0.0, True), (np.inf, False)):
        _, state, _, _ = run(safe(max_consecutive=most), grads_of(STEPS, range(2, STEPS)))
        assert bool(state.slots["skip_nonfinite"].gave_up) == gave_up


def test_a_larger_number_does_not_undo_it():
    tx = safe(max_consecutive=lambda step: jnp.where(step < 4, 1, 100))
    _, _, _, slots = run(tx, grads_of(STEPS, [1, 2]))
    np.testing.assert_array_equal(slots["skip_nonfinite"].gave_up, np.arange(STEPS) >= 2)


def gone(total=6):
    """A state that gave up."""
    return run(safe(max_consecutive=2.0), grads_of(total, range(total)))[1]


def test_who_gave_up_is_found_anywhere_in_a_state():
    state = gone()
    for tree, place in (
        (state, "at 'slots/skip_nonfinite' it skipped the last 6 steps, 6 in all"),
        ((optax.EmptyState(), {"tx": state}), "at '1/tx/slots/skip_nonfinite' it"),
    ):
        with pytest.raises(FloatingPointError, match=place):
            optfn.raise_if_gave_up(tree)

    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    labels = {"w": "x", "b": "y"}
    hasty = safe(optfn.sgd(0.1), 0.0)
    split = {"x": hasty, "y": optfn.sgd(0.1)}
    for tx, place in (
        (optfn.chain(optfn.clip(1.0), hasty.named("mine")), "slots/mine"),
        (optfn.partition(split, labels), "slots/partition/x/skip_nonfinite"),
        (safe(hasty, np.inf), None),
        (optfn.skip_spikes(optfn.sgd(0.1), max_consecutive=0.0), "slots/skip_spikes/skips"),
        (optfn.loss_scale(optfn.sgd(0.1), max_consecutive=0.0), "slots/loss_scale/skips"),
        (optfn.to_optax(hasty), "slots/skip_nonfinite"),
    ):
        _, state = tx.update(nan, tx.init(PARAMS), PARAMS)
        if place is None:  # the outer one kept the NaNs from the inner one
            optfn.raise_if_gave_up(state)
        else:
            with pytest.raises(FloatingPointError, match=f"at '{place}' it skipped"):
                optfn.raise_if_gave_up(state)


def test_the_inner_one_of_two_is_found():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = safe(safe(reciprocal(), max_consecutive=0.0))
    _, state = tx.update(zero, tx.init(PARAMS), PARAMS)
    with pytest.raises(FloatingPointError, match=r"/skip_nonfinite/inner/slots/skip_nonfinite'"):
        optfn.raise_if_gave_up(state)


def test_lanes_are_independent_and_named():
    bad = [(), (1,), (4, 5, 6), (5, 6, 7, 8), (0, 2, 4, 6)]
    tx = safe(max_consecutive=2.0)
    lanes = [grads_of(STEPS, steps) for steps in bad]
    state, updates, _ = run_lanes(tx, jax.tree.map(lambda *xs: np.stack(xs), *lanes))
    for i, grads in enumerate(lanes):
        _, alone, alone_updates, _ = run(tx, grads)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-6, atol=1e-8),
            (state, updates),
            (alone, alone_updates),
        )
    with pytest.raises(FloatingPointError, match="in lane 2 it skipped the last 8") as error:
        optfn.raise_if_gave_up(state)
    assert "in lane 3 " in str(error.value)
    assert "in lane 1 " not in str(error.value)


def test_many_lanes_are_not_all_listed():
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (20, 3, *x.shape)), gone())
    with pytest.raises(FloatingPointError, match=r"in lane 0, 1 .* 55 more lanes of 60") as error:
        optfn.raise_if_gave_up(state)
    assert str(error.value).count("in lane") == 5


def test_bad_input_of_raise_if_gave_up():
    with pytest.raises(ValueError, match=r"the state has no part of a skip_nonfinite"):
        optfn.raise_if_gave_up(optfn.adam(0.1).init(PARAMS))
    with pytest.raises(TypeError, match=r"call it outside of jit and vmap"):
        jax.jit(optfn.raise_if_gave_up)(gone())
    with pytest.raises(TypeError, match=r"skip_nonfinite\(transform=...\) must be an optfn trans"):
        optfn.skip_nonfinite(optax.sgd)


# Or letting them through.


def test_nans_are_let_through_where_optax_lets_them():
    rng = np.random.default_rng(3)
    lanes = [grads_of(STEPS, np.nonzero(rng.random(STEPS) < 0.6)[0]) for _ in range(16)]
    both = [library.apply_if_finite(library.sgd(0.1), 2) for library in (optfn, optax)]

    @jax.jit
    @jax.vmap
    def found(grads):
        def step(states, g):
            new = [tx.update(g, state, PARAMS) for tx, state in zip(both, states, strict=True)]
            counts = [(s.notfinite_count, s.total_notfinite, s.last_finite) for _, s in new]
            return [state for _, state in new], ([u for u, _ in new], counts)

        return jax.lax.scan(step, [tx.init(PARAMS) for tx in both], grads)[1]

    updates, counts = found(jax.tree.map(lambda *xs: np.stack(xs), *lanes))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *updates)
    jax.tree.map(np.testing.assert_array_equal, *counts)
    lost = np.isnan(updates[0]["b"]).any(axis=(1, 2))
    assert 0 < lost.sum() < len(lanes)


def test_a_run_that_stays_nan_becomes_nan():
    """And one that has a finite gradient in between does not; nobody gives up."""
    tx = optfn.apply_if_finite(optfn.adam(0.1), max_consecutive_errors=3)
    for bad, is_lost in (([1, 2, 3, 5, 6, 7], False), ([1, 2, 3, 4], True)):
        params, state, updates, slots = run(tx, grads_of(8, bad))
        assert np.isnan(params["b"]).any() == is_lost
        assert not any(u[1:4].any() for u in updates.values())
        optfn.raise_if_gave_up(state)
        skipped = np.asarray(slots["apply_if_finite"].skipped)
        np.testing.assert_array_equal(np.nonzero(skipped[:5])[0], [1, 2, 3])


# Where it stands.


def test_the_optimizer_inside_is_read_at_its_own_step():
    grads = grads_of(5, [0, 1])
    tx = safe(optfn.schedule_free_sgd(RATE))
    params, state, _, _ = run(tx, grads)
    assert float(optfn.hyperparameters(tx, state)["schedule_free.learning_rate"]) == float(RATE(3))
    wanted, without, _, _ = run(tx, jax.tree.map(lambda g: g[2:], grads))
    assert_same_bits(
        optfn.evaluation_params(tx, state, params), optfn.evaluation_params(tx, without, wanted)
    )


def test_hypergradients_do_not_see_a_skipped_step():
    """They are those of the run without it, also in lanes, where a branch is a selection."""

    def total(tx, grads):
        return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(run(tx, grads)[0]))

    tx = optfn.as_arrays(safe(optfn.sgd(RATE, 0.9)))
    bad, good = grads_of(4, [1]), jax.tree.map(lambda g: np.delete(g, 1, 0), grads_of(4))
    slopes = jax.jit(jax.grad(total))
    wanted = slopes(tx, good)
    lanes = jax.vmap(slopes, in_axes=(None, 0))(tx, jax.tree.map(lambda g: g[None], bad))
    for found in (slopes(tx, bad), jax.tree.map(lambda x: x[0], lanes)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, wanted)
    assert float(wanted.transform.stages[0].decay) != 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_dtypes(dtype):
    params = {"w": jnp.ones(3, dtype), "none": None, "empty": jnp.zeros((0, 2), dtype)}
    tx = safe()
    value = complex(1, np.nan) if dtype == jnp.complex64 else np.inf
    bad = {**params, "w": params["w"].at[1].set(value)}
    update = jax.jit(tx.update)
    start = tx.init(params)
    updates, state = update(bad, start, params)
    assert updates["w"].dtype == dtype
    assert not updates["w"].any()
    assert_same_bits(
        state.slots["skip_nonfinite"].inner,
        jax.jit(lambda s: s)(start).slots["skip_nonfinite"].inner,
    )
    updates, _ = update(params, state, params)
    assert updates["w"].all()


@pytest.mark.parametrize("wrap", [safe, optfn.skip_spikes, optfn.loss_scale])
def test_integers_inside_may_be_frozen(wrap):
    """Their gradients have a dtype of no values, or are integers."""
    params = {"w": jnp.ones(2), "table": jnp.arange(3)}
    tx = wrap(optfn.freeze(optfn.adam(0.1), {"w": False, "table": True}))
    state = tx.init(params)
    none = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(params)
    for grads in (none, {"w": params["w"] * jnp.nan, "table": jnp.zeros(3, int)}):
        after, _ = optfn.step(tx, params, grads, state)
        np.testing.assert_array_equal(after["table"], params["table"])
        assert (after["w"] == 1).all() == (grads is not none)


def test_a_tree_without_leaves():
    tx = safe()
    updates, state = tx.update({"none": None}, tx.init({"none": None}), {"none": None})
    assert updates == {"none": None}
    assert not state.slots["skip_nonfinite"].skipped


def test_a_callable_module_is_a_tree():
    class Layer(eqx.Module):
        w: jax.Array

        def __call__(self, x):
            raise RuntimeError("a module of params was called")

    params = Layer(jnp.ones(2))
    tx = safe()
    updates, _ = tx.update(Layer(jnp.full(2, jnp.nan)), tx.init(params), params)
    assert not updates.w.any()


def test_extra_arguments_pass_through():
    """Numbers and functions, each to the optimizer that declares it."""
    inner = optfn.chain(optfn.polyak_sgd(0.05), halve_until_lower())
    params = {"w": jnp.ones(3)}

    def value_fn(params):
        return jnp.sum(params["w"] ** 2)

    @jax.jit
    def update(state, grads):
        return safe(inner).update(grads, state, params, value=3.0, value_fn=value_fn)

    wanted, _ = inner.update(params, inner.init(params), params, value=3.0, value_fn=value_fn)
    updates, state = update(safe(inner).init(params), params)
    np.testing.assert_allclose(updates["w"], wanted["w"], rtol=1e-6)
    updates, _ = update(state, {"w": jnp.full(3, jnp.nan)})
    assert not updates["w"].any()
    with pytest.raises(TypeError, match="misses the extra argument 'value_fn'"):
        safe(inner).update(params, state, params, value=3.0)


def test_a_key_in_the_state_inside_is_kept_too():
    tx = safe(optfn.from_optax(optax.add_noise(0.1, 0.5, key=jax.random.key(3))))
    start, update = tx.init(PARAMS), jax.jit(tx.update)
    grads = jax.tree.map(lambda g: g[0], grads_of(1))
    _, kept = update(jax.tree.map(lambda g: g * np.nan, grads), start, PARAMS)
    assert_same_bits(update(grads, start, PARAMS)[0], update(grads, kept, PARAMS)[0])


@pytest.mark.parametrize("wrap", [safe, optfn.skip_spikes, optfn.loss_scale])
def test_a_nan_on_one_device_skips_the_step_on_all(wrap):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.ones((8, 2)), spec)}
    tx = wrap(optfn.adam(0.1))
    start = jax.jit(tx.init)(params)
    update = jax.jit(tx.update, donate_argnums=1)
    updates, state = update({"w": params["w"].at[5, 1].set(jnp.nan)}, start, params)
    assert not updates["w"].any()
    slots = [x for x in jax.tree.leaves(state) if x.shape == (8, 2)]
    assert len(slots) == 2
    assert all(x.sharding.is_equivalent_to(spec, 2) for x in slots)
    updates, state = update(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-3)


# What is there for gradients that are not finite must get them.

LEAVING_OUT = {
    "accumulate": lambda tx: optfn.accumulate(tx, 2),
    "skip_nonfinite": optfn.skip_nonfinite,
    "apply_if_finite": lambda tx: optfn.apply_if_finite(tx, 5),
    "skip_spikes": optfn.skip_spikes,
    "skip_spikes by value": lambda tx: optfn.skip_spikes(tx, watch="value"),
    "loss_scale": optfn.loss_scale,
}
BEYOND_REACH = {
    "first": lambda: optfn.chain(optfn.zero_nans(), optfn.sgd(0.1)),
    "behind a clip": lambda: optfn.chain(optfn.clip(1.0), optfn.zero_nans(), optfn.sgd(0.1)),
    "behind moments": lambda: optfn.chain(
        optfn.scale_by_adam(), optfn.zero_nans(), optfn.scale_by_learning_rate(0.1)
    ),
    "in a group": lambda: optfn.partition(
        {"a": optfn.chain(optfn.zero_nans(), optfn.sgd(0.1)), "b": optfn.sgd(0.1)}, "b"
    ),
    "in a wrapper": lambda: optfn.lookahead(optfn.chain(optfn.zero_nans(), optfn.sgd(0.1)), 2, 0.5),
    "with a name": lambda: optfn.chain(optfn.zero_nans().named("clean"), optfn.sgd(0.1)),
}


class divide_by_itself(optfn.Leafwise):
    """A rule as users write them: 0 / 0 is NaN."""

    def update_leaf(self, g, slots, param, t):
        return g / g, slots


@pytest.mark.parametrize("wrapper", LEAVING_OUT)
def test_zero_nans_where_no_nan_arrives_is_refused(wrapper):
    wrap = LEAVING_OUT[wrapper]
    name = wrapper.partition(" ")[0]
    for make in BEYOND_REACH.values():
        inside = make()
        with pytest.raises(ValueError, match=f"zero_nans inside of {name} would never see the"):
            wrap(inside)


@pytest.mark.parametrize("maker", [divide_by_itself, lambda: optfn.from_optax(optax.clip(1.0))])
@pytest.mark.parametrize("wrapper", LEAVING_OUT)
def test_zero_nans_behind_a_stage_that_may_give_nans_is_allowed(wrapper, maker):
    LEAVING_OUT[wrapper](optfn.chain(maker(), optfn.zero_nans(), optfn.sgd(0.1)))


def test_zero_nans_before_the_wrapper_saves_the_other_entries():
    grads = jnp.asarray([[1.0, np.nan], [3.0, 1.0]])
    params = jnp.zeros(2)
    for wrapped, expected in (
        (optfn.skip_nonfinite(optfn.sgd(1.0)), [-4.0, -1.0]),
        (optfn.accumulate(optfn.sgd(1.0), 2), [-2.0, -0.5]),
    ):
        tx, p = optfn.chain(optfn.zero_nans(), wrapped), params
        state = tx.init(p)
        for g in grads:
            p, state = optfn.step(tx, grads=g, state=state, params=p)
        np.testing.assert_array_equal(p, expected)
        assert optfn.metrics(tx, state)["skipped"] == 0
