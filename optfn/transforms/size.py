"""Normalizing updates, or scaling them to the size of the params."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.dtypes import cast, widen
from optfn.core.leafwise import Leafwise
from optfn.core.numerics import Norm, norm_of, root_mean_square
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree


class scale_by_param_block_norm(Leafwise):
    """Multiplies the updates of each array by the norm of its params.

        u = g * max(||p||, min_scale)

    Args:
        min_scale: the least factor, a number or a schedule.

    Raises:
        ValueError: `update` was not given the params.
    """

    splittable = True

    needs_params = True

    min_scale: Any = 1e-3

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        norm = norm_of(param).at_least(self.min_scale)
        return g * norm.scale * norm.relative, slots


class scale_by_param_block_rms(Leafwise):
    """Multiplies the updates of each array by the root mean square of its params.

        u = g * max(sqrt(mean(|p|^2)), min_scale)

    Args:
        min_scale: the least factor, a number or a schedule.

    Raises:
        ValueError: `update` was not given the params.

    Source: Shazeer and Stern 2018.
    """

    splittable = True

    needs_params = True

    min_scale: Any = 1e-3

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return g * jnp.maximum(root_mean_square(param), self.min_scale), slots


class normalize_by_update_norm(Transform):
    """Scales the updates as a whole to one norm: u = scale_factor * g / (||g|| + eps).

    Args:
        scale_factor: the norm, a number or a schedule.
        eps: added to the norm.
    """

    splittable = True

    scale_factor: Any = 1.0
    eps: Any = 1e-6

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        norm = norm_of(updates)
        norm = Norm(norm.scale, norm.relative + self.eps / norm.scale)
        return _divided(updates, norm, self.scale_factor), slots


class normalize(Transform):
    """Scales the updates as a whole to norm 1: u = g / ||g||, and 0 for 0.

    For steps of a fixed length, like those of the adversary of `sam`.
    """

    splittable = True

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        scale, relative = norm_of(updates)
        return _divided(updates, Norm(scale, jnp.where(relative == 0, 1, relative))), slots


def _divided(updates: PyTree, norm: Norm, factor: Any = 1) -> PyTree:
    """The updates over a norm, divided in the norm's dtype to avoid overflow."""
    scale, inverse = norm.scale, factor / norm.relative
    return jax.tree.map(lambda g: cast(widen(g, scale.dtype) / scale * inverse, g.dtype), updates)


class centralize(Leafwise):
    """Subtracts the mean over all axes but the first; vectors stay as they are.

    For a kernel (in, out) these are the means over the outputs, as in optax.

    Source: Yong et al. 2020.
    """

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        if g.ndim < 2:
            return g, slots
        return g - jnp.mean(g, axis=tuple(range(1, g.ndim)), keepdims=True), slots
