"""Groups of leaves: named by patterns of their paths, each trained as if it were alone."""

import dataclasses
import pickle
import re
from functools import partial

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import strategies as st

import optfn
from optfn import by_path, schedules

PARAMS = {
    "embed": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 3.0]])},
    "layers_0": {"kernel": jnp.asarray([[0.3, 1.5], [-0.5, 2.0]]), "bias": jnp.asarray([0.5, -1])},
    "head": {"kernel": jnp.asarray([[-1.0], [4.0]]), "bias": jnp.asarray([2.0])},
}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)
GROUPS = by_path({"embed/**": "frozen", "**/bias": "plain", "head/**": "fast"}, default="slow")
PATHS = {
    "frozen": ["embed/kernel"],
    "plain": ["head/bias", "layers_0/bias"],
    "fast": ["head/kernel"],
    "slow": ["layers_0/kernel"],
}


def leaves_of(tree, paths):
    return {path: tree[path.split("/")[0]][path.split("/")[1]] for path in paths}


def run(tx, params, steps=4, grads_of=lambda p: jax.tree.map(lambda p: 0.5 * p + 0.1, p)):
    """Op by op, so that the bits do not depend on what is compiled together."""
    with jax.disable_jit():
        state = tx.init(params)
        for _ in range(steps):
            params, state = optfn.step(tx, params, grads_of(params), state)
    return params, state


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("dense/kernel", "dense/kernel", True),
        ("dense/kernel", "dense/kernels", False),
        ("*/kernel", "dense/kernel", True),
        ("*/kernel", "net/dense/kernel", False),
        ("**/kernel", "net/dense/kernel", True),
        ("**/kernel", "kernel", True),
        ("net/**", "net/dense/kernel", True),
        ("net/**", "network/kernel", False),
        ("net/**/kernel", "net/kernel", True),
        ("layers_[0-3]/*", "layers_2/bias", True),
        ("layers_[0-3]/*", "layers_12/bias", False),
        ("layers_?/*", "layers_2/bias", True),
        ("layers/0/*", "layers/0/weight", True),
        ("**", "", True),
        ("*", "", False),
        ("Dense.*", "Densex", False),
        ("layer[0]", "layer[0]", True),
        ("net/layer[0]/*", "net/layer[0]/bias", True),
        ("**/layer[0]", "net/layer[0]", True),
        ("layer[0]", "layer0", True),
        ("layer[0]", "layer[1]", False),
        ("layer[0]*", "layer[0]s", False),
        ("layer[[]?]*", "layer[0]s", True),
    ],
)
def test_a_pattern_goes_entry_by_entry(pattern, path, matches):
    assert by_path({pattern: True}, default=False)(path, None) is matches


ENTRIES = st.lists(st.sampled_from(["a", "b", "ab", "bb"]), min_size=1, max_size=5)
PATTERNS = st.lists(st.sampled_from(["**", "*", "a", "?b", "[ab]", "a*"]), min_size=1, max_size=5)
AS_REGEX = {"**": "(?:[^/]*/)*", "*": "[^/]*/", "?b": "[^/]b/", "[ab]": "[ab]/", "a*": "a[^/]*/"}


@hypothesis.given(st.lists(PATTERNS, min_size=1, max_size=3), ENTRIES)
def test_the_first_pattern_that_matches_decides(patterns, entries):
    regexes = ["".join(AS_REGEX.get(entry, f"{entry}/") for entry in p) for p in patterns]
    hits = [i for i, regex in enumerate(regexes) if re.fullmatch(regex, "/".join(entries) + "/")]
    texts = ["/".join(pattern) for pattern in patterns]
    labels = {}
    for i, text in enumerate(texts):
        labels.setdefault(text, i)
    assert by_path(labels, default=-1)("/".join(entries), None) == next(iter(hits), -1)


@hypothesis.given(st.text("ab/*?[]!-\n", max_size=12))
def test_a_path_is_a_pattern_of_itself(path):
    assert by_path({path: True}, default=False)(path, None) is True


@hypothesis.given(st.lists(PATTERNS, min_size=1, max_size=4), st.lists(ENTRIES, min_size=1))
def test_a_pattern_that_decides_for_no_leaf_is_refused(patterns, leaves):
    texts = list(dict.fromkeys("/".join(pattern) for pattern in patterns))
    tree = {"/".join(leaf): jnp.ones(1) for leaf in leaves}
    labels = by_path({text: text for text in texts}, default="none")
    idle = set(texts) - {labels(path) for path in tree}
    tx = optfn.freeze(optfn.sgd(0.1), by_path(dict.fromkeys(texts, True), default=False))
    if idle:
        with pytest.raises(ValueError, match="no leaf") as caught:
            tx.init(tree)
        assert any(repr(text) in str(caught.value) for text in idle)
    else:
        tx.init(tree)


def test_it_equals_another_of_the_same_content_and_prints_as_what_makes_it():
    again = by_path(dict(GROUPS.patterns), default="slow")
    for other in (again, pickle.loads(pickle.dumps(GROUPS)), eval(repr(GROUPS))):
        assert other is not GROUPS and other == GROUPS and hash(other) == hash(GROUPS)
    assert repr(by_path({"a": 1})) == "by_path({'a': 1})"
    assert by_path({"a": 1}) != by_path({"a": True}), "a depth is no mask"
    assert by_path({"**": 1, "a": 0}) != by_path({"a": 0, "**": 1}), "the first decides"
    assert by_path({"a": 1}) != by_path({"a": 1}, default=0)


def grouped(slow=0.01, plain=0.1):
    """Groups with a rate, a decay, a clip, a momentum or a schedule of their own."""
    return {
        "slow": optfn.chain(
            optfn.clip_by_global_norm(0.5), optfn.adamw(slow, weight_decay=0.1).named("adamw")
        ),
        "plain": optfn.adam(schedules.linear(plain, 0.0, 6)),
        "fast": optfn.chain(optfn.clip_by_norm(schedules.linear(0.0, 1.0, 3)), optfn.sgd(0.5, 0.9)),
        "frozen": optfn.set_to_zero(),
    }


def test_an_optimizer_built_anew_does_not_compile_again():
    traces = []

    @jax.jit
    def update(tx, state):
        traces.append(None)
        return tx.update(GRADS, state, PARAMS)

    for rate in (0.01, 0.02, 0.03):
        labels = by_path(dict(GROUPS.patterns), default="slow")
        tx = optfn.partition(grouped(slow=rate, plain=10 * rate), labels)
        tx = optfn.replace(
            tx,
            **{
                "plain.scale_by_learning_rate.learning_rate.init_value": rate,
                "fast.trace.decay": 0.5,
            },
        )
        state = tx.init(PARAMS)
        update(tx, state)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("patterns", "default", "sentence"),
    [
        (
            {"embed/*": "slow", "encoder/**": "fast", "*/weight": "fast"},
            "slow",
            "partition(labels=...): no leaf matches 'encoder/**', '*/weight'; there are "
            "'embed/kernel', 'head/bias', 'head/kernel', 'layers_0/bias', 'layers_0/kernel'.",
        ),
        (
            {"*/kernel": "slow"},
            None,
            "partition(labels=...): no pattern matches 'head/bias', 'layers_0/bias', and by_path "
            "has no default.",
        ),
        (
            {"**/bias": "slow", "embed/*": "slow", "head/bias": "fast", "*/kernel": "fast"},
            None,
            "partition(labels=...): 'head/bias' decides for no leaf, as all that it matches are "
            "taken by '**/bias' before it.",
        ),
        (
            {"head/*": "slow", "*/kernel": "fast", "**/bias": "slow", "l*/*": "fast"},
            None,
            "partition(labels=...): 'l*/*' decides for no leaf, as all that it matches are taken "
            "by '**/bias', '*/kernel' before it.",
        ),
    ],
)
def test_patterns_and_leaves_that_do_not_meet_are_named(patterns, default, sentence):
    tx = optfn.partition(
        {"slow": optfn.sgd(0.1), "fast": optfn.sgd(1.0)}, by_path(patterns, default)
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tx.update(GRADS, optfn.State(jnp.int32(0), {}), PARAMS)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: by_path({}), "by_path(patterns=...) must be a dict"),
        (lambda: by_path("*/bias"), "must be a dict {pattern: value}, found '*/bias'."),
        (lambda: by_path({3: "x"}), "by_path(patterns=...): patterns are strings, found 3."),
        (lambda: by_path({"a": ["x"]}), "every value must hash"),
        (lambda: by_path({"a": None}, "x"), "by_path(patterns=...): 'a' has None for a value."),
        (
            lambda: optfn.freeze(optfn.sgd(0.1), by_path({"**": "x"})).init(PARAMS),
            "freeze(mask=...) at 'embed/kernel' must be a bool, found 'x'.",
        ),
    ],
)
def test_what_is_no_pattern_or_no_value_is_refused(make, sentence):
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        make()


def test_a_pattern_may_match_leaves_of_other_groups_or_that_are_none():
    """Inside a group only None stands in their places."""
    decays = by_path({"head/kernel": True, "**/bias": False}, default=True)
    tx = optfn.partition(
        {"a": optfn.adamw(0.1, mask=decays), "b": optfn.sgd(0.1)},
        by_path({"embed/**": "a", "layers_*/**": "a"}, default="b"),
    )
    tx.init(PARAMS)
    tx.init(PARAMS | {"head": {"kernel": None, "bias": jnp.ones(1)}})
    tx.init({})


# Groups.


def test_every_group_is_trained_as_if_it_were_alone_bit_for_bit():
    params, state = run(optfn.partition(grouped(), GROUPS), PARAMS)
    for label, tx in grouped().items():
        alone, own = run(tx, leaves_of(PARAMS, PATHS[label]))
        assert_same_bits(leaves_of(params, PATHS[label]), alone)
        if label != "frozen":
            slots = jax.tree.leaves(state.slots["partition"][label])
            assert_same_bits(slots, jax.tree.leaves(own.slots))
    assert_same_bits(params["embed"], PARAMS["embed"])
    assert not np.array_equal(params["head"]["kernel"], PARAMS["head"]["kernel"])


def test_hyperparameters_are_read_and_replaced_by_group():
    tx = optfn.partition(grouped(), GROUPS)
    read = optfn.hyperparameters(tx, tx.init(PARAMS))
    assert read["plain.scale_by_learning_rate.learning_rate"] == np.float32(0.1)
    assert read["partition.fast.clip_by_norm.max_norm"] == 0
    changed = optfn.replace(tx, **{"fast.scale_by_learning_rate.learning_rate": 0.25})
    before, after = run(tx, PARAMS)[0], run(changed, PARAMS)[0]
    for label, paths in PATHS.items():
        old, new = (leaves_of(tree, paths) for tree in (before, after))
        assert all(np.array_equal(old[path], new[path]) for path in paths) == (label != "fast")


# Zeros.


def test_set_to_zero_is_for_leaves_of_any_dtype_and_removes_nans():
    params = {"n": jnp.arange(3), "b": jnp.asarray([True]), "h": jnp.ones(2, jnp.bfloat16)}
    grads = {
        "n": jnp.ones(3, int),
        "b": jnp.asarray([True]),
        "h": jnp.full(2, jnp.nan, jnp.bfloat16),
    }
    tx = optfn.set_to_zero()
    assert not jax.tree.leaves(tx) and not jax.tree.leaves(tx.init(params).slots)
    for update in (tx.update, jax.jit(tx.update)):
        updates, _ = update(grads, tx.init(params), params)
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            assert (u.shape, u.dtype) == (g.shape, g.dtype) and not u.any()
    assert_same_bits(optfn.step(tx, params, grads, tx.init(params))[0], params)


def train_step(tx, loss):
    def step(params, state):
        return optfn.step(tx, params, jax.grad(loss)(params), state)

    return step


BIG = jnp.full((37, 41), -0.0)  # of a shape that nothing else has, and with signs to lose


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_step_costs_what_it_costs_without_the_frozen_leaves(dtype):
    params = {"frozen": BIG.astype(dtype), "trained": jnp.ones((5, 3), dtype)}
    groups = {"no": optfn.set_to_zero(), "yes": optfn.adam(0.1)}
    costs = []
    for tx, own in (
        (optfn.adam(0.1), {"trained": params["trained"]}),
        (optfn.freeze(optfn.adam(0.1), by_path({"frozen": True}, default=False)), params),
        (optfn.partition(groups, by_path({"frozen": "no", "trained": "yes"})), params),
    ):
        step = jax.jit(partial(optfn.step, tx), donate_argnums=(0, 2))
        state = tx.init(own)
        compiled = step.lower(own, own, state).compile()
        costs.append([compiled.cost_analysis()[k] for k in ("flops", "bytes accessed")])
        assert len(jax.tree.leaves(state)) == 3
    (flops, size), *others = costs
    # Eight bytes are the leaf's pointer among the results; the leaf itself has 6 kB.
    assert others == [[flops, size + 8]] * 2
    grads, own = (jax.tree.map(jnp.copy, params) for _ in range(2))
    assert_same_bits(step(own, grads, state)[0]["frozen"], params["frozen"])


def test_the_gradient_of_frozen_leaves_is_never_computed():
    def loss(params):
        return jnp.sum(jnp.tanh(jnp.ones((5, 37)) @ params["frozen"]) @ params["trained"])

    def operations(tx):
        params = {"frozen": BIG, "trained": jnp.ones((41, 3))}
        step = jax.jit(train_step(tx, loss), donate_argnums=(0, 1))
        text = step.lower(params, tx.init(params)).compile().as_text()
        return set(re.findall(r"= f32\[37,41\]\S* ([\w-]+)\(", text))

    assert operations(optfn.sgd(0.1)) > {"parameter"}
    assert operations(optfn.freeze(optfn.sgd(0.1), {"frozen": True, "trained": False})) == {
        "parameter"
    }


# Trees.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Halves:
    first: object
    second: object


class Callable(eqx.Module):
    first: object
    second: object

    def __call__(self, x):
        return x


class Part(nnx.Module):
    def __init__(self, **arrays):
        for name, x in arrays.items():
            setattr(self, name, nnx.Param(x))


class Network(nnx.Module):
    def __init__(self, first, second):
        self.first, self.second = Part(**first), Part(**second)


W, B, H = (jnp.asarray(x) for x in ([[1.0, -2.0]], [0.5, 3.0], [2.0]))
TREES = {
    "dict": {"first": {"w": W, "b": B}, "second": {"w": H}},
    "FrozenDict": FrozenDict({"first": {"w": W, "b": B}, "second": {"w": H}}),
    "lists, tuples, None": {"first": [W, None, B], "second": (None, H, {})},
    "dataclass": Halves({"w": W, "b": B}, [H]),
    "Equinox module": Callable(Callable(W, B), Callable(None, H)),
    "NNX State": nnx.state(Network({"w": W, "b": B}, {"w": H})),
}


@pytest.mark.parametrize("name", TREES)
def test_groups_of_any_tree(name):
    params = TREES[name]
    grads = jax.tree.map(lambda p: 0.5 * p + 0.1, params)
    first, second = optfn.adam(0.1), optfn.sgd(0.1, 0.9)
    labels = by_path({"first/**": "first", "second/**": "second"})
    mask = by_path({"first/**": True}, default=False)
    with jax.disable_jit():
        got = [
            optfn.step(tx, params, grads, tx.init(params))[0]
            for tx in (
                optfn.partition({"first": first, "second": second}, labels),
                optfn.freeze(second, mask),
                optfn.chain(optfn.masked(optfn.scale_by_adam(), mask), second),
            )
        ]
    *w_and_b, h = jax.tree.leaves(params)

    def alone(tx, leaves):
        return jax.tree.leaves(run(tx, leaves, steps=1)[0])

    wanted = [
        alone(first, w_and_b) + alone(second, [h]),
        w_and_b + alone(second, [h]),
        alone(optfn.chain(optfn.scale_by_adam(), second), w_and_b) + alone(second, [h]),
    ]
    for ours, leaves in zip(got, wanted, strict=True):
        assert_same_bits(ours, jax.tree.unflatten(jax.tree.structure(params), leaves))


# What a line search is given.


class sharpness_step(optfn.Transform):
    """Follows the gradient of a loss at the params that it is given a function of."""

    extra_args = {"grad_fn": "tree function", "value_fn": "function", "grad": "tree"}  # noqa: RUF012
    needs_params = True

    def apply(self, updates, slots, ctx):
        there = jax.tree.map(lambda p, g: p + 0.1 * g, ctx.params, ctx.extra_args["grad"])
        lower = ctx.extra_args["value_fn"](there) < ctx.extra_args["value_fn"](ctx.params)
        grads = ctx.extra_args["grad_fn"](there)
        return jax.tree.map(lambda g: jnp.where(lower, -g, -2 * g), grads), slots


def test_trees_and_functions_of_a_search_are_about_its_group():
    def value_fn(p):
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(p)) * jnp.sum(p["head"]["bias"])

    tx = optfn.partition(
        {"search": sharpness_step(), "rest": optfn.sgd(0.1)},
        by_path({"layers_0/**": "search"}, default="rest"),
    )
    grads = jax.grad(value_fn)(PARAMS)
    given = {"value_fn": value_fn, "grad_fn": jax.grad(value_fn), "grad": grads}
    updates, _ = jax.jit(lambda s: tx.update(grads, s, PARAMS, **given))(tx.init(PARAMS))
    moved = jax.tree.map(lambda p, g: p + 0.1 * g, PARAMS["layers_0"], grads["layers_0"])
    wanted = jax.grad(value_fn)(PARAMS | {"layers_0": moved})["layers_0"]
    for key, g in wanted.items():
        np.testing.assert_allclose(updates["layers_0"][key], -2 * g, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["bias"], -0.1 * grads["head"]["bias"], rtol=1e-6)


# Rates by depth.


def test_rates_fall_with_the_layers_above():
    """BEiT's table: embeddings at depth 0, layer i at i + 1, the head last."""
    layers = 3
    params = {"embed": jnp.ones(2), "head": jnp.ones(2)} | {
        f"layers_{i}": {"attn": {"kernel": jnp.ones(2)}, "bias": jnp.ones(1)} for i in range(layers)
    }
    above = by_path(
        {"embed": layers + 1, "head": 0} | {f"layers_{i}/**": layers - i for i in range(layers)}
    )

    def updates(decay):
        tx = optfn.chain(
            optfn.scale_by_layer_decay(decay, above), optfn.scale_by_learning_rate(1.0)
        )
        return tx.update(params, tx.init(params), params)[0]

    decays = jnp.asarray([0.0, 0.65, 1.0])
    swept = jax.vmap(updates)(decays)
    depths = {"embed": 0, "head": layers + 1} | {f"layers_{i}": i + 1 for i in range(layers)}
    for name, depth in depths.items():
        for u in jax.tree.leaves(swept[name]):
            wanted = -(np.float64(decays)[:, None] ** (layers + 1 - depth)) * np.ones(u.shape)
            np.testing.assert_allclose(u, wanted, rtol=1e-6)
    one = updates(schedules.constant(0.65))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[1], rtol=1e-7), one, swept)


@pytest.mark.parametrize(
    ("layers_above", "error", "sentence"),
    [
        (None, TypeError, "layers_above=...) must be a tree or a function"),
        (by_path({"embed/*": -1}, default=0), ValueError, "must not be below 0, found -1."),
        (by_path({"**": 0.5}), TypeError, "at 'embed/kernel' must be a int, found 0.5."),
        (by_path({"**": True}), TypeError, "at 'embed/kernel' is a whole number, found the bool T"),
        (lambda path, leaf: "head" in path, TypeError, "'embed/kernel' is a whole number, found"),
        ({"embed": 1, "head": False, "layers_0": 0}, TypeError, "'head' is a whole number, found"),
        (np.bool_(True), TypeError, "at the root is a whole number, found the bool True."),
    ],
)
def test_layers_above_are_counted(layers_above, error, sentence):
    with pytest.raises(error) as caught:
        tx = optfn.scale_by_layer_decay(0.5, layers_above)
        tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert sentence in str(caught.value)
    if error is ValueError:
        assert "embed/kernel" in "".join(caught.value.__notes__)
