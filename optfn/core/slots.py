"""Initial slots, in the dtype and on the devices of their params."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optfn.core.boxes import boxed_like, holds_one
from optfn.core.dtypes import cast, compute_dtype, own_dtype, real_dtype, storage_of
from optfn.core.inputs import check_floating, is_float0
from optfn.core.placement import Along, fresh, on_devices_of, place
from optfn.core.tree import PyTree


def scalar_slot(value: Any, params: PyTree) -> jax.Array:
    """A number of the state, in the dtype and on the devices of its params."""
    return _slot(value, own_dtype(params), params)


def zero_slot(dtype: Any, params: PyTree) -> jax.Array:
    """A count or a flag of the state, 0 or False, on the devices of its params."""
    return _slot(0, dtype, params)


def _slot(value: Any, dtype: Any, params: PyTree) -> jax.Array:
    leaves = jax.tree.leaves(params)
    if any(isinstance(x, Tracer) for x in (value, *leaves)):
        return jnp.copy(cast(value, dtype))
    known = cast(value, dtype) if isinstance(value, jax.Array) else np.asarray(value, dtype)
    return on_devices_of(fresh(known), leaves)


def zeros_of(
    params: PyTree, *, real: bool = False, times: int | None = None, dtype: Any = None
) -> PyTree:
    """Zeros like the params in their compute dtype.

    Args:
        params: the params.
        real: whether they are of the real dtype.
        times: how many for each param, along a new first axis; None for one.
        dtype: the dtype in which they are stored in the place of it; complex ones stay complex.
    """
    check_floating("the param", params)

    def zeros(p):
        own = compute_dtype(p.dtype)
        own = storage_of(real_dtype(own) if real else own, dtype)
        if times is None:
            return jnp.zeros_like(p, own)
        return Along(jnp.zeros((times, *p.shape), own), (None, *range(p.ndim)))

    return placed(zeros, params)


def placed(first: Callable[[jax.Array], Any], params: PyTree) -> PyTree:
    """A tree of new slots, `first(param)`, each where its param lies; None stays None."""
    boxes, treedef = jax.tree.flatten(params, is_leaf=holds_one)

    def at(p: jax.Array) -> Any:
        slot = first(p)
        slot = None if slot is None else Along.of(slot, p)
        return slot and replace(slot, value=place(slot, p))

    return treedef.unflatten(map(boxed_like, boxes, map(at, jax.tree.leaves(params))))


def copy_params(params: PyTree) -> PyTree:
    """A copy of the params in fresh buffers, in their own dtypes."""
    check_floating("the param", params)
    return placed(fresh, params)


def copy_params_wide(params: PyTree, dtype: Any = None) -> PyTree:
    """A copy of the params in fresh buffers, in their compute dtypes, or stored as `dtype`."""
    check_floating("the param", params)

    def wide(p):
        own = storage_of(compute_dtype(p.dtype), dtype)
        return fresh(p) if p.dtype == own else cast(p, own)

    return placed(wide, params)


def no_updates(updates: PyTree) -> PyTree:
    """Zeros like the updates; float0 gradients of integer params are unchanged."""
    return jax.tree.map(lambda g: g if is_float0(g) else jnp.zeros_like(g), updates)
