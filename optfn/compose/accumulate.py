"""Gradient accumulation: an optimizer that takes one step for several gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.finite import check_gradients_arrive
from optfn.core.data import child, static
from optfn.core.dtypes import cast, own_dtype
from optfn.core.each_leaf import each_leaf
from optfn.core.holes import merge, view
from optfn.core.inputs import check_floating
from optfn.core.numerics import all_finite, ratio, tree_scale
from optfn.core.outputs import cast_like
from optfn.core.placement import like_param
from optfn.core.slots import scalar_slot, zero_slot, zeros_of
from optfn.core.transform import Context, ExtraKind, State, Transform, advance_inner, count_up
from optfn.core.tree import PyTree, flatten_like


class Accumulation(NamedTuple):
    """What was added up since the last update, and the state of the optimizer inside.

    Attributes:
        sum: of the micro-gradients, each times its weight. After an update it stands until the next
            micro-gradient takes its place.
        weight: the sum of their weights; without weights, their number.
        micro_step: int32 scalar, how many micro-gradients the next update has; 0 after an update.
        skipped: int32 scalar, how many were left out since `init`, as they were not finite.
        has_updated: bool scalar, whether the optimizer ran in the last call of `update`.
        inner: the optimizer's `State`, whose step is the number of updates made.
    """

    sum: PyTree
    weight: jax.Array
    micro_step: jax.Array
    skipped: jax.Array
    has_updated: jax.Array
    inner: State


class accumulate(Transform):
    """Gradient accumulation: an optimizer takes one step for several gradients, with their mean.

        total <- total + w * g            for each micro-gradient, in order; w = 1 unless weighted
        step of the optimizer with g = total / (sum of w)       when `every` of them are added

    In between the updates are zeros, and the optimizer does not run; only under a `vmap` that
    reaches `every` it does, and the result is dropped. It stands inside as a whole: its schedules
    count its own steps, and so does a schedule for `every`. What is beside it in a chain sees every
    micro-gradient and counts them.

        accumulate(adamw(1e-3), every=8)

    A micro-gradient with an entry that is not finite, or with such a weight, is skipped: it is not
    added, and it does not count, so that every step has `every` gradients. The optimizer gets the
    extra arguments of the call in which it runs, those of the last micro-batch: a line search would
    search there alone. The slots, an `Accumulation`, say how far the sum is, how many gradients
    were skipped and whether the last call was a step.

    For gradients that come one by one. A batch that is there at once, but too large for the memory,
    is `microbatch`'s task, which needs no state.

    Args:
        transform: the optimizer.
        every: micro-gradients a step, a number or a schedule; it is rounded, and below 1 it is 1.
        use_grad_mean: whether to divide by the sum of the weights; else the step is with the total.
        weighted: whether `update` takes the keyword argument `weight`, a scalar, for micro-batches
            of different sizes: the number of examples or tokens that the gradient is the mean of. A
            mean with a total weight of zero is zero.
        accumulator_dtype: of the sum, a real one also for complex gradients; None is float32, or
            wider with wider params. In bfloat16 small gradients are lost in a large sum, and in
            float16 the sum would overflow, so that it is refused.

    Raises:
        TypeError: `accumulator_dtype` is no floating point dtype with the range of float32.
        ValueError: there is a `loss_scale` inside, which would not see what overflows.
    """

    transform: Transform = child()
    every: Any
    use_grad_mean: bool = static(default=True, kw_only=True)
    weighted: bool = static(default=False, kw_only=True)
    accumulator_dtype: Any = static(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_gradients_arrive(self.transform, "accumulate")
        if self.accumulator_dtype is not None:
            name = _name_of_floating(self.accumulator_dtype, "accumulate(accumulator_dtype=...)")
            object.__setattr__(self, "accumulator_dtype", name)

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        own: dict[str, ExtraKind] = {"weight": "scalar"} if self.weighted else {}
        return super().declared_extra_args() | own

    def init_slots(self, params: PyTree) -> Accumulation:
        leaves = jax.tree.leaves(params)
        # An integer param can only be frozen inside; it has no sum.
        summed = view(params, [jnp.issubdtype(p.dtype, jnp.inexact) for p in leaves])
        return Accumulation(
            sum=jax.tree.map(self._in_accumulator_dtype, zeros_of(summed)),
            weight=scalar_slot(0, params),
            micro_step=zero_slot(jnp.int32, params),
            skipped=zero_slot(jnp.int32, params),
            has_updated=zero_slot(bool, params),
            inner=self.transform.init(params),
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

        (plus,) = each_leaf(_plus, terms, slots.sum)
        total = jax.tree.map(added, terms, plus, slots.sum)
        weight = added(weight, slots.weight + weight, slots.weight)
        count = slots.micro_step + kept
        due = kept & (count >= jnp.round(self.every))

        def run(inner: State) -> tuple[PyTree, State]:
            (mean,) = each_leaf(_over, total, numbers=(weight if self.use_grad_mean else 1,))
            whole = merge(cast_like(mean, grads), updates, summed)
            return advance_inner(self.transform, whole, inner, ctx.params, ctx.extra_args)

        def hold(inner: State) -> tuple[PyTree, State]:
            return jax.tree.map(jnp.zeros_like, updates), inner

        steps, inner = lax.cond(due, run, hold, slots.inner)
        return steps, Accumulation(
            sum=total,
            weight=weight,
            micro_step=jnp.where(due, 0, count),
            skipped=jnp.where(kept, slots.skipped, count_up(slots.skipped)),
            has_updated=due,
            inner=inner,
        )

    def _in_accumulator_dtype(self, x: jax.Array) -> jax.Array:
        if self.accumulator_dtype is None:
            return x
        dtype = jnp.dtype(self.accumulator_dtype)
        if jnp.iscomplexobj(x):
            dtype = jnp.promote_types(dtype, x.dtype)
        return like_param(cast(x, dtype), x)


def _plus(g, before):
    return (before + g,)


def _over(total, weight):
    return (ratio(total, weight),)


def _name_of_floating(dtype: Any, where: str) -> str:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"{where} must be a floating point dtype, found {dtype!r}.")
    if float(jnp.finfo(found).max) < 1e30:
        raise TypeError(f"{where} must have the range of float32, found {found.name}.")
    return found.name
