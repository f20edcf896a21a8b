"""Quasi-hyperbolic momentum: a mix of the average gradient and the last one."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import (
    FirstMoment,
    Moments,
    average,
    debias,
    zero_moments,
)
from optfn.core.numerics import abs_sq, sqrt
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_qhm(Leafwise):
    """A mix of the average gradient and the last one.

        mu <- b1 * mu + (1 - b1) * g
        u = v1 * mu + (1 - v1) * g

    Args:
        b1: decay of the average, a number or a schedule.
        v1: the share of the average, a number or a schedule; the paper's nu.

    Source: Ma and Yarats 2019.
    """

    elementwise = True

    b1: Any = 0.999
    v1: Any = 0.7

    Slots = FirstMoment

    def init_leaf(self, param: jax.Array) -> FirstMoment:
        return FirstMoment(jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: FirstMoment, param: Any, t: jax.Array
    ) -> tuple[jax.Array, FirstMoment]:
        mu = average(self.b1, slots.mu, g)
        return average(self.v1, mu, g), FirstMoment(mu)


def qhm(learning_rate: Any, b1: Any = 0.999, v1: Any = 0.7) -> chain:
    """Gradient descent with quasi-hyperbolic momentum, which includes many other forms.

    v1 = 1 is momentum as an average, v1 = b1 Nesterov's, v1 = 0 plain gradient descent. The share
    v1 allows a decay far closer to 1 than usual. The rule is `scale_by_qhm`, then
    p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule, as for plain gradient descent.
        b1: decay of the average.
        v1: the share of the average.

    Source: Ma and Yarats 2019.
    """
    return chain(scale_by_qhm(b1, v1), scale_by_learning_rate(learning_rate))


class scale_by_qhadam(Leafwise):
    """The direction of QHAdam: Adam's, with a share of the last gradient in both moments.

        u = (v1 * mu_hat + (1 - v1) * g) / (sqrt(v2 * nu_hat + (1 - v2) * |g|^2) + eps)

    with mu_hat and nu_hat from `scale_by_adam`.

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        v1: the share of the first moment, a number or a schedule; the paper's nu_1.
        v2: the share of the second moment, a number or a schedule; the paper's nu_2.
        eps: added to the root.

    Source: Ma and Yarats 2019.
    """

    elementwise = True

    b1: Any = 0.995
    b2: Any = 0.999
    v1: Any = 0.7
    v2: Any = 1.0
    eps: Any = 1e-8

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu = average(self.b1, slots.mu, g)
        nu = average(self.b2, slots.nu, abs_sq(g))
        direction = average(self.v1, debias(mu, self.b1, t), g)
        # An infinite square without a share must not make a NaN.
        own = abs_sq(g)
        own = jnp.where((self.v2 == 1) & jnp.isinf(own), 0, own)
        square = average(self.v2, debias(nu, self.b2, t), own)
        return direction / (sqrt(square) + self.eps), Moments(mu, nu)


def qhadam(
    learning_rate: Any,
    b1: Any = 0.995,
    b2: Any = 0.999,
    v1: Any = 0.7,
    v2: Any = 1.0,
    eps: Any = 1e-8,
) -> chain:
    """Adam with quasi-hyperbolic momentum: v1 = v2 = 1 is Adam.

    With v1 = b1 and v2 = 1 it is Nadam except for the bias correction. With v2 < 1 steps have a
    smaller bound than Adam's. The defaults are the paper's advice. The rule is `scale_by_qhadam`,
    then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        v1: the share of the first moment.
        v2: the share of the second moment.
        eps: added to the root.

    Source: Ma and Yarats 2019.
    """
    return chain(scale_by_qhadam(b1, b2, v1, v2, eps), scale_by_learning_rate(learning_rate))
