"""Passes over the leaves, for rules that need a number of the whole tree between them.

A rule about one array alone is a `Leafwise`. One that needs a sum over all arrays (a distance, an
inner product) is a `Transform` whose `apply` makes passes with `each_leaf` and adds up between.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optfn.core.dtypes import (
    cast,
    compute_dtype,
    own_dtype,
    real_dtype,
    widen,
)
from optfn.core.inputs import check_floating, is_float0, is_inexact, matched
from optfn.core.leafwise import COMMON
from optfn.core.placement import like_param, on_devices_of
from optfn.core.tree import PyTree, flatten_like


def each_leaf(
    rule: Callable,
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
        optional: as `others`, but there may be None for a leaf, which the rule then gets.
        numbers: scalars; the rule gets them in the real dtype of the leaf.

    Returns:
        A tree like `updates` for each entry of what the rule returns.
    """
    leaves, treedef = jax.tree.flatten(updates)
    columns = [matched(tree, updates, "params or slots", "updates") for tree in others]
    columns += [_matched_or_none(tree, updates) for tree in optional]
    rows = [
        [x, *(y if y is None else widen(y, x.dtype) for y in row)]
        for x, *row in zip(leaves, *columns, strict=True)
    ]
    own = {real: [cast(x, real) for x in numbers] for real in {real_dtype(x.dtype) for x in leaves}}
    kinds = [tuple(x if x is None else (x.shape, x.dtype) for x in row) for row in rows]
    often = Counter(kinds)
    results = []
    for row, kind in zip(rows, kinds, strict=True):
        in_place = isinstance(row[0], Tracer) and often[kind] < COMMON
        call = rule if in_place else partial(_jitted, rule)
        results.append(call(*row, *own[real_dtype(row[0].dtype)]))
    if not results:
        like = jnp.zeros((), own_dtype(updates))
        count = len(jax.eval_shape(rule, *[like] * (1 + len(columns) + len(numbers))))
        return tuple(treedef.unflatten([]) for _ in range(count))
    return tuple(map(treedef.unflatten, zip(*results, strict=True)))


def _matched_or_none(tree: PyTree, updates: PyTree) -> list:
    there = [x is not None for x in flatten_like(tree, updates, "slots", "updates")]
    leaves, treedef = jax.tree.flatten(updates)
    present = [x if own else None for x, own in zip(leaves, there, strict=True)]
    found = iter(matched(tree, treedef.unflatten(present), "slots", "updates"))
    return [next(found) if own else None for own in there]


@partial(jax.jit, static_argnums=0)
def _jitted(rule: Callable, *args: Any) -> tuple:
    return rule(*args)


def tree_sum(tree: PyTree) -> jax.Array:
    """The sum of the scalars in a tree; 0 of an empty one."""
    return reduce(add, jax.tree.leaves(tree), jnp.zeros((), own_dtype(tree)))


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry is finite; those of integers are."""
    leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x)]
    return reduce(jnp.logical_and, (jnp.isfinite(x).all() for x in leaves), jnp.asarray(True))


def tree_scale(number: jax.Array, tree: PyTree) -> PyTree:
    """Every leaf times a number, which takes the leaf's real dtype."""
    return jax.tree.map(lambda x: x * cast(number, real_dtype(x.dtype)), tree)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The real part of <x, y> of two arrays."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return jnp.sum((x.conj() * y).real)
    return jnp.sum(x * y)


def scalar_slot(value: Any, params: PyTree) -> jax.Array:
    """A scalar of the state, in the dtype and on the devices of its params."""
    return on_devices_of(jnp.asarray(value, own_dtype(params)) + 0, jax.tree.leaves(params))


def no_updates(updates: PyTree) -> PyTree:
    """Zeros like the updates; gradients of integers stay what they are."""
    return jax.tree.map(lambda g: g if is_float0(g) else jnp.zeros_like(g), updates)


def zeros_of(params: PyTree, *, real: bool = False) -> PyTree:
    """Zeros like the params in their compute dtype, or in its real part's."""

    check_floating("the param", params)

    def zeros(p):
        dtype = compute_dtype(p.dtype)
        return like_param(jnp.zeros_like(p, real_dtype(dtype) if real else dtype), p)

    return jax.tree.map(zeros, params)


def copy_params(params: PyTree) -> PyTree:
    """The params as they are, in buffers of their own and in their own dtypes."""
    check_floating("the param", params)
    return jax.tree.map(lambda p: like_param(p, p), params)


def copy_params_wide(params: PyTree) -> PyTree:
    """The params as they are, in buffers of their own and in their compute dtypes."""
    check_floating("the param", params)
    return jax.tree.map(lambda p: like_param(cast(p, compute_dtype(p.dtype)), p), params)
