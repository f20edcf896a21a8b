"""Clipping."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import check_within, static
from optfn.core.leafwise import Leafwise
from optfn.core.mapped import entries
from optfn.core.numerics import Norm, norm_of, norms_along, shrunk
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree


class clip(Leafwise):
    """Clips every entry to [-max_delta, max_delta], real and imaginary parts separately.

    It changes the direction of the gradient; `clip_by_global_norm` does not.

    Args:
        max_delta: a number or a schedule, not negative.
    """

    elementwise = True

    max_delta: Any

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return clip_entries(g, self.max_delta), slots


def clip_entries(x: jax.Array, limit: Any) -> jax.Array:
    """`x` clipped to [-limit, limit], real and imaginary parts separately."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(clip_entries(x.real, limit), clip_entries(x.imag, limit))
    return jnp.clip(x, -limit, limit)


class clip_by_norm(Leafwise):
    """Shrinks each array of the updates so that its norm is at most `max_norm`.

        u = g * min(1, max_norm / ||g||)        ||g|| of the array alone

    For layers whose gradients explode independently: unlike with `clip_by_global_norm`, a large
    gradient of one layer does not shrink the others. So it changes the direction of the gradient as
    a whole. A NaN or infinite entry makes its array NaN.

    Args:
        max_norm: a number or a schedule, not negative; 0 gives zero updates.

    Raises:
        ValueError: `max_norm` is below 0.

    Source: Pascanu et al. 2012, by layer.
    """

    splittable = True

    max_norm: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(self.max_norm, (0, math.inf), "clip_by_norm(max_norm=...)")

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return shrunk(g, norm_of(g), self.max_norm), slots


class clip_by_block_rms(Leafwise):
    """Shrinks each array of the updates so that its root mean square is at most `threshold`.

        u = g / max(1, sqrt(mean(|g|^2)) / threshold)

    A NaN or infinite entry makes its array NaN.

    Args:
        threshold: a number or a schedule, not negative; 0 gives zero updates.

    Source: Shazeer and Stern 2018.
    """

    splittable = True

    threshold: Any

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return shrunk(g, norm_of(g).over_root(entries(g)), self.threshold), slots


class adaptive_grad_clip(Leafwise):
    """Shrinks the gradient of each unit so that its norm is at most a share of its params' norm.

        u = g * min(1, clipping * max(||p||, eps) / ||g||)        both norms of one unit

    A unit is the weights of one output: the entries along the first axis of a kernel (in, out) or
    (in, heads, out), or along all axes but the last of a longer one, such as a convolution's. A
    vector is one unit, and so is an array with only one axis longer than 1.

    Args:
        clipping: the share, a number or a schedule; 0.01 for batches of thousands.
        eps: the least norm of the params to use, a number or a schedule.
        axis: the axes to take norms over, instead of those of a unit.

    Raises:
        ValueError: `update` was not given the params.

    Source: Brock et al. 2021.
    """

    needs_params = True

    clipping: Any
    eps: Any = 1e-3
    axis: int | tuple[int, ...] | None = static(default=None)

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        norms, own = self._norms(g), self._norms(param).at_least(self.eps)
        share = self.clipping * own.relative
        within = norms.relative * (norms.scale / own.scale) <= share
        shorter = g / norms.scale * (share / jnp.where(within, 1, norms.relative)) * own.scale
        return jnp.where(within, g, shorter), slots

    def _norms(self, x: jax.Array) -> Norm:
        axis = self.axis
        if axis is None:
            one_unit = sum(n != 1 for n in x.shape) <= 1
            axis = None if one_unit else tuple(range(1 if x.ndim <= 3 else x.ndim - 1))
        return norms_along(axis, x)


class clip_by_global_norm(Transform):
    """Shrinks the gradient as a whole so that its norm is at most `max_norm`.

        u = g * min(1, max_norm / ||g||)        ||g|| over all leaves together

    The norm is taken in float32 or wider and scaled by the largest entry: gradients of 1e25 are
    clipped, not turned into NaN or zero. A NaN or infinite entry makes every update NaN.

    Args:
        max_norm: a number or a schedule, not negative; 0 gives zero updates.

    Source: Pascanu et al. 2012.
    """

    splittable = True

    max_norm: Any

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        return shrunk(updates, norm_of(updates), self.max_norm), slots
