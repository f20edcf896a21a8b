"""Control flow: part of the program inside a trace, Python's own outside of one.

`lax.cond` and its kin compile when they are called, and again for each fresh function or array that
their branches close over. So they are used only where the decision is traced. Where it is known, as
outside of `jit`, the branch taken is an ordinary call, whose operations are compiled once each.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import Tracer

from optfn.core.tree import PyTree


def cond(pred: Any, on_true: Callable, on_false: Callable, *operands: Any) -> Any:
    """`lax.cond`; only the branch taken is called if `pred` is known."""
    if isinstance(pred, Tracer):
        return lax.cond(pred, on_true, on_false, *operands)
    return (on_true if _is_true(pred) else on_false)(*operands)


def while_loop(should_continue: Callable, body: Callable, carry: PyTree) -> PyTree:
    """`lax.while_loop`, from the first decision on that is not known."""
    while not isinstance(go_on := should_continue(carry), Tracer):
        if not _is_true(go_on):
            return carry
        carry = body(carry)
    return lax.while_loop(should_continue, body, carry)


def scan(body: Callable, carry: PyTree, xs: jax.Array) -> tuple[PyTree, PyTree]:
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
