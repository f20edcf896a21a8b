"""`reset` starts a part of the state anew; `own_step` lets its clock start with it."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules

PARAMS = {"body": {"w": jnp.asarray([1.0, -2.0])}, "head": {"w": jnp.asarray([[0.5], [3.0]])}}
LABELS = {"body": "body", "head": "head"}
RATE = schedules.linear(0.1, 0.0, 9)
HEAD = optfn.own_step(optfn.adam(RATE))
TX = optfn.partition(
    {"body": optfn.chain(optfn.trace(0.9), optfn.adam(RATE)), "head": HEAD}, LABELS
)


@jax.jit
def train(tx, state, params):
    """Some steps on the same loss: the params and the state after each."""

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(p) + 0.1, params)
        params, state = optfn.step(tx, params, grads, state)
        return (params, state), params

    (params, state), path = jax.lax.scan(step, (params, state), None, 4)
    return params, state, path


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_reset_group_trains_as_from_the_start_and_the_others_go_on(compiled):
    params, state, _ = train(TX, TX.init(PARAMS), PARAMS)
    params = params | {"head": PARAMS["head"]}
    reset = jax.jit(optfn.reset, static_argnums=3) if compiled else optfn.reset
    anew = reset(TX, state, params, "head")
    assert_same_bits(anew.slots["partition"]["body"], state.slots["partition"]["body"])
    assert_same_bits(anew.slots["partition"]["head"], TX.init(PARAMS).slots["partition"]["head"])
    assert anew.step == state.step == 4

    _, _, first = train(TX, TX.init(PARAMS), PARAMS)
    _, _, after = train(TX, anew, params)
    _, _, uninterrupted = train(TX, state, params)
    assert_same_bits(after["head"], first["head"])
    assert_same_bits(after["body"], uninterrupted["body"])
    assert not np.array_equal(uninterrupted["head"]["w"], first["head"]["w"])


def test_a_head_may_be_exchanged_by_one_of_another_size():
    params, state, _ = train(TX, TX.init(PARAMS), PARAMS)
    params = params | {"head": {"w": jnp.ones((3, 3))}}
    state = optfn.reset(TX, state, params, "head")
    moved = train(TX, state, params)[0]["head"]["w"]
    alone = {"head": params["head"]}
    wanted = train(HEAD, HEAD.init(alone), alone)[0]["head"]["w"]
    np.testing.assert_allclose(moved, wanted, rtol=1e-6)


AROUND = {
    "ema_of_params": (lambda tx: optfn.ema_of_params(tx, 0.9), lambda slots: slots.average),
    "lookahead": (lambda tx: optfn.lookahead(tx, 3, 0.5), lambda slots: slots.slow),
    "accumulate": (lambda tx: optfn.accumulate(tx, 3), lambda slots: slots.sum),
    "trace": (lambda tx: optfn.chain(optfn.trace(0.9), tx), lambda slots: slots.trace),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3)])
def test_what_stands_around_a_group_forgets_its_old_leaves(around, shape):
    """Of the same size, and of another that the old would broadcast to."""
    wrap, own = AROUND[around]
    tx = wrap(optfn.partition({"body": optfn.sgd(0.1), "head": optfn.adam(0.1)}, LABELS))
    params, state, _ = train(tx, tx.init(PARAMS), PARAMS)
    params = params | {"head": {"w": jnp.full(shape, -100.0)}}
    anew = optfn.reset(tx, state, params, "head")
    kept, fresh, found = (own(s.slots[around]) for s in (state, tx.init(params), anew))
    assert_same_bits(found["head"], fresh["head"])
    assert_same_bits(found["body"], kept["body"])
    assert np.any(kept["body"]["w"] != fresh["body"]["w"])
    np.testing.assert_array_equal(optfn.evaluation_params(tx, anew, params)["head"]["w"], -100.0)
    moved, anew, _ = train(tx, anew, params)
    found = optfn.evaluation_params(tx, anew, moved)["head"]["w"]
    np.testing.assert_allclose(found, -100.0, atol=1)


@pytest.mark.parametrize(("before", "zeros"), [(1, 1), (2, 2), (3, 0), (4, 1), (6, 0)])
def test_in_the_middle_of_a_round_a_group_has_zeros_for_the_gradients_before(before, zeros):
    every, weights = 3, [1.0, 4.0, 2.0]
    sgd = optfn.sgd(1.0, momentum=0.0)  # with slots, without which no group is reset
    groups = optfn.partition({"body": sgd, "head": sgd}, LABELS)
    tx = optfn.accumulate(groups, every, weighted=True)
    state = tx.init(PARAMS)

    def grads(i):
        return jax.tree.map(lambda p: p + 2.0**i, PARAMS)

    for i in range(before):
        _, state = tx.update(grads(i), state, PARAMS, weight=weights[i % every])
    assert state.slots["accumulate"].has_updated == (zeros == 0)
    state = optfn.reset(tx, state, PARAMS, "head")
    start, end = before - before % every, before - before % every + every
    for i in range(before, end):
        updates, state = tx.update(grads(i), state, PARAMS, weight=weights[i % every])
    assert state.slots["accumulate"].has_updated
    for name, first in (("body", start), ("head", start + zeros)):
        p = np.float64(PARAMS[name]["w"])
        wanted = -sum(weights[i % every] * (p + 2.0**i) for i in range(first, end)) / sum(weights)
        np.testing.assert_allclose(updates[name]["w"], wanted, rtol=1e-6)


def test_a_group_inside_of_a_group_is_found_by_its_leaves():
    deep = optfn.partition(
        {"x": optfn.scale_by_adam(), "y": optfn.trace(0.9)},
        {"d": {"w": "x", "b": "y"}, "w": None, "f": None},
    )
    tx = optfn.mean_of_params(
        optfn.chain(
            optfn.freeze(
                optfn.partition({"p": deep, "q": optfn.chain()}, {"d": "p", "w": "q", "f": "q"}),
                {"d": False, "w": False, "f": True},
            ),
            optfn.sgd(0.1),
        )
    )
    ones = jnp.ones(2)
    params = {"d": {"w": ones, "b": ones}, "w": ones, "f": ones}
    state = jax.tree.map(lambda x: x + 1, tx.init(params))
    anew = optfn.reset(tx, state, params, "x").slots["mean_of_params"].average
    found = jax.tree.map(lambda x: x[0], anew)
    assert found == {"d": {"w": 1, "b": 2}, "w": 2, "f": 2}


def test_an_own_step_is_read_and_counts_for_itself():
    _, state, _ = train(TX, TX.init(PARAMS), PARAMS)
    state = optfn.reset(TX, state, PARAMS, "head")
    rates = optfn.hyperparameters(TX, state)
    assert rates["head.own_step.scale_by_learning_rate.learning_rate"] == np.float32(0.1)
    assert rates["body.scale_by_learning_rate.learning_rate"] < 0.06


def test_without_an_own_step_adam_s_steps_are_up_to_six_times_too_long():
    """Moments of k equal gradients, taken for those of many: what `reset` says of it."""
    tx = optfn.adam(1.0)
    params, g = jnp.zeros(()), jnp.ones(())
    old = tx.init(params)._replace(step=jnp.int32(10**6))
    state, steps = optfn.reset(tx, old, params, "scale_by_adam"), []
    for _ in range(30):
        update, state = tx.update(g, state, params)
        steps.append(-float(update))
    k = np.arange(1, 31)
    np.testing.assert_allclose(steps, (1 - 0.9**k) / np.sqrt(1 - 0.999**k), rtol=1e-4)
    assert round(max(steps), 1) == 6.6


CLIMB = optfn.chain(optfn.trace(0.5), optfn.sgd(0.1))
PLACES = {
    "a stage of a chain": (optfn.chain(optfn.trace(0.9), optfn.adam(0.1)), "trace"),
    "by its own name": (optfn.chain(optfn.trace(0.9).named("slow"), optfn.sgd(0.1, 0.9)), "slow"),
    "in a group": (TX, "body.trace"),
    "by its whole name": (TX, "partition.body.scale_by_adam"),
    "a whole partition": (TX, "partition"),
    "in a named chain": (optfn.chain(optfn.sgd(0.1, 0.9).named("x")), "x.trace"),
    "in accumulate": (optfn.accumulate(optfn.adam(0.1), 2), "scale_by_adam"),
    "in skip_nonfinite": (optfn.skip_nonfinite(optfn.sgd(0.1, 0.9)), "trace"),
    "in an average": (optfn.ema_nesterov(optfn.sgd(0.1, 0.9), 0.9, 0.5), "trace"),
    "in mechanize": (optfn.mechanize(optfn.adam(0.1)), "scale_by_adam"),
    "one of two fields": (optfn.sam(optfn.sgd(0.1, 0.9), CLIMB), "adv_optimizer.trace"),
    "frozen": (optfn.freeze(optfn.adam(0.1), {"body": True, "head": False}), "scale_by_adam"),
}


@pytest.mark.parametrize("place", PLACES)
def test_only_what_is_named_starts_anew(place):
    tx, name = PLACES[place]
    fresh = tx.init(PARAMS)
    state = jax.tree.map(lambda x: x + 1 if x.dtype != bool else ~x, fresh)
    anew = optfn.reset(tx, state, PARAMS, name)
    chex.assert_trees_all_equal_structs(anew, state)
    # SAM's slots have another name for it.
    names = {part.replace("adv_optimizer", "adversary") for part in name.split(".")}
    before, after, start = (
        jax.tree_util.tree_flatten_with_path(s)[0] for s in (state, anew, fresh)
    )
    inside = 0
    for (path, old), (_, new), (_, first) in zip(before, after, start, strict=True):
        named = names <= {getattr(key, "key", getattr(key, "name", None)) for key in path}
        assert_same_bits(new, first if named else old)
        inside += named
    assert 0 < inside < len(before)


WIDER = PARAMS | {"head": {"w": jnp.ones((3, 3))}}
DOTTED = optfn.partition({"enc.head": optfn.adam(0.1)}, "enc.head")


def test_a_label_with_a_dot_is_given_whole():
    state = jax.tree.map(lambda x: x + 1, DOTTED.init(PARAMS))
    anew = optfn.reset(DOTTED, state, PARAMS, "enc.head")
    assert_same_bits(anew.slots, DOTTED.init(PARAMS).slots)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: optfn.reset(TX, TX.init(PARAMS), PARAMS, "tail"),
            ValueError,
            "'tail' is no group or stage with a state; there are: partition, partition.body, "
            "partition.body.trace, partition.body.scale_by_adam, partition.head, "
            "partition.head.own_step, partition.head.own_step.scale_by_adam.",
        ),
        (
            lambda: optfn.reset(TX, TX.init(PARAMS), PARAMS, "scale_by_adam"),
            ValueError,
            "'scale_by_adam' is ambiguous; say which: partition.body.scale_by_adam, partition.head",
        ),
        (
            lambda: optfn.reset(optfn.sgd(0.1), optfn.sgd(0.1).init(PARAMS), PARAMS, "trace"),
            ValueError,
            "'trace' is no group or stage with a state; there are: none.",
        ),
        (
            lambda: optfn.reset(TX, HEAD.init(PARAMS), PARAMS, "head"),
            ValueError,
            "the state is not one of this optimizer and params.",
        ),
        (lambda: optfn.reset(TX, PARAMS, TX, "head"), TypeError, "found dict."),
        (
            lambda: optfn.reset(TX, TX.init(PARAMS), WIDER, "body"),
            ValueError,
            "'body' leaves the state's 'slots/partition/head/own_step/slots/scale_by_adam/mu/head"
            "/w' as it is, of shape (2, 1), and the params want (3, 3).",
        ),
        (
            lambda: optfn.reset(DOTTED, DOTTED.init(PARAMS), PARAMS, "head"),
            ValueError,
            "'head' is no group or stage with a state; there are: partition, partition.enc.head, ",
        ),
        (
            lambda: optfn.reset("adam", None, PARAMS, "x"),
            TypeError,
            "reset(tx=...) must be an optfn transform",
        ),
    ],
)
def test_what_cannot_be_reset_is_said(call, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        call()
