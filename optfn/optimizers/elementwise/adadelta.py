"""Adadelta."""

from typing import Any, NamedTuple

import jax

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import average, zeros_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class SquaredSteps(NamedTuple):
    """Average squares of the gradient and of the steps."""

    e_g: NonNegative
    e_x: NonNegative


class scale_by_adadelta(Leafwise):
    """The direction of Adadelta: the gradient, scaled to the size of the last steps.

        e_g <- rho * e_g + (1 - rho) * |g|^2
        u = g * sqrt(e_x + eps) / sqrt(e_g + eps)
        e_x <- rho * e_x + (1 - rho) * |u|^2

    Args:
        rho: decay of both averages, a number or a schedule.
        eps: added under the roots; it also sets the size of the first steps.

    Source: Zeiler 2012.
    """

    elementwise = True

    rho: Any = 0.9
    eps: Any = 1e-6

    Slots = SquaredSteps

    def init_leaf(self, param: jax.Array) -> SquaredSteps:
        return SquaredSteps(zeros_like_real(param), zeros_like_real(param))

    def update_leaf(
        self, g: jax.Array, slots: SquaredSteps, param: Any, t: jax.Array
    ) -> tuple[jax.Array, SquaredSteps]:
        e_g = average(self.rho, slots.e_g, abs_sq(g))
        u = sqrt(slots.e_x + self.eps) / sqrt(e_g + self.eps) * g
        return u, SquaredSteps(e_g, average(self.rho, slots.e_x, abs_sq(u)))


def adadelta(
    learning_rate: Any = 1.0,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
) -> chain:
    """Adadelta: RMSprop that finds the scale of its steps, from eps upwards.

    It starts slowly; the paper's learning rate is 1. The rule is `scale_by_adadelta` applied to
    g + weight_decay * p, then p <- p - learning_rate * u. (optax, without a learning rate, goes
    uphill.)

    Args:
        learning_rate: a number or a schedule.
        rho: decay of both averages.
        eps: added under the roots.
        weight_decay: the weight of an L2 penalty, a number or a schedule.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Zeiler 2012.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )
