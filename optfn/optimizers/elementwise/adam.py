"""Adam, AdamW, their forms with Nesterov's look-ahead, and AMSGrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.data import static, storage_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import (
    Moments,
    average,
    debias,
    look_ahead,
    zero_moments,
    zeros_like_real,
)
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_adam(Leafwise):
    """The direction of Adam: the average gradient over the root of its average square.

        mu <- b1 * mu + (1 - b1) * g          mu_hat = mu / (1 - b1^t)
        nu <- b2 * nu + (1 - b2) * |g|^2      nu_hat = nu / (1 - b2^t)
        u = mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which mu is stored; None is float32, or wider for wider params.
        nesterov: the look-ahead of Dozat 2016, without its extra factor b2:
            mu_hat = b1 * mu / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t).

    Source: Kingma and Ba 2015.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    eps_root: Any = 0.0
    mu_dtype: Any = storage_dtype("mu", default=None)
    nesterov: bool = static(default=False, kw_only=True)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu_hat, nu_hat, moments = corrected_moments(self, g, slots, t)
        return mu_hat / (sqrt(nu_hat + self.eps_root) + self.eps), moments


def corrected_moments(rule: Any, g: jax.Array, slots: Moments, t: jax.Array) -> tuple[Any, ...]:
    """mu_hat, nu_hat and the new slots, with a rule's `b1`, `b2` and `nesterov`."""
    mu = average(rule.b1, slots.mu, g)
    nu = average(rule.b2, slots.nu, abs_sq(g))
    mu_hat = look_ahead(mu, g, rule.b1, t) if rule.nesterov else debias(mu, rule.b1, t)
    return mu_hat, debias(nu, rule.b2, t), Moments(mu, nu)


def adam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> chain:
    """Adam, the default choice for networks: steps of about the learning rate in every entry.

    For weight decay take `adamw`; added to the gradient, the decay would be divided by the root
    too. The rule is `scale_by_adam`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule; 1e-3 is a usual start.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_adam`.
        nesterov: NAdam's look-ahead.

    Source: Kingma and Ba 2015.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> chain:
    """Adam with decoupled weight decay, the usual choice for transformers.

    The rule is p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_adam`: the
    decay is multiplied by the learning rate and follows its schedule, as in optax and torch. (The
    paper multiplies it by the schedule's factor only.)

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_adam`.
        weight_decay: a number or a schedule. (torch's default is 1e-2.)
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        nesterov: NAdam's look-ahead.

    Source: Loshchilov and Hutter 2019.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> chain:
    """Adam with Nesterov's look-ahead: `adam(..., nesterov=True)` under its own name.

    torch's NAdam also lets b1 grow over the first steps (momentum_decay), which this does not.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_adam`.

    Source: Dozat 2016.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True)


def nadamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
) -> chain:
    """AdamW with Nesterov's look-ahead: `adamw(..., nesterov=True)` under its own name.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_adam`.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Dozat 2016; Loshchilov and Hutter 2019.
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=True)


class MaxMoments(NamedTuple):
    """Adam's moments and the largest second moment so far."""

    mu: Signed
    nu: NonNegative
    nu_max: NonNegative


class scale_by_amsgrad(Leafwise):
    """The direction of AMSGrad: Adam with a second moment that never shrinks.

        nu_max <- max(nu_max, nu_hat)
        u = mu_hat / (sqrt(nu_max + eps_root) + eps)

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which mu is stored; None is float32, or wider for wider params.
        bias_correction_mu: use mu / (1 - b1^t); False uses mu, as in the paper.
        bias_correction_nu: take the maximum of nu / (1 - b2^t); False takes that of nu, as in the
            paper. (torch takes the maximum of nu and corrects it afterwards.)

    Source: Reddi et al. 2018.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    eps_root: Any = 0.0
    mu_dtype: Any = storage_dtype("mu", default=None)
    bias_correction_mu: bool = static(default=True)
    bias_correction_nu: bool = static(default=True)

    Slots = MaxMoments

    def init_leaf(self, param: jax.Array) -> MaxMoments:
        return MaxMoments(*zero_moments(param), zeros_like_real(param))

    def update_leaf(
        self, g: jax.Array, slots: MaxMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, MaxMoments]:
        mu = average(self.b1, slots.mu, g)
        nu = average(self.b2, slots.nu, abs_sq(g))
        mu_hat = debias(mu, self.b1, t) if self.bias_correction_mu else mu
        nu_hat = debias(nu, self.b2, t) if self.bias_correction_nu else nu
        nu_max = jnp.maximum(slots.nu_max, nu_hat)
        return mu_hat / (sqrt(nu_max + self.eps_root) + self.eps), MaxMoments(mu, nu, nu_max)


def amsgrad(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> chain:
    """AMSGrad: Adam whose per-entry rates never grow, with a convergence proof for convex losses.

    It helps where rare large gradients carry information that Adam forgets; elsewhere Adam is as
    good. The rule is `scale_by_amsgrad`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_amsgrad`.
        bias_correction_mu: see `scale_by_amsgrad`.
        bias_correction_nu: see `scale_by_amsgrad`.

    Source: Reddi et al. 2018.
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scale_by_learning_rate(learning_rate),
    )
