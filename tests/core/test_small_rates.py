"""The warning of a rate that is too small for the dtype of the params: by name, and once."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import optfn
from optfn import schedules

PARAMS = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.bfloat16), "c": jnp.ones(3, jnp.bfloat16)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optfn.accumulate(tx, 2),
        optfn.skip_nonfinite,
        lambda tx: optfn.lookahead(tx, 5, 0.5),
        lambda tx: optfn.store(tx, optfn.storage.bf16()),
        lambda tx: optfn.partition(
            {"x": tx, "y": optfn.sgd(1e-3)}, optfn.by_path({"a": "y", "**": "x"})
        ),
        lambda tx: optfn.chain(optfn.clip(1.0), tx),
    ],
)
def test_it_names_the_rate_the_params_and_the_remedies(wrap):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wrap(optfn.adam(1.9e-3)).init(PARAMS)
    (warning,) = caught
    text = str(warning.message)
    assert warning.category is UserWarning and warning.filename == __file__
    for part in (
        "scale_by_learning_rate.learning_rate is 0.0019",
        "bfloat16",
        "0.002",
        "'b' and 1",
    ):
        assert part in text
    for remedy in ("master(...)", "compensated(...)", "rounding='stochastic'"):
        assert remedy in text


def test_float16_has_three_digits_more():
    params = {"w": jnp.ones(3, jnp.float16)}
    optfn.adam(2.5e-4).init(params)
    with pytest.warns(UserWarning, match=r"0\.00024: the params 'w' may stand still"):
        optfn.adam(2.4e-4).init(params)


@pytest.mark.parametrize(
    "tx",
    [
        optfn.adam(2e-3),
        optfn.adam(0.0),
        optfn.adam(schedules.constant(1e-5)),
        optfn.adam(jnp.float32(1e-5)),
        optfn.scale_by_adam(),
        optfn.master(optfn.adam(1e-5)),
        optfn.compensated(optfn.adam(1e-5)),
        optfn.partition(
            {"x": optfn.sgd(1e-5), "y": optfn.sgd(0.1)}, optfn.by_path({"a": "x", "**": "y"})
        ),
        optfn.freeze(optfn.sgd(1e-5), {"a": False, "b": True, "c": True}),
    ],
    ids=repr,
)
def test_nothing_is_said_where_nothing_is_known_to_stand_still(tx):
    tx.init(PARAMS)  # warnings are errors here


def test_nothing_is_said_while_tracing():
    tx = optfn.adam(1e-5)
    jax.eval_shape(tx.init, PARAMS)
    jax.jit(tx.init)(PARAMS)
    tx.init(jax.eval_shape(lambda: PARAMS))
