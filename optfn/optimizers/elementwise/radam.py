"""Rectified Adam."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import static
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, zero_moments
from optfn.core.numerics import sqrt
from optfn.optimizers.elementwise.adam import corrected_moments
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_radam(Leafwise):
    """The direction of rectified Adam: momentum until the second moment can be trusted.

        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * t * b2^t / (1 - b2^t)
        r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        u = r * mu_hat / (sqrt(nu_hat + eps_root) + eps)  if rho >= threshold,  else  mu_hat

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.
        threshold: the least length of the average, rho, at which nu is used; above 4.
        nesterov: the look-ahead of `scale_by_adam`.

    Source: Liu et al. 2020.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    eps_root: Any = 0.0
    threshold: Any = 5.0
    nesterov: bool = static(default=False, kw_only=True)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu_hat, nu_hat, moments = corrected_moments(self, g, slots, t)
        rho, rho_inf = _average_length(self.b2, t), 2 / (1 - self.b2) - 1
        trusted = rho >= self.threshold
        r = _rectification(jnp.where(trusted, rho, 6), jnp.where(trusted, rho_inf, 6))
        adapted = r * mu_hat / (sqrt(nu_hat + self.eps_root) + self.eps)
        return jnp.where(trusted, adapted, mu_hat), moments


def _rectification(rho: jax.Array, rho_inf: jax.Array) -> jax.Array:
    return sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))


def _average_length(b2: Any, t: jax.Array) -> jax.Array:
    """rho, without the paper's difference of two numbers that are large in the first steps.

    With x = -log(b2), rho is coth(x/2) - t * coth(t*x/2) + t, whose last two terms are
    -2*t / (exp(t*x) - 1) and large while t*x is small.
    """
    x = -jnp.log(jnp.maximum(b2, jnp.finfo(t.dtype).tiny))
    early = t * x < 1
    y = jnp.where(early, t * x, 1) / 2
    at_first = t + 2 / x * (_y_coth_y_less_1(x / 2) - _y_coth_y_less_1(y))
    later = 1 / jnp.tanh(x / 2) - 2 * t / jnp.expm1(jnp.where(early, 1, t * x))
    return jnp.where(early, at_first, later)


def _y_coth_y_less_1(y: jax.Array) -> jax.Array:
    small = y < 0.3
    square = jnp.square(jnp.where(small, y, 0))
    terms = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555, -1382 / 638512875, 4 / 18243225)
    series = square * jnp.polyval(jnp.asarray(terms[::-1], y.dtype), square)
    large = jnp.where(small, 1, y)
    return jnp.where(small, series, large / jnp.tanh(large) - 1)


def radam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
) -> chain:
    """Rectified Adam: Adam that needs no warm-up.

    While the second moment is an average of too few gradients to be trusted (5 steps with the
    defaults), it is momentum; its steps then grow from small ones to Adam's. The rule is
    `scale_by_radam`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        threshold: the least length of the average at which the second moment is used.
        nesterov: look ahead by one more step of the average.

    Source: Liu et al. 2020.
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )
