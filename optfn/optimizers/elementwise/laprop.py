"""LaProp."""

from typing import Any

import jax

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, debias, zero_moments
from optfn.core.numerics import abs_sq, sqrt
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_laprop(Leafwise):
    """The direction of LaProp: normalize first, then average.

        nu <- b2 * nu + (1 - b2) * |g|^2
        mu <- b1 * mu + (1 - b1) * g / (sqrt(nu / (1 - b2^t)) + eps)
        u = mu / (1 - b1^t)

    Args:
        b1: decay of the average, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.

    Source: Ziyin et al. 2020. (Their code weights the average by the rates of its steps.)
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-15

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        nu = average(self.b2, slots.nu, abs_sq(g))
        normalized = g / (sqrt(debias(nu, self.b2, t)) + self.eps)
        mu = average(self.b1, slots.mu, normalized)
        return debias(mu, self.b1, t), Moments(mu, nu)


def laprop(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-15,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """LaProp: Adam in reverse order, normalizing first; stable for every pair of b1 and b2.

    Adam divides an average over 1 / (1 - b1) gradients by a root over 1 / (1 - b2), and diverges
    if b2 is too small for b1; here each gradient is divided before it is averaged. The rule is
    p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_laprop`.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average.
        b2: decay of the second moment.
        eps: added to the root.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Ziyin et al. 2020.
    """
    return chain(
        scale_by_laprop(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
