"""Factories and stages inside `optax.inject_hyperparams`, which calls them with arrays for numbers.

It binds a call with all its defaults, takes what can be called for a schedule and each number for a
hyperparameter, but for `static_args`.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import EXTRA_ARGS, gives_a_transform

import optfn
from optfn.schedules import Schedule

PARAMS = {"b": jnp.linspace(0.5, 1.0, 3), "w": jnp.linspace(-1.0, 2.0, 12).reshape(4, 3)}
GRADS = jax.tree.map(lambda p: jnp.cos(3 * p), PARAMS)

# Counts, sizes and shares of sizes, which no array can give.
SIZES = {
    "fraction",
    "head_axis",
    "max_dim",
    "max_precond_dim",
    "max_preconditioner_dim",
    "max_size_triangular",
    "memory_size",
    "min_dim_size_to_factor",
    "rank",
    "rank_fraction",
    "rank_multiple_of",
}
OPTIONS = {"muon_clip": {"query": "w", "key": "b", "head_axis": -1}}


def parameters(function):
    return inspect.signature(function).parameters.values()


def takes_no_more_than_a_rate(function):
    return {p.name for p in parameters(function) if p.default is p.empty} <= {"learning_rate"}


def is_stage(value):
    return inspect.isclass(value) and issubclass(value, optfn.Transform)


MAKERS = {k: x for k, x in vars(optfn).items() if is_stage(x) or gives_a_transform(x)}
FACTORIES = sorted(
    name
    for name, value in MAKERS.items()
    if inspect.isfunction(value) and takes_no_more_than_a_rate(value)
)


def pair(name):
    """An optimizer, and the same by `inject_hyperparams`."""
    make, options = MAKERS[name], dict(OPTIONS.get(name, {}))
    names = {p.name for p in parameters(make)}
    if any(p.name == "learning_rate" and p.default is p.empty for p in parameters(make)):
        options["learning_rate"] = 0.1
    return make(**options), optax.inject_hyperparams(make, SIZES & names)(**options)


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_are_injected(name):
    def updates(params, grads):
        extra = EXTRA_ARGS.get(name, {})
        extra = extra(grads, params) if callable(extra) else extra
        own, injected = (tx.update(grads, tx.init(params), params, **extra) for tx in pair(name))
        return own, (injected[0], injected[1].inner_state)

    own, injected = jax.eval_shape(updates, PARAMS, GRADS)
    assert jax.tree.structure(injected) == jax.tree.structure(own)
    assert jax.tree.leaves(injected) == jax.tree.leaves(own)
    if FACTORIES.index(name) % 4 == 3:
        own, injected = jax.jit(updates)(PARAMS, GRADS)
        for x, y in zip(jax.tree.leaves(injected), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_no_default_can_be_called_but_a_schedule():
    defaults = {
        (name, p.name): p.default
        for name, make in MAKERS.items()
        for p in parameters(make)
        if p.default is not p.empty and not isinstance(p.default, Schedule)
    }
    assert [place for place, default in defaults.items() if callable(default)] == []
