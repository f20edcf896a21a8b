"""Passes over the leaves, for rules that need a number of the whole tree between passes.

A rule about one array is a `Leafwise`. A rule that needs a sum over all arrays (a distance, an
inner product) is a `Transform` whose `apply` makes passes with `each_leaf` and sums between them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optfn.core.dtypes import cast, own_dtype, read, real_dtype
from optfn.core.inputs import matched
from optfn.core.mapped import part_axes
from optfn.core.tracing import traced_once
from optfn.core.tree import PyTree, flatten_like


def each_leaf(
    rule: Callable[..., Any],
    updates: PyTree,
    *others: PyTree,
    optional: Sequence[PyTree] = (),
    numbers: Sequence[Any] = (),
) -> tuple[PyTree, ...]:
    """`rule(update, *others, *optional, *numbers)` on every leaf, traced once per kind of leaf.

    Args:
        rule: a function defined once, at the top of a module, that returns a tuple.
        updates: a tree in the compute dtype.
        *others: params or slots, trees like `updates`; the rule gets them widened to its dtype.
        optional: like `others`, but a leaf may be None; the rule then gets None.
        numbers: scalars; the rule gets them in the real dtype of the leaf.

    Returns:
        One tree like `updates` for each entry of the rule's tuple.
    """
    leaves, treedef = jax.tree.flatten(updates)
    columns = [matched(tree, updates, "params or slots", "updates") for tree in others]
    columns += [_matched_or_none(tree, updates) for tree in optional]
    rows = [
        [x, *(y if y is None else read(y, x.dtype) for y in row)]
        for x, *row in zip(leaves, *columns, strict=True)
    ]
    own = {real: [cast(x, real) for x in numbers] for real in {real_dtype(x.dtype) for x in leaves}}
    kinds = [tuple(x if x is None else (x.shape, x.dtype) for x in row) for row in rows]
    traced = any(isinstance(x, Tracer) for x in leaves)
    results = []
    for row, once in zip(rows, traced_once(kinds, traced), strict=True):
        call = partial(_jitted, rule, part_axes()) if once else rule
        results.append(call(*row, *own[real_dtype(row[0].dtype)]))
    if not results:
        like = jnp.zeros((), own_dtype(updates))
        count = len(jax.eval_shape(rule, *[like] * (1 + len(columns) + len(numbers))))
        return tuple(treedef.unflatten([]) for _ in range(count))
    return tuple(map(treedef.unflatten, zip(*results, strict=True)))


def _matched_or_none(tree: PyTree, updates: PyTree) -> list[Any]:
    there = [x is not None for x in flatten_like(tree, updates, "slots", "updates")]
    leaves, treedef = jax.tree.flatten(updates)
    present = [x if own else None for x, own in zip(leaves, there, strict=True)]
    found = iter(matched(tree, treedef.unflatten(present), "slots", "updates"))
    return [next(found) if own else None for own in there]


@partial(jax.jit, static_argnums=(0, 1))
def _jitted(rule: Callable[..., Any], axes: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
    return rule(*args)
