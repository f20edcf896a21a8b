"""Sharpness-aware minimization: the gradient is taken where an adversary has pushed the params."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.apply import apply_updates
from optfn.core.control_flow import cond
from optfn.core.data import check_count, child, static
from optfn.core.dtypes import cast
from optfn.core.each_leaf import each_leaf
from optfn.core.inputs import matched, to_arrays
from optfn.core.slots import copy_params
from optfn.core.state import Context, State
from optfn.core.transform import (
    ExtraKind,
    Transform,
    advance,
    as_transform,
    inner_of,
    with_inner_of,
)
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates


class Rounds(NamedTuple):
    """The states of the two optimizers, and the params before the adversary's first step."""

    optimizer: State
    adversary: State
    cache: PyTree


# The field of `Rounds` that holds the state of each inner optimizer.
HOLDERS = {"optimizer": "optimizer", "adv_optimizer": "adversary"}


class sam(Transform):
    """SAM: descends along the gradient at the worst params nearby, to find flat minima.

    A round has `sync_period` gradients: with each but the last the adversary takes a step uphill,
    and with the last, taken there, the optimizer takes a step from where the round started.

        sam(adamw(1e-3), chain(normalize(), sgd(0.05)))

    There are two ways to run it. By default each `update` gets one gradient, and the params move up
    and back down: a round is `sync_period` updates, and `evaluation_params` gives the params from
    the start of the round. With `opaque_mode` each update is a whole round, which takes the
    gradients after the first from the keyword argument `grad_fn(params, i)`.

    Args:
        optimizer: the optimizer that descends.
        adv_optimizer: the adversary; its steps are negated to ascend, and its rate is the radius.
        sync_period: gradients per round, a whole number, at least 1.
        reset_state: whether to reset the adversary's state after every round, with its step count:
            a schedule of its rate then sees only the steps of one round.
        opaque_mode: whether an update is a whole round.
        batch_axis_name: the `pmap` or `shard_map` axis to average the gradients of `grad_fn` over.

    Raises:
        ValueError: `update` was not given the params; or `sync_period` is below 1.

    Source: Foret et al. 2021.
    """

    elementwise = True
    needs_params = True

    optimizer: Transform = child(converter=as_transform)
    adv_optimizer: Transform = child(converter=as_transform)
    sync_period: int = static(default=2)
    reset_state: bool = static(default=True)
    opaque_mode: bool = static(default=False)
    batch_axis_name: str | None = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.sync_period, "sam(sync_period=...)")

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        own: dict[str, ExtraKind] = {"grad_fn": "tree function"} if self.opaque_mode else {}
        return super().declared_extra_args() | own

    def updates_kind(self, incoming: Updates) -> Updates:
        return self.optimizer.updates_kind(incoming)

    def init_slots(self, params: PyTree) -> Rounds:
        cache = None if self.opaque_mode else copy_params(params)
        return Rounds(
            self.optimizer.init_state(params), self.adv_optimizer.init_state(params), cache
        )

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return inner_of(getattr(slots, HOLDERS[label]), step)

    def with_inner(self, slots: Any, label: str, new: Any) -> Rounds:
        holder = HOLDERS[label]
        return slots._replace(**{holder: with_inner_of(getattr(slots, holder), new)})

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        if self.opaque_mode:
            return self._whole_round(updates, slots, ctx)
        place = ctx.step % self.sync_period
        cache = jax.tree.map(lambda p, c: jnp.where(place == 0, p, c), ctx.params, slots.cache)
        slots = slots._replace(cache=cache)
        last = place == self.sync_period - 1

        # Extra arguments may be functions, so they are closed over.
        def up(grads, slots, params):
            return self._up(grads, slots, params, ctx.extra_args)

        def down(grads, slots, params):
            return self._down(grads, slots, params, ctx.extra_args)

        return cond(last, down, up, updates, slots, ctx.params)

    def _up(self, grads: PyTree, slots: Rounds, params: PyTree, extra: Any) -> tuple[PyTree, Any]:
        steps, adversary = advance(self.adv_optimizer, grads, slots.adversary, params, extra)
        return jax.tree.map(jnp.negative, steps), slots._replace(adversary=adversary)

    def _down(self, grads: PyTree, slots: Rounds, params: PyTree, extra: Any) -> tuple[PyTree, Any]:
        steps, state = advance(self.optimizer, grads, slots.optimizer, slots.cache, extra)
        (steps,) = each_leaf(_from_the_start, steps, slots.cache, params)
        return steps, Rounds(state, self._adversary_after(slots, slots.cache), slots.cache)

    def _adversary_after(self, slots: Rounds, params: PyTree) -> State:
        return self.adv_optimizer.init_state(params) if self.reset_state else slots.adversary

    def _whole_round(self, grads: PyTree, slots: Rounds, ctx: Context) -> tuple[PyTree, Any]:
        extra = {k: v for k, v in ctx.extra_args.items() if k != "grad_fn"}
        params, treedef = ctx.params, jax.tree.structure(grads)
        for i in range(self.sync_period - 1):
            steps, slots = self._up(grads, slots, params, extra)
            params = apply_updates(params, steps)
            new = to_arrays(ctx.extra_args["grad_fn"](params, i), "the gradient of grad_fn")
            new = matched(new, grads, "the gradients of grad_fn", "updates")
            if self.batch_axis_name is not None:
                new = lax.pmean(new, self.batch_axis_name)
            old = jax.tree.leaves(grads)
            grads = treedef.unflatten([cast(x, y.dtype) for x, y in zip(new, old, strict=True)])
        steps, state = advance(self.optimizer, grads, slots.optimizer, ctx.params, extra)
        return steps, Rounds(state, self._adversary_after(slots, ctx.params), None)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        if not self.opaque_mode:
            between = step % self.sync_period == 0
            params = jax.tree.map(lambda p, c: jnp.where(between, p, c), params, slots.cache)
        return self.optimizer.evaluation_params_named(params, *self.inner(slots, step, "optimizer"))


def _from_the_start(step, start, here):
    return (step + (start - here),)
