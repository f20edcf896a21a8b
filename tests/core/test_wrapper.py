"""`Wrapper`, and the slots of inner transforms, which every wrapper finds and puts back."""

import operator

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules
from optfn.core.walk import renew_slots, walk

PARAMS = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([0.5])}
GRADS = {"w": jnp.asarray([0.5, 0.25]), "b": jnp.asarray([-1.0])}


class doubled(optfn.Wrapper):
    """Twice the updates."""

    def apply(self, updates, slots, ctx):
        updates, slots = self.transform.apply_named(updates, slots, ctx)
        return jax.tree.map(lambda u: 2 * u, updates), slots


class encoded(optfn.Wrapper):
    """Stores the inner slots in another form: all numbers negative, each with a pair of twos."""

    def init_slots(self, params):
        return encode(super().init_slots(params))

    def apply(self, updates, slots, ctx):
        updates, new = self.transform.apply_named(updates, decode(slots), ctx)
        return updates, encode(new)

    def inner(self, slots, step, label):
        return decode(slots), step

    def with_inner(self, slots, label, new):
        return encode(new)


def encode(slots):
    return jax.tree.map(lambda x: {"minus": ~x if x.dtype == bool else -x, "pair": x[None]}, slots)


def decode(slots):
    def is_pair(x):
        return isinstance(x, dict) and x.keys() == {"minus", "pair"}

    def plain(x):
        return ~x["minus"] if x["minus"].dtype == bool else -x["minus"]

    return jax.tree.map(plain, slots, is_leaf=is_pair)


def run(tx, steps=3, params=PARAMS):
    state = tx.init(params)
    for _ in range(steps):
        params, state = optfn.step(tx, params, GRADS, state)
    return params, state


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_wrapper_writes_apply_alone():
    tx = doubled(optfn.adam(0.25))
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    alone, inner = optfn.adam(0.25).update(GRADS, optfn.adam(0.25).init(PARAMS), PARAMS)
    assert_equal(updates, jax.tree.map(lambda u: 2 * u, alone))
    assert_equal(state.slots["doubled"], inner.slots)
    assert optfn.hyperparameters(tx, state)["learning_rate"] == 0.25
    assert doubled(optfn.sgd(1.0)).init(PARAMS).slots == {}
    assert repr(tx).startswith("doubled(transform=chain(")


INSIDE = {
    "stages": optfn.chain(optfn.trace(0.9), optfn.adam(schedules.linear(0.1, 0.0, 9))),
    "groups": optfn.partition(
        {"x": optfn.own_step(optfn.adam(schedules.linear(0.1, 0.0, 9))), "y": optfn.sgd(0.1, 0.9)},
        {"w": "x", "b": "y"},
    ),
    "an average": optfn.ema_of_params(optfn.sgd(0.1, 0.9), 0.5),
    "slow params": optfn.lookahead(optfn.monitor(optfn.adam(0.1)), 2, 0.5),
    "skipped": optfn.skip_spikes(optfn.schedule_free_adamw(0.1)),
    "accumulated": optfn.accumulate(optfn.chain(optfn.trace(0.9), optfn.adam(0.1)), 2),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_reads_a_state_reads_it_through_a_wrapper_that_stores_it_in_another_form(name):
    plain, wrapped = INSIDE[name], encoded(INSIDE[name])
    (params, state), (same, stored) = run(plain), run(wrapped)
    assert_equal(same, params)
    for read in (optfn.hyperparameters, optfn.metrics):
        found = {k.removeprefix("encoded."): v for k, v in read(wrapped, stored).items()}
        assert_equal(found, dict(read(plain, state)))
    evaluated = optfn.evaluation_params(wrapped, stored, params)
    assert_equal(evaluated, optfn.evaluation_params(plain, state, params))


@pytest.mark.parametrize("name", INSIDE)
def test_reset_starts_anew_through_a_wrapper_that_stores_it_in_another_form(name):
    plain, wrapped = (optfn.skip_nonfinite(tx) for tx in (INSIDE[name], encoded(INSIDE[name])))
    (params, state), (_, stored) = run(plain), run(wrapped)
    (outer, *inside) = walk(plain, state.slots, state.step)
    assert outer.names == ("skip_nonfinite",)
    for _, *chosen in (place.names for place in inside):
        anew, found = (
            optfn.reset(tx, old, params, ".".join(chosen))
            for tx, old in ((plain, state), (wrapped, stored))
        )
        decoded = decode(found.slots["skip_nonfinite"].inner.slots["encoded"])
        assert_equal(decoded, anew.slots["skip_nonfinite"].inner.slots)
        assert any(
            np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (state, anew)), strict=True)
        )


def everywhere(tx, named, step):
    """Every transform inside with its slots, those without a name too."""
    slots = tx.slots_among(named)
    yield tx, slots, step
    for inner in tx.inner_transforms(slots, step):
        yield from everywhere(inner.transform, inner.slots, inner.step)


@pytest.mark.newest
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_new_inner_slots_are_found_where_they_were_put(name):
    tx = cases.OPTIMIZERS[name]
    state = jax.tree.map(jnp.asarray, tx.init(PARAMS))
    for stage, slots, step in everywhere(tx, state.slots, state.step):
        for inner in stage.inner_transforms(slots, step) if slots else ():
            new = jax.tree.map(lambda x: x + 1 if x.dtype != bool else ~x, inner.slots)
            put = stage.with_inner(slots, inner.label, new)
            assert jax.tree.structure(put) == jax.tree.structure(slots)
            assert_equal(stage.inner(put, step, inner.label)[0], new)
            assert_equal(stage.with_inner(put, inner.label, inner.slots), slots)


def test_what_is_not_renewed_is_not_touched():
    """A wrapper that stores its slots in fewer bits would round them once more."""
    tx = optfn.chain(encoded(optfn.trace(0.9)), optfn.adam(0.1))
    state = run(tx)[1]
    found = renew_slots(tx, state.slots, state.step, None, lambda place: place.slots)
    assert found is state.slots
    anew = optfn.reset(tx, state, PARAMS, "scale_by_adam")
    old, kept = (jax.tree.leaves(x.slots["encoded"]) for x in (state, anew))
    assert all(map(operator.is_, old, kept))


def test_the_walk_gives_each_its_names_its_step_and_its_params():
    tx = optfn.chain(optfn.trace(0.9), optfn.accumulate(INSIDE["groups"], 2))
    params, state = run(tx, 5)
    found = {
        ".".join(place.names): (int(place.step), jax.tree.structure(place.params))
        for place in walk(tx, state.slots, state.step, params)
    }
    whole, w, b = (
        jax.tree.structure(x) for x in ({"w": 0, "b": 0}, {"w": 0, "b": None}, {"w": None, "b": 0})
    )
    group = "accumulate.partition"
    assert found == {
        "trace": (5, whole),
        "accumulate": (5, whole),
        group: (2, whole),
        f"{group}.x": (2, w),
        f"{group}.x.own_step": (2, w),
        f"{group}.x.own_step.scale_by_adam": (2, w),
        f"{group}.y": (2, b),
        f"{group}.y.trace": (2, b),
    }
