"""Checks and conversion of what callers pass: to arrays, leaf by leaf, in the compute dtype."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.dtypes import cast, compute_dtype
from optfn.core.tree import (
    LEAVE_OUT,
    PyTree,
    describe,
    difference_hint,
    flatten_like,
    is_leaf,
    leaf_location,
)


def to_arrays(tree: PyTree, what: str) -> PyTree:
    """The tree with its leaves as jax arrays; Python and NumPy numbers are converted.

    Gradients of integers, which jax gives as arrays of dtype float0, are left as they are.
    """
    leaves, treedef = jax.tree.flatten(tree)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array) or is_float0(leaf):
            continue
        try:
            leaves[i] = jnp.asarray(leaf)
        except TypeError:
            path = leaf_location(tree, i)
            raise TypeError(
                f"{what} {path} must be an array, found {type(leaf).__name__}. {LEAVE_OUT}."
            ) from None
    return treedef.unflatten(leaves)


def matched(tree: PyTree, like: PyTree, what: str, like_what: str) -> list[Any]:
    """The leaves of `tree`, which must have the structure and the shapes of `like`."""
    leaves = flatten_like(tree, like, what, like_what)
    for i, (x, y) in enumerate(zip(leaves, jax.tree.leaves(like), strict=True)):
        if not is_leaf(x) or jnp.shape(x) != jnp.shape(y):
            found = f"shape {jnp.shape(x)}" if is_leaf(x) else describe(x)
            have = "have" if what.endswith("s") else "has"
            hint = difference_hint(tree, like)
            raise ValueError(
                f"{leaf_location(like, i)} {like_what} have shape {jnp.shape(y)}, {what} {have} "
                f"{found}; they must have the same shape{hint}."
            )
    return leaves


def widened(updates: PyTree, params: PyTree | None) -> PyTree:
    """The updates in their compute dtype, checked against the params.

    Integer leaves pass, since they may be frozen; a stage that gets one refuses it.
    """
    leaves, treedef = jax.tree.flatten(updates)
    others = leaves if params is None else matched(params, updates, "params", "updates")
    for i, (leaf, param) in enumerate(zip(leaves, others, strict=True)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(param):
            raise TypeError(
                f"{leaf_location(updates, i)} the update is complex, the param is real."
            )
        floating = jnp.issubdtype(param.dtype, jnp.inexact)
        dtypes = (leaf.dtype, param.dtype) if floating else (leaf.dtype,)
        leaves[i] = cast(leaf, compute_dtype(*dtypes))
    return treedef.unflatten(leaves)


def check_all_are_there(extra_args: Mapping[str, Any], declared: Mapping[str, str]) -> None:
    """Refuses to miss an extra argument, and names the look-alike that came."""
    missing = sorted(set(declared) - set(extra_args))
    if missing:
        others = set(extra_args) - set(declared)
        alike = get_close_matches(missing[0], map(str, others), n=1)
        hint = f"; did you mean it by '{alike[0]}'?" if alike else "."
        raise TypeError(
            f"update() misses the extra argument '{missing[0]}'; declared: "
            f"{', '.join(sorted(declared))}{hint}"
        )


def checked_extra_args(
    extra_args: Mapping[str, Any], declared: Mapping[str, str], updates: PyTree
) -> dict[str, Any]:
    """The extra arguments, the declared ones checked against their kinds."""
    checked = dict(extra_args)
    for name in declared:
        value, what = extra_args[name], f"the extra argument '{name}'"
        if declared[name] == "tree":
            checked[name] = to_arrays(value, what)
            matched(checked[name], updates, what, "updates")
        elif declared[name] == "scalar":
            if not is_leaf(value) or not isinstance(
                value, (jax.Array, np.ndarray, np.generic, complex, float, int)
            ):
                raise TypeError(f"{what} must be a number, found {type(value).__name__}.")
            if jnp.ndim(value):
                raise ValueError(f"{what} must be a scalar, found shape {jnp.shape(value)}.")
            if jnp.iscomplexobj(value):
                raise TypeError(f"{what} must be a real number, found a complex one.")
        elif declared[name] == "function" and not callable(value):
            raise TypeError(f"{what} must be a function of the params, found {describe(value)}.")
    return checked


def check_floating(what: str, tree: PyTree) -> None:
    """Refuses leaves that are neither floating point nor complex."""
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = "float0" if is_float0(leaf) else leaf.dtype
            raise TypeError(
                f"{what} {leaf_location(tree, i)} has dtype {name}, but only floating point and "
                f"complex leaves can be optimized. {LEAVE_OUT}."
            )


def check_addable(params: PyTree, updates: list[Any]) -> None:
    """Refuses floating point updates to integer params, where the fraction would be lost."""
    for i, (p, u) in enumerate(zip(jax.tree.leaves(params), updates, strict=True)):
        if jnp.issubdtype(p.dtype, jnp.integer) and jnp.issubdtype(u.dtype, jnp.inexact):
            raise TypeError(
                f"{leaf_location(params, i)} the param has dtype {p.dtype}, the update {u.dtype}: "
                "its fraction would be lost."
            )


def is_inexact(x: Any) -> bool:
    """Whether the dtype is real or complex floating point."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def is_float0(x: Any) -> bool:
    return getattr(x, "dtype", None) == jax.dtypes.float0
