"""Descent along the signs of the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.numerics import propagate_nan
from optfn.transforms.momentum import ema
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_sign(Leafwise):
    """The sign of the updates: u = g / |g|, and 0 where g is 0; complex g included.

    Source: Bernstein et al. 2018.
    """

    elementwise = True
    elementary = True

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return propagate_nan(jnp.sign(g), g), slots


def sign_sgd(learning_rate: Any) -> chain:
    """Sign descent: steps of exactly the learning rate where the gradient is not zero.

    It communicates one bit per entry, and is biased: with noisy gradients it follows their median.
    The rule is p <- p - learning_rate * sign(g).

    Args:
        learning_rate: a number or a schedule.

    Source: Bernstein et al. 2018.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(
    learning_rate: Any, beta: Any = 0.9, accumulator_dtype: DTypeLike | None = None
) -> chain:
    """Sign descent with momentum: the sign of the average gradient.

        v <- beta * v + (1 - beta) * g        p <- p - learning_rate * sign(v)

    `lion` gives the newest gradient more weight.

    Args:
        learning_rate: a number or a schedule.
        beta: decay of the average, a number or a schedule.
        accumulator_dtype: the dtype in which the average is stored; see `ema`.

    Source: Bernstein et al. 2018.
    """
    return chain(
        ema(beta, debias=False, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        scale_by_learning_rate(learning_rate),
    )
