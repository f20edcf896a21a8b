"""SM3."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import average, zeros_along, zeros_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import Signed
from optfn.core.tree import PyTree
from optfn.transforms.scale import scale_by_learning_rate


class CoverMoments(NamedTuple):
    """In `mu` one number per slice along every axis of an array; in `nu` the average direction."""

    mu: PyTree
    nu: Signed


class scale_by_sm3(Leafwise):
    """The direction of SM3: Adagrad's, with sums kept per slice instead of per entry.

        s = b2 * min over the axes of the slices that hold the entry + (1 - b2) * |g|^2
        slice <- max of s in it
        nu <- b1 * nu + (1 - b1) * g / sqrt(s + eps)        u = nu

    With b2 = 1 the square is added in full, as in Adagrad. An entry whose s is zero does not move.
    A matrix has a number per row and per column; a vector has one per entry, a scalar has one.

    Args:
        b1: decay of the average direction, a number or a schedule.
        b2: decay of the sums, a number or a schedule.
        eps: added under the root.

    Source: Anil et al. 2019, algorithm SM3-II.
    """

    b1: Any = 0.9
    b2: Any = 1.0
    eps: Any = 1e-8

    Slots = CoverMoments

    def init_leaf(self, param: jax.Array) -> CoverMoments:
        covers = [zeros_along(param, (axis,)) for axis in range(param.ndim)]
        return CoverMoments(covers or [zeros_like_real(param).reshape(1)], jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: CoverMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, CoverMoments]:
        square = abs_sq(g).reshape(g.shape or (1,))
        axes = range(square.ndim)
        others = [tuple(k for k in axes if k != i) for i in axes]
        slices = (jnp.expand_dims(x, other) for x, other in zip(slots.mu, others, strict=True))
        cover = functools.reduce(jnp.minimum, slices)
        s = self.b2 * cover + jnp.where(self.b2 == 1, 1, 1 - self.b2) * square
        least = None if s.size else 0  # the largest of nothing
        mu = [jnp.max(s, axis=other, initial=least) if other else s for other in others]
        s = s.reshape(g.shape)
        zero = s == 0
        direction = jnp.where(zero, 0, g / sqrt(jnp.where(zero, 1, s) + self.eps))
        nu = average(self.b1, slots.nu, direction)
        return nu, CoverMoments(mu, nu)


def sm3(learning_rate: Any, momentum: Any = 0.9) -> chain:
    """SM3: Adagrad with momentum, whose sums take one number per row and column.

    For large embeddings and sparse gradients; the rates only ever fall. The rule is `scale_by_sm3`,
    then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule; the authors warm it up.
        momentum: decay of the average direction.

    Source: Anil et al. 2019.
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
