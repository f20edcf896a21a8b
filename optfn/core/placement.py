"""Where new arrays lie: in buffers of their own, on the devices of the params they belong to."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def like_param(slot: Any, param: jax.Array) -> jax.Array:
    """A slot with a strong type, a buffer of its own and, if it has its shape, its param's sharding.

    Two slots that share one buffer cannot be donated. Under automatic mesh axes a constant comes
    out replicated, also from `zeros_like`; one that depends on the param takes its sharding, and
    the compiler still turns it into a constant.
    """
    slot = jnp.asarray(slot)
    slot = jax.lax.convert_element_type(slot, slot.dtype)
    if slot.shape == param.shape:
        return jnp.where(param == param, slot, slot)
    return beside(jnp.where(jnp.zeros((), bool), slot, slot), [param])


def beside(x: jax.Array, leaves: list) -> jax.Array:
    """`x` on the devices of the first of the arrays that is bound to some, replicated on a mesh."""
    for leaf in leaves:
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or isinstance(x, Tracer):
            continue
        sharding = leaf.sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            spec = jax.sharding.PartitionSpec()
            return jax.device_put(x, jax.sharding.NamedSharding(sharding.mesh, spec))
        if leaf.committed:
            return jax.device_put(x, sharding)
    return x
