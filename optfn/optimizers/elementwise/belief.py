"""AdaBelief and ACProp: gradients divided by their distance from the average gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import static
from optfn.core.leafwise import Leafwise
from optfn.core.moments import (
    Moments,
    average,
    debias,
    look_ahead,
    zero_moments,
)
from optfn.core.numerics import abs_sq, sqrt
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_belief(Leafwise):
    """The direction of AdaBelief: the average gradient over the gradient's distance from it.

        mu <- b1 * mu + (1 - b1) * g
        nu <- b2 * nu + (1 - b2) * |g - mu|^2 + eps_root
        u = mu_hat / (sqrt(nu_hat) + eps)

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the average squared distance, a number or a schedule.
        eps: added to the root.
        eps_root: added to nu at every step; it accumulates to eps_root / (1 - b2).
        nesterov: the look-ahead of `scale_by_adam`.

    Source: Zhuang et al. 2020.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-16
    eps_root: Any = 1e-16
    nesterov: bool = static(default=False, kw_only=True)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu = average(self.b1, slots.mu, g)
        # The number is not added last: what ends in an operation on two arrays is computed once.
        nu = self.b2 * slots.nu + self.eps_root + (1 - self.b2) * abs_sq(g - mu)
        mu_hat = look_ahead(mu, g, self.b1, t) if self.nesterov else debias(mu, self.b1, t)
        return mu_hat / (sqrt(debias(nu, self.b2, t)) + self.eps), Moments(mu, nu)


def adabelief(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    *,
    nesterov: bool = False,
) -> chain:
    """AdaBelief: Adam that takes large steps where gradients are as predicted, else small ones.

    Try it where Adam generalizes worse than gradient descent, as in image classification. Where
    gradients are steady its steps grow without Adam's bound of about the learning rate. The rule is
    `scale_by_belief`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average gradient.
        b2: decay of the average squared distance from it.
        eps: added to the root.
        eps_root: added to the average squared distance at every step.
        nesterov: look ahead by one more step of the average.

    Source: Zhuang et al. 2020.
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


class scale_by_acprop(Leafwise):
    """The direction of ACProp: the gradient over earlier gradients' distance from the average.

        u = g / (sqrt(nu_hat) + eps)        with nu_hat = 1 at the first step
        nu <- b2 * nu + (1 - b2) * |g - mu|^2 + eps_root
        mu <- b1 * mu + (1 - b1) * g

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the average squared distance, a number or a schedule.
        eps: added to the root.
        eps_root: added to nu at every step.

    Source: Zhuang et al. 2021, with the distance from the average before g, as in optax's code.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-16
    eps_root: Any = 1e-16

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        first = t == 1
        nu_hat = jnp.where(first, 1, debias(slots.nu, self.b2, jnp.where(first, 1, t - 1)))
        nu = average(self.b2, slots.nu, abs_sq(g - slots.mu)) + self.eps_root
        return g / (sqrt(nu_hat) + self.eps), Moments(average(self.b1, slots.mu, g), nu)


def acprop(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """ACProp: AdaBelief without momentum, whose divisor does not depend on the gradient it divides.

    That makes it converge for every b2, where Adam may not. The rule is
    p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_acprop`.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average gradient.
        b2: decay of the average squared distance from it.
        eps: added to the root.
        eps_root: added to the average squared distance at every step.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Zhuang et al. 2021.
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
