"""Where an update is computed: where the state lies, whatever the params and gradients do.

With explicit axes arrays of different shardings do not mix. So before an update everything goes to
where the slots of its param lie: a sharded state stays sharded, and each device updates its part.
After it the updates go to where the params lie.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.core import Tracer

from optfn.core.inputs import is_float0
from optfn.core.placement import is_sharded, lies_like, put_like
from optfn.core.slot_paths import param_of
from optfn.core.tree import PyTree


class Layout:
    """Where the leaves of an update are computed, and where they belong.

    Args:
        updates: the gradients.
        params: the params, or None.
        slots: the state's slots.
    """

    def __init__(self, updates: PyTree, params: PyTree | None, slots: Any):
        home = jax.tree.leaves(updates if params is None else params)
        work = home
        arrays = jax.tree.leaves((updates, params, slots))
        sharded = any(map(is_sharded, arrays))
        # A trace without explicit axes has no places.
        self._is_idle = not sharded and all(isinstance(x, Tracer) for x in arrays)
        if sharded:
            by_path = dict(jax.tree_util.tree_flatten_with_path(updates)[0])
            found: dict[tuple | None, Any] = {}
            for path, slot in jax.tree_util.tree_flatten_with_path(slots)[0]:
                found.setdefault(param_of(path, slot, by_path), slot)
            work = [found.get(path, x) for path, x in zip(by_path, home, strict=True)]
        self._home, self._work = home, work
        self._moves = sharded and not all(map(lies_like, home, work))

    def enter(self, tree: PyTree) -> PyTree:
        """A tree like the updates, where the state lies."""
        return tree if self._is_idle else _put_all(tree, self._work)

    def leave(self, tree: PyTree) -> PyTree:
        """A tree like the updates, where the params lie; without params, where the gradients do."""
        return tree if self._is_idle else _put_all(tree, self._home)

    def enter_extra(
        self, extra_args: Mapping[str, Any], kinds: Mapping[str, str]
    ) -> dict[str, Any]:
        """The extra arguments for an update that is computed where the state lies."""
        return {name: self._extra(kinds.get(name, ""), x) for name, x in extra_args.items()}

    def _extra(self, kind: str, value: Any) -> Any:
        if kind == "tree":
            return _put_all(value, self._work)
        if "function" not in kind or not self._moves:
            return value

        @functools.wraps(value)
        def at_home(params: PyTree, *args: Any, **kwargs: Any) -> Any:
            result = value(self.leave(params), *args, **kwargs)
            return self.enter(result) if kind == "tree function" else result

        return at_home


def _put_all(tree: PyTree, places: list[Any]) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, places, strict=True)
    return treedef.unflatten([x if is_float0(x) else put_like(x, y) for x, y in pairs])
