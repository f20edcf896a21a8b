"""Compiled, donated training steps: what they copy and read is what the rule needs."""

import functools

import cases
import jax
import jax.numpy as jnp
import optax
import pytest
from donation import check_overwritten

import optfn
from optfn.core import numerics

SHAPE = (64, 64)
PARAMS = {"w": jax.ShapeDtypeStruct(SHAPE, jnp.float32)}
SIZE = SHAPE[0] * SHAPE[1]


def compiled(library, tx, extra_args=None):
    def step(params, grads, state):
        updates, state = tx.update(grads, state, params, **(extra_args or {}))
        return library.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, PARAMS)
    return jax.jit(step, donate_argnums=(0, 2)).lower(PARAMS, PARAMS, state).compile()


OVERWRITING = {
    **{name: cases.OPTIMIZERS[name] for name in ("dog", "dowg", "layer-wise dog", "momo", "cocob")},
    "adabelief": optfn.adabelief(0.1),
    "lookahead": optfn.lookahead(optfn.adam(0.1), 5, 0.5),
    "lookahead of sgd": optfn.lookahead(optfn.sgd(0.1), 5, 0.5),
    "lookahead that resets": optfn.lookahead(optfn.adam(0.1), 5, 0.5, reset_state=True),
    "ema_of_params": optfn.ema_of_params(optfn.sgd(0.1), 0.9),
    "mean_of_params": optfn.mean_of_params(optfn.sgd(0.1)),
}


@pytest.mark.parametrize("name", OVERWRITING)
def test_no_donated_array_is_copied(name):
    check_overwritten(compiled(optfn, OVERWRITING[name], cases.EXTRA_ARGS.get(name)))


@pytest.mark.parametrize("name", ["dog", "dowg"])
def test_the_norm_of_the_gradient_is_read_once(name):
    """No more bytes than optax's step, but for the scalars; a branch has others to read again."""
    read = functools.partial(_bytes, name)
    assert read(optfn, optfn) <= read(optax, optax.contrib) + 1024


def _bytes(name, library, holder):
    return compiled(library, getattr(holder, name)()).cost_analysis()["bytes accessed"]


@pytest.mark.parametrize("name", ["polyak_sgd", "fromage"])
def test_what_a_norm_reads_beyond_optax_is_in_a_branch_that_is_not_taken(name, monkeypatch):
    """XLA counts the dearer branch: the one for squares out of range, which reads arrays twice."""
    monkeypatch.setattr(numerics, "cond", lambda _, in_range, __, *parts: in_range(*parts))
    args, value = ({}, {"value": 1.0}) if name == "polyak_sgd" else ({"learning_rate": 0.1}, None)
    own, peer = (
        compiled(library, getattr(holder, name)(**args), value).cost_analysis()["bytes accessed"]
        for library, holder in ((optfn, optfn), (optax, optax))
    )
    assert own <= peer + 1024


def test_lookahead_reads_and_writes_its_slow_params_once():
    """Beside Adam's 40 bytes of a param: the step, and the params and the slow ones once more."""
    read = compiled(optfn, OVERWRITING["lookahead"]).cost_analysis()["bytes accessed"]
    assert read <= 56 * SIZE + 1024


def test_a_reset_by_lookahead_reads_no_state_where_none_is_due():
    """A conditional, of which XLA counts the dearer branch: both moments read, and written anew."""
    read = compiled(optfn, OVERWRITING["lookahead that resets"]).cost_analysis()["bytes accessed"]
    assert read <= (56 + 16) * SIZE + 1024


def test_a_norm_of_many_leaves_is_not_spelled_out_in_each_of_them():
    """XLA would repeat a chain over the leaves in every leaf, and compile for minutes at 400."""
    params = {str(i): jax.ShapeDtypeStruct((8,), jnp.float32) for i in range(32)}
    tx = optfn.polyak_sgd()

    def step(params, state):
        return optfn.step(tx, params, params, state, value=1.0)

    text = jax.jit(step).lower(params, jax.eval_shape(tx.init, params)).compile().as_text()
    assert text.count(" maximum(") <= 3 * len(params)
