"""DoG, DoWG and layer-wise DoG: rates from the distance to the initial params."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import show, static, storage_dtype
from optfn.core.dtypes import cast, compute_dtype
from optfn.core.each_leaf import each_leaf
from optfn.core.leafwise import Leafwise
from optfn.core.mapped import total
from optfn.core.numerics import (
    abs_sq,
    global_norm,
    norm_in_range,
    ratio,
    sqrt,
    tree_scale,
    tree_sum,
)
from optfn.core.slots import copy_params, scalar_slot
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class DistanceState(NamedTuple):
    """The largest distance from the start, the norm of all gradients, and the initial params."""

    max_distance: PyTree
    gradient_norm: PyTree
    start: PyTree


class DistanceRate(NamedTuple):
    """`DistanceState` of all arrays together, with the last rate."""

    max_distance: jax.Array
    gradient_norm: jax.Array
    start: PyTree
    rate: jax.Array


def _started(distance: Any, params: PyTree) -> DistanceRate:
    zeros = (scalar_slot(0, params) for _ in range(2))
    return DistanceRate(
        scalar_slot(distance, params), next(zeros), copy_params(params), next(zeros)
    )


def _found(slots: DistanceRate) -> dict[str, jax.Array]:
    return {"estimated_distance": slots.max_distance, "effective_learning_rate": slots.rate}


def _distance(params: PyTree, start: PyTree) -> jax.Array:
    """The distance between the params and their initial values.

    The squares are not rescaled: those of params are far from the ends of float32's range, and a
    branch, as in `global_norm`, would copy donated buffers.
    """
    (squares,) = each_leaf(_squared_distance, params, start)
    return sqrt(tree_sum(squares))


def _squared_distance(p, start):
    wide = cast(p, compute_dtype(p.dtype))
    return (total(abs_sq(wide - start)),)


def _gather(old: jax.Array, new: jax.Array) -> jax.Array:
    """sqrt(old^2 + new^2), without overflow."""
    return global_norm((old, new))


FIRST = ("distance", "learning_rate", "heuristic")


class scale_by_dog(Transform):
    """The step of DoG: the largest distance from the start over the norm of all gradients.

        r <- max(r, ||p - p_start||)        G <- G + ||g||^2        over all arrays together
        u = g * r / sqrt(G + eps)

    Args:
        init_step: the initial r: `("distance", r)`, or `("heuristic", a)` for
            r = a * (1 + ||p_start||), or `("learning_rate", a)` for a first step a * g. A schedule
            counts with its value at step 0.
        eps: added under the root.

    Raises:
        ValueError: `update` was not given the params.

    Source: Ivgi et al. 2023.
    """

    splittable = True

    needs_params = True

    init_step_value: Any
    eps: Any
    init_step_kind: str = static(choices=FIRST)

    def __init__(self, init_step: tuple[str, Any], eps: Any = 1e-8):
        where = "scale_by_dog(init_step=...)"
        if not (isinstance(init_step, tuple) and len(init_step) == 2 and init_step[0] in FIRST):
            raise TypeError(
                f"{where} must be a pair of one of {FIRST} and a number, found {init_step!r}."
            )
        object.__setattr__(self, "init_step_kind", init_step[0])
        object.__setattr__(self, "init_step_value", self._as_number(init_step[1], where))
        object.__setattr__(self, "eps", eps)
        self.__post_init__()

    def init_slots(self, params: PyTree) -> DistanceRate:
        value = self.resolve(0).init_step_value
        match self.init_step_kind:
            case "distance":
                r = value
            case "heuristic":
                r = value * (1 + global_norm(params))
            case _:
                r = 0.0
        return _started(r, params)

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return _found(slots)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        r = jnp.maximum(slots.max_distance, _distance(ctx.params, slots.start))
        norm = _gather(slots.gradient_norm, norm_in_range(updates))
        rate = ratio(r, _gather(norm, sqrt(self.eps)))
        if self.init_step_kind == "learning_rate":
            rate = jnp.where(r == 0, self.init_step_value, rate)
        return tree_scale(rate, updates), DistanceRate(r, norm, slots.start, rate)

    @property
    def init_step(self) -> tuple[str, Any]:
        return self.init_step_kind, self.init_step_value

    def _arguments(self) -> list[str]:
        return [f"init_step={show(self.init_step)}", f"eps={show(self.eps)}"]


def dog(
    learning_rate: Any = 1.0,
    init_step: tuple[str, Any] = ("heuristic", 1e-6),
    eps: Any = 1e-8,
    weight_decay: Any = None,
    mask: Any = None,
) -> chain:
    """DoG: gradient descent that finds its own rate, from the distance to the initial params.

    Leave the learning rate at 1, and evaluate at an average of the params, as the authors do. Not
    for continuing a run from its params alone: the distance would start again at zero. The rule is
    `scale_by_dog` applied to g + weight_decay * p, then p <- p - learning_rate * u.

    Args:
        learning_rate: a factor on DoG's rate, a number or a schedule.
        init_step: the initial distance; see `scale_by_dog`. The heuristic takes 1e-6, or 1e-4
            where layers are normalized.
        eps: added under the root.
        weight_decay: the weight of an L2 penalty, a number or a schedule; None for no penalty.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Ivgi et al. 2023.
    """
    return chain(
        *_penalty(weight_decay, mask),
        scale_by_dog(init_step, eps),
        scale_by_learning_rate(learning_rate),
    )


def _penalty(weight_decay: Any, mask: Any) -> list[Transform]:
    return [] if weight_decay is None else [add_decayed_weights(weight_decay, mask)]


class scale_by_dowg(Transform):
    """The step of DoWG: DoG's, with every gradient weighted by the distance r of its step.

        r <- max(r, ||p - p_start||)        G <- G + r^2 * ||g||^2        over all arrays together
        u = g * r^2 / (sqrt(G) + eps)

    Args:
        init_estim_sq_dist: the initial r^2; None is eps.
        eps: added to the root.

    Raises:
        ValueError: `update` was not given the params.

    Source: Khaled et al. 2023.
    """

    splittable = True

    needs_params = True

    init_estim_sq_dist: Any = None
    eps: Any = 1e-4

    def init_slots(self, params: PyTree) -> DistanceRate:
        own = self.resolve(0)
        square = own.eps if own.init_estim_sq_dist is None else own.init_estim_sq_dist
        return _started(sqrt(scalar_slot(square, params)), params)

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return _found(slots)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        r = jnp.maximum(slots.max_distance, _distance(ctx.params, slots.start))
        norm = _gather(slots.gradient_norm, r * norm_in_range(updates))
        rate = ratio(r, norm + self.eps) * r
        return tree_scale(rate, updates), DistanceRate(r, norm, slots.start, rate)


def dowg(
    learning_rate: Any = 1.0,
    init_estim_sq_dist: Any = None,
    eps: Any = 1e-4,
    weight_decay: Any = None,
    mask: Any = None,
) -> chain:
    """DoWG: DoG with weighted gradients, so that early ones count little.

    Leave the learning rate at 1. The rule is `scale_by_dowg` applied to g + weight_decay * p, then
    p <- p - learning_rate * u.

    Args:
        learning_rate: a factor on DoWG's rate, a number or a schedule.
        init_estim_sq_dist: the square of the initial distance; None is eps.
        eps: added to the root.
        weight_decay: the weight of an L2 penalty, a number or a schedule; None for no penalty.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Khaled et al. 2023.
    """
    return chain(
        *_penalty(weight_decay, mask),
        scale_by_dowg(init_estim_sq_dist, eps),
        scale_by_learning_rate(learning_rate),
    )


class scale_by_distance_over_gradients(Leafwise):
    """Layer-wise DoG: `scale_by_dog` for each array on its own.

        r <- max(r, ||p - p_start||)        r = reps_rel * (1 + ||p_start||) at the start
        G <- G + ||g||^2
        u = global_scale * g * r / sqrt(G + eps)

    Args:
        reps_rel: the initial r relative to 1 + ||p_start||; 1e-4 where layers are normalized.
        eps: added under the root.
        param_dtype: the dtype in which p_start is stored; None is float32, or wider for wider
            params. (optax's default is float32 for these too.)
        global_scale: a factor, a number or a schedule.

    Raises:
        ValueError: `update` was not given the params.

    Source: Ivgi et al. 2023.
    """

    splittable = True

    needs_params = True

    reps_rel: Any = 1e-6
    eps: Any = 1e-8
    param_dtype: Any = storage_dtype("start", default=None)
    global_scale: Any = 1.0

    Slots = DistanceState

    def init_leaf(self, param: jax.Array) -> DistanceState:
        first = self.reps_rel * (1 + global_norm(param))
        return DistanceState(first, jnp.zeros_like(first), param)

    def update_leaf(
        self, g: jax.Array, slots: DistanceState, param: Any, t: jax.Array
    ) -> tuple[jax.Array, DistanceState]:
        r = jnp.maximum(slots.max_distance, norm_in_range(param - slots.start))
        norm = _gather(slots.gradient_norm, norm_in_range(g))
        rate = self.global_scale * ratio(r, _gather(norm, sqrt(self.eps)))
        return rate * g, DistanceState(r, norm, slots.start)
