"""Loss scaling: gradients too small for float16 are computed scaled up, then scaled down."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.finite import Skipping, Skips
from optfn.core.dtypes import like_number
from optfn.core.inputs import is_inexact
from optfn.core.numerics import all_finite, tree_scale
from optfn.core.slots import scalar_slot, zero_slot
from optfn.core.state import Context, count_up
from optfn.core.transform import restored_hint
from optfn.core.tree import PyTree, location_of


class LossScale(NamedTuple):
    """The scale, and the counts that control it.

    Attributes:
        scale: the factor for the next loss.
        good_steps: int32 scalar, finite gradients since the last change of the scale.
        skips: the counts of skipped steps, and the state of the inner optimizer.
    """

    scale: jax.Array
    good_steps: jax.Array
    skips: Skips


class loss_scale(Skipping):
    """Divides the gradients of a scaled loss by the scale, and adapts the scale.

    float16 has no numbers below 6e-8 and none above 65504. Gradients of a loss times `scale` are in
    that range where gradients of the loss itself are not:

        def scaled_loss(params):
            return optfn.current_loss_scale(state) * loss(params)

        tx = loss_scale(adam(1e-3))
        params, state = optfn.step(tx, params, jax.grad(scaled_loss)(params), state)

    Compute the loss itself in float32; the divided gradients are float32 too. If one is not finite,
    the step is skipped, as by `skip_nonfinite`, and

        scale <- max(scale * backoff_factor, min_scale)
        scale <- min(scale * growth_factor, max_scale)      after growth_interval finite in a row

    Powers of two divide without rounding. `growth_factor=1, backoff_factor=1` is static scaling. It
    must be the outermost wrapper; a clip belongs inside, where gradients have their true size.
    bfloat16, which has the range of float32, does not need it. No derivative flows through the
    scale.

    Args:
        transform: the optimizer.
        init_scale: the initial scale, a number.
        growth_factor: the factor that raises the scale, at least 1, a number or a schedule.
        backoff_factor: the factor that lowers the scale, at most 1, a number or a schedule.
        growth_interval: finite steps in a row before a raise, a number or a schedule.
        min_scale: the least scale, a number or a schedule.
        max_scale: the largest scale, a number or a schedule.
        max_consecutive: as in `skip_nonfinite`. By default it takes 24 skipped steps from
            `max_scale` to `min_scale`.

    Source: Micikevicius et al. 2018; the rule of torch's GradScaler, with bounds (GradScaler
    starts at 2^16, which is infinite in float16).
    """

    splittable = True

    needs_every_gradient: ClassVar[bool] = True

    init_scale: Any = 2.0**15
    growth_factor: Any = 2.0
    backoff_factor: Any = 0.5
    growth_interval: Any = 2000
    min_scale: Any = 1.0
    max_scale: Any = 2.0**24
    max_consecutive: Any = 30

    def init_slots(self, params: PyTree) -> LossScale:
        scale = scalar_slot(lax.stop_gradient(self.resolve(0).init_scale), params)
        good_steps = zero_slot(jnp.int32, params)
        return LossScale(scale, good_steps, self.no_skips(params))

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"scale": slots.scale, **super().measurements(slots)}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        finite = all_finite(updates)
        inverse = 1 / slots.scale
        grads = jax.tree.map(lambda g: tree_scale(inverse, g) if is_inexact(g) else g, updates)
        steps, skips = self.attempt(grads, slots.skips, ctx, finite, self.max_consecutive)

        good_steps = jnp.where(finite, count_up(slots.good_steps), 0)
        grows = like_number(good_steps, self.growth_interval) >= self.growth_interval
        larger = jnp.minimum(slots.scale * self.growth_factor, self.max_scale)
        smaller = jnp.maximum(slots.scale * self.backoff_factor, self.min_scale)
        scale = jnp.where(finite, jnp.where(grows, larger, slots.scale), smaller)
        return steps, LossScale(lax.stop_gradient(scale), jnp.where(grows, 0, good_steps), skips)


def current_loss_scale(state: PyTree) -> jax.Array:
    """The factor for the next loss, in an optimizer with a `loss_scale` inside.

    Args:
        state: the optimizer's state, or any tree with it inside.

    Returns:
        A float32 scalar, or float64 for float64 params; `[n]` from the state of n runs.

    Raises:
        ValueError: the state has no `loss_scale`, or several.
    """
    entries = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, LossScale))
    found = [(path, leaf) for path, leaf in entries if isinstance(leaf, LossScale)]
    if len(found) != 1:
        places = ", ".join(location_of(path) for path, _ in found) or "none"
        raise ValueError(
            "current_loss_scale(state): the state must have one loss_scale, found "
            f"{len(found) or places}{': ' + places if found else ''}{restored_hint(state)}."
        )
    return found[0][1].scale
