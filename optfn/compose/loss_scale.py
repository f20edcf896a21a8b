"""Loss scaling: gradients that float16 would lose are computed larger and made small again."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.finite import Skipping, Skips
from optfn.core.inputs import is_inexact
from optfn.core.numerics import all_finite, tree_scale
from optfn.core.slots import scalar_slot, zero_slot
from optfn.core.transform import Context, count_up
from optfn.core.tree import PyTree, location_of


class LossScale(NamedTuple):
    """The scale, and what it goes by.

    Attributes:
        scale: what the next loss is to be multiplied by.
        good_steps: int32 scalar, finite gradients since the scale was last changed.
        skips: the skipped steps, and the state of the optimizer inside.
    """

    scale: jax.Array
    good_steps: jax.Array
    skips: Skips


class loss_scale(Skipping):
    """Divides the gradients of a scaled loss by the scale, and finds how large that can be.

    float16 has no numbers below 6e-8 and none above 65504. Gradients of a loss times `scale` are in
    that range where those of the loss are not:

        def scaled_loss(params):
            return optfn.current_loss_scale(state) * loss(params)

        tx = loss_scale(adam(1e-3))
        params, state = optfn.step(tx, jax.grad(scaled_loss)(params), state, params)

    The loss itself should be float32, and so are the gradients from the division on. If one is not
    finite the step is skipped, as by `skip_nonfinite`, and

        scale <- max(scale * backoff_factor, min_scale)
        scale <- min(scale * growth_factor, max_scale)      after growth_interval finite in a row

    Powers of two divide without rounding. `growth_factor=1, backoff_factor=1` hold the scale:
    static scaling. The outermost wrapper; a clip belongs inside, where gradients have their size.
    bfloat16, whose range is that of float32, has no need of it. No derivative goes through the
    scale.

    Args:
        transform: the optimizer.
        init_scale: the first scale, a number.
        growth_factor: at least 1, a number or a schedule.
        backoff_factor: at most 1, a number or a schedule.
        growth_interval: in steps, a number or a schedule.
        min_scale: a number or a schedule.
        max_scale: a number or a schedule.
        max_consecutive: as in `skip_nonfinite`. From `max_scale` to `min_scale` it takes 24 steps.

    Source: Micikevicius et al. 2018; the rule of torch's GradScaler, with bounds. (That one begins
    with 2^16, which is infinite in float16.)
    """

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
        grows = good_steps >= self.growth_interval
        larger = jnp.minimum(slots.scale * self.growth_factor, self.max_scale)
        smaller = jnp.maximum(slots.scale * self.backoff_factor, self.min_scale)
        scale = jnp.where(finite, jnp.where(grows, larger, slots.scale), smaller)
        return steps, LossScale(lax.stop_gradient(scale), jnp.where(grows, 0, good_steps), skips)


def current_loss_scale(state: PyTree) -> jax.Array:
    """What to multiply the next loss by, in an optimizer with a `loss_scale` inside.

    Args:
        state: the optimizer's state, or any tree with it inside.

    Returns:
        A float32 scalar, or float64 for params of that; `[n]` from the state of n runs.

    Raises:
        ValueError: the state is of no `loss_scale`, or of several.
    """
    entries = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, LossScale))
    found = [(path, leaf) for path, leaf in entries if isinstance(leaf, LossScale)]
    if len(found) != 1:
        places = ", ".join(location_of(path) for path, _ in found) or "none"
        raise ValueError(
            "current_loss_scale(state): the state must have one loss_scale, found "
            f"{len(found) or places}{': ' + places if found else ''}."
        )
    return found[0][1].scale
