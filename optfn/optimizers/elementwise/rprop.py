"""Resilient backpropagation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.leafwise import Leafwise
from optfn.core.moments import full_like_real
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.transforms.scale import negate


class StepSizes(NamedTuple):
    """A step size for every entry, and the last step."""

    step_sizes: NonNegative
    prev_updates: Signed


class scale_by_rprop(Leafwise):
    """The steps of Rprop: sizes that grow while the gradient's sign stays and shrink when it turns.

        agree = sign(g * u_last)
        size <- clip(size * eta_plus,  min_step_size, max_step_size)  where agree > 0
        size <- clip(size * eta_minus, min_step_size, max_step_size)  where agree < 0
        u = 0  where agree < 0,  else  size * sign(g)

    The update is the step itself, uphill. A complex entry has one size, and its sign is g / |g|.

    Args:
        learning_rate: the initial step size. A schedule counts with its value at step 0.
        eta_minus: the factor where the sign turns, below 1.
        eta_plus: the factor where the sign stays, above 1.
        min_step_size: the smallest step.
        max_step_size: the largest step.

    Source: Riedmiller and Braun 1993, in the form iRprop- of Igel and Huesken 2003, which forgets
    the gradient after a turn.
    """

    elementwise = True

    learning_rate: Any
    eta_minus: Any = 0.5
    eta_plus: Any = 1.2
    min_step_size: Any = 1e-6
    max_step_size: Any = 50.0

    Slots = StepSizes

    def init_leaf(self, param: jax.Array) -> StepSizes:
        return StepSizes(full_like_real(param, self.learning_rate), jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: StepSizes, param: Any, t: jax.Array
    ) -> tuple[jax.Array, StepSizes]:
        # The product of signs: that of the gradients may vanish or overflow.
        sign = jnp.sign(g)
        agreement = (sign * jnp.sign(slots.prev_updates).conj()).real
        factor = jnp.where(agreement > 0, self.eta_plus, self.eta_minus)
        changed = jnp.clip(slots.step_sizes * factor, self.min_step_size, self.max_step_size)
        sizes = jnp.where(agreement == 0, slots.step_sizes, changed)
        u = jnp.where(agreement < 0, 0, sizes * sign)
        return u, StepSizes(sizes, u)


def rprop(
    learning_rate: Any,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
) -> chain:
    """Rprop: step sizes that do not depend on the gradient's, for full-batch gradients.

    With mini-batches the signs turn by chance, which shrinks the steps: use RMSprop there. The rule
    is `scale_by_rprop`, then p <- p - u, as in torch. (optax 0.2.8 applies each step one update
    late.)

    Args:
        learning_rate: the initial step size.
        eta_minus: the factor on a step size when the gradient's sign turns.
        eta_plus: the factor while the sign stays.
        min_step_size: the smallest step.
        max_step_size: the largest step.

    Source: Riedmiller and Braun 1993.
    """
    return chain(
        scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size),
        negate(),
    )
