"""Control flow: part of the program inside a trace, Python's own outside of one.

`lax.cond` and its kin compile when they are called, and again for each fresh function or array that
their branches close over. So they are used only where the decision is traced. Where it is known, as
outside of `jit`, the branch taken is an ordinary call, whose operations are compiled once each.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from optfn.core.tree import PyTree


def cond(
    pred: Any, on_true: Callable[..., Any], on_false: Callable[..., Any], *operands: Any
) -> Any:
    """`lax.cond`; only the branch taken is called if `pred` is known."""
    if isinstance(pred, Tracer):
        return lax.cond(pred, on_true, on_false, *operands)
    return (on_true if _is_true(pred) else on_false)(*operands)


def refreshed(due: Any, renew: Callable[..., Any], old: PyTree) -> PyTree:
    """`renew()` where it is due, else `old`: for what is costly and done every few steps.

    Under `vmap` it runs if any lane is due, and the others keep what they have. A `lax.cond` on the
    predicate of a lane would become a select, which runs both branches at every step.
    """
    if not isinstance(due, Tracer):
        return renew() if _is_true(due) else old
    return lax.cond(
        _any_lane(due),
        lambda: jax.tree.map(lambda new, kept: jnp.where(due, new, kept), renew(), old),
        lambda: old,
    )


@custom_vmap
def _any_lane(due: jax.Array) -> jax.Array:
    """Whether it is due in any lane of all `vmap`s around, one answer for all."""
    return due


@_any_lane.def_vmap
def _any_lane_of_batch(size: int, batched: list[Any], due: jax.Array) -> tuple[jax.Array, bool]:
    return _any_lane(jnp.any(due)), False


def while_loop(
    should_continue: Callable[..., Any], body: Callable[..., Any], carry: PyTree
) -> PyTree:
    """`lax.while_loop`, from the first decision on that is not known."""
    while not isinstance(go_on := should_continue(carry), Tracer):
        if not _is_true(go_on):
            return carry
        carry = body(carry)
    return lax.while_loop(should_continue, body, carry)


def scan(body: Callable[..., Any], carry: PyTree, xs: jax.Array) -> tuple[PyTree, PyTree]:
    """`lax.scan` over an array; a Python loop over its entries if they are known."""
    if isinstance(xs, Tracer) or not len(xs):
        return lax.scan(body, carry, xs)
    rows = []
    for x in xs:
        carry, row = body(carry, x)
        rows.append(row)
    return carry, jax.tree.map(lambda *row: jax.numpy.stack(row), *rows)


def _is_true(pred: Any) -> bool:
    return bool(jax.device_get(pred))  # an explicit transfer, which a transfer guard allows
