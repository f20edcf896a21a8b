"""Lion."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.data import static, storage_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import FirstMoment, average
from optfn.core.numerics import propagate_nan
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_lion(Leafwise):
    """The direction of Lion: the sign of an average of gradient and momentum.

        u = sign(b1 * mu + (1 - b1) * g)
        mu <- b2 * mu + (1 - b2) * g

    Args:
        b1: the weight of the momentum in the direction, a number or a schedule.
        b2: decay of the momentum, a number or a schedule.
        mu_dtype: the dtype in which mu is stored; None is float32, or wider for wider params.
        mode: the function in the place of the sign of x: "hard" is the sign, "smooth" is
            tanh(smooth_beta * x), and "refined" x itself up to a size of 1, from there its sign.
            The last two are small where x is, so their steps depend on the scale of the gradients.
        smooth_beta: the slope of "smooth" at zero, a number or a schedule; the others have none.

    Source: Chen et al. 2023; the functions beside the sign are optax's.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.99
    mu_dtype: Any = storage_dtype("mu", default=None)
    mode: str = static(default="hard", choices=("hard", "smooth", "refined"), kw_only=True)
    smooth_beta: Any = field(default=1.0, kw_only=True)

    Slots = FirstMoment

    def init_leaf(self, param: jax.Array) -> FirstMoment:
        return FirstMoment(jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: FirstMoment, param: Any, t: jax.Array
    ) -> tuple[jax.Array, FirstMoment]:
        mixed = average(self.b1, slots.mu, g)
        return propagate_nan(self._squashed(mixed), mixed), FirstMoment(
            average(self.b2, slots.mu, g)
        )

    def _squashed(self, x: jax.Array) -> jax.Array:
        """x with a size of at most 1; a complex number keeps its direction."""
        match self.mode:
            case "hard":
                return jnp.sign(x)
            case "smooth" if jnp.iscomplexobj(x):
                return jnp.sign(x) * jnp.tanh(self.smooth_beta * jnp.abs(x))
            case "smooth":
                return jnp.tanh(self.smooth_beta * x)
            case _:
                return jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))


def lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 1e-3,
    mask: Any = None,
) -> chain:
    """Lion: steps of exactly the learning rate in every entry, with one moment to store.

    Use a rate 3 to 10 times smaller than AdamW's, a decay as many times larger, and larger batches.
    The rule is p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_lion`.

    Args:
        learning_rate: a number or a schedule.
        b1: the weight of the momentum in the direction.
        b2: decay of the momentum.
        mu_dtype: the dtype in which the momentum is stored; see `scale_by_lion`.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Chen et al. 2023.
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
