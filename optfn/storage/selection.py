"""Which slots of an optimizer a wrapper is about: by what they are, by their param, by size."""

from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from optfn.core.slot_kinds import Kind, slot_kinds
from optfn.core.slot_paths import place_in
from optfn.core.tree import PerLeaf, PyTree, bare, leaf_paths, path_string
from optfn.storage.formats import Format

# Slots of fewer entries are not worth the trouble.
SMALL = 4096


class Slot(NamedTuple):
    """A slot of one param, or of none.

    Attributes:
        name: the qualified name of the slots beside it, such as `"scale_by_adam.mu"`.
        kind: what its entries can be, None for what is exact.
        value: an array, or a `Format` in the place of one.
        is_chosen: whether its param is, or where nobody has chosen, whether it is large.
    """

    name: str
    kind: Kind | None
    value: Any
    is_chosen: bool

    def is_among(self, names: Iterable[str] | None) -> bool:
        """Whether one of the names is its own, at the end or in whole, or is its kind."""
        return names is None or any(ends_with(self.name, x) or x == self.kind for x in names)


def ends_with(name: str, end: str) -> bool:
    """Whether a qualified name is this, or ends in it."""
    return f".{name}".endswith(f".{end}")


def check_names(names: Iterable[str], own: list[str], where: Any, which: str = "") -> None:
    """Refuses a name that is neither one of a transform's `own` nor a kind.

    Args:
        names: what a user has given.
        own: the qualified names of slots.
        where: the argument, for the message.
        which: which slots these are, for the message.
    """
    for name in names:
        if name not in get_args(Kind) and not any(ends_with(slot, name) for slot in own):
            known = ", ".join(dict.fromkeys(own)) or "none"
            raise ValueError(f"{where}: {name!r} is no slot{which}; there are: {known}.")


def slots_in(slots: Any, params: PyTree, leaves: PerLeaf | None) -> list[Slot]:
    """The slots in flattening order, where a `Format` is a leaf.

    Args:
        slots: of a transform, by name.
        params: its params, or what is like them.
        leaves: a bool per param; None chooses matrices of at least 4096 entries, and what belongs
            to no param and is as large.
    """
    params = bare(params)
    paths = {path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    chosen = {}
    if leaves is not None:
        chosen = dict(zip(leaf_paths(params), leaves.values(params), strict=True))
    found = []
    arrays = jax.tree_util.tree_flatten_with_path(bare(slots), is_leaf=is_stored)[0]
    for (path, value), kind in zip(arrays, slot_kinds(slots, is_stored), strict=True):
        whole = _whole(value)
        part = place_in(path, paths, whole)
        if leaves is None:
            is_chosen = np.size(whole) >= SMALL and (np.ndim(whole) > 1 or part is None)
        elif part is None:
            is_chosen = leaves.is_one and leaves.leaves[0]
        else:
            is_chosen = chosen[path_string(path[part])]
        name = ".".join(path_string((key,)) for key in path[: part and part.start])
        found.append(Slot(name, kind, value, is_chosen))
    return found


def _whole(value: Any) -> Any:
    """The array that a slot is read as, or its shape."""
    if not is_stored(value):
        return value
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), value)
    return jax.eval_shape(type(value).decode, shapes)


def is_stored(x: Any) -> bool:
    """Whether it is a `Format`, for `is_leaf`."""
    return isinstance(x, Format)
