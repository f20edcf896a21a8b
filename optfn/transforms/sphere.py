"""Steps on a sphere: the norm of every array keeps its initial value."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optfn.core.leafwise import Leafwise
from optfn.core.mapped import entries
from optfn.core.numerics import norm_of, ratio, root_mean_square
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

    Args:
        learning_rate: a number or a schedule, about 0.01.

    Raises:
        ValueError: `update` was not given the params.

    Source: Wen et al. 2025.
    """

    splittable = True

    needs_params = True

    learning_rate: Any

    Slots = StartSize

    def init_leaf(self, param):
        return StartSize(root_mean_square(param))

    def update_leaf(self, g, slots, param, t):
        of_g = norm_of(g)
        unit = g / of_g.scale * ratio(entries(g) ** 0.5, of_g.relative)  # of root mean square 1
        step = -self.learning_rate * slots.rms * unit
        moved = root_mean_square(param + step)
        still = (of_g.relative == 0) | (moved == 0)
        factor = jnp.where(still, 1, slots.rms / jnp.where(still, 1, moved))
        return factor * step + (factor - 1) * param, slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()
