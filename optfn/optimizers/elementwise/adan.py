"""Adan."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import average, debias, zeros_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class AdanMoments(NamedTuple):
    """Averages of the gradient, its change and the squared look-ahead, and the last gradient."""

    m: Signed
    v: Signed
    n: NonNegative
    g: Signed


class scale_by_adan(Leafwise):
    """The direction of Adan: Nesterov's momentum from gradients and their changes.

        d = g - g_last, and 0 at the first step
        m <- b1 * m + (1 - b1) * g
        v <- b2 * v + (1 - b2) * d
        n <- b3 * n + (1 - b3) * |g + b2 * d|^2
        u = (m_hat + b2 * v_hat) / (sqrt(n_hat + eps_root) + eps)

    The factor b2 is that of the paper, whose beta_2 is 1 - b2, and of the authors' code. (optax
    0.2.8 has 1 - b2 instead.)

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the average change, a number or a schedule.
        b3: decay of the average square, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.

    Source: Xie et al. 2022, with each decay as 1 minus the paper's beta.
    """

    elementwise = True

    b1: Any = 0.98
    b2: Any = 0.92
    b3: Any = 0.99
    eps: Any = 1e-8
    eps_root: Any = 0.0

    Slots = AdanMoments

    def init_leaf(self, param: jax.Array) -> AdanMoments:
        zeros = [jnp.zeros_like(param) for _ in range(3)]
        return AdanMoments(m=zeros[0], v=zeros[1], n=zeros_like_real(param), g=zeros[2])

    def update_leaf(
        self, g: jax.Array, slots: AdanMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, AdanMoments]:
        change = jnp.where(t == 1, 0, g - slots.g)
        m = average(self.b1, slots.m, g)
        v = average(self.b2, slots.v, change)
        n = average(self.b3, slots.n, abs_sq(g + self.b2 * change))
        ahead = debias(m, self.b1, t) + self.b2 * debias(v, self.b2, t)
        u = ahead / (sqrt(debias(n, self.b3, t) + self.eps_root) + self.eps)
        return u, AdanMoments(m, v, n, g)


def adan(
    learning_rate: Any,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """Adan: Adam with Nesterov's momentum, for rates 5 to 10 times as large.

    It keeps four arrays per param, twice as many as Adam. The rule is
    p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_adan`. (The authors' code
    divides by 1 + learning_rate * weight_decay instead.)

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average gradient.
        b2: decay of the average change.
        b3: decay of the average square.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: a number or a schedule; the authors take 0.02.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Xie et al. 2022.
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
