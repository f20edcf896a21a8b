"""Skipping steps that are not finite, and the base class of all wrappers that skip."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optfn.compose.chain import chain
from optfn.compose.interop import from_optax
from optfn.core.data import child
from optfn.core.dtypes import like_number
from optfn.core.inputs import is_float0
from optfn.core.numerics import all_finite
from optfn.core.slots import zero_slot
from optfn.core.state import Context, State, count_up
from optfn.core.transform import Transform, advance, as_transform, restored_hint
from optfn.core.tree import PyTree, location_of
from optfn.storage.offload import check_not_inside


class Skips(NamedTuple):
    """The counts of skipped steps, and the state of the inner optimizer.

    Attributes:
        consecutive: int32 scalar, the number of unfit steps in a row up to now, which are skipped
            unless `apply_if_finite` lets them through.
        total: int32 scalar, the number of unfit steps.
        skipped: bool scalar, whether the last step was skipped.
        gave_up: bool scalar, whether too many in a row were skipped; then every step is.
        inner: the inner optimizer's `State`, whose step counts the steps that were not skipped.
    """

    consecutive: jax.Array
    total: jax.Array
    skipped: jax.Array
    gave_up: jax.Array
    inner: State


class Skipping(Transform):
    """An optimizer whose steps are taken or skipped; a subclass decides which gradients are fit.

    Class attributes a subclass may set, besides those of `Transform`:
        lets_through: after too many unfit steps in a row it takes them, instead of giving up.
    """

    lets_through: ClassVar[bool] = False

    transform: Transform = child(also_called="inner", converter=as_transform)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradients_arrive(self.transform, type(self).__name__)
        check_not_inside(self.transform, type(self).__name__, "selects")

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return super().inner(_skips_of(slots), step, label)

    def with_inner(self, slots: Any, label: str, new: Any) -> Any:
        skips = super().with_inner(_skips_of(slots), label, new)
        return skips if isinstance(slots, Skips) else slots._replace(skips=skips)

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"skipped": _skips_of(slots).total}

    def no_skips(self, params: PyTree) -> Skips:
        """The initial slots."""
        return Skips(
            consecutive=zero_slot(jnp.int32, params),
            total=zero_slot(jnp.int32, params),
            skipped=zero_slot(bool, params),
            gave_up=zero_slot(bool, params),
            inner=self.transform.init_state(params),
        )

    def attempt(
        self, grads: PyTree, skips: Skips, ctx: Context, fit: jax.Array, max_consecutive: Any
    ) -> tuple[PyTree, Skips]:
        """The inner optimizer's step if the gradient is fit and the step finite, else zeros."""

        def is_too_many(count: jax.Array) -> jax.Array:
            return like_number(count, max_consecutive) > max_consecutive

        count = count_up(skips.consecutive)
        fit = fit & ~skips.gave_up
        taken_anyway = is_too_many(count) if self.lets_through else np.zeros((), bool)
        # The gradient is selected too: the inner optimizer sees zeros instead of an unfit gradient,
        # so that its loops and decompositions get no NaN.
        shown = _or_zeros(fit | taken_anyway, grads)
        steps, new = advance(self.transform, shown, skips.inner, ctx.params, ctx.extra_args)
        fit = fit & all_finite(steps)
        taken = fit | taken_anyway
        consecutive = jnp.where(fit, 0, count)
        return _or_zeros(taken, steps), Skips(
            consecutive=consecutive,
            total=jnp.where(fit, skips.total, count_up(skips.total)),
            skipped=~taken,
            gave_up=skips.gave_up | ~taken & is_too_many(consecutive),
            inner=jax.tree.map(partial(jnp.where, taken), new, skips.inner),
        )


class skip_nonfinite(Skipping):
    """Skips a step whose gradient, or whose update, has an entry that is NaN or infinite.

    The updates of a skipped step are zero, the state of the inner optimizer stays the same, bit for
    bit, and its schedules count only the steps taken.

    After more than `max_consecutive` skipped steps in a row it gives up. From then on every step is
    skipped and counted, finite or not, and `raise_if_gave_up(state)` raises. To continue, restore
    an older state. (`apply_if_finite`, which is optax's, then lets the NaNs through, and the params
    are lost.)

    Put it around a whole optimizer. Because the update is checked too, the old state is kept until
    the new one is known, even where it is donated. A state that overflows is noticed only when an
    update does. For entries that are NaN now and then by nature put `zero_nans` before it:
    `chain(zero_nans(), skip_nonfinite(...))`; inside it is refused.

    Args:
        transform: the optimizer.
        max_consecutive: a number or a schedule; `float("inf")` never gives up.
    """

    splittable = True

    max_consecutive: Any = 5

    def init_slots(self, params: PyTree) -> Skips:
        return self.no_skips(params)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        return self.attempt(updates, slots, ctx, all_finite(updates), self.max_consecutive)


class apply_if_finite(Skipping):
    """Skips a step that is not finite, but only so many in a row: then it lets the NaNs through.

    A run whose gradients stay NaN so becomes NaN itself, for all to see, where `skip_nonfinite`
    keeps the params and raises when it is asked. Everything else is as there: the gradient and the
    update are checked, and the state of the inner optimizer keeps still at a skipped step.
    (optax's checks the gradient alone.)

    Args:
        transform: the optimizer; optax's name for it, `inner`, is taken too.
        max_consecutive_errors: how many in a row are skipped, a number or a schedule.
    """

    splittable = True
    lets_through = True

    max_consecutive_errors: Any

    def init_slots(self, params: PyTree) -> Skips:
        return self.no_skips(params)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        fit = all_finite(updates)
        return self.attempt(updates, slots, ctx, fit, self.max_consecutive_errors)


def check_gradients_arrive(transform: Transform, wrapper: str) -> None:
    """Refuses what is there for gradients that are not finite, which `wrapper` leaves out.

    A stage of another maker may give NaNs itself, so what follows it in a chain is not refused.
    """
    if getattr(type(transform), "needs_every_gradient", False):
        name = type(transform).__name__
        place = "around" if transform.contents else "before"
        raise ValueError(
            f"{name} inside of {wrapper} would never see the gradients that are not finite, since "
            f"{wrapper} leaves them out: put {name} {place} {wrapper}."
        )
    for inner in transform.contents:
        check_gradients_arrive(inner, wrapper)
        if isinstance(transform, chain) and _may_give_nans(inner):
            break


def _may_give_nans(transform: Transform) -> bool:
    is_ours = type(transform).__module__.startswith("optfn.")
    is_foreign = isinstance(transform, from_optax) or not is_ours
    return is_foreign or any(map(_may_give_nans, transform.contents))


def raise_if_gave_up(state: PyTree) -> None:
    """Raises if an optimizer gave up: `skip_nonfinite`, `skip_spikes` or `loss_scale`.

    It reads the state, so call it outside `jit`, and not at every step: it waits for the step to
    finish. Inside `accumulate`, which itself skips gradients that are not finite, a wrapper never
    sees them: put the wrapper around the `accumulate`.

    Args:
        state: an optimizer's state, or any tree with such states inside, of a single run or of
            a `vmap`.

    Raises:
        FloatingPointError: an optimizer gave up; the message has the path of the stage, the number
            of skipped steps and, for a batch of runs, the lanes.
        ValueError: the state has no part of such a wrapper.
        TypeError: it was called inside `jit` or `vmap`.
    """
    found = dict(_skips_in(state))
    if not found:
        raise ValueError(
            "raise_if_gave_up(state): the state has no part of a skip_nonfinite, skip_spikes or "
            f"loss_scale{restored_hint(state)}."
        )
    if any(isinstance(skips.gave_up, Tracer) for skips in found.values()):
        raise TypeError("raise_if_gave_up(state) reads values: call it outside of jit and vmap.")
    reports = [
        f"{location_of(path)} {report}"
        for path, skips in found.items()
        for report in _reports(*jax.device_get((skips.gave_up, skips.consecutive, skips.total)))
    ]
    if reports:
        raise FloatingPointError(
            f"the optimizer gave up, and the params stand still: {'; '.join(reports)}."
        )


def _skips_of(slots: Any) -> Skips:
    return slots if isinstance(slots, Skips) else slots.skips


def _or_zeros(keep: jax.Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x if is_float0(x) else jnp.where(keep, x, 0), tree)


def _skips_in(tree: PyTree, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Skips]]:
    """All `Skips` in a tree with their key paths, also one inside another."""
    entries = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Skips))
    for end, skips in entries:
        if isinstance(skips, Skips):
            here = *path, *end
            yield here, skips
            yield from _skips_in(skips.inner, (*here, jax.tree_util.GetAttrKey("inner")))


def _reports(gave_up: np.ndarray, consecutive: np.ndarray, total: np.ndarray) -> Iterator[str]:
    lanes = np.argwhere(gave_up)
    for lane in map(tuple, lanes[:5]):
        where = f"in lane {', '.join(map(str, lane))} " if lane else ""
        yield f"{where}it skipped the last {consecutive[lane]} steps, {total[lane]} in all"
    if len(lanes) > 5:
        yield f"and {len(lanes) - 5} more lanes of {gave_up.size} gave up"
