"""Placement of new arrays: fresh buffers, on the devices of the params they belong to."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def like_param(slot: Any, param: jax.Array) -> jax.Array:
    """A slot with a strong type, its own buffer and, where shapes agree, its param's sharding.

    Two slots that share one buffer cannot be donated. Under automatic mesh axes a constant is
    replicated, also one from `zeros_like`; an expression that depends on the param takes its
    sharding, and the compiler still turns it into a constant.
    """
    slot = jnp.asarray(slot)
    slot = jax.lax.convert_element_type(slot, slot.dtype)
    if slot.shape == param.shape:
        return jnp.where(param == param, slot, slot)
    return on_devices_of(jnp.where(jnp.zeros((), bool), slot, slot), [param])


def replicate(x: Any) -> jax.Array:
    """A copy on every device of an array sharded over explicit mesh axes; others unchanged."""
    sharding = jax.typeof(x).sharding
    return jax.sharding.reshard(x, replicated([jax.typeof(x)])) if any(sharding.spec) else x


def split_like(x: jax.Array, other: Any) -> jax.Array:
    """The inverse of `replicate`: `x` sharded like `other`, which has the same shape."""
    sharding = jax.typeof(other).sharding
    return jax.sharding.reshard(x, sharding) if any(sharding.spec) else x


def on_devices_of(x: jax.Array, leaves: Iterable[Any]) -> jax.Array:
    """`x` on the devices that the arrays `leaves` are committed to; unchanged under a trace."""
    arrays = [leaf for leaf in (x, *leaves) if isinstance(leaf, jax.Array)]
    if any(isinstance(array, Tracer) for array in arrays):
        return x
    sharding = replicated(array for array in arrays if array.committed)
    return x if sharding is None else jax.device_put(x, sharding)


def replicated(leaves: Iterable[Any]) -> Any:
    """A sharding replicated over the devices of the first leaf that has a sharding, or None."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        if sharding is not None:
            return sharding
    return None
