"""MADGRAD."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import zeros_like_real
from optfn.core.numerics import abs_sq, ratio, sqrt
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates
from optfn.transforms.decay import add_decayed_weights


class DualAverages(NamedTuple):
    """Weighted sums of the squared gradients and of the gradients, and the initial params."""

    grad_sum_sq: NonNegative
    s: Signed
    x0: PyTree


class scale_by_madgrad(Leafwise):
    """The steps of MADGRAD: dual averaging with the cube root of a sum of squares.

        c = (learning_rate + eps) * sqrt(t)
        v <- v + c * |g|^2        s <- s + c * g
        z = x0 - s / (cbrt(v) + eps)
        p <- momentum * p + (1 - momentum) * z

    The update is the step itself: no stage that needs a direction may follow.

    Args:
        learning_rate: a number or a schedule.
        momentum: the share of the params that is kept, a number or a schedule.
        eps: added to the cube root and to the rate.

    Raises:
        ValueError: `update` was not given the params.

    Source: Defazio and Jelassi 2022.
    """

    elementwise = True
    needs_params = True

    learning_rate: Any
    momentum: Any = 0.9
    eps: Any = 1e-6

    Slots = DualAverages

    def init_leaf(self, param: jax.Array) -> DualAverages:
        return DualAverages(zeros_like_real(param), jnp.zeros_like(param), param)

    def update_leaf(
        self, g: jax.Array, slots: DualAverages, param: Any, t: jax.Array
    ) -> tuple[jax.Array, DualAverages]:
        weight = (self.learning_rate + self.eps) * sqrt(t)
        v = slots.grad_sum_sq + weight * abs_sq(g)
        s = slots.s + weight * g
        # Not the new param minus the old one: that difference loses small steps.
        u = (1 - self.momentum) * (slots.x0 - param - s / (_cbrt(v) + self.eps))
        return u, DualAverages(v, s, slots.x0)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


@jax.custom_jvp
def _cbrt(x: jax.Array) -> jax.Array:
    """The cube root, with derivative zero at zero, as `sqrt` has."""
    return jnp.cbrt(x)


@_cbrt.defjvp
def _cbrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    root = _cbrt(x)
    return root, ratio(dx, 3 * root**2)


def madgrad(
    learning_rate: Any, momentum: Any = 0.9, weight_decay: Any = 0.0, eps: Any = 1e-6
) -> chain:
    """MADGRAD: dual averaging with momentum, between Adagrad and gradient descent.

    It keeps the initial params and takes all its steps from there: use little weight decay. The
    rule is `scale_by_madgrad` applied to g + weight_decay * p.

    Args:
        learning_rate: a number or a schedule; the authors take 1e-2.
        momentum: the share of the params that is kept.
        weight_decay: the weight of an L2 penalty, a number or a schedule.
        eps: added to the cube root and to the rate.

    Source: Defazio and Jelassi 2022.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
