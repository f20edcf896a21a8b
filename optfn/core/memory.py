"""The two memories an array can be in: the device's, where it is computed with, and the host's.

Which one is part of an array's type, also inside a trace: JAX refuses to compute with arrays of
both.
"""

from typing import Any

import jax
from jax.core import Tracer

# The memory of the host from which and to which a device copies by itself.
HOST = "pinned_host"
_Space: Any = jax.memory.Space


def is_in_host(x: Any) -> bool:
    """Whether an array is in the memory of the host."""
    return isinstance(x, jax.Array) and jax.typeof(x).memory_space == _Space.Host


def to_host(x: jax.Array) -> jax.Array:
    """An array in the memory of the host, beside the devices on which it lies."""
    if is_in_host(x):
        return x
    if isinstance(x, Tracer):
        return jax.device_put(x, _Space.Host, src=_Space.Device)
    return jax.device_put(x, x.sharding.with_memory_kind(HOST))


def to_device(x: Any) -> Any:
    """An array in the memory of the devices on which it lies; anything else unchanged."""
    if not is_in_host(x):
        return x
    if isinstance(x, Tracer):
        return jax.device_put(x, _Space.Device, src=_Space.Host)
    return jax.device_put(x, x.sharding.with_memory_kind(_device_of(x).default_memory().kind))


def in_memory_of(x: jax.Array, y: Any) -> jax.Array:
    """`x` in the memory in which `y` is."""
    return to_host(x) if is_in_host(y) else to_device(x)


def missing_host_memory(arrays: list[Any]) -> str | None:
    """What to say of the backend of these arrays if it has no such memory, None if it has.

    Inside a trace the backend is the default one.
    """
    own = (x for x in arrays if isinstance(x, jax.Array) and not isinstance(x, Tracer))
    device = next(map(_device_of, own), None) or jax.devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST in kinds:
        return None
    return f"{device.platform} has no memory '{HOST}', only {', '.join(kinds) or 'none'}"


def _device_of(x: jax.Array) -> Any:
    return next(iter(x.sharding.device_set))
