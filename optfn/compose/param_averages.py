"""Averages of a run's params, to evaluate at: exponential, or uniform as in SWA."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.apply import apply_updates
from optfn.core.data import check_within, child, static
from optfn.core.each_leaf import each_leaf
from optfn.core.holes import floating, merge, view
from optfn.core.numerics import ratio, whole
from optfn.core.outputs import cast_like
from optfn.core.slots import copy_params_wide, scalar_slot, zero_slot
from optfn.core.state import Context, count_up
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates


class ParamAverage(NamedTuple):
    """An average of the params.

    Attributes:
        average: at least float32; until params enter it, those at `init`.
        weight: the sum of the weights of the params in it, 0 before the first.
        turns: int32 scalar, how often params entered it.
        inner: the slots of the inner optimizer.
    """

    average: PyTree
    weight: jax.Array
    turns: jax.Array
    inner: Any


class _ParamAverage(Transform):
    """The unchanged updates of an optimizer, and an average of the params they lead to."""

    needs_params = True

    transform: Transform = child(converter=as_transform)

    def init_slots(self, params: PyTree) -> ParamAverage:
        inner = self.transform.init_named(params)
        average = copy_params_wide(view(params, floating(params)))
        turns = zero_slot(jnp.int32, params)
        return ParamAverage(average, scalar_slot(0, params), turns, inner)

    def updates_kind(self, incoming: Updates) -> Updates:
        return super().updates_kind(incoming).kept()

    def schedule_step(self, slots: Any, step: Any) -> Any:
        return slots.turns

    def _averaged(
        self,
        updates: PyTree,
        slots: Any,
        ctx: Context,
        where: tuple[Any, ...],
        share: Any,
        weight: Any,
    ) -> tuple[PyTree, ParamAverage]:
        """One update; if it is their turn, the new params enter the average with this share.

        Args:
            where: the last update before the average starts, and the updates per turn.
        """
        updates, inner = self.transform.apply_named(updates, slots.inner, ctx)
        start, every = map(whole, where)
        since = ctx.next_step - start
        turn = (since > 0) & (since % jnp.maximum(every, 1) == 0)

        params = apply_updates(ctx.params, updates)
        params = self.transform.evaluation_params_named(params, inner, ctx.next_step)
        own = view(params, floating(params))
        first = slots.weight == 0
        # Not a `cond`: its other branch would copy the average.
        (average,) = each_leaf(_nearer, slots.average, own, numbers=(turn, first, share))
        weight = jnp.where(turn, weight, slots.weight)
        turns = jnp.where(turn, count_up(slots.turns), slots.turns)
        return updates, ParamAverage(average, weight, turns, inner)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        own = self.transform.evaluation_params_named(params, *self.inner(slots, step, "transform"))
        mine = floating(params)
        average = cast_like(slots.average, view(params, mine))
        chosen = jax.tree.map(
            lambda a, p: jnp.where(slots.weight > 0, a, p), average, view(own, mine)
        )
        return merge(chosen, own, mine)


def _check_turns(tx: Any) -> None:
    check_within(tx.start, (0, math.inf), f"{type(tx).__name__}(start=...)")
    check_within(tx.every, (1, math.inf), f"{type(tx).__name__}(every=...)")


def _nearer(average, p, turn, first, share):
    nearer = jnp.where(first, p, average + share * (p - average))
    return (jnp.where(turn, nearer, average),)


class ema_of_params(_ParamAverage):
    """An exponential moving average of the params; the run itself is unchanged.

        p <- p + step                             the optimizer's
        a <- decay * a + (1 - decay) * p          every `every` updates

    Evaluate at a: `evaluation_params(tx, state, params)`, which gives the params themselves until
    the first p is in a. Put it around a whole optimizer; nothing may change the updates after it.
    If the optimizer has its own evaluation params, as `schedule_free` and `sam` do, it averages
    those. `ema` averages the updates instead, and changes them.

    Young averages should forget faster: `decay=schedules.ema_warmup(0.9999)`, or
    `schedules.ema_power_law(6.94)`, whose memory is always the same share of the run. Its
    schedules are read at the count of params in the average so far, 0 for the first, so these two
    mean the same with every `start` and `every`.

    Args:
        transform: the optimizer.
        decay: the share of the average that is kept, a number or a schedule; 0.999 to 0.9999 for
            tens of thousands of updates.
        debias: divide by the sum of the weights (1 - decay) * decay^age. Otherwise the first p gets
            all of the remaining weight, decay^age, as in `torch.optim.swa_utils` and in averages
            that start as a copy of the params.
        start: the update after which averaging starts, a number or a schedule.
        every: updates per p in the average, a number or a schedule, at least 1.

    Raises:
        ValueError: `update` was not given the params; or a number is out of its range.

    Source: Polyak and Juditsky 1992; the exponential form as in Szegedy et al. 2016.
    """

    elementwise = True

    decay: Any
    debias: bool = static(default=True)
    start: Any = 0
    every: Any = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(self.decay, (0, 1), "ema_of_params(decay=...)")
        _check_turns(self)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        new = 1 - self.decay
        if self.debias:
            weight = self.decay * slots.weight + new
            share = ratio(new, weight)
        else:
            weight = jnp.ones_like(slots.weight)
            share = jnp.where(slots.weight > 0, new, 1)
        return self._averaged(updates, slots, ctx, (self.start, self.every), share, weight)


class mean_of_params(_ParamAverage):
    """Stochastic weight averaging: the mean of the params; the run itself is unchanged.

        p <- p + step                   the optimizer's
        a <- a + (p - a) / n            every `every` updates; p is the n-th in a

    Evaluate at a: `evaluation_params(tx, state, params)`, which gives the params themselves until
    the first p is in a. For the last part of a run, at a constant or a cyclical rate, with `every`
    the length of a cycle. Put it around a whole optimizer. `ema_of_params` forgets early params and
    needs no start. Batch norm statistics belong to the model; recompute them at a. Its schedules
    are read at the count of params in a so far.

    Args:
        transform: the optimizer.
        start: the update after which averaging starts, a number or a schedule.
        every: updates per p in the mean, a number or a schedule, at least 1.

    Raises:
        ValueError: `update` was not given the params; or a number is out of its range.

    Source: Izmailov et al. 2018.
    """

    elementwise = True

    start: Any = 0
    every: Any = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_turns(self)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        count = slots.weight + 1
        return self._averaged(updates, slots, ctx, (self.start, self.every), 1 / count, count)
