"""Numbers by path: what a partition of optimizers would do, with one state and one program."""

import dataclasses
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import by_path, schedules, times
from optfn.core.data import kind_of
from optfn.core.leafwise import Leafwise

PARAMS = {
    "body": {"w": jnp.asarray([[1.0, -2.0], [0.5, 0.25], [-1.5, 3.0]]), "b": jnp.asarray([0.5, 2])},
    "head": {"w": jnp.asarray([[0.3, -0.4], [2.0, 1.0], [0.7, -1.0]]), "b": jnp.asarray([1.0, -1])},
}
GRADS = jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, PARAMS)


def run(tx, params=PARAMS, grads=GRADS, steps=2):
    """Op by op, so that all ways round alike."""
    with jax.disable_jit():
        state = tx.init(params)
        for i in range(steps):
            scaled = jax.tree.map(lambda g, i=i: g / (1 + i), grads)
            params, state = optfn.step(tx, params, scaled, state)
    return params, state


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))


WAYS = {
    "adamw": (
        lambda rate, decay, b2: optfn.adamw(rate, b2=b2, weight_decay=decay),
        ["learning_rate", "weight_decay", "b2"],
    ),
    "lion": (
        lambda rate, decay, b2: optfn.lion(rate, b2=b2, weight_decay=decay),
        ["learning_rate", "weight_decay", "b2"],
    ),
    "adan": (
        lambda rate, decay, b2: optfn.adan(rate, b2=b2, weight_decay=decay),
        ["learning_rate", "weight_decay", "b2"],
    ),
    "muon": (
        lambda rate, decay, beta: optfn.muon(
            rate, beta=beta, weight_decay=decay, rest=optfn.adamw(rate, weight_decay=decay)
        ),
        ["learning_rate", "weight_decay", "ema.decay"],
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_it_is_what_a_partition_does_where_leaves_stand_alone(name):
    make, (rate, decay, beta) = WAYS[name]
    own = (schedules.linear(0.1, 0.05, 9), 0.01, 0.95)
    tx = optfn.param_groups(
        make(*own),
        {
            "head/**": {rate: 0.03, decay: 0.0},
            "body/w": {rate: times(0.5), beta: schedules.constant(0.8)},
        },
    )
    parts = {
        "head": make(0.03, 0.0, 0.95),
        "body/w": make(schedules.linear(0.05, 0.025, 9), 0.01, 0.8),
        "rest": make(*own),
    }
    labels = by_path({"head/**": "head", "body/w": "body/w"}, "rest")
    params, state = run(tx)
    assert_same_bits(params, run(optfn.partition(parts, labels))[0])
    assert jax.tree.structure(state) == jax.tree.structure(make(*own).init(PARAMS))


def numbers(tx, outer=()):
    """The qualified names of all numbers of rules for leaves, with their values."""
    outer = (*outer, tx.name) if tx.name else outer
    for field in dataclasses.fields(tx):
        value = getattr(tx, field.name)
        mine = isinstance(tx, Leafwise) and kind_of(field) == "number"
        if mine and value is not None and not field.metadata.get("is_one"):
            yield ".".join((*outer, field.name)), value
    holders = list(tx.fields("child"))
    for field, value in holders:
        around = outer if len(holders) == 1 else (*outer, field)
        many = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value if type(value) is tuple else [value])
        )
        for label, inner in many:
            yield from numbers(inner, (*around, label) if isinstance(value, dict) else around)


EVERY = cases.OPTIMIZERS | cases.STAGES


def grouped(tx):
    """With every number by its qualified name and with its own value, or once."""
    own = {k: x for k, x in numbers(tx) if isinstance(x, float)}
    return optfn.param_groups(tx, {"w": own, "b": dict.fromkeys(own, times(1.0))}) if own else None


def test_every_number_of_every_optimizer_may_differ():
    seen = 0
    for name, tx in EVERY.items():
        own, new = dict(numbers(tx)), grouped(tx)
        constant = [x for x in own.values() if isinstance(x, float)]
        seen += len(constant)
        if constant:
            before, after = len(jax.tree.leaves(tx)), len(jax.tree.leaves(new))
            assert after == before + 2 * len(constant), name
    assert seen > 400


@pytest.mark.slow
def test_with_its_own_numbers_every_optimizer_is_the_same_program():
    params = {"w": PARAMS["body"]["w"], "b": PARAMS["body"]["b"]}
    seen = 0
    for name, tx in EVERY.items():
        new = grouped(tx)
        if new is None or name == "flatten":  # which has no paths
            continue
        seen += 1
        forms = [jax.tree.structure(jax.eval_shape(x.init, params)) for x in (tx, new)]
        assert forms[0] == forms[1], name
        traced = [trace_of(x, params, cases.EXTRA_ARGS.get(name, {})) for x in (tx, new)]
        assert traced[0] == traced[1], name
    assert seen > 90


def trace_of(tx, params, extra_args):
    """The program of an update, in which known numbers are constants."""
    grads = jax.tree.map(lambda p: 0.5 * p + 0.1, params)
    given = extra_args(grads, params) if callable(extra_args) else extra_args
    state = jax.eval_shape(tx.init, params)
    text = str(jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p, **given))(grads, state, params))
    return re.sub(r"0x[0-9a-f]+", "", text)


def test_a_bias_of_the_head_has_the_numbers_of_both():
    tx = optfn.param_groups(
        optfn.adamw(1e-3, weight_decay=0.1),
        {"**/b": {"weight_decay": 0.0}, "head/**": {"learning_rate": times(10), "weight_decay": 1}},
    )
    rows = {
        row.path: (row.learning_rate, row.weight_decay) for row in optfn.summary(tx, PARAMS).rows
    }
    assert rows == {
        "body/b": (pytest.approx(1e-3), 0.0),
        "body/w": (pytest.approx(1e-3), pytest.approx(0.1)),
        "head/b": (pytest.approx(1e-2), 0.0),
        "head/w": (pytest.approx(1e-2), 1.0),
    }


def test_the_first_pattern_decides_by_whatever_name():
    groups = {
        "head/b": {"scale_by_learning_rate.learning_rate": 0.3},
        "head/**": {"learning_rate": 0.2},
        "**/b": {"scale_by_learning_rate.learning_rate": 0.1},
    }
    rows = optfn.summary(optfn.param_groups(optfn.adamw(1e-3), groups), PARAMS).rows
    rates = {row.path: row.learning_rate for row in rows}
    assert rates == pytest.approx({"body/b": 0.1, "body/w": 1e-3, "head/b": 0.3, "head/w": 0.2})


def test_a_multiple_follows_the_number_that_it_multiplies():
    tx = optfn.param_groups(
        optfn.sgd(schedules.linear(0.1, 0.0, 10)), {"head/**": {"learning_rate": times(3)}}
    )
    state = tx.init(PARAMS)._replace(step=jnp.int32(5))
    values = optfn.hyperparameters(tx, state)
    assert list(values) == [
        "scale_by_learning_rate.learning_rate.default",
        "scale_by_learning_rate.learning_rate.head/**.factor",
    ]
    np.testing.assert_allclose(values["default"], 0.05, rtol=1e-6)
    tx = optfn.replace(tx, init_value=0.2)
    updates, _ = tx.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(updates["body"]["w"], -0.1 * GRADS["body"]["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["w"], -0.3 * GRADS["head"]["w"], rtol=1e-6)


def test_every_number_is_a_leaf_of_one_program():
    tx = optfn.param_groups(
        optfn.adamw(1e-3),
        {"head/**": {"learning_rate": 1e-2}, "body/b": {"learning_rate": times(2.0)}},
    )
    step = jax.jit(optfn.step)
    state = tx.init(PARAMS)
    found = []
    for value in ({"default": 1e-3}, {"head/**": 0.5}, {"body/b.factor": 5.0}):
        ((name, number),) = value.items()
        new = optfn.replace(tx, **{f"learning_rate.{name}": number})
        found.append(step(new, PARAMS, GRADS, state)[0])
        rates = optfn.summary(new, PARAMS).rows
        for row in rates:
            one, part = row.path.split("/")
            moved = np.abs(np.asarray(found[-1][one][part] - PARAMS[one][part])).max()
            assert moved == pytest.approx(row.learning_rate, rel=2e-2)
    assert step._cache_size() == 1


def test_a_batch_and_a_derivative_go_through_every_number():
    def make(scale):
        return optfn.sgd(by_path({"head/**": times(scale), "body/b": 0.2 * scale}, 0.1))

    def moved(tx):
        return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]

    several = optfn.stack([make(s) for s in (1.0, 2.0, 3.0)])
    together = jax.vmap(moved, in_axes=(optfn.in_axes(several),))(several)
    for i, one in enumerate(optfn.unstack(several)):
        assert_same_bits(jax.tree.map(lambda x, i=i: x[i], together), moved(one))
    slope = jax.grad(lambda s: jnp.sum(moved(make(s))["head"]["w"]))(jnp.float32(2.0))
    np.testing.assert_allclose(slope, -0.1 * jnp.sum(GRADS["head"]["w"]), rtol=1e-6)


def test_what_is_printed_builds_it_again():
    names = {name: getattr(optfn, name) for name in ("by_path", "times", "chain")}
    names |= {stage: getattr(optfn, stage) for stage in ("scale_by_learning_rate", "trace")}
    tx = optfn.param_groups(
        optfn.sgd(schedules.linear(0.1, 0.0, 10), 0.9),
        {"z/**": {"learning_rate": times(3)}, "a": {"learning_rate": 0.5, "decay": 0.8}},
    )
    again = eval(repr(tx), names | {"schedules": schedules})
    assert repr(again) == repr(tx)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    assert jax.tree.leaves(again) == jax.tree.leaves(tx)


def test_groups_are_added_to_groups():
    first = {"head/**": {"learning_rate": 0.5}}
    tx = optfn.param_groups(optfn.sgd(0.1), first)
    tx = optfn.param_groups(tx, {"head/b": {"learning_rate": times(2)}})
    rates = [row.learning_rate for row in optfn.summary(tx, PARAMS).rows]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.5])


def test_groups_leave_names_alone():
    tx = optfn.chain(optfn.trace(0.9).named("fast"), optfn.sgd(0.1))
    tx = optfn.param_groups(tx, {"head/**": {"fast.decay": 0.5}})
    assert "fast" in tx.init(PARAMS).slots
    assert optfn.replace(tx, **{"fast.decay.head/**": 0.2})


ADAMW = optfn.adamw(1e-3)


@pytest.mark.parametrize(
    ("tx", "groups", "sentence"),
    [
        (
            ADAMW,
            {"head/**": {"learning_rat": 1}},
            "named 'learning_rat'. Did you mean 'learning_ra",
        ),
        (
            ADAMW,
            {"head/**": {"peak_value": 1}},
            "named 'peak_value'. There are: b1, b2, eps, eps_r",
        ),
        (
            ADAMW,
            {"head/**": {"nesterov": True}},
            "changes the program: give leaves an optimizer of",
        ),
        (
            ADAMW,
            {"head/**": {"learning_rate": "x"}},
            "at 'head/**' must be a number or an array, f",
        ),
        (
            ADAMW,
            {"head/**": {"learning_rate": True}},
            "at 'head/**' is a number, found the bool Tr",
        ),
        (ADAMW, {"head/**": {"learning_rate": None}}, "'head/**' has None for a value"),
        (ADAMW, {"head/**": 0.1}, "'head/**' must have a dict {name: value}, found 0.1."),
        (ADAMW, {"head/**": {3: 0.1}}, "'head/**' must have text for names, found 3."),
        (ADAMW, {}, "must be a dict {pattern: {name: value}}, found {}."),
        (ADAMW, {3: {"learning_rate": 1}}, "patterns are strings, found 3."),
        (optfn.prodigy(), {"head/**": {"learning_rate": 1}}, "prodigy.learning_rate is one number"),
        (
            optfn.clip_by_global_norm(1),
            {"head/**": {"max_norm": 1}},
            "max_norm is one number for al",
        ),
        (optfn.noisy_sgd(0.1), {"head/**": {"seed": 1}}, "seed=...) is one number for all leaves"),
        (
            optfn.sam(optfn.sgd(0.1), optfn.sgd(0.05)),
            {"head/**": {"learning_rate": 1}},
            "a leaf has several numbers of this name: sam.optimizer.scale_by_learning_r"
            "ate.learning_rate, sam.adv_optimizer.scale_by_learning_rate.learning_rate.",
        ),
        (
            optfn.scale_by_layer_decay(0.5, 2),
            {"head/**": {"decay": times(3)}},
            "decay=...) must be from 0 to 1, found 1.5.",
        ),
        (3, {"head/**": {"decay": 3}}, "param_groups(transform=...) must be an optfn transform"),
    ],
)
def test_what_cannot_be_is_said(tx, groups, sentence):
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        optfn.param_groups(tx, groups)


def test_patterns_that_match_nothing_are_said():
    tx = optfn.param_groups(ADAMW, {"haed/**": {"learning_rate": 1}})
    with pytest.raises(ValueError, match=r"no leaf matches 'haed/\*\*'; .* did you mean 'head'\?"):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"adamw\(weight_decay=...\): no pattern matches 'body/b'"):
        optfn.adamw(1e-3, weight_decay=by_path({"**/w": 0.1})).init(PARAMS)


def test_where_no_path_is_seen_it_is_refused():
    with pytest.raises(ValueError, match=r"adam has a number by path \(b1\)"):
        optfn.flatten(optfn.param_groups(ADAMW, {"head/**": {"b1": 0.5}}))
    with pytest.raises(TypeError, match=r"at 'a' is times\(.*\), and by_path has no default"):
        optfn.sgd(by_path({"a": times(2)}))
    with pytest.raises(ValueError, match=r"at 'default': among hyperparameters this is the name"):
        optfn.sgd(by_path({"default": 0.5}, 0.1))
    with pytest.raises(TypeError, match=r"freeze\(mask=...\): every value must hash"):
        optfn.freeze(optfn.sgd(0.1), by_path({"a": jnp.asarray(True)}))


def test_a_rate_that_is_too_small_for_some_leaves_is_a_warning():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    with pytest.warns(UserWarning, match="learning_rate is 1e-05.*the params 'head/b' and 1 more"):
        optfn.param_groups(optfn.sgd(0.1), {"head/**": {"learning_rate": 1e-5}}).init(params)
