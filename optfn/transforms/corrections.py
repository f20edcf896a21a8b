"""Corrections of the gradient, for use before any direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.leafwise import Leafwise
from optfn.core.numerics import dot, norm_of, ratio, shrunk
from optfn.core.slot_kinds import Signed


class LastGradient(NamedTuple):
    """The gradient that the stage got at the last step."""

    previous_gradient: Signed


class correct_by_mars(Leafwise):
    """MARS: the gradient plus a share of its change, which lowers the variance of its average.

        c = g + gamma * b1 / (1 - b1) * (g - g_last)        g_last = 0 at the first step
        u = c * min(1, max_norm / ||c||)        the norm of each array

    Before `scale_by_adam` with the same b1 it is MARS-AdamW; before `ema(b1, debias=False)` and
    `scale_by_sign`, MARS-Lion. This is the variant that compares the gradients of successive
    batches.

    Args:
        gamma: the share of the change, a number or a schedule.
        b1: the decay of the average that follows, a number or a schedule.
        max_norm: the largest norm of an array, a number or a schedule, above 0.

    Source: Yuan et al. 2024.
    """

    splittable = True

    gamma: Any = 0.025
    b1: Any = 0.95
    max_norm: Any = 1.0

    Slots = LastGradient

    def init_leaf(self, param: jax.Array) -> LastGradient:
        return LastGradient(jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: LastGradient, param: Any, t: jax.Array
    ) -> tuple[jax.Array, LastGradient]:
        c = g + self.gamma * self.b1 / (1 - self.b1) * (g - slots.previous_gradient)
        return shrunk(c, norm_of(c), self.max_norm), LastGradient(g)


class orthogonalize_to_params(Leafwise):
    """OrthoGrad: removes the component of the gradient along the params, and keeps its norm.

        v = g - p * <p, g> / <p, p>        u = v * ||g|| / ||v||

    Before any direction; for classifiers that keep training after they fit all the data, where
    logits grow until rounding stops the learning. A gradient along the params becomes zero.

    Raises:
        ValueError: `update` was not given the params.

    Source: Prieto et al. 2025.
    """

    splittable = True

    needs_params = True

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        p_norm, g_norm = norm_of(param), norm_of(g)
        unit, g = param / p_norm.scale * ratio(1, p_norm.relative), g / g_norm.scale
        v = g - unit * dot(unit, g)
        v_norm = norm_of(v).value
        # For a gradient along the params only a rounding error is left.
        nothing = v_norm <= 8 * jnp.finfo(g.dtype).eps * g_norm.relative
        stretch = jnp.where(nothing, 0, g_norm.relative / jnp.where(nothing, 1, v_norm))
        return v * stretch * g_norm.scale, slots
