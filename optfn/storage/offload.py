"""`offload`: slots in the memory of the host."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import per_leaf, static
from optfn.core.memory import in_memory_of, is_in_host, missing_host_memory, to_device, to_host
from optfn.core.placement import stands_for
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.wrapper import Wrapper
from optfn.storage.selection import Slot, check_names, is_stored, slots_in


def _as_names(value: Any, where: Any = "the slots") -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    are_names = isinstance(names, (tuple, list)) and all(isinstance(x, str) for x in names)
    if not names or not are_names:
        raise TypeError(
            f"{where} must be the name of a slot, or several, or None for all, found {value!r}."
        )
    return tuple(names)


class offload(Wrapper):
    """Keeps slots in the memory of the host, and updates on the device.

        tx = optfn.offload(optfn.adamw(1e-3))
        tx = optfn.offload(optfn.store(optfn.adamw(1e-3), storage.int8()), "nu")

    Between the updates, while a model computes gradients, the device holds none of these slots. An
    update copies them to the device and back, as much faster as they are smaller: put `store`
    inside. Under `jit` XLA lets copies and computations overlap. The updates are the same, bit for
    bit.

    It stands around a whole optimizer, and so around whatever reads or selects its slots, as
    `store` and `skip_nonfinite` do. Inside `shard_map` it stands outside of `across`.

    The memory is part of an array's type, and a slot stays where it was put: by `init`, by
    `convert_state`, or by restoring a checkpoint into what `init` gives. JAX pairs donated buffers
    by shape whatever their memory, so donate params and state together, and return them in the
    order in which they came, as `step` does. Of the derivatives of a loop over such states there
    are only those in forward mode.

    By default the slots of vectors and of fewer than 4096 entries stay on the device, and so do
    scalars always.

    Args:
        transform: the optimizer.
        slots: which ones: names as in `"scale_by_adam.mu"` or `"mu"`, or kinds, `"signed"` or
            `"non_negative"`; one or several. None for all.
        leaves: which params have their slots there, a bool per leaf; True for all.

    Raises:
        ValueError: at `init`, if the backend has no such memory, or a name is no slot.

    Warns:
        UserWarning: at an update, on a device with a memory of its own, if a slot that `init`
            would have put into the memory of the host is not there.
    """

    slots: Any = static(default=None, converter=_as_names)
    leaves: Any = per_leaf(default=None, of=bool)

    @property
    def name(self) -> str | None:
        return self._given_name

    def init_slots(self, params: PyTree) -> Any:
        missing = missing_host_memory(jax.tree.leaves(params))
        if missing:
            raise ValueError(f"offload(...): {missing}.")
        slots = self.transform.init_named(params)
        chosen = iter(self._chosen(slots, params))
        return jax.tree.map(
            lambda x: jax.tree.map(_moved, x) if next(chosen).is_chosen else x,
            slots,
            is_leaf=is_stored,
        )

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        if jax.default_backend() != "cpu":  # there both memories are one
            self._warn_of_slots_elsewhere(slots, updates if ctx.params is None else ctx.params)
        own = jax.tree.map(to_device, slots)
        updates, new = self.transform.apply_named(updates, own, ctx)
        return updates, jax.tree.map(in_memory_of, new, slots)

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return jax.tree.map(to_device, slots), step

    def with_inner(self, slots: Any, label: str, new: Any) -> Any:
        return jax.tree.map(in_memory_of, new, slots)

    def _chosen(self, slots: Any, params: PyTree) -> list[Slot]:
        """The slots that belong into the host's memory."""
        found = slots_in(slots, params, self.leaves)
        if self.slots is not None and jax.tree.leaves(params):
            check_names(self.slots, [slot.name for slot in found], "offload(slots=...)")
        return [x._replace(is_chosen=x.is_chosen and x.is_among(self.slots)) for x in found]

    def _warn_of_slots_elsewhere(self, slots: Any, params: PyTree) -> None:
        for slot in self._chosen(slots, params):
            if slot.is_chosen and not all(map(is_in_host, _arrays(slot.value))):
                warnings.warn(
                    f"offload(...): the state's {slot.name} is not in the memory of the host, "
                    "where init would have put it: convert_state(tx, state, params) puts it there.",
                    stacklevel=2,
                )
                return


def check_not_inside(tx: Transform, wrapper: str, deed: str) -> None:
    """Refuses an `offload` inside of a wrapper that would compute with slots in the host's memory.

    Args:
        tx: the transform inside.
        wrapper: the name of the wrapper.
        deed: what it does with slots, for the message.
    """
    if isinstance(tx, offload):
        raise ValueError(
            f"{wrapper} {deed} the slots of what is inside, which it cannot in the memory of the "
            f"host: put offload around {wrapper}."
        )
    for inner in tx.contents:
        check_not_inside(inner, wrapper, deed)


def _moved(x: jax.Array) -> jax.Array:
    return stands_for(to_host(x), x) if jnp.ndim(x) else x


def _arrays(slot: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(slot) if jnp.ndim(x)]
