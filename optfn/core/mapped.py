"""Sums and decisions over arrays whose parts lie on several devices, inside `shard_map`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# The axes over which arrays are in parts, as `across` says.
_axes: ContextVar[tuple[str, ...]] = ContextVar("axes", default=())


def part_axes() -> tuple[str, ...]:
    """The axes in force; what is traced depends on them."""
    return _axes.get()


def names_of(axis_name: Any) -> tuple[str, ...]:
    """The names of axes, given as one or as several."""
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"axis_name must be the name of an axis or several, found {wrong[0]!r}.")
    return names


@contextmanager
def parts_over(axis_name: Any) -> Iterator[None]:
    """Makes what follows take arrays that vary over these axes, too, for parts of one array."""
    names = names_of(axis_name)
    for name in names:
        if not _tracks_what_varies_over(name):
            raise ValueError(
                f"the shard_map over {name!r} does not track which arrays vary over it, so the "
                "arrays in parts are not known: leave check_vma as it is, True."
            )
    token = _axes.set((*_axes.get(), *(name for name in names if name not in _axes.get())))
    try:
        yield
    finally:
        _axes.reset(token)


def total(x: jax.Array) -> jax.Array:
    """The sum of all entries of an array, those on other devices included."""
    return _over_parts(lax.psum, lax.reduce_sum(x, range(x.ndim)), x)


def largest(x: jax.Array) -> jax.Array:
    """The largest entry of an array."""
    return _over_parts(lax.pmax, lax.reduce_max(x, range(x.ndim)), x)


def everywhere(flags: jax.Array) -> jax.Array:
    """Whether all flags are True."""
    if not _own_axes(flags):
        return jnp.all(flags)
    return total((~flags).astype(jnp.int32)) == 0


def entries(x: jax.Array) -> int:
    """The number of entries of an array."""
    return x.size * int(lax.psum(1, _own_axes(x)))


def _over_parts(collective: Any, number: jax.Array, x: jax.Array) -> jax.Array:
    axes = _own_axes(x)
    return collective(number, axes) if axes else number


def _own_axes(x: Any) -> tuple[str, ...]:
    """The axes over which an array is in parts, which are those it varies over."""
    return tuple(axis for axis in _axes.get() if axis in _varying(x))


def _varying(x: Any) -> frozenset:
    """The mapped axes that an array varies over."""
    kind: Any = jax.typeof(x)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying


def _tracks_what_varies_over(axis: str) -> bool:
    """Whether jax tracks what varies over an axis that is mapped here; True if none is."""
    try:
        index = lax.axis_index(axis)
    except NameError:
        return True
    return axis in _varying(index)
