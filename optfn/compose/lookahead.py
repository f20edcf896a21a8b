"""Lookahead: an optimizer runs ahead, and slow params follow it every few steps."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from optfn.core.apply import apply_updates
from optfn.core.control_flow import refreshed
from optfn.core.data import check_within, child, static
from optfn.core.each_leaf import each_leaf
from optfn.core.holes import floating, merge, view
from optfn.core.numerics import is_multiple
from optfn.core.outputs import as_stored, cast_like
from optfn.core.slots import copy_params_wide
from optfn.core.state import Context, State
from optfn.core.transform import Transform, advance, as_transform, inner_of, with_inner_of
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates, check_not_last
from optfn.storage.offload import check_not_inside


class Slow(NamedTuple):
    """The slow params, and the state of the fast optimizer.

    Attributes:
        slow: the slow params, at least float32.
        fast: the state of the inner optimizer.
    """

    slow: PyTree
    fast: State


class lookahead(Transform):
    """Lookahead: `sync_period` steps forward, then back to a point on the way.

        p <- p + step                                   the inner optimizer's
        slow <- slow + slow_step_size * (p - slow)      every `sync_period` updates
        p <- slow                                       at the same updates

    The params are the fast ones, at which gradients are taken; the slow ones are in the state.
    Evaluate at the slow ones, which are less noisy: `evaluation_params(tx, state, params)`. Put it
    around a whole optimizer; nothing may change the updates after it.

    Args:
        fast_optimizer: the optimizer.
        sync_period: updates per synchronization, a number or a schedule, at least 1, rounded; 5 to
            10 in the paper.
        slow_step_size: how far the slow params follow, a number or a schedule, 0 to 1; 0.5 in the
            paper, and 1 is the inner optimizer itself.
        reset_state: whether each synchronization also resets the inner optimizer's state, with its
            step count and so its schedules.

    Raises:
        ValueError: `update` was not given the params; `sync_period` is below 1; `slow_step_size` is
            not from 0 to 1; or the optimizer contains an average of params or another `lookahead`,
            which belongs around this one.

    Source: Zhang et al. 2019.
    """

    elementwise = True
    needs_params = True

    fast_optimizer: Transform = child(converter=as_transform)
    sync_period: Any
    slow_step_size: Any
    reset_state: bool = static(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(self.sync_period, (1, math.inf), "lookahead(sync_period=...)")
        check_within(self.slow_step_size, (0, 1), "lookahead(slow_step_size=...)")
        check_not_last(self.fast_optimizer, "lookahead(fast_optimizer=...)", "the synchronization")
        if self.reset_state:
            check_not_inside(self.fast_optimizer, "lookahead", "resets")

    def updates_kind(self, incoming: Updates) -> Updates:
        return super().updates_kind(incoming).kept()

    def init_slots(self, params: PyTree) -> Slow:
        slow = copy_params_wide(view(params, floating(params)))
        return Slow(slow, self.fast_optimizer.init_state(params))

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return inner_of(slots.fast, step)

    def with_inner(self, slots: Any, label: str, new: Any) -> Slow:
        return slots._replace(fast=with_inner_of(slots.fast, new))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        steps, fast = advance(self.fast_optimizer, updates, slots.fast, ctx.params, ctx.extra_args)
        synced = is_multiple(ctx.next_step, self.sync_period)
        numbers = synced, self.slow_step_size
        mine = floating(ctx.params)
        own, params = view(steps, mine), view(ctx.params, mine)
        own, slow = each_leaf(_followed, own, params, slots.slow, numbers=numbers)
        steps = merge(own, steps, mine)
        if self.reset_state:
            start = apply_updates(ctx.params, steps)
            first = self.fast_optimizer.init_state
            fast = refreshed(synced, lambda: as_stored(first(start), fast), fast)
        return steps, Slow(slow, fast)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        mine = floating(params)
        return merge(cast_like(slots.slow, view(params, mine)), params, mine)


def _followed(step, fast, slow, synced, step_size):
    # Not new slow params minus fast ones: small steps are lost in that difference.
    back = step - (1 - step_size) * (fast - slow + step)
    step = jnp.where(synced, back, step)
    # The new fast params, as the caller forms them: with others, donated buffers would be copied.
    return step, jnp.where(synced, fast + step, slow)
