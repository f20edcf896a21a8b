"""RMSprop, plain and centred."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import as_switch, static
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, debias, full_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative
from optfn.transforms.momentum import trace
from optfn.transforms.scale import scale_by_learning_rate


class SecondMoment(NamedTuple):
    """The average squared magnitude of the gradient."""

    nu: NonNegative


class scale_by_rms(Leafwise):
    """Divides the gradient by the root of its average square.

        nu <- decay * nu + (1 - decay) * |g|^2
        u = g / sqrt(nu + eps),  or  g / (sqrt(nu) + eps)

    Args:
        decay: decay of the average, a number or a schedule.
        eps: added under the root or to it.
        initial_scale: the initial nu.
        eps_in_sqrt: True adds eps under the root, as optax does; False adds it to the root, as the
            lecture and torch do.
        bias_correction: use nu / (1 - decay^t).

    Source: Hinton, lecture 6e, 2012.
    """

    elementwise = True

    decay: Any = 0.9
    eps: Any = 1e-8
    initial_scale: Any = 0.0
    eps_in_sqrt: bool = static(default=True)
    bias_correction: bool = static(default=False)

    Slots = SecondMoment

    def init_leaf(self, param: jax.Array) -> SecondMoment:
        return SecondMoment(full_like_real(param, self.initial_scale))

    def update_leaf(
        self, g: jax.Array, slots: SecondMoment, param: Any, t: jax.Array
    ) -> tuple[jax.Array, SecondMoment]:
        nu = average(self.decay, slots.nu, abs_sq(g))
        nu_hat = debias(nu, self.decay, t) if self.bias_correction else nu
        return g / root(nu_hat, self.eps, self.eps_in_sqrt), SecondMoment(nu)


class scale_by_stddev(Leafwise):
    """Divides the gradient by its running standard deviation: `scale_by_rms`, centred.

        mu <- decay * mu + (1 - decay) * g
        u = g / sqrt(nu - |mu|^2 + eps),  or  g / (sqrt(nu - |mu|^2) + eps)

    A variance that rounding made negative counts as zero. With bias_correction the variance after
    one step is exactly zero, so the first step is g / eps: take a larger eps then.

    Args:
        decay: decay of both averages, a number or a schedule.
        eps: added under the root or to it.
        initial_scale: the initial nu.
        eps_in_sqrt: True adds eps under the root, False to it.
        bias_correction: divide both averages by 1 - decay^t.

    Source: Graves 2013.
    """

    elementwise = True

    decay: Any = 0.9
    eps: Any = 1e-8
    initial_scale: Any = 0.0
    eps_in_sqrt: bool = static(default=True)
    bias_correction: bool = static(default=False)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return Moments(jnp.zeros_like(param), full_like_real(param, self.initial_scale))

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu = average(self.decay, slots.mu, g)
        nu = average(self.decay, slots.nu, abs_sq(g))
        mu_hat = debias(mu, self.decay, t) if self.bias_correction else mu
        nu_hat = debias(nu, self.decay, t) if self.bias_correction else nu
        variance = jnp.maximum(nu_hat - abs_sq(mu_hat), 0)
        return g / root(variance, self.eps, self.eps_in_sqrt), Moments(mu, nu)


def root(square: jax.Array, eps: Any, eps_in_sqrt: bool) -> jax.Array:
    return sqrt(square + eps) if eps_in_sqrt else sqrt(square) + eps


def rmsprop(
    learning_rate: Any,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> chain:
    """RMSprop: a rate for every entry, without Adam's first moment.

    The rule is p <- p - learning_rate * u, with u from `scale_by_rms` or, centred, from
    `scale_by_stddev`. A momentum sums the steps, learning rate included, as in optax; torch sums u,
    which differs once the rate changes.

    Args:
        learning_rate: a number or a schedule.
        decay: decay of the average square; torch calls it alpha and takes 0.99.
        eps: added under the root or to it.
        initial_scale: the initial average square.
        eps_in_sqrt: True adds eps under the root; False to the root, as the lecture and torch do.
        centered: divide by the standard deviation instead.
        momentum: decay of the sum of steps; None for no momentum.
        nesterov: Nesterov's look-ahead for that sum; it needs a momentum.
        bias_correction: correct the averages for their start at zero.

    Raises:
        ValueError: nesterov without momentum.

    Source: Hinton, lecture 6e, 2012; centred: Graves 2013.
    """
    if nesterov and momentum is None:
        raise ValueError("rmsprop(nesterov=True) needs a momentum, as in momentum=0.9.")
    centered = as_switch(centered, "rmsprop(centered=...)")
    direction = scale_by_stddev if centered else scale_by_rms
    return chain(
        direction(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        *(() if momentum is None else (trace(momentum, nesterov),)),
    )
