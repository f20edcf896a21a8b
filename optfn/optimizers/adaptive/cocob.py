"""COCOB: optimization as coin betting, per entry and without a learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import zeros_like_real
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class Bets(NamedTuple):
    """The initial params, the largest |g|, the sums of |g| and of -g, and the reward."""

    start: PyTree
    scale: PyTree
    subgradients: PyTree
    cumulative_gradients: PyTree
    reward: PyTree


class scale_by_cocob(Leafwise):
    """The steps of COCOB-Backprop.

        L <- max(L, |g|)        G <- G + |g|        C <- C - g
        R <- max(R - g * (p - p_start), 0)
        p <- p_start + C / (L * max(G + L, alpha * L)) * (L + R)

    The update is the step itself, from gradients that point uphill.

    Args:
        alpha: how cautious the first bets are, a number or a schedule.
        eps: the initial L.

    Raises:
        ValueError: `update` was not given the params.

    Source: Orabona and Tommasi 2017.
    """

    elementwise = True
    needs_params = True

    alpha: Any = 100.0
    eps: Any = 1e-8

    Slots = Bets

    def init_leaf(self, param: jax.Array) -> Bets:
        zero = zeros_like_real(param)
        return Bets(param, zero + self.eps, zero, jnp.zeros_like(param), zero)

    def update_leaf(
        self, g: jax.Array, slots: Bets, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Bets]:
        size = jnp.abs(g)
        largest = jnp.maximum(slots.scale, size)
        summed = slots.subgradients + size
        wealth = slots.cumulative_gradients - g
        loss = (g.conj() * (param - slots.start)).real
        # Not max(reward - loss, 0): from an operation on two arrays the compiler keeps the result,
        # from one on an array and a number it computes it twice, and copies what is overwritten.
        reward = slots.reward - jnp.minimum(loss, slots.reward)
        bet = jnp.maximum(summed + largest, self.alpha * largest)
        # Not the new param minus the old one: that difference loses small steps.
        u = (slots.start - param) + wealth / bet * ((largest + reward) / largest)
        return u, Bets(slots.start, largest, summed, wealth, reward)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


def cocob(
    learning_rate: Any = 1.0,
    alpha: Any = 100.0,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """COCOB: every entry bets its winnings so far on the sign of its next gradient.

    It has no rate to tune. The params stay tied to their initial values. The rule is
    `scale_by_cocob` applied to learning_rate * (g + weight_decay * p).

    Args:
        learning_rate: a factor on the gradients; it hardly matters.
        alpha: how cautious the first bets are.
        eps: the initial value of the largest gradient.
        weight_decay: the weight of an L2 penalty, a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Orabona and Tommasi 2017.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )
