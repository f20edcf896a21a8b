"""Params that stay in a set: after each step, back to its nearest point."""

from collections.abc import Callable
from typing import Any

import jax

from optfn.core.data import child, part, static
from optfn.core.holes import floating, merge, view
from optfn.core.paths import by_path
from optfn.core.projection import Projection, as_projection
from optfn.core.state import Context
from optfn.core.tree import PerLeaf, PyTree
from optfn.core.updates_kind import Updates, check_steps
from optfn.core.wrapper import Wrapper

FREE = -1


class _ByLeaf(Projection):
    """A set for some leaves, another for others."""

    sets: tuple[Projection, ...] = child()
    which: PerLeaf = static()

    def __call__(self, tree: PyTree) -> PyTree:
        return self._in_each(tree, lambda own, part: own(part), tree)

    def steps_into(self, params: PyTree, updates: PyTree) -> PyTree:
        return self._in_each(updates, lambda own, *parts: own.steps_into(*parts), params, updates)

    def _in_each(self, tree: PyTree, project: Callable[..., Any], *trees: PyTree) -> PyTree:
        which = self.which.values(tree)
        for i, own in enumerate(self.sets):
            mine = [x == i for x in which]
            if any(mine):
                found = project(own, *(view(x, mine) for x in trees))
                tree = merge(found, tree, mine)
        return tree

    def resolved(self, step: Any) -> "_ByLeaf":
        return self.rebuilt(sets=tuple(own.resolved(step) for own in self.sets))

    # What it was made of, also for `to_config`.

    @property
    def patterns(self) -> tuple[Any, ...]:
        function = self.which.function
        return tuple((pattern, self.sets[i]) for pattern, i in getattr(function, "patterns", ()))

    @property
    def default(self) -> Projection | None:
        i = getattr(self.which.function, "default", FREE)
        return None if i == FREE else self.sets[i]

    def __repr__(self) -> str:
        if self.which.function is not None:
            return repr(by_path(dict(self.patterns), self.default))
        leaves = [None if i == FREE else self.sets[i] for i in self.which.leaves]
        return repr(self.which.treedef.unflatten(leaves))


def _as_sets(value: Any, where: Any = None) -> Any:
    """One set for all leaves, or one for each of some."""
    where = str(where)
    if isinstance(value, by_path):
        sets = tuple(as_projection(x, f"{where}, {pattern!r},") for pattern, x in value.patterns)
        chosen = {pattern: i for i, (pattern, _) in enumerate(value.patterns)}
        default = FREE
        if value.default is not None:
            sets, default = (*sets, as_projection(value.default, f"{where}, default,")), len(sets)
        return _ByLeaf(sets, PerLeaf.of(by_path(chosen, default), where, int))
    if callable(value) or not isinstance(value, (dict, list, tuple)):
        return as_projection(value, where)
    leaves, treedef = jax.tree.flatten(value, is_leaf=_is_set)
    sets = tuple(as_projection(x, where) for x in leaves if x is not None)
    if not sets:
        raise TypeError(f"{where} must have a set for some leaves, found none in {value!r}.")
    numbers = iter(range(len(sets)))
    chosen = [FREE if x is None else next(numbers) for x in leaves]
    return _ByLeaf(sets, PerLeaf.of(treedef.unflatten(chosen), where, int))


def _is_set(x: Any) -> bool:
    return x is None or callable(x)


class projected(Wrapper):
    """Projected gradient descent, with any optimizer: each step ends at a point of a set.

        p <- P(p + step)        P(x) is the point of the set nearest to x

    For params that are probabilities, rates, weights of bounded norm, rotations:

        projected(sgd(0.1, momentum=0.9), projections.simplex(axis=-1))
        projected(adam(1e-2), {"rates": projections.box(0, 1), "angle": None})
        projected(adam(1e-2), by_path({"**/kernel": projections.l2_ball(3.0, axis=0)}))

    A step that ends in the set is unchanged. Params that start outside of it are in it after the
    first update. Nothing may change the updates after it, so it stands around a whole optimizer,
    inside of averages. The optimizer's own state is not projected: with momentum the direction may
    keep pointing out of the set. Where directions are scaled entry by entry, as Adam's are, the
    nearest point is not that of their metric: in a box they end at the minimum, in another set at a
    point near it; `sgd` ends at the minimum in any convex set.

    The point is exact up to the rounding of the params, and in a `box` entries are never outside.
    If gradients have a lower precision than their params, `update` rounds its updates; `step` does
    not. For functions without noise `minimize(f, x0, bounds=...)` needs far fewer evaluations.

    Args:
        transform: the optimizer.
        projection: a set of `optfn.projections`, which holds for each array by itself; or a
            function `tree -> tree` of all arrays together, as those of `optax.projections`; or
            several of these by leaf, as a tree (a prefix is enough) with None for leaves that are
            free, or by path in `by_path`, where leaves that no pattern matches are free.

    Raises:
        ValueError: `update` was not given the params; or the transform is no whole optimizer.
        TypeError: `projection` is neither a set nor a function.

    Source: Goldstein 1964; Levitin and Polyak 1966.
    """

    needs_params = True

    projection: Any = part(converter=_as_sets)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.transform, "projected(transform=...)")

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        steps, new = self.transform.apply_named(updates, slots, ctx)
        mine = floating(steps)
        seen = view(ctx.params, mine), view(steps, mine)
        return merge(self.projection.steps_into(*seen), steps, mine), new

    def resolve(self, step: Any) -> "projected":
        return super().resolve(step).rebuilt(projection=self.projection.resolved(step))

    def updates_kind(self, incoming: Updates) -> Updates:
        return super().updates_kind(incoming).kept()
