"""In which order a CPU works on leaves whose slots are stored in low precision.

Left to itself, XLA starts on all leaves at once, each with wide temporaries of its own, and writes
a donated slot before the param that reads its old value, for which it keeps a copy. Here a leaf
waits for the one before it, and the slots of a leaf for its param. Nothing is computed otherwise:
what waits is a `select` on a flag that is False, as XLA learns only when the other is there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from optfn.core.dtypes import is_narrow
from optfn.core.rounding import added
from optfn.core.state import Context, StoredAs

# What is smaller stays in a CPU's cache.
SMALL = 4096


class Turn(NamedTuple):
    """Where a leaf stands in the order.

    Attributes:
        before: a flag of the leaf before it.
        step: int32 scalar, of which XLA does not know that it is never negative.
        param: the param to which the update will be added; None if it is not known.
    """

    before: jax.Array
    step: jax.Array
    param: jax.Array | None

    def flag(self, update: jax.Array) -> jax.Array:
        """False, known when the update is added to the param, or is there where that is None."""
        first = update if self.param is None else added(self.param, update)
        return lax.platform_dependent(first, self.step, cpu=_flag, default=_no_flag)


def after(flag: jax.Array, tree: Any) -> Any:
    """The same arrays, which are there only when the flag is known."""
    return jax.tree.map(lambda x: lax.select(flag, jnp.zeros_like(x), x), tree)


def in_order(
    updates: Sequence[jax.Array], slots: Sequence[list[Any]], ctx: Context
) -> list[StoredAs | None]:
    """For each leaf that is given a turn, how its slots are stored; None for the others.

    Those are given one that are large, and whose slots are stored in low precision, in a compiled
    program. On several devices the flag, which is one for all parts of a leaf, would be
    communicated; in `shard_map` each part would have its own.
    """
    in_parts = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if jax.device_count() > 1 or not isinstance(ctx.step, Tracer) or in_parts:
        return [None] * len(updates)

    found: list[StoredAs | None] = [None] * len(updates)
    for i, (update, own) in enumerate(zip(updates, slots, strict=True)):
        held = jax.tree.leaves(own)
        if update.size >= SMALL and held:
            is_cast = any(is_narrow(x.dtype) for x in held)
            found[i] = ctx.stored_as or ("dtypes" if is_cast else None)
    # One alone waits for nobody, and its slots are made sooner than they can be held.
    return [None if how == "formats" and found.count(how) == 1 else how for how in found]


def _flag(x: jax.Array, step: jax.Array) -> jax.Array:
    return lax.cond(step < 0, lambda x: jnp.any(x != x), lambda x: False, x)


def _no_flag(x: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.zeros((), bool)
