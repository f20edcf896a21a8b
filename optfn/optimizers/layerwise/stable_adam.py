"""StableAdamW."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import per_leaf
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, debias, zero_moments
from optfn.core.numerics import abs_sq, root_mean_square, sqrt
from optfn.transforms.decay import decays
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_stable_adamw(Leafwise):
    """The direction of AdamW, shortened where the second moment lags behind the gradient.

        mu <- b1 * mu + (1 - b1) * g        nu <- b2 * nu + (1 - b2) * |g|^2
        r = sqrt(mean(|g|^2 / max(nu_hat, eps^2)))        of each array
        u = (mu_hat / (sqrt(nu_hat) + eps) + weight_decay * p) / max(1, r / clip_threshold)

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        clip_threshold: the r above which steps are shortened, a number or a schedule, above 0.
        weight_decay: a number or a schedule; it is shortened too.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Raises:
        ValueError: `update` was not given the params.

    Source: Wortsman et al. 2023.
    """

    splittable = True

    needs_params = True
    decays_params = True

    b1: Any = 0.9
    b2: Any = 0.99
    eps: Any = 1e-6
    clip_threshold: Any = 1.0
    weight_decay: Any = 0.0
    mask: Any = per_leaf(default=None, of=bool)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        mu = average(self.b1, slots.mu, g)
        nu = average(self.b2, slots.nu, abs_sq(g))
        root = sqrt(debias(nu, self.b2, t))
        u = debias(mu, self.b1, t) / (root + self.eps)
        if decays(self.mask):
            u = u + self.weight_decay * param
        lag = root_mean_square(g / jnp.maximum(root, self.eps)) / self.clip_threshold
        return u / jnp.maximum(1, lag), Moments(mu, nu)


def stable_adamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 1e-6,
    clip_threshold: Any = 1.0,
    weight_decay: Any = 1e-2,
    mask: Any = None,
) -> chain:
    """StableAdamW: AdamW that takes shorter steps while gradients suddenly grow.

    It replaces gradient clipping, layer by layer, and prevents spikes of the loss. The rule is
    `scale_by_stable_adamw`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        clip_threshold: the largest ratio of a gradient to its second moment's root.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Wortsman et al. 2023.
    """
    return chain(
        scale_by_stable_adamw(b1, b2, eps, clip_threshold, weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
