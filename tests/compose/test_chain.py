"""`chain`: order, flattening, names."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)


def run(tx, steps=3):
    state, out = tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for k in range(steps):
        updates, state = update(jax.tree.map(lambda g, k=k: g * (1 - k), GRADS), state, PARAMS)
        out.append(updates)
    return out, state


def test_the_updates_of_one_stage_are_the_gradients_of_the_next():
    clip_last, _ = run(optfn.chain(optfn.scale(10.0), optfn.clip(1.0)), 1)
    clip_first, _ = run(optfn.chain(optfn.clip(1.0), optfn.scale(10.0)), 1)
    np.testing.assert_allclose(clip_last[0]["b"], np.clip(10 * GRADS["b"], -1, 1))
    np.testing.assert_allclose(clip_first[0]["b"], 10 * np.clip(GRADS["b"], -1, 1))


CHAINS = {
    "rules": (optfn.clip(0.5), optfn.scale_by_adam(), optfn.add_decayed_weights(0.1)),
    "rules and whole trees": (
        optfn.scale_by_rms(),
        optfn.clip_by_global_norm(1.0),
        optfn.trace(0.9),
        optfn.ema(0.5),
        optfn.clip_by_global_norm(0.1).named("again"),
        optfn.scale(schedules.linear(1, 0, 5)),
    ),
    "wrappers": (
        optfn.masked(optfn.trace(0.9), {"w": True, "b": False}),
        optfn.chain(optfn.scale_by_lion(), optfn.trace(0.1)).named("inner"),
        optfn.partition({"x": optfn.adam(0.1), "y": optfn.sgd(0.1)}, {"w": "x", "b": "y"}),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_its_stages_one_by_one(name):
    """Consecutive rules are traced together; that must not show."""
    stages = [optfn.chain(stage, optfn.scale(1.0)) for stage in CHAINS[name]]
    states = [stage.init(PARAMS) for stage in stages]
    got, state = run(optfn.chain(*CHAINS[name]))
    slots = {}
    for k, updates in enumerate(got):
        expected = jax.tree.map(lambda g, k=k: g * (1 - k), GRADS)
        for i, stage in enumerate(stages):
            expected, states[i] = stage.update(expected, states[i], PARAMS)
            slots |= states[i].slots
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)
    chex.assert_trees_all_close(state.slots, slots, rtol=1e-5)


def test_nested_chains_are_flattened_and_named_ones_are_not():
    a, b, c, d = optfn.clip(1.0), optfn.trace(0.9), optfn.scale(2.0), optfn.scale(3.0)
    flat = optfn.chain(a, b, c, d)
    nested = optfn.chain(optfn.chain(a, optfn.chain(b)), optfn.chain(), optfn.chain(c, d))
    assert nested.stages == flat.stages == (a, b, c, d)
    assert jax.tree.structure(nested) == jax.tree.structure(flat)

    named = optfn.chain(a, optfn.chain(b, c).named("inner"), d)
    assert [stage.name for stage in named.stages] == ["clip", "inner", "scale"]
    assert named.init(PARAMS).slots.keys() == {"inner"}
    assert named.init(PARAMS).slots["inner"].keys() == {"trace"}
    chex.assert_trees_all_close(run(named)[0], run(flat)[0], rtol=1e-6)


def test_a_named_chain_without_state_has_no_entry():
    tx = optfn.chain(optfn.chain(optfn.clip(1.0), optfn.scale(2.0)).named("x"), optfn.trace(0.9))
    assert tx.init(PARAMS).slots.keys() == {"trace"}


@pytest.mark.parametrize(
    ("stages", "name"),
    [
        ([optfn.trace(0.9), optfn.trace(0.5)], "trace"),
        ([optfn.adam(0.1), optfn.clip(1.0), optfn.adamw(0.1)], "scale_by_adam"),
        ([optfn.trace(0.9), optfn.ema(0.5).named("trace")], "trace"),
        ([optfn.chain(optfn.trace(0.9)).named("x"), optfn.ema(0.9).named("x")], "x"),
        ([optfn.freeze(optfn.trace(0.9), True), optfn.freeze(optfn.ema(0.9), False)], "freeze"),
        ([optfn.partition({"x": optfn.trace(0.9)}, "x")] * 2, "partition"),
    ],
)
def test_two_stateful_stages_of_one_name_are_an_error(stages, name):
    """Numbered, their moments would be swapped silently when one of them goes."""
    with pytest.raises(ValueError) as error:
        optfn.chain(*stages)
    assert f"chain(...) has 2 stateful stages named '{name}'" in str(error.value)
    assert ".named(" in str(error.value)


def test_names_make_two_stages_of_one_kind_possible():
    tx = optfn.chain(optfn.trace(0.9), optfn.trace(0.5).named("second"))
    _, state = run(tx)
    assert state.slots.keys() == {"trace", "second"}
    # In another order each finds its own moments.
    turned = optfn.chain(optfn.trace(0.5).named("second"), optfn.trace(0.9))
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    _, after = turned.update(zeros, state, PARAMS)
    expected = jax.tree.map(lambda v: 0.5 * v, state.slots["second"])
    chex.assert_trees_all_close(after.slots["second"], expected)


def test_a_name_inside_a_named_chain_is_free_outside():
    tx = optfn.chain(
        optfn.trace(0.9),
        optfn.chain(optfn.trace(0.9)).named("inner"),
        optfn.partition({"x": optfn.chain(optfn.trace(0.9)), "y": optfn.trace(0.9)}, "x"),
    )
    assert tx.init(PARAMS).slots.keys() == {"trace", "inner", "partition"}


def test_stateless_stages_may_share_a_name():
    tx = optfn.chain(
        optfn.scale(2.0),
        optfn.scale(3.0),
        optfn.freeze(optfn.scale(5.0), False),
        optfn.freeze(optfn.scale(7.0), False),
        optfn.chain(optfn.scale(0.1)).named("x"),
        optfn.chain(optfn.scale(0.1)).named("x"),
    )
    updates, state = tx.update(GRADS, tx.init(PARAMS))
    assert state.slots == {}
    np.testing.assert_allclose(updates["b"], 2.1 * GRADS["b"], rtol=1e-6)


def test_the_empty_chain_changes_nothing():
    (updates, *_), state = run(optfn.chain())
    jax.tree.map(np.testing.assert_array_equal, updates, GRADS)
    assert (int(state.step), state.slots) == (3, {})


def test_a_name_must_be_able_to_stand_in_a_path():
    for name in ("", "a.b", "a/b", None, 3):
        with pytest.raises(ValueError, match=r"a stage's name must be a string without"):
            optfn.trace(0.9).named(name)
