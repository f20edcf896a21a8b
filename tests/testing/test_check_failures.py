"""Every check of the conformance kit sees the fault that it is there for."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.custom_batching import custom_vmap

import optfn
from optfn.testing import ConformanceError, check_transform
from optfn.testing.checks import CHECKS, NotApplicableError, Subject


def stateless(rule):
    """An optax-style pair that applies `rule` to each gradient."""
    return optax.GradientTransformation(
        lambda params: (), lambda grads, state, params=None: (jax.tree.map(rule, grads), state)
    )


def summing(zeros, add=lambda s, g: s + g):
    """A pair that adds gradients up, from `zeros(param)` on."""

    def update(grads, sums, params=None):
        sums = jax.tree.map(add, sums, grads)
        return jax.tree.map(lambda s, g: -0.1 * s.astype(g.dtype), sums, grads), sums

    return optax.GradientTransformation(lambda params: jax.tree.map(zeros, params), update)


@custom_vmap
def lost_in_a_batch(x):
    return -0.1 * x


@lost_in_a_batch.def_vmap
def _(size, batched, x):
    return 0 * x, True


def negate_first(grads, state, params=None):
    leaves, treedef = jax.tree.flatten(grads)
    return treedef.unflatten([-leaves[0], *leaves[1:]]), state


def one_buffer_for_two(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return zeros, zeros


def counting_on_the_host():
    calls = itertools.count(1)

    def update(grads, state, params=None):
        count = jax.pure_callback(lambda: np.float32(next(calls)), jax.ShapeDtypeStruct((), "f4"))
        return jax.tree.map(lambda g: -0.1 * g * count, grads), state

    return optax.GradientTransformation(lambda params: (), update)


class scaled(optfn.Leafwise):
    """Steps of a rate; the faulty ones below inherit from it."""

    rate: Any

    def update_leaf(self, g, slots, param, t):
        return -self.rate * g, slots


class with_a_slot_for_a_schedule(optfn.Transform):
    rate: Any

    def init_slots(self, params):
        return jnp.zeros(2 if isinstance(self.rate, optfn.Schedule) else 1)

    def apply(self, updates, slots, ctx):
        return jax.tree.map(lambda g: -self.rate * g, updates), slots


class branching(scaled):
    def update_leaf(self, g, slots, param, t):
        return (-self.rate if self.rate > 0.01 else 0) * g, slots


class with_a_plain_root(scaled):
    def update_leaf(self, g, slots, param, t):
        return -jnp.sqrt(self.rate * g * g), slots


class forgetful(scaled):
    def __reduce__(self):
        return forgetful, (0.0,)


FAULTS = {
    "fixed_point": (stateless(lambda g: g.astype(jnp.float32)), "bfloat16: the updates"),
    "double_precision": (stateless(lambda g: g * jnp.ones(())), "float32 under x64: the updates"),
    "scan_and_cond": (stateless(lambda g: g if g.sum() > 0 else -g), "traced"),
    "jit_equals_eager": (
        stateless(lambda g: 2 * g if isinstance(g, jax.core.Tracer) else g),
        "the updates of the compiled program differ at 'layer/b'",
    ),
    "vmap_equals_loop": (
        stateless(lost_in_a_batch),
        "the updates of the batch differ at 'layer/b'",
    ),
    "one_trace": (scaled(jnp.asarray(2)), "took 2 traces"),
    "schedule_equals_constant": (with_a_slot_for_a_schedule(0.1), "the state with schedules"),
    "hyperparameters_vmap": (branching(0.1), "raced"),
    "hypergradients": (with_a_plain_root(0.1), "the derivative by the hyperparameters not finite"),
    "zero_gradient": (stateless(lambda g: g / abs(g)), "float32: updates or state not finite"),
    "nan_visible": (stateless(jnp.nan_to_num), "the updates from NaN gradients are"),
    "low_precision": (
        summing(jnp.zeros_like, lambda s, g: (0.99 * s + 0.01 * g).astype(s.dtype)),
        "bfloat16: the updates differ",
    ),
    "odd_leaves": (stateless(lambda g: g - g.mean() if g.size else g + g.max()), "zero-size"),
    "tree_layout": (
        optax.GradientTransformation(lambda params: (), negate_first),
        "the updates differ",
    ),
    "abstract_init": (
        summing(lambda p: jnp.full_like(p, float(p.sum()))),
        "Abstract tracer value",
    ),
    "sharding": (
        summing(lambda p: jnp.zeros(p.shape, p.dtype)),
        "after an update the state's 'matrix' lies as ('x', None), not ()",
    ),
    "donation": (
        optax.GradientTransformation(one_buffer_for_two, lambda g, s, p=None: (g, s)),
        "share one buffer",
    ),
    "resume": (counting_on_the_host(), "not exactly equal"),
    "round_trip": (forgetful(0.1), "differ in leaves 'rate'"),
    "descends": (stateless(lambda g: 0.1 * g), "on quadratic it went from"),
}


def test_every_check_has_its_fault():
    assert FAULTS.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore:.*x64")
def test_the_check_sees_the_fault(name):
    tx, sentence = FAULTS[name]
    with pytest.raises(Exception) as error:
        CHECKS[name](Subject(tx, {}))
    assert not isinstance(error.value, NotApplicableError), error.value
    assert sentence in str(error.value), error.value


def test_an_infinity_is_not_near_a_number():
    overflowing = stateless(lambda g: g * jnp.inf if g.dtype == jnp.float16 else g)
    with pytest.raises(AssertionError, match="float16: the updates differ"):
        CHECKS["low_precision"](Subject(overflowing, {}))


def test_all_failures_are_reported():
    with pytest.raises(ConformanceError, match="fails 2 checks") as error:
        check_transform(stateless(lambda g: 0.1 * jnp.nan_to_num(g)))
    assert [failure.check for failure in error.value.failures] == ["nan_visible", "descends"]
