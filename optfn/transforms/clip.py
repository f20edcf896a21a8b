"""Clipping."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.dtypes import real_dtype, scaled_norm
from optfn.core.leafwise import Leafwise
from optfn.core.transform import Context, Transform
from optfn.core.tree import PyTree


class clip(Leafwise):
    """Clips every entry to [-max_delta, max_delta], real and imaginary parts each on their own.

    It changes the direction of the gradient; `clip_by_global_norm` does not.

    Args:
        max_delta: a number or a schedule, not negative.
    """

    max_delta: Any

    def update_leaf(self, g, slots, param, t):
        def clip(x):
            return jnp.clip(x, -self.max_delta, self.max_delta)

        if jnp.iscomplexobj(g):
            return jax.lax.complex(clip(g.real), clip(g.imag)), slots
        return clip(g), slots


class clip_by_global_norm(Transform):
    """Shrinks the gradient as a whole so that its norm is at most `max_norm`.

        u = g * min(1, max_norm / ||g||)        ||g|| over all leaves together

    The norm is taken in float32 or wider and scaled by the largest entry: gradients of 1e25 are
    clipped, not turned into NaN or zero. A NaN or infinite entry makes every update NaN.

    Args:
        max_norm: a number or a schedule, not negative; 0 gives zero updates.

    Source: Pascanu et al. 2012.
    """

    max_norm: Any

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        scale, relative = scaled_norm(updates)
        within = scale * relative <= self.max_norm
        # Where nothing is to be clipped the divisor is 1, so that a zero gradient has a derivative.
        shrink = self.max_norm / jnp.where(within, 1, relative)
        shrink = jnp.where(jnp.isfinite(relative), shrink, jnp.nan)

        def clipped(g):
            real = real_dtype(g.dtype)
            return jnp.where(within, g, g / scale.astype(real) * shrink.astype(real))

        return jax.tree.map(clipped, updates), slots
