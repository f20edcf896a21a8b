"""AdaGrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import full_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative
from optfn.transforms.scale import scale_by_learning_rate


class SumOfSquares(NamedTuple):
    """The sum of all squared gradients."""

    sum_of_squares: NonNegative


class scale_by_rss(Leafwise):
    """Divides the gradient by the root of the sum of all squares so far.

        s <- s + |g|^2        u = g / sqrt(s + eps),  and 0 where s is 0

    Args:
        initial_accumulator_value: the initial s, not negative.
        eps: added under the root. (torch adds 1e-10 to the root.)

    Source: Duchi et al. 2011.
    """

    elementwise = True

    initial_accumulator_value: Any = 0.1
    eps: Any = 1e-7

    Slots = SumOfSquares

    def init_leaf(self, param: jax.Array) -> SumOfSquares:
        return SumOfSquares(full_like_real(param, self.initial_accumulator_value))

    def update_leaf(
        self, g: jax.Array, slots: SumOfSquares, param: Any, t: jax.Array
    ) -> tuple[jax.Array, SumOfSquares]:
        s = slots.sum_of_squares + abs_sq(g)
        # The inner selection keeps derivatives finite where s and eps are both zero.
        zero = s == 0
        u = jnp.where(zero, 0, g / sqrt(jnp.where(zero, 1, s) + self.eps))
        return u, SumOfSquares(s)


def adagrad(learning_rate: Any, initial_accumulator_value: Any = 0.1, eps: Any = 1e-7) -> chain:
    """AdaGrad: rates that shrink with all past gradients, for sparse features and convex losses.

    The rates never recover, so in long runs of networks `rmsprop` or `adam` get further. The rule
    is `scale_by_rss`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule; 0.01 to 0.1 is usual.
        initial_accumulator_value: the initial sum of squares, not negative.
        eps: added under the root.

    Source: Duchi et al. 2011.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate)
    )
