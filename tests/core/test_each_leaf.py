"""Passes over the leaves: one trace for each kind, the dtypes of the state, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn.core import numerics
from optfn.core.each_leaf import each_leaf

WHOLE_TREES = {
    "dog": optfn.dog(),
    "dowg": optfn.dowg(),
    "prodigy": optfn.prodigy(),
    "dadapt_adamw": optfn.dadapt_adamw(),
    "momo": optfn.momo(),
    "momo_adam": optfn.momo_adam(),
    "schedule_free": optfn.schedule_free_adamw(),
    "schedule_free average": optfn.schedule_free(optfn.sgd(0.1), 0.1, keep_average=True),
    "primal_averaging": optfn.primal_averaging(optfn.adam(0.1), 0.9, 0.8),
    "ema_nesterov": optfn.ema_nesterov(optfn.adam(0.1), 0.9, 0.8),
    "mechanize": optfn.mechanize(optfn.adam(0.1)),
    "sophia": optfn.sophia(0.1, hessian_diagonal_fn=optfn.given_hessian_diagonal()),
}
VALUE = {"momo": {"value": 1.0}, "momo_adam": {"value": 1.0}}

calls = []


def doubled(x, y, factor):
    calls.append(x.shape)
    return factor * x, y


def test_a_rule_is_traced_once_for_each_kind_that_is_common():
    tree = {str(i): jnp.ones(3) for i in range(5)} | {"a": jnp.ones(4), "b": jnp.ones(4)}

    @jax.jit
    def run(tree):
        return each_leaf(doubled, tree, tree, numbers=(2.0,))

    calls.clear()
    first, second = run(tree)
    assert sorted(calls) == [(3,), (4,), (4,)]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), first, tree)
    jax.tree.map(np.testing.assert_array_equal, second, tree)


def test_none_stays_none_and_numbers_take_the_dtype_of_the_leaf(x64):
    tree = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.complex128)}
    seen = {}

    def rule(x, y, number):
        seen[x.dtype.name] = number.dtype.name, y
        return (x,)

    each_leaf(rule, tree, optional=[{"a": None, "b": tree["b"]}], numbers=(0.5,))
    assert seen["float32"] == ("float32", None)
    assert seen["complex128"][0] == "float64"


def test_a_tree_without_leaves_gives_as_many_trees():
    assert each_leaf(doubled, {"a": None}, {"a": None}, numbers=(2.0,)) == ({"a": None},) * 2
    assert numerics.tree_sum({}) == 0


@pytest.mark.parametrize("name", WHOLE_TREES)
@pytest.mark.parametrize(
    ("p_dtype", "g_dtype"),
    [(jnp.float32, jnp.float64), (jnp.bfloat16, jnp.float64), (jnp.float64, jnp.float32)],
)
def test_gradients_wider_than_the_params_do_not_widen_the_state(name, p_dtype, g_dtype, x64):
    tx, params = WHOLE_TREES[name], {"a": jnp.ones((2, 3), p_dtype)}
    grads = jax.tree.map(lambda p: p.astype(g_dtype), params)
    extra_args = VALUE.get(name, {"hessian_diag": grads} if name == "sophia" else {})
    state = jax.eval_shape(tx.init, params)
    update = jax.tree_util.Partial(tx.update, **extra_args)
    updates, after = jax.eval_shape(update, grads, state, params)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    assert updates["a"].dtype == g_dtype


@pytest.mark.parametrize("name", WHOLE_TREES)
def test_a_state_of_other_params_is_refused(name):
    tx = WHOLE_TREES[name]
    state, other = tx.init({"a": jnp.ones((1, 3))}), {"a": jnp.ones((2, 3))}
    extra_args = VALUE.get(name, {"hessian_diag": other} if name == "sophia" else {})
    with pytest.raises((ValueError, TypeError), match=r"at 'a'|\(1, 3\)|\(2, 3\)"):
        tx.update(other, state, other, **extra_args)
