"""Skipping steps whose gradient or loss is far larger than those of the last steps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.finite import Skipping, Skips
from optfn.core.data import static
from optfn.core.dtypes import like_number, own_dtype
from optfn.core.inputs import is_inexact
from optfn.core.moments import average
from optfn.core.numerics import all_finite, global_norm, sqrt
from optfn.core.slots import scalar_slot, zero_slot
from optfn.core.state import Context, count_up
from optfn.core.transform import ExtraKind
from optfn.core.tree import PyTree


class Level(NamedTuple):
    """Statistics of the norms, or the losses, of the steps taken.

    Attributes:
        mean: the mean; recent steps have more weight.
        std: the standard deviation, with the same weights.
        weight: the sum of the weights; the last step has weight 1.
        seen: int32 scalar, the number of steps in them.
    """

    mean: jax.Array
    std: jax.Array
    weight: jax.Array
    seen: jax.Array


class Spikes(NamedTuple):
    """The level so far, and the skip counts with the state of the inner optimizer."""

    level: Level
    skips: Skips


class skip_spikes(Skipping):
    """Skips a step whose gradient is far larger than those of the last steps taken.

        skip if  x > mean + threshold * max(std, eps * |mean|)
        mean, std of the x of the steps taken, weighted by decay^age

    with x = ||g|| over all leaves together or, with `watch="value"`, the loss, which `update` then
    takes as the keyword argument `value`. To watch both, wrap twice. A skipped step changes neither
    the inner optimizer nor the statistics.

    A lasting rise is not skipped forever: after `max_consecutive` skipped steps in a row the next
    finite step is taken, and the statistics restart from it. Steps that are not finite are always
    skipped; after more than `max_consecutive` skipped steps in a row it gives up as
    `skip_nonfinite` does.

    For large models, where a bad batch does more harm than a step does good. Spikes are dropped; to
    shrink them instead, clip. Clip also where gradient norms have heavy tails by nature.

    Args:
        transform: the optimizer.
        threshold: standard deviations above the mean, a number or a schedule.
        decay: the decay of the weights, a number or a schedule; the default has the same average
            age as a window of 128 steps.
        warmup_steps: steps taken before any is skipped for its size, a number or a schedule.
        max_consecutive: skipped steps in a row, a number or a schedule.
        eps: the least standard deviation, as a share of the mean, a number or a schedule.
        watch: `"gradient"` or `"value"`.

    Source: the threshold, the warm-up and the window's age are those of OLMo's optimizers (Walsh et
    al. 2025); the averages instead of a window, those of ZClip (Kumar et al. 2025).
    """

    splittable = True

    threshold: Any = 6.0
    decay: Any = 0.985
    warmup_steps: Any = 64
    max_consecutive: Any = 5
    eps: Any = 0.01
    watch: str = static(default="gradient", choices=("gradient", "value"), kw_only=True)

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        own: dict[str, ExtraKind] = {"value": "scalar"} if self.watch == "value" else {}
        return super().declared_extra_args() | own

    def init_slots(self, params: PyTree) -> Spikes:
        mean, std, weight = (scalar_slot(0, params) for _ in range(3))
        seen = zero_slot(jnp.int32, params)
        return Spikes(Level(mean, std, weight, seen), self.no_skips(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        x = self._watched(updates, ctx)
        mean, std, weight, seen = slots.level
        warm = like_number(seen, self.warmup_steps) >= self.warmup_steps
        in_a_row = like_number(slots.skips.consecutive, self.max_consecutive)
        shifted = in_a_row >= self.max_consecutive
        spike = x > mean + self.threshold * jnp.maximum(std, self.eps * jnp.abs(mean))
        fit = jnp.isfinite(x) & all_finite(updates) & ~(spike & warm & ~shifted)
        steps, skips = self.attempt(updates, slots.skips, ctx, fit, self.max_consecutive)

        weight = 1 + self.decay * jnp.where(shifted, 0, weight)
        kept, share = 1 - 1 / weight, 1 / weight
        new = Level(
            mean=average(kept, mean, x),
            # As the norm of a pair, since the square of a difference may overflow.
            std=sqrt(kept) * global_norm((std, sqrt(share) * (x - mean))),
            weight=weight,
            seen=count_up(jnp.where(shifted, 0, seen)),
        )
        level = jax.tree.map(partial(jnp.where, skips.skipped), slots.level, new)
        return steps, Spikes(lax.stop_gradient(level), skips)

    def _watched(self, updates: PyTree, ctx: Context) -> jax.Array:
        if self.watch == "value":
            return jnp.asarray(ctx.extra_args["value"], own_dtype(updates))
        return global_norm([g for g in jax.tree.leaves(updates) if is_inexact(g)])
