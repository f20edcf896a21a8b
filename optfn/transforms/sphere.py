"""Steps on a sphere: the norm of every array keeps its initial value."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.data import per_leaf
from optfn.core.leafwise import Leafwise
from optfn.core.mapped import entries, part_axes
from optfn.core.matrix_axes import MatrixAxes
from optfn.core.numerics import Norm, norm_of, norms_along, ratio
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates


class StartSize(NamedTuple):
    """The root mean square of each array at the start, since its norm may be out of range."""

    rms: PyTree


class hyperball(Leafwise):
    """A last stage that moves each array on the sphere it starts on, by a share of the radius.

        q = p - learning_rate * R * u / ||u||        R = ||p_start||
        p <- R * q / ||q||

    Instead of `scale_by_learning_rate` and any weight decay, after any direction. The rate is an
    angle, the same for layers of every size. For matrices followed by a normalization; use
    `partition` to give biases and gains another optimizer. An array that starts at zero stays zero,
    and an array with a zero direction does not move.

    After the direction of Muon it is MuonH (Wen et al. 2025):

        partition_matrices(chain(scale_by_muon(), hyperball(0.018, views=matrices())), adamw(3e-4))

    Args:
        learning_rate: a number or a schedule, about 0.01.
        views: how each leaf is a matrix or a stack of them, see `matrices`: each matrix then has a
            sphere of its own. By default every array has one.

    Raises:
        ValueError: `update` was not given the params; or `views` inside of `across`, where it is
            not known which axes are in parts.

    Source: Wen et al. 2025.
    """

    splittable = True

    needs_params = True

    learning_rate: Any
    views: Any = per_leaf(default=None, of=MatrixAxes, kw_only=True)

    Slots = StartSize

    def init_leaf(self, param: jax.Array) -> StartSize:
        return StartSize(self._root_mean_square(param).value)

    def update_leaf(
        self, g: jax.Array, slots: StartSize, param: Any, t: jax.Array
    ) -> tuple[jax.Array, StartSize]:
        of_g = self._root_mean_square(g)
        step = -self.learning_rate * slots.rms * (g / of_g.scale * ratio(1, of_g.relative))
        moved = self._root_mean_square(param + step).value
        still = (of_g.relative == 0) | (moved == 0)
        factor = jnp.where(still, 1, slots.rms / jnp.where(still, 1, moved))
        return factor * step + (factor - 1) * param, slots

    def _root_mean_square(self, x: jax.Array) -> Norm:
        """Of the array, or of each matrix in it."""
        if self.views is None or not self.views.is_matrix:
            return norm_of(x).over_root(entries(x))
        if part_axes():
            raise ValueError("hyperball(views=...) is not for arrays in parts, as `across` has.")
        _, rows, columns = self.views.axes(x.shape)
        return norms_along(rows + columns, x).over_root(math.prod(self.views.sides(x.shape)))

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()
