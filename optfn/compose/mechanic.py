"""Mechanic: a wrapper that finds the scale of another optimizer's steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.data import check_count, child, static
from optfn.core.each_leaf import each_leaf
from optfn.core.numerics import dot, global_norm, norms_along, tree_sum
from optfn.core.slots import copy_params, scalar_slot
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import check_steps


class Wealth(NamedTuple):
    """The bettor for each decay, [num_betas], the params at the start and the inner slots.

    Attributes:
        reward: r, the reward of betting on the factor.
        largest: m, the largest |h|, the gradient with respect to the factor.
        spread: sqrt(v), the root of the sum of h^2.
        factors: s_b; the steps are multiplied by their sum.
        start: the params at the start.
        inner: the slots of the inner optimizer.
    """

    reward: jax.Array
    largest: jax.Array
    spread: jax.Array
    factors: jax.Array
    start: PyTree
    inner: Any


class mechanize(Transform):
    """Mechanic: learns a factor on an optimizer's steps, so the learning rate need not be tuned.

    The params are p_start + s * (the sum of the inner steps), and s is found by betting on the
    slope of the loss along that sum, once for each decay b = 1 - 10^-i with i = 1 to num_betas:

        q = (p_start - p) / (s + eps)
        h = <g + weight_decay * s * ||g|| / (||p|| + eps) * p, q>        over all arrays together
        r <- b * r + s_b * clip(h, -m, m)        m <- max(b * m, |h| + eps)
        v <- b^2 * v + h^2
        s_b <- (s_init / num_betas * m + max(r, 0)) / (sqrt(v) + eps)        s = sum of the s_b
        p <- p_start - s * (q - inner step)

    Its metric is s. Put it around an optimizer with its schedule, at a rate of 1 or any other.
    Stages before the optimizer, such as a clip, belong inside.

    Args:
        base_optimizer: the optimizer.
        weight_decay: the strength of the pull to zero in h, a number or a schedule.
        eps: added to divisors and to m, a number or a schedule.
        s_init: the initial factor, a number or a schedule.
        num_betas: the number of decays.

    Raises:
        ValueError: `update` was not given the params.

    Source: Cutkosky et al. 2023.
    """

    splittable = True

    needs_params = True

    base_optimizer: Transform = child(converter=as_transform)
    weight_decay: Any = 1e-2
    eps: Any = 1e-8
    s_init: Any = 1e-6
    num_betas: int = static(default=6)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.num_betas, "mechanize(num_betas=...)")
        check_steps(self.base_optimizer, "mechanize(base_optimizer=...)")

    def init_slots(self, params: PyTree) -> Wealth:
        s_init = self.resolve(0).s_init
        zeros, factors = (jnp.full(self.num_betas, value) for value in (0.0, s_init))
        return Wealth(
            reward=scalar_slot(zeros, params),
            largest=scalar_slot(zeros, params),
            spread=scalar_slot(zeros, params),
            factors=scalar_slot(factors, params),
            start=copy_params(params),
            inner=self.base_optimizer.init_named(params),
        )

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"effective_learning_rate": jnp.sum(slots.factors, -1)}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        steps, inner = self.base_optimizer.apply_named(updates, slots.inner, ctx)
        old = jnp.sum(slots.factors) + self.eps
        along, inward = each_leaf(_slopes, updates, ctx.params, slots.start)
        pull = self.weight_decay * jnp.sum(slots.factors) * global_norm(updates)
        h = (tree_sum(along) + pull / (global_norm(ctx.params) + self.eps) * tree_sum(inward)) / old

        b = jnp.asarray(1 - 0.1 ** np.arange(1, self.num_betas + 1), h.dtype)
        reward = b * slots.reward + slots.factors * jnp.clip(h, -slots.largest, slots.largest)
        largest = jnp.maximum(b * slots.largest, jnp.abs(h) + self.eps)
        both = jnp.stack([b * slots.spread, jnp.broadcast_to(h, b.shape)])
        spread = norms_along(0, both).value[0]  # a square of h may overflow
        wealth = self.s_init / self.num_betas * largest + jnp.maximum(reward, 0)
        factors = wealth / (spread + self.eps)

        s = jnp.sum(factors)
        (steps,) = each_leaf(
            _rescaled, updates, *(ctx.params, slots.start, steps), numbers=(s, (old - s) / old)
        )
        return steps, Wealth(reward, largest, spread, factors, slots.start, inner)


def _slopes(g, p, start):
    return dot(g, start - p), dot(p, start - p)


def _rescaled(g, p, start, step, s, shrink):
    # Not new params minus old ones: small steps are lost in that difference.
    return ((start - p) * shrink + s * step,)
