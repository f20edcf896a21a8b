"""COCOB: optimization as betting on a coin, per entry and without a rate."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class Bets(NamedTuple):
    """The params at the start, and of the gradients the largest, both sums, and what was won."""

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
        eps: the L to start with.

    Raises:
        ValueError: `update` was not given the params.

    Source: Orabona and Tommasi 2017.
    """

    elementwise = True
    needs_params = True

    alpha: Any = 100.0
    eps: Any = 1e-8

    Slots = Bets

    def init_leaf(self, param):
        zero = jnp.zeros_like(param.real)
        return Bets(param, zero + self.eps, zero, jnp.zeros_like(param), zero)

    def update_leaf(self, g, slots, param, t):
        size = jnp.abs(g)
        largest = jnp.maximum(slots.scale, size)
        summed = slots.subgradients + size
        wealth = slots.cumulative_gradients - g
        reward = jnp.maximum(slots.reward - (g.conj() * (param - slots.start)).real, 0)
        bet = jnp.maximum(summed + largest, self.alpha * largest)
        # Not the new param less the old one, in whose difference small steps are lost.
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
    """COCOB: every entry bets on the sign of its next gradient, with what it has won so far.

    Without a rate to set. The params stay tied to where they started. The rule is `scale_by_cocob`
    of learning_rate * (g + weight_decay * p).

    Args:
        learning_rate: a factor on the gradients, which hardly matters.
        alpha: how cautious the first bets are.
        eps: the least that the largest gradient counts as.
        weight_decay: of an L2 penalty, a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Orabona and Tommasi 2017.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )
