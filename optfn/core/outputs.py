"""Checks and casts of what transforms return: the shapes and dtypes that came in."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.dtypes import cast
from optfn.core.inputs import is_float0, is_inexact
from optfn.core.placement import put_like
from optfn.core.tree import LEAVE_OUT, PyTree, flatten_like, leaf_location


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Every leaf of `tree` in the dtype of its counterpart."""
    return jax.tree.map(lambda x, y: x if is_float0(y) else cast(x, y.dtype), tree, like)


def check_same_form(new: PyTree, old: PyTree, name: str) -> PyTree:
    """`new` in the dtypes and places of `old`, or an error that names who changed a shape."""
    leaves, treedef = jax.tree.flatten(old)
    new_leaves = flatten_like(new, old, f"the updates from {name}", "the updates to it")
    out = []
    for i, (x, y) in enumerate(zip(new_leaves, leaves, strict=True)):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{name} {leaf_location(old, i)} turned updates of shape {jnp.shape(y)} into "
                f"shape {jnp.shape(x)}."
            )
        if is_inexact(x) and jnp.issubdtype(y.dtype, jnp.integer):
            raise TypeError(
                f"the gradient {leaf_location(old, i)} has dtype {y.dtype}, of which {name} makes "
                f"{x.dtype}, whose fraction would be lost: only floating point and complex leaves "
                f"can be optimized. {LEAVE_OUT}."
            )
        out.append(x if is_float0(y) else put_like(cast(x, y.dtype), y))
    return treedef.unflatten(out)


def as_stored(new: Any, old: Any) -> Any:
    """New slots in the dtypes and places of the old ones, which the gradients may have changed."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        return new

    def stored(x, y):
        dtypes = [getattr(z, "dtype", jnp.int32) for z in (x, y)]
        floating = all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)
        return put_like(cast(x, y.dtype) if floating else x, y)

    return jax.tree.map(stored, new, old)


def check_slot_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old.keys() != new.keys():
        raise ValueError(
            f"the state has slots {sorted(old)}, this optimizer's are {sorted(new)}: "
            "was the state made by another optimizer?"
        )
