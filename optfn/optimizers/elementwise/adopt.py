"""ADOPT."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.data import static, storage_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, zero_moments
from optfn.core.numerics import abs_sq, propagate_nan, sqrt
from optfn.transforms.clip import clip_entries
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_adopt(Leafwise):
    """The direction of ADOPT: an average of gradients, each over the root of earlier squares.

        n = clip(g / max(sqrt(nu), eps), -c, c)        c = (t - 1)^(1/4)
        mu <- b1 * mu + (1 - b1) * n
        nu <- b2 * nu + (1 - b2) * |g|^2
        u = mu

    The first step only sets nu = |g|^2, with u = 0. Both parts of complex entries are clipped.

    Args:
        b1: decay of the average, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: the smallest divisor.
        mu_dtype: the dtype in which mu is stored; None is float32, or wider for wider params.
        nesterov: u = b1 * mu + (1 - b1) * n.
        use_clipping: clip the normalized gradients n, which matters most in the first steps.
        clip_value_fn: the limit c, a number or a schedule; None is (t - 1)^(1/4).

    Source: Taniguchi et al. 2024.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.9999
    eps: Any = 1e-6
    mu_dtype: Any = storage_dtype("mu", default=None)
    nesterov: bool = static(default=False, kw_only=True)
    use_clipping: bool = static(default=True, kw_only=True)
    clip_value_fn: Any = field(default=None, kw_only=True)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        return zero_moments(param)

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        first = t == 1
        n = g / jnp.maximum(sqrt(slots.nu), self.eps)
        if self.use_clipping:
            n = clip_entries(
                n, (t - 1) ** 0.25 if self.clip_value_fn is None else self.clip_value_fn
            )
        n = propagate_nan(jnp.where(first, 0, n), g)
        nu = jnp.where(first, abs_sq(g), average(self.b2, slots.nu, abs_sq(g)))
        mu = average(self.b1, slots.mu, n)
        return average(self.b1, mu, n) if self.nesterov else mu, Moments(mu, nu)


def adopt(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Any = None,
) -> chain:
    """ADOPT: Adam that converges for every b2, with the order of its two averages reversed.

    Each gradient is divided by the root of earlier squares only, and then averaged. The first step
    does not move the params. The rule is `scale_by_adopt`, then p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average.
        b2: decay of the second moment.
        eps: the smallest divisor.
        mu_dtype: the dtype in which the average is stored; see `scale_by_adopt`.
        nesterov: look ahead by one more step of the average.
        use_clipping: clip the normalized gradients.
        clip_value_fn: their limit, a number or a schedule; None is (t - 1)^(1/4).

    Source: Taniguchi et al. 2024.
    """
    return chain(
        scale_by_adopt(
            b1,
            b2,
            eps,
            mu_dtype,
            nesterov=nesterov,
            use_clipping=use_clipping,
            clip_value_fn=clip_value_fn,
        ),
        scale_by_learning_rate(learning_rate),
    )
