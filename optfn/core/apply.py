"""Adding updates to params."""

from typing import Any, get_args

import jax
import optax

from optfn.core.inputs import check_addable, is_float0, matched, to_arrays
from optfn.core.randomness import key_at, leaf_keys
from optfn.core.rounding import Rounding, added
from optfn.core.state import State
from optfn.core.transform import advance, check_state_type, check_transform_type, readable_state
from optfn.core.tree import PyTree, bare, in_form_of


def apply_updates(
    params: PyTree,
    updates: PyTree,
    *,
    rounding: Rounding = "nearest",
    key: jax.Array | None = None,
) -> PyTree:
    """`params + updates`, each leaf in the dtype of its param.

    Args:
        params: the params.
        updates: what `update` returned, a tree like the params.
        rounding: how sums are rounded to params of 16 bits. `"nearest"` loses updates of less than
            2^-9 of a bfloat16 param, at every step; `"stochastic"` is right in the mean.
        key: a random key for stochastic rounding, another one at every step.

    Raises:
        ValueError: the trees or shapes differ; or stochastic rounding has no key.
    """
    params = to_arrays(params, "the param")
    leaves, treedef = jax.tree.flatten(params)
    updates = matched(to_arrays(updates, "the update"), params, "updates", "params")
    check_addable(params, updates)
    keys: list = [None] * len(leaves)
    if _is_stochastic(rounding, "apply_updates(rounding=...)"):
        if key is None:
            raise ValueError(
                "apply_updates(key=...): stochastic rounding needs a random key, another one at "
                "every step; optfn.step(..., rounding='stochastic') folds it from the step."
            )
        keys = leaf_keys(key, "apply_updates", params)
    return treedef.unflatten([_add(*entry) for entry in zip(leaves, updates, keys, strict=True)])


def step(
    tx: optax.GradientTransformation,
    params: PyTree,
    grads: PyTree,
    state: optax.OptState,
    *,
    rounding: Rounding = "nearest",
    rounding_seed: Any = 0,
    **extra_args: Any,
) -> tuple[PyTree, State]:
    """One step of an optimizer: gradients in, new params and state out.

    Like `update` followed by `apply_updates`, except that the update stays in the compute dtype
    and is rounded once, into the param. With bfloat16 params this keeps the digits that `update`
    would round away before the addition.

        train_step = jax.jit(partial(optfn.step, tx), donate_argnums=(0, 2))
        params, state = train_step(params, grads, state)

    Params come before the state, in the arguments as in the results, because JAX gives a donated
    buffer to the first result of its shape and dtype: in this order each is overwritten where it
    lies. Keep the order in a step of your own that donates; in another one XLA copies params and
    state at every step.

    Args:
        tx: an optimizer.
        params: the params.
        grads: the gradients, a tree like the params.
        state: from `tx.init` or the last step.
        rounding: how params of 16 bits are rounded, `"nearest"` or `"stochastic"`, as in
            `apply_updates`. `master` and `compensated` lose nothing instead.
        rounding_seed: of stochastic rounding, a whole number below 2^24. The same seed and step
            round the same way.
        **extra_args: the extra arguments that `tx` declares.

    Returns:
        The new params, in the dtypes of the old ones, and the new state.

    Raises:
        TypeError: `state` is not a `State`, as in another order of the arguments.
    """
    order = "step(tx, params, grads, state)"
    tx = check_transform_type(tx, f"{order}: tx")
    state = check_state_type(state, f"; the order is {order}")
    key = None
    if _is_stochastic(rounding, "step(rounding=...)"):
        key = key_at(rounding_seed, state.step, "step(rounding_seed=...)")
    updates, state = advance(tx, grads, state, params, extra_args)
    return apply_updates(params, updates, rounding=rounding, key=key), state


def evaluation_params(
    tx: optax.GradientTransformation, state: optax.OptState, params: PyTree
) -> PyTree:
    """The params to evaluate a model at, or to save as the result of a run.

    For an optimizer that averages (`schedule_free`, `primal_averaging`, `ema_nesterov`,
    `ema_of_params`, `mean_of_params`) these are the averages, for `lookahead` the slow params, for
    `sam` the params at the start of the round, and for any other the params themselves.

    Args:
        tx: an optimizer.
        state: its state after the last step.
        params: the params after the last step, at which the next gradient is taken.

    Returns:
        A tree like the params, in their dtypes.
    """
    tx = check_transform_type(tx, "evaluation_params(tx, state, params): tx")
    state = readable_state(state)
    params = to_arrays(params, "the param")
    found = tx.evaluation_params_named(bare(params), state.slots, state.step)
    return in_form_of(found, params)


def _is_stochastic(rounding: str, where: str) -> bool:
    if rounding not in get_args(Rounding):
        raise ValueError(f"{where} must be one of {get_args(Rounding)}, found {rounding!r}.")
    return rounding == "stochastic"


def _add(param: jax.Array, update: Any, key: jax.Array | None) -> jax.Array:
    return param if is_float0(update) else added(param, update, key)
