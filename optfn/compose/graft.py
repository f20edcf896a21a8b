"""The direction of one transform with the size of another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.data import child, per_leaf
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.numerics import norms_along, ratio, whole
from optfn.core.placement import replicate, split_like
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates

MADE: Updates = Updates.STEP | Updates.LAST


class Grafted(NamedTuple):
    """The named slots of both transforms."""

    direction: Any
    magnitude: Any


class graft(Transform):
    """The direction of one transform, with the norm that another gives each matrix.

        u = d * ||a|| / ||d||        d of `direction` and a of `magnitude`, from the same updates
        u = a                        before update number `start`

    A new method then takes over the rates and schedules of a known one, as Shampoo those of Adam:

        chain(graft(scale_by_shampoo(), scale_by_adam()), scale_by_learning_rate(1e-3))

    Norms are Frobenius norms, of every matrix of a stack and every block by itself; a leaf that is
    no matrix has one norm. A matrix whose d is zero does not move.

    Args:
        direction: a stage.
        magnitude: another one.
        start: the first update of which the direction is used, a number or a schedule.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.

    Raises:
        ValueError: one of the two gives steps and the other directions; or at `init`, if an array
            of three or more axes is not described by `views`.

    Source: Agarwal et al. 2020.
    """

    direction: Transform = child(converter=as_transform)
    magnitude: Transform = child(converter=as_transform)
    start: Any = 1
    views: Any = per_leaf(default=None, none_is=matrices(), of=MatrixAxes, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = [inner.updates_kind(Updates.DIRECTION) for inner in self.contents]
        if Updates.DIRECTION in kinds and any(kind & MADE for kind in kinds):
            raise ValueError(
                f"graft(...): the updates of direction are {kinds[0].name}, those of magnitude "
                f"{kinds[1].name}; both must be directions, before a learning rate, or both steps."
            )

    @property
    def stateful(self) -> bool:
        return any(inner.stateful for inner in self.contents)

    def init_slots(self, params: PyTree) -> Grafted:
        self.views.values(params)
        return Grafted(self.direction.init_named(params), self.magnitude.init_named(params))

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return getattr(slots or Grafted({}, {}), label), step

    def with_inner(self, slots: Any, label: str, new: Any) -> Grafted:
        return slots._replace(**{label: new})

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        held = slots or Grafted({}, {})
        d, direction = self.direction.apply_named(updates, held.direction, ctx)
        a, magnitude = self.magnitude.apply_named(updates, held.magnitude, ctx)
        started = ctx.next_step >= whole(self.start)
        views = self.views.values(updates if ctx.params is None else ctx.params)
        leaves, treedef = jax.tree.flatten(d)
        u = [
            jnp.where(started, _with_norms(view, of, like), like)
            for view, of, like in zip(views, leaves, jax.tree.leaves(a), strict=True)
        ]
        return treedef.unflatten(u), Grafted(direction, magnitude) if self.stateful else None


def _with_norms(view: MatrixAxes, d: jax.Array, a: jax.Array) -> jax.Array:
    """`d` with the norms of `a`."""
    if view.block is None:
        _, rows, columns = view.axes(d.shape)
        return _with_norm(rows + columns if view.is_matrix else None, d, a)
    u = _with_norm((-2, -1), view.split(replicate(d)), view.split(replicate(a)))
    return split_like(view.join(u, d.shape), d)


def _with_norm(axes: Any, d: jax.Array, a: jax.Array) -> jax.Array:
    of_d, of_a = norms_along(axes, d), norms_along(axes, a)
    return d / of_d.scale * ratio(of_a.relative, of_d.relative) * of_a.scale
