"""Adamax, and its form with decoupled weight decay."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, debias, zero_moments
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_adamax(Leafwise):
    """The direction of Adamax: the average gradient over its decaying maximum.

        mu <- b1 * mu + (1 - b1) * g
        nu <- max(b2 * nu, |g| + eps)
        u = mu / (1 - b1^t) / nu

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the maximum, a number or a schedule.
        eps: added to |g|.

    Source: Kingma and Ba 2015, section 7.1.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu = average(self.b1, slots.mu, g)
        nu = jnp.maximum(self.b2 * slots.nu, abs(g) + self.eps)
        return debias(mu, self.b1, t) / nu, Moments(mu, nu)


def adamax(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> chain:
    """Adamax: Adam with a decaying maximum of the gradient instead of its root mean square.

    A single large gradient shortens the steps for about 1 / (1 - b2) updates, and squares neither
    overflow nor vanish. It is used for embeddings, whose gradients are mostly zero. The rule is
    `scale_by_adamax`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule; the paper takes 2e-3.
        b1: decay of the average gradient.
        b2: decay of the maximum.
        eps: added to |g|.

    Source: Kingma and Ba 2015, section 7.1.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    mask: Any = None,
) -> chain:
    """Adamax with decoupled weight decay.

    The rule is p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_adamax`.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average gradient.
        b2: decay of the maximum.
        eps: added to |g|.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Kingma and Ba 2015; Loshchilov and Hutter 2019.
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
