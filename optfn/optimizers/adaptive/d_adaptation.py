"""Adam that estimates the distance to the solution on the way: Prodigy and D-Adaptation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import static
from optfn.core.dtypes import own_dtype
from optfn.core.each_leaf import each_leaf
from optfn.core.mapped import total
from optfn.core.moments import average
from optfn.core.numerics import abs_sq, dot, ratio, sqrt, tree_sum
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.core.slots import copy_params, scalar_slot, zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates


class Estimate(NamedTuple):
    """Adam's moments, a weighted sum of the gradients, the distance and its numerator, the rate."""

    mu: Signed
    nu: NonNegative
    grad_sum: Signed
    distance: jax.Array
    numerator: jax.Array
    rate: jax.Array


class ProdigyEstimate(NamedTuple):
    """`Estimate` with the initial params."""

    mu: Signed
    nu: NonNegative
    grad_sum: Signed
    distance: jax.Array
    numerator: jax.Array
    rate: jax.Array
    start: PyTree


def _zero_estimate(params: PyTree, distance: Any) -> Estimate:
    return Estimate(
        zeros_of(params),
        zeros_of(params, real=True),
        zeros_of(params),
        scalar_slot(distance, params),
        scalar_slot(0, params),
        scalar_slot(0, params),
    )


def _found(slots: Any) -> dict[str, jax.Array]:
    return {"estimated_distance": slots.distance, "effective_learning_rate": slots.rate}


def _correction(b1: Any, b2: Any, t: jax.Array) -> jax.Array:
    """The factor that corrects both biases of Adam's direction at once, up to eps."""
    return sqrt(1 - b2**t) / (1 - b1**t)


class scale_by_prodigy(Transform):
    """The steps of Prodigy: AdamW at a rate d that grows to the distance to the solution.

        w = d * learning_rate * sqrt(1 - b2^t) / (1 - b1^t)
        mu <- b1 * mu + (1 - b1) * d * g        nu <- b2 * nu + (1 - b2) * (d * |g|)^2
        s <- b3 * s + w * d / d0 * g
        n <- b3 * n + w * d / d0 * <g, p_start - p>
        d <- max(d, estim_lr_coef * n / |s|_1)        sums over all arrays together
        p <- p - w * (mu / (sqrt(nu) + d * eps) + weight_decay * p)

    The update is the step itself: no stage that needs a direction may follow. While all gradients
    are zero, d does not change. Its metrics are d and w.

    Args:
        learning_rate: a factor on d, a number or a schedule.
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        b3: decay of the sums; None is sqrt(b2).
        eps: multiplied by d and added to the root.
        estim_lr0: d0, the initial d; far below the distance.
        estim_lr_coef: a factor on the estimate, a number or a schedule.
        weight_decay: a number or a schedule.
        safeguard_warmup: leaves the learning rate out of s, for schedules that warm up.

    Raises:
        ValueError: `update` was not given the params.

    Source: Mishchenko and Defazio 2024, in the order of the authors' code.
    """

    splittable = True

    needs_params = True

    learning_rate: Any = 1.0
    b1: Any = 0.9
    b2: Any = 0.999
    b3: Any = None
    eps: Any = 1e-8
    estim_lr0: Any = 1e-6
    estim_lr_coef: Any = 1.0
    weight_decay: Any = 0.0
    safeguard_warmup: bool = static(default=False)

    def init_slots(self, params: PyTree) -> ProdigyEstimate:
        return ProdigyEstimate(
            *_zero_estimate(params, self.resolve(0).estim_lr0), copy_params(params)
        )

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return _found(slots)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        d, t = slots.distance, ctx.next_step.astype(own_dtype(updates))
        b3 = sqrt(self.b2) if self.b3 is None else self.b3
        w = d * self.learning_rate * _correction(self.b1, self.b2, t)
        weight = (d if self.safeguard_warmup else w) * d / self.estim_lr0
        mu, nu, s, ahead, size = each_leaf(
            _prodigy_sums,
            updates,
            ctx.params,
            *(slots.mu, slots.nu, slots.grad_sum, slots.start),
            numbers=(d, weight, self.b1, self.b2, b3),
        )
        n = b3 * slots.numerator + d / self.estim_lr0 * w * tree_sum(ahead)
        new_d = jnp.maximum(d, self.estim_lr_coef * ratio(n, tree_sum(size)))
        (steps,) = each_leaf(
            _decayed_adam,
            updates,
            *(ctx.params, mu, nu),
            numbers=(w, w * self.weight_decay, new_d * self.eps),
        )
        return steps, ProdigyEstimate(mu, nu, s, new_d, n, w, slots.start)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


def _prodigy_sums(g, p, mu, nu, s, start, d, weight, b1, b2, b3):
    mu, nu = average(b1, mu, d * g), average(b2, nu, abs_sq(d * g))
    s = b3 * s + weight * g
    return mu, nu, s, dot(g, start - p), total(jnp.abs(s))


def _decayed_adam(g, p, mu, nu, rate, decay, eps):
    return (-rate * mu / (sqrt(nu) + eps) - decay * p,)


def prodigy(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    beta3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
) -> chain:
    """Prodigy: AdamW that finds its own rate.

    Leave the learning rate at 1, or lower it from there with a schedule such as a cosine. The
    estimate only rises, so it never corrects first rates that are too large. The rule is
    `scale_by_prodigy`.

    Args:
        learning_rate: a factor on the estimated rate, a number or a schedule.
        betas: decays of the first and the second moment.
        beta3: decay of the estimate's sums; None is the root of the second decay in `betas`.
        eps: multiplied by the estimate and added to the root.
        estim_lr0: the initial estimate.
        estim_lr_coef: a factor on the estimate; 0.5 or 2 for a smaller or a larger one.
        weight_decay: a number or a schedule.
        safeguard_warmup: leaves the learning rate out of the estimate, for schedules that warm up.

    Source: Mishchenko and Defazio 2024.
    """
    b1, b2 = _pair(betas, "prodigy")
    return chain(
        scale_by_prodigy(
            *(learning_rate, b1, b2, beta3, eps, estim_lr0, estim_lr_coef),
            *(weight_decay, safeguard_warmup),
        )
    )


class scale_by_dadapt_adamw(Transform):
    """The steps of D-Adaptation: AdamW at a rate d that grows to the distance to the solution.

        w = d * learning_rate * sqrt(1 - b2^t) / (1 - b1^t)        b = sqrt(b2)
        n <- b * n + (1 - b) * w * <g, s / (sqrt(nu) + eps)>
        mu <- b1 * mu + (1 - b1) * w * g        nu <- b2 * nu + (1 - b2) * |g|^2
        s <- b * s + (1 - b) * w * g
        d <- max(d, n / ((1 - b) * |s|_1))        sums over all arrays together
        p <- p - mu / (sqrt(nu) + eps) - w * weight_decay * p

    The update is the step itself: no stage that needs a direction may follow. While all gradients
    are zero, d does not change. Its metrics are d and w.

    Args:
        learning_rate: a factor on d, a number or a schedule.
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        estim_lr0: the initial d; far below the distance.
        weight_decay: a number or a schedule.

    Raises:
        ValueError: `update` was not given the params.

    Source: Defazio and Mishchenko 2023.
    """

    splittable = True

    needs_params = True

    learning_rate: Any = 1.0
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    estim_lr0: Any = 1e-6
    weight_decay: Any = 0.0

    def init_slots(self, params: PyTree) -> Estimate:
        return _zero_estimate(params, self.resolve(0).estim_lr0)

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return _found(slots)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        d, t = slots.distance, ctx.next_step.astype(own_dtype(updates))
        b = sqrt(self.b2)
        w = d * self.learning_rate * _correction(self.b1, self.b2, t)
        steps, mu, nu, s, along, size = each_leaf(
            _dadapt_adamw,
            updates,
            ctx.params,
            *(slots.mu, slots.nu, slots.grad_sum),
            numbers=(w, w * self.weight_decay, self.b1, self.b2, b, self.eps),
        )
        n = average(b, slots.numerator, w * tree_sum(along))
        new_d = jnp.maximum(d, ratio(n, (1 - b) * tree_sum(size)))
        return steps, Estimate(mu, nu, s, new_d, n, w)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


def _dadapt_adamw(g, p, mu, nu, s, w, decay, b1, b2, b, eps):
    along = dot(g, ratio(s, sqrt(nu) + eps))
    mu, nu = average(b1, mu, w * g), average(b2, nu, abs_sq(g))
    s = average(b, s, w * g)
    (step,) = _decayed_adam(g, p, mu, nu, 1, decay, eps)
    return step, mu, nu, s, along, total(jnp.abs(s))


def dadapt_adamw(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    weight_decay: Any = 0.0,
) -> chain:
    """AdamW with D-Adaptation, which finds its own rate; Prodigy finds a larger one sooner.

    Leave the learning rate at 1, or lower it from there. The rule is `scale_by_dadapt_adamw`.

    Args:
        learning_rate: a factor on the estimated rate, a number or a schedule.
        betas: decays of the first and the second moment.
        eps: added to the root.
        estim_lr0: the initial estimate.
        weight_decay: a number or a schedule.

    Source: Defazio and Mishchenko 2023.
    """
    b1, b2 = _pair(betas, "dadapt_adamw")
    return chain(scale_by_dadapt_adamw(learning_rate, b1, b2, eps, estim_lr0, weight_decay))


def _pair(betas: Any, name: str) -> tuple[Any, Any]:
    if isinstance(betas, (tuple, list)) and len(betas) == 2:
        return betas[0], betas[1]
    raise TypeError(f"{name}(betas=...) must be a pair of decays, found {betas!r}.")
