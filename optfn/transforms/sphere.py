"""Steps on a sphere: the norm of every array keeps its initial value."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optfn.core.leafwise import Leafwise
from optfn.core.numerics import global_norm, ratio
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates


class StartNorm(NamedTuple):
    """The norm of each array at the start."""

    norm: PyTree


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

    needs_params = True

    learning_rate: Any

    Slots = StartNorm

    def init_leaf(self, param):
        return StartNorm(global_norm(param))

    def update_leaf(self, g, slots, param, t):
        step = -self.learning_rate * slots.norm * ratio(g, global_norm(g))
        moved = global_norm(param + step)
        factor = jnp.where(moved == 0, 1, slots.norm / jnp.where(moved == 0, 1, moved))
        return factor * step + (factor - 1) * param, slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()
