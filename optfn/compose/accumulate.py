"""Gradient accumulation: one step of an optimizer for several gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.finite import check_gradients_arrive
from optfn.core.control_flow import cond
from optfn.core.data import child, static, storage_dtype
from optfn.core.dtypes import cast, like_number, own_dtype
from optfn.core.each_leaf import each_leaf
from optfn.core.holes import floating, merge, view
from optfn.core.inputs import check_floating
from optfn.core.numerics import all_finite, ratio, tree_scale
from optfn.core.outputs import cast_like
from optfn.core.slot_kinds import Signed
from optfn.core.slots import scalar_slot, zero_slot, zeros_of
from optfn.core.state import Context, State, count_up
from optfn.core.transform import ExtraKind, Transform, advance, as_transform
from optfn.core.tree import PyTree, flatten_like


class Accumulation(NamedTuple):
    """The gradients summed since the last update, and the state of the inner optimizer.

    Attributes:
        sum: the sum of the micro-gradients times their weights. After an update it stays until the
            next micro-gradient replaces it.
        weight: the sum of the weights; without weights, the number of micro-gradients.
        micro_step: int32 scalar, micro-gradients in the sum for the next update; 0 after an update.
        skipped: int32 scalar, micro-gradients left out since `init` as not finite.
        has_updated: bool scalar, whether the optimizer ran in the last call of `update`.
        inner: the optimizer's `State`, whose step is the number of updates made.
    """

    sum: Signed
    weight: jax.Array
    micro_step: jax.Array
    skipped: jax.Array
    has_updated: jax.Array
    inner: State


class accumulate(Transform):
    """Gradient accumulation: an optimizer takes one step with the mean of several gradients.

        total <- total + w * g            for each micro-gradient, in order; w = 1 unless weighted
        step of the optimizer with g = total / (sum of w)       when `every` of them are added

    Between steps the updates are zeros and the optimizer does not run. (Under a `vmap` over `every`
    it runs each time, and its result is dropped.) Put the whole optimizer inside: its
    schedules count its own steps, and so does a schedule for `every`. Stages beside `accumulate` in
    a chain see and count every micro-gradient.

        accumulate(adamw(1e-3), every=8)

    A micro-gradient with an entry or a weight that is not finite is skipped: it is neither added
    nor counted, so that every step has `every` gradients; for single NaNs put `zero_nans` before
    it. The optimizer gets the extra arguments of the call in which it runs, which belong to the
    last micro-batch: a line search would see that one alone. The slots, an `Accumulation`, hold the
    sum, the number of skipped gradients and whether the last call was a step.

    For gradients that come one by one. For one batch that is too large for the memory use
    `microbatch`, which needs no state.

    Args:
        transform: the optimizer.
        every: micro-gradients per step, a number or a schedule; rounded, and at least 1.
        use_grad_mean: whether to divide by the sum of the weights; else the step uses the total.
        weighted: whether `update` takes the keyword argument `weight`, a scalar, for micro-batches
            of different sizes: the number of examples or tokens that the gradient is the mean of. A
            mean with a total weight of zero is zero.
        accumulator_dtype: the dtype of the sum, real also for complex gradients; None is float32,
            or wider with wider params. In bfloat16 a large sum loses small gradients; float16 is
            refused, because the sum would overflow.

    Raises:
        TypeError: `accumulator_dtype` is not a floating point dtype with the range of float32.
        ValueError: a `loss_scale` or `zero_nans` is inside, where the gradients that are not
            finite would not reach it.
    """

    splittable = True

    transform: Transform = child(converter=as_transform)
    every: Any
    use_grad_mean: bool = static(default=True, kw_only=True)
    weighted: bool = static(default=False, kw_only=True)
    accumulator_dtype: Any = storage_dtype("sum", default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradients_arrive(self.transform, "accumulate")
        _check_range(self.accumulator_dtype)

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        own: dict[str, ExtraKind] = {"weight": "scalar"} if self.weighted else {}
        return super().declared_extra_args() | own

    def init_slots(self, params: PyTree) -> Accumulation:
        # An integer param can only be frozen inside; it has no sum.
        summed = view(params, floating(params))
        return Accumulation(
            sum=zeros_of(summed, dtype=self.accumulator_dtype),
            weight=scalar_slot(0, params),
            micro_step=zero_slot(jnp.int32, params),
            skipped=zero_slot(jnp.int32, params),
            has_updated=zero_slot(bool, params),
            inner=self.transform.init_state(params),
        )

    def schedule_step(self, slots: Any, step: Any) -> Any:
        return slots.inner.step

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"skipped": slots.skipped}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        sums = flatten_like(slots.sum, updates, f"the slots {self.name}.sum", "updates")
        summed = [x is not None for x in sums]
        grads = view(updates, summed)
        check_floating("the gradient", grads)

        weight = cast(ctx.extra_args["weight"] if self.weighted else 1, own_dtype(grads))
        terms = tree_scale(weight, grads)
        kept = jnp.isfinite(weight) & all_finite(terms)
        first = slots.micro_step == 0

        def added(term, plus, before):
            return jnp.where(kept, jnp.where(first, term, plus), before)

        plus, before = each_leaf(_plus, terms, slots.sum)
        total = jax.tree.map(added, terms, plus, before)
        weight = added(weight, slots.weight + weight, slots.weight)
        count = slots.micro_step + cast(kept, jnp.int32)
        due = kept & (like_number(count, self.every) >= jnp.round(self.every))

        def run(inner: State) -> tuple[PyTree, State]:
            (mean,) = each_leaf(_over, total, numbers=(weight if self.use_grad_mean else 1,))
            whole = merge(cast_like(mean, grads), updates, summed)
            return advance(self.transform, whole, inner, ctx.params, ctx.extra_args)

        def hold(inner: State) -> tuple[PyTree, State]:
            return jax.tree.map(jnp.zeros_like, updates), inner

        steps, inner = cond(due, run, hold, slots.inner)
        return steps, Accumulation(
            sum=total,
            weight=weight,
            micro_step=jnp.where(due, 0, count),
            skipped=jnp.where(kept, slots.skipped, count_up(slots.skipped)),
            has_updated=due,
            inner=inner,
        )


def _plus(g, before):
    return before + g, before


def _over(total, weight):
    return (ratio(total, weight),)


def _check_range(accumulator_dtype: DTypeLike | None) -> None:
    if accumulator_dtype is not None and float(jnp.finfo(accumulator_dtype).max) < 1e30:
        raise TypeError(
            "accumulate(accumulator_dtype=...) must have the range of float32, found "
            f"{accumulator_dtype}."
        )
