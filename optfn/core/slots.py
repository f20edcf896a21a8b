"""Initial slots, in the dtype and on the devices of their params."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.dtypes import compute_dtype, own_dtype, real_dtype
from optfn.core.inputs import check_floating, is_float0
from optfn.core.placement import on_devices_of, place
from optfn.core.tree import PyTree


def scalar_slot(value: Any, params: PyTree) -> jax.Array:
    """A scalar of the state, in the dtype and on the devices of its params."""
    return on_devices_of(jnp.asarray(value, own_dtype(params)) + 0, jax.tree.leaves(params))


def zero_slot(dtype: Any, params: PyTree) -> jax.Array:
    """A count or a flag of the state, 0 or False, on the devices of its params."""
    return on_devices_of(jnp.zeros((), dtype), jax.tree.leaves(params))


def zeros_of(params: PyTree, *, real: bool = False) -> PyTree:
    """Zeros like the params in their compute dtype, or in the real one."""

    check_floating("the param", params)

    def zeros(p):
        dtype = compute_dtype(p.dtype)
        return place(jnp.zeros_like(p, real_dtype(dtype) if real else dtype), p)

    return jax.tree.map(zeros, params)


def copy_params(params: PyTree) -> PyTree:
    """A copy of the params in fresh buffers, in their own dtypes."""
    check_floating("the param", params)
    return jax.tree.map(lambda p: place(jnp.copy(p), p), params)


def copy_params_wide(params: PyTree) -> PyTree:
    """A copy of the params in fresh buffers, in their compute dtypes."""
    check_floating("the param", params)
    return jax.tree.map(lambda p: place(jnp.array(p, compute_dtype(p.dtype)), p), params)


def no_updates(updates: PyTree) -> PyTree:
    """Zeros like the updates; float0 gradients of integer params are unchanged."""
    return jax.tree.map(lambda g: g if is_float0(g) else jnp.zeros_like(g), updates)
