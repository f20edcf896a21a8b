"""Optimistic gradients, for games."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.optimizers.elementwise.adam import scale_by_adam
from optfn.transforms.corrections import LastGradient
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_optimistic_gradient(Leafwise):
    """The updates, corrected by their last change.

        u = (alpha + beta) * g - beta * g_last        with g_last = g at the first step

    Args:
        alpha: the weight of the update, a number or a schedule.
        beta: the weight of its change, a number or a schedule.

    Source: Mokhtari et al. 2020.
    """

    elementwise = True

    alpha: Any = 1.0
    beta: Any = 1.0

    Slots = LastGradient

    def init_leaf(self, param: jax.Array) -> LastGradient:
        return LastGradient(jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: LastGradient, param: Any, t: jax.Array
    ) -> tuple[jax.Array, LastGradient]:
        last = jnp.where(t == 1, g, slots.previous_gradient)
        return (self.alpha + self.beta) * g - self.beta * last, LastGradient(g)


def optimistic_gradient_descent(learning_rate: Any, alpha: Any = 1.0, beta: Any = 1.0) -> chain:
    """Optimistic gradient descent, for games, in which plain gradient descent runs in circles.

    It converges in a bilinear game, where one player ascends the function that the other descends.
    Plain minimization gains nothing. The rule is `scale_by_optimistic_gradient`, then
    p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        alpha: the weight of the gradient.
        beta: the weight of its change.

    Source: Mokhtari et al. 2020.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


def optimistic_adam_v2(
    learning_rate: Any,
    *,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = True,
) -> chain:
    """Adam with an optimistic correction of its direction, for games such as adversarial training.

    The rule is `scale_by_adam`, then `scale_by_optimistic_gradient`, then
    p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        alpha: the weight of the direction.
        beta: the weight of its change.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_adam`.
        nesterov: look ahead by one more step of the average.

    Source: Daskalakis et al. 2018.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )
