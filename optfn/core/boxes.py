"""Boxes around arrays: Flax's variables and metadata, which name the mesh axes of their array."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from optfn.core.placement import Along, is_along, sharding_along
from optfn.core.tree import PyTree, bare, flatten_like, is_box

# Where an nnx variable keeps the names, in the versions of Flax.
NAMES = ("out_sharding", "sharding_names", "sharding", "optimizer_sharding")


def holds_one(node: Any) -> bool:
    """Whether a node is a box around one array."""
    return is_box(node) and jax.tree.structure(node).num_leaves == 1


def contents_like(tree: PyTree, updates: PyTree, what: str) -> list[Any]:
    """The slots at each leaf of the updates, out of their boxes if the updates are in some."""
    boxes, treedef = jax.tree.flatten(updates, is_leaf=holds_one)
    if not any(map(holds_one, boxes)):
        return flatten_like(tree, updates, what, "updates")
    found = flatten_like(tree, treedef.unflatten(jax.tree.leaves(updates)), what, "updates")
    for box, slots in zip(boxes, found, strict=True):
        inside = jax.tree.leaves(slots, is_leaf=holds_one)
        if holds_one(box) and not all(map(holds_one, inside)):
            flatten_like(tree, updates, what, "updates")  # which raises
    return list(map(bare, found))


def boxed_like(box: Any, slots: PyTree) -> PyTree:
    """The arrays of a param's slots in boxes like the param's, which name the axes they share.

    Args:
        box: the box of the param, or the param itself.
        slots: a tree of `Along`, whose values lie in their place.
    """

    def boxed(slot: Along) -> Any:
        if not holds_one(box):
            return slot.value
        (param,), treedef = jax.tree.flatten(box)
        new = treedef.unflatten([slot.value])
        if slot.value.shape == param.shape:
            return new
        if hasattr(box, "unbox"):
            names = getattr(box, "names", None)
            return new if names is None else replace(new, names=_along(slot, param, names))
        for key, names in box.get_metadata().items():
            if key in NAMES and names is not None:
                new.set_metadata(key, _along(slot, param, names))
        return new

    return jax.tree.map(boxed, slots, is_leaf=is_along)


def _along(slot: Along, param: Any, names: Any) -> Any:
    """The names of a slot's axes, given those of its param's."""
    if isinstance(names, NamedSharding):
        return sharding_along(slot, jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=names))
    if not isinstance(names, Sequence):
        return names
    shared = slot.shared(param)
    own = [names[axis] if axis is not None and axis < len(names) else None for axis in shared]
    return PartitionSpec(*own) if isinstance(names, PartitionSpec) else tuple(own)
