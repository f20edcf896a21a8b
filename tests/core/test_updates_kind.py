"""Which way updates point: an algebra over all that is public, and held against the truth."""

import functools
import inspect
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optfn
from optfn import Updates
from optfn.core.updates_kind import check_root, either

# An algebra, and its truth, which on the oldest versions is that every optimizer descends.
pytestmark = pytest.mark.newest

NOTHING, DIRECTION, STEP, UNKNOWN, LAST = (
    Updates(0),
    Updates.DIRECTION,
    Updates.STEP,
    Updates.UNKNOWN,
    Updates.LAST,
)
EVERY_KIND = [Updates(bits) for bits in range(16)]


def is_matrix(path, leaf):
    return leaf.ndim > 1


ON_ONE_DEVICE = NamedSharding(jax.make_mesh((1,), ("x",)), PartitionSpec())
MORE = {
    "on_mesh": optfn.on_mesh(optfn.sgd(0.1), ON_ONE_DEVICE),
    "offload": optfn.offload(optfn.sgd(0.1, 0.9), leaves=True),
    "partition_matrices": optfn.partition_matrices(optfn.sgd(0.1), optfn.adam(0.1)),
    "param_groups": optfn.param_groups(optfn.sgd(0.1, 0.9), {"w": {"learning_rate": 0.05}}),
    "scale_by_muon": optfn.scale_by_muon(),
    "scale_by_kron": optfn.scale_by_kron(),
    "scale_by_psgd_pro": optfn.scale_by_psgd_pro(),
    "apollo_mini": optfn.apollo_mini(0.01),
    "scale_by_learning_rate downhill": optfn.scale_by_learning_rate(0.1),
    "negate": optfn.negate(),
    "from_optax": optfn.from_optax(optax.sgd(0.1)),
    "given_hessian_diagonal": optfn.given_hessian_diagonal(),
    "set_to_zero": optfn.set_to_zero(),
    "turned twice": optfn.chain(optfn.sgd(0.1), optfn.negate()),
}
WRAPPERS = {
    "accumulate": lambda tx: optfn.accumulate(tx, 2),
    "apply_if_finite": lambda tx: optfn.apply_if_finite(tx, 5),
    "cautious": optfn.cautious,
    "chain": optfn.chain,
    "compensated": optfn.compensated,
    "conditionally_mask": lambda tx: optfn.conditionally_mask(tx, lambda step: step % 2 == 1),
    "conditionally_transform": lambda tx: optfn.conditionally_transform(
        tx, lambda step: step % 2 == 1
    ),
    "ema_nesterov": lambda tx: optfn.ema_nesterov(tx, 0.9, 0.5),
    "ema_of_params": lambda tx: optfn.ema_of_params(tx, 0.9),
    "flatten": optfn.flatten,
    "freeze": lambda tx: optfn.freeze(tx, is_matrix),
    "freeze all": lambda tx: optfn.freeze(tx, True),
    "graft": lambda tx: optfn.graft(tx, tx),
    "lookahead": lambda tx: optfn.lookahead(tx, 5, 0.5),
    "loss_scale": optfn.loss_scale,
    "masked": lambda tx: optfn.masked(tx, is_matrix),
    "master": optfn.master,
    "mean_of_params": optfn.mean_of_params,
    "mechanize": lambda tx: optfn.mechanize(tx, s_init=0.1),
    "monitor": optfn.monitor,
    "across": lambda tx: optfn.across(tx, "x"),
    "offload": lambda tx: optfn.offload(tx, leaves=True),
    "on_mesh": lambda tx: optfn.on_mesh(tx, ON_ONE_DEVICE),
    "own_step": optfn.own_step,
    "partition": lambda tx: optfn.partition({"x": tx, "y": optfn.sgd(0.1)}, {"w": "x", "b": "y"}),
    "partition one": lambda tx: optfn.partition({"x": tx}, "x"),
    "primal_averaging": lambda tx: optfn.primal_averaging(tx, 0.9, 0.8),
    "projected": lambda tx: optfn.projected(tx, optfn.projections.l2_ball(4.0)),
    "sam": lambda tx: optfn.sam(tx, optfn.sgd(0.01)),
    "scale_by_galore": lambda tx: optfn.scale_by_galore(2, base_optimizer=tx),
    "schedule_free": lambda tx: optfn.schedule_free(tx, 0.1),
    "skip_nonfinite": optfn.skip_nonfinite,
    "skip_spikes": optfn.skip_spikes,
    "store": lambda tx: optfn.store(tx, optfn.storage.int8(), True),
    "with_gradient_signs": optfn.with_gradient_signs,
    "with_leaf_rates": lambda tx: optfn.with_leaf_rates(tx, {"w": 0.5, "b": 2.0}),
}
INSIDE = {
    "a direction": optfn.scale_by_sign(),
    "a step": optfn.sgd(0.1, 0.9),
    "a step turned back": optfn.chain(optfn.sgd(0.1), optfn.negate()),
    "a direction turned twice": optfn.chain(optfn.negate(), optfn.negate(), optfn.sgd(0.1)),
    "a factor": optfn.scale(0.5),
}
# They keep params and are documented to be around an optimizer, but take any transform.
AROUND_OPTIMIZERS = {
    *("ema_of_params", "mean_of_params", "lookahead"),
    *("compensated", "master", "projected"),
}
REFUSED_AROUND_DIRECTIONS = {"ema_nesterov", "primal_averaging", "mechanize", "projected"}
REFUSED_AROUND_UNKNOWN = {"cautious", "with_gradient_signs", "schedule_free"}
EVERY = cases.OPTIMIZERS | cases.STAGES | MORE


def inside(tx):
    return {type(tx)}.union(*map(inside, tx.contents))


def test_every_public_transform_is_here():
    public = {k: v for k, v in vars(optfn).items() if not k.startswith("_")}
    classes = {v for v in public.values() if isinstance(v, type) and issubclass(v, optfn.Transform)}
    bases = {optfn.Transform, optfn.Leafwise, optfn.Matrixwise, optfn.Wrapper}
    assert classes - bases <= set[type]().union(*map(inside, EVERY.values()))
    functions = {
        name
        for name, value in public.items()
        if inspect.isfunction(value) and cases.gives_a_transform(value)
    }
    assert functions <= {name.split()[0] for name in EVERY}
    wrappers = {
        cls.__name__
        for cls in classes - bases
        if any(field.metadata.get("kind") == "child" for field in cls.__dataclass_fields__.values())
    }
    # Sophia holds an estimate, and no updates; a clip of attention asks for its logits; turns are
    # for what is refreshed.
    refusing = {"scale_by_sophia", "qk_clip", "staggered"}
    assert wrappers - refusing == {name.split()[0] for name in WRAPPERS}


# The truth: the updates of a few steps are added up, as some wrappers take every other one.

# Of the shapes of the conformance kit, whose programs they share.
PARAMS = {
    "w": jnp.asarray([[2.0, 0.5], [3.0, 0.25], [1.75, 0.125]]),
    "b": jnp.asarray([1.5, 0.25]),
}
GRADS = jax.tree.map(lambda p: p - 1, PARAMS)  # of `cases.bowl`
EXTRA_ARGS = cases.EXTRA_ARGS | {"given_hessian_diagonal": {"hessian_diag": GRADS}}


def slope(tx, extra_args=None, steps=2):
    """<update, gradient>, positive uphill."""
    extra_args = extra_args or {}
    given = extra_args(GRADS, PARAMS) if callable(extra_args) else extra_args
    with jax.disable_jit():
        state, total = tx.init(PARAMS), 0.0
        for _ in range(steps):
            updates, state = tx.update(GRADS, state, PARAMS, **given)
            products = jax.tree.map(lambda u, g: float(np.sum(np.multiply(u, g))), updates, GRADS)
            total += sum(jax.tree.leaves(products))
    return total


def check_truth(tx, extra_args=None, steps=2):
    kind = tx.updates_kind(DIRECTION)
    if kind.is_mixed:
        with pytest.raises(ValueError, match=r"\(\.\.\.\) alone is no optimizer"):
            tx.init(PARAMS)
        return
    found = slope(tx, extra_args, steps)
    assert np.isfinite(found)
    if UNKNOWN not in kind:
        assert np.sign(found) == {NOTHING: 0, DIRECTION: 1}.get(kind, -1), (kind, found)


@pytest.mark.parametrize("name", cases.STAGES | MORE)
def test_alone(name):
    check_truth(EVERY[name], EXTRA_ARGS.get(name))


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_an_optimizer_steps(name):
    """Which is the truth, as by the conformance kit every one of them descends."""
    kind = cases.OPTIMIZERS[name].updates_kind(DIRECTION)
    assert kind & (STEP | LAST | UNKNOWN) and not kind.is_mixed


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_an_optimizer_alone(name):
    check_truth(cases.OPTIMIZERS[name], EXTRA_ARGS.get(name))


@pytest.mark.parametrize("name", WRAPPERS)
def test_around(name):
    for tx in INSIDE.values():
        kind = tx.updates_kind(DIRECTION)
        refused = (name in REFUSED_AROUND_DIRECTIONS and kind == DIRECTION) or (
            name in REFUSED_AROUND_UNKNOWN and kind == UNKNOWN
        )
        if refused:
            with pytest.raises(ValueError, match=r"whole optimizer|cannot tell whether scale"):
                WRAPPERS[name](tx)
        elif not (name in AROUND_OPTIMIZERS and kind != STEP):
            check_truth(WRAPPERS[name](tx))


@pytest.mark.parametrize("name", WRAPPERS)
def test_around_twice(name):
    """Around itself, which some refuse."""
    wrap = WRAPPERS[name]
    for tx in INSIDE.values():
        try:
            twice = wrap(wrap(tx))
        except ValueError:
            continue
        if not (name in AROUND_OPTIMIZERS and tx.updates_kind(DIRECTION) != STEP):
            check_truth(twice, steps=4)


ENTRYWISE = {
    name: tx
    for name, tx in EVERY.items()
    if all(
        (issubclass(cls, optfn.Leafwise) and cls.elementwise) or cls is optfn.chain
        for cls in inside(tx)
    )
    and name not in EXTRA_ARGS
}
# They look at the gradients' history or at params in ways that another sign upsets.
ENTRYWISE = {k: v for k, v in ENTRYWISE.items() if not k.startswith(("cocob", "keep_params"))}


# Each is alone too, in `test_alone` or in the kit: by default every fourth.
DOUBLED = [
    name if i % 4 == 0 else pytest.param(name, marks=pytest.mark.slow)
    for i, name in enumerate(ENTRYWISE)
]


@pytest.mark.parametrize("name", DOUBLED)
def test_doubled(name):
    """A second time, with the first's updates for gradients: it turns back what it turns."""
    check_truth(optfn.chain(ENTRYWISE[name], ENTRYWISE[name].named("second")))


FEW = ("sgd", "trace", "scale", "negate", "set_to_zero", "turned twice", "madgrad", "scale_by_rms")


@pytest.mark.parametrize("first", FEW)
@pytest.mark.parametrize("second", FEW)
def test_in_pairs(first, second):
    first, second = EVERY[first], EVERY[second].named("second")
    check_truth(optfn.chain(first, second))
    check_truth(optfn.partition({"x": first, "y": second}, {"w": "x", "b": "y"}))
    for part in (first, second):
        check_truth(optfn.chain(optfn.masked(part, is_matrix), second))


# The algebra, which needs no arrays.


def different():
    """One of each class and of all that it may make of what comes in."""
    kinds = {name: tuple(map(tx.updates_kind, EVERY_KIND)) for name, tx in EVERY.items()}
    return list({(type(tx), kinds[name]): tx for name, tx in EVERY.items()}.values())


def test_all_pairs_in_a_chain_and_side_by_side():
    firsts = [(tx, tx.updates_kind(DIRECTION)) for tx in different()]
    seconds = [tx.named("second") for tx in different()]
    seconds = [(tx, tx.updates_kind(DIRECTION)) for tx in seconds]
    for (i, (first, one)), (j, (behind, two)) in itertools.product(
        enumerate(firsts), enumerate(seconds)
    ):
        if i <= j:  # side by side there is no first
            both = optfn.partition({"x": first, "y": behind}, {"w": "x", "b": "y"})
            assert both.updates_kind(DIRECTION) == either([one, two])
            assert refused(both) == (one.is_mixed or two.is_mixed)
        if LAST in one:
            with pytest.raises(ValueError, match="second would change the updates of"):
                optfn.chain(first, behind)
            continue
        chained = optfn.chain(first, behind)
        assert chained.updates_kind(DIRECTION) == behind.updates_kind(one)
        assert refused(chained) == behind.updates_kind(one).is_mixed


def refused(tx):
    try:
        check_root(tx)
    except ValueError:
        return True
    return False


def test_the_empty_set_is_neutral_and_joins_are_those_of_sets():
    for a, b, c in itertools.product(EVERY_KIND, repeat=3):
        assert a | b == b | a
        assert (a | b) | c == a | (b | c)
        assert a | a == a | NOTHING == a
        if a.is_mixed:
            assert (a | b).is_mixed


def test_groups_that_differ_are_unknown_and_what_is_mixed_in_one_remains():
    for a, b in itertools.product(EVERY_KIND, repeat=2):
        found = either([a, b])
        assert found == either([b, a]) and either([a]) == a == either([a, NOTHING])
        assert found.is_mixed == (a.is_mixed or b.is_mixed)
        if found != a | b:
            assert UNKNOWN in found and (LAST in found) == (LAST in a | b)


def test_turning_is_done_to_each_and_undoes_itself_where_the_side_is_known():
    for a, b in itertools.product(EVERY_KIND, repeat=2):
        assert (a | b).turned() == a.turned() | b.turned()
    for a in (NOTHING, DIRECTION, STEP, DIRECTION | STEP):
        assert a.turned().turned() == a
    assert UNKNOWN.turned() == STEP


def test_a_factor_leaves_mixed_what_no_factor_makes_one():
    assert DIRECTION.scaled() == STEP.scaled() == (DIRECTION | UNKNOWN).scaled() == UNKNOWN
    assert (DIRECTION | STEP).scaled().is_mixed
    assert NOTHING.scaled() == NOTHING


@pytest.mark.parametrize("name", EVERY)
def test_a_named_chain_is_its_stages(name):
    """Folded and nested are the same, for all that may come in."""
    stages = optfn.chain(EVERY[name]).stages
    folds = [optfn.chain(*stages), optfn.chain(optfn.chain(*stages).named("x"))]
    for kind in EVERY_KIND:
        alone = functools.reduce(lambda incoming, tx: tx.updates_kind(incoming), stages, kind)
        assert {tx.updates_kind(kind) for tx in folds} == {alone}


SGD, MASKED = optfn.sgd(0.1), optfn.masked(optfn.sgd(0.1), is_matrix)
TABLE = {
    "a factor for some": (optfn.masked(optfn.scale(2.0), is_matrix), True),
    "a step for some before a rate": (optfn.chain(MASKED, SGD), True),
    "a step for some before a factor": (optfn.chain(MASKED, optfn.scale(1.0)), True),
    "a step for some in a group": (optfn.partition({"a": MASKED, "b": SGD}, "a"), True),
    "a step at some times": (
        optfn.conditionally_transform(MASKED, lambda step: step > 1),
        True,
    ),
    "a step for some behind optax's": (optfn.chain(MORE["from_optax"], MASKED), True),
    "a step for some behind a factor": (optfn.chain(optfn.scale(1.0), MASKED), True),
    "a step at some times behind a factor": (
        optfn.chain(optfn.scale(1.0), optfn.conditionally_transform(SGD, lambda step: step > 1)),
        True,
    ),
    "a step for some before a line search": (
        optfn.chain(MASKED, optfn.scale_by_backtracking_linesearch(10)),
        True,
    ),
    "optax's for some": (optfn.masked(MORE["from_optax"], is_matrix), True),
    "a factor at some times": (
        optfn.conditionally_transform(optfn.scale(0.5), lambda step: step > 1),
        False,
    ),
    "a factor for some before a rate": (
        optfn.chain(optfn.masked(optfn.scale(2.0), is_matrix), SGD),
        False,
    ),
    "a factor for some behind a rate": (
        optfn.chain(SGD, optfn.masked(optfn.scale(0.5), is_matrix)),
        False,
    ),
    "a direction for some before a factor": (
        optfn.chain(optfn.masked(optfn.trace(0.9), is_matrix), optfn.scale(-0.1)),
        False,
    ),
    "groups that differ": (
        optfn.partition({"a": SGD, "b": optfn.scale_by_adam()}, "a"),
        False,
    ),
    "zeros beside a step": (
        optfn.partition({"a": optfn.set_to_zero(), "b": optfn.adamw(0.1)}, "a"),
        False,
    ),
    "zeros beside a direction": (
        optfn.chain(
            optfn.partition({"a": optfn.set_to_zero(), "b": optfn.scale_by_adam()}, "a"), SGD
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_mixed_is_refused(name):
    tx, is_mixed = TABLE[name]
    assert tx.updates_kind(DIRECTION).is_mixed == refused(tx) == is_mixed


def test_what_is_no_kind_is_named():
    class vague(optfn.Wrapper):
        def updates_kind(self, incoming):
            return "step"

    with pytest.raises(TypeError, match=r"vague.updates_kind\(incoming\) must give an optfn"):
        vague(SGD).init(PARAMS)


def test_the_part_to_blame_is_the_innermost():
    with pytest.raises(ValueError, match=r"^masked\(\.\.\.\) alone is no optimizer"):
        optfn.accumulate(optfn.freeze(optfn.chain(optfn.clip(1.0), MASKED), False), 2).init(PARAMS)
    with pytest.raises(ValueError, match="cautious cannot tell whether from_optax turns"):
        optfn.cautious(optfn.own_step(optfn.chain(SGD, MORE["from_optax"]).named("x")))
