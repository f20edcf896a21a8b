"""AdEMAMix: Adam with a slow momentum beside the fast one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.data import storage_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import average, debias, zeros_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class MixedMoments(NamedTuple):
    """A fast and a slow average of the gradient, and the average of its squared magnitude."""

    m1: Signed
    m2: Signed
    nu: NonNegative


class scale_by_ademamix(Leafwise):
    """The direction of AdEMAMix: Adam's, plus an average over thousands of steps.

        m1 <- b1 * m1 + (1 - b1) * g        m2 <- b3 * m2 + (1 - b3) * g
        nu <- b2 * nu + (1 - b2) * |g|^2
        u = (m1 / (1 - b1^t) + alpha * m2) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)

    Args:
        b1: decay of the fast average, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        b3: decay of the slow average, a number or a schedule. The authors let it grow from b1:
            `schedules.linear_half_life(b1, b3, total_steps)`.
        alpha: the weight of the slow average, a number or a schedule. The authors let it grow from
            0: `schedules.linear(0, alpha, total_steps)`.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which m1 and m2 are stored; None is float32, or wider for wider
            params. (optax starts in it, nu too, and goes on in float32.)

    Source: Pagliardini et al. 2024.
    """

    elementwise = True

    b1: Any = 0.9
    b2: Any = 0.999
    b3: Any = 0.9999
    alpha: Any = 6.0
    eps: Any = 1e-8
    eps_root: Any = 0.0
    mu_dtype: Any = storage_dtype("m1", "m2", default=None)

    Slots = MixedMoments

    def init_leaf(self, param: jax.Array) -> MixedMoments:
        return MixedMoments(jnp.zeros_like(param), jnp.zeros_like(param), zeros_like_real(param))

    def update_leaf(
        self, g: jax.Array, slots: MixedMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, MixedMoments]:
        m1 = average(self.b1, slots.m1, g)
        m2 = average(self.b3, slots.m2, g)
        nu = average(self.b2, slots.nu, abs_sq(g))
        mixed = debias(m1, self.b1, t) + self.alpha * m2
        u = mixed / (sqrt(debias(nu, self.b2, t) + self.eps_root) + self.eps)
        return u, MixedMoments(m1, m2, nu)


def ademamix(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: Any = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """AdEMAMix: AdamW that also remembers old gradients, for long runs of language models.

    Its steps are up to 1 + alpha times as long as Adam's, and runs shorter than about 1 / (1 - b3)
    steps gain nothing. The rule is p <- p - learning_rate * (u + weight_decay * p), with u from
    `scale_by_ademamix`.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the fast average.
        b2: decay of the second moment.
        b3: decay of the slow average, a number or a schedule.
        alpha: the weight of the slow average, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.
        mu_dtype: the dtype in which both averages are stored; see `scale_by_ademamix`.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Pagliardini et al. 2024.
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


class SummedMoments(NamedTuple):
    """A decaying sum of gradients and an average of their squared magnitude."""

    m: Signed
    n: NonNegative


class scale_by_simplified_ademamix(Leafwise):
    """The direction of simplified AdEMAMix: a sum of gradients, plus the last one once more.

        m <- b1 * m + g        n <- b2 * n + (1 - b2) * |g|^2
        u = (m + alpha * g) / (sqrt(n / (1 - b2^t) + eps_root) + eps)

    Args:
        b1: decay of the sum, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        alpha: the weight of the last gradient, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.

    Source: Morwani et al. 2025.
    """

    elementwise = True

    b1: Any = 0.99
    b2: Any = 0.95
    alpha: Any = 0.0
    eps: Any = 1e-8
    eps_root: Any = 0.0

    Slots = SummedMoments

    def init_leaf(self, param: jax.Array) -> SummedMoments:
        return SummedMoments(jnp.zeros_like(param), zeros_like_real(param))

    def update_leaf(
        self, g: jax.Array, slots: SummedMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, SummedMoments]:
        m = self.b1 * slots.m + g
        n = average(self.b2, slots.n, abs_sq(g))
        u = (m + self.alpha * g) / (sqrt(debias(n, self.b2, t) + self.eps_root) + self.eps)
        return u, SummedMoments(m, n)


def simplified_ademamix(
    learning_rate: Any,
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: Any = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """AdEMAMix with one momentum, which takes no more memory than Adam.

    Its momentum is a sum: use 1 - b1 times the rate of AdamW, or less with an alpha. The rule is
    p <- p - learning_rate * (u + weight_decay * p), with u from `scale_by_simplified_ademamix`.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the sum.
        b2: decay of the second moment.
        alpha: the weight of the last gradient; for small batches up to 100.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Morwani et al. 2025.
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
