"""Yogi."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, debias, full_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_yogi(Leafwise):
    """The direction of Yogi: Adam's, but the second moment changes by at most (1 - b2) * |g|^2.

        mu <- b1 * mu + (1 - b1) * g
        nu <- nu - (1 - b2) * sign(nu - |g|^2) * |g|^2
        u = mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.
        initial_accumulator_value: the initial value of both moments.

    Source: Zaheer et al. 2018.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-3
    eps_root: Any = 0.0
    initial_accumulator_value: Any = 1e-6

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        start = self.initial_accumulator_value
        return Moments(jnp.full_like(param, start), full_like_real(param, start))

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu = average(self.b1, slots.mu, g)
        square = abs_sq(g)
        # A comparison, since a difference of two infinite squares is NaN.
        side = jnp.where(square > slots.nu, 1, jnp.where(square < slots.nu, -1, 0))
        nu = slots.nu + jnp.where(side == 0, 0, side * (1 - self.b2) * square)
        nu_hat = debias(nu, self.b2, t)
        u = debias(mu, self.b1, t) / (sqrt(nu_hat + self.eps_root) + self.eps)
        return u, Moments(mu, nu)


def yogi(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-3) -> chain:
    """Yogi: Adam whose rates grow slowly after large gradients have passed.

    Adam forgets large gradients exponentially, so steps that are too large follow rare ones; here
    the second moment falls by (1 - b2) * g^2 a step. The rule is `scale_by_yogi`, then
    p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule; the paper takes 1e-2.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root, larger than Adam's.

    Source: Zaheer et al. 2018.
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))
