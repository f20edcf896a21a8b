"""Rates from the value of the loss: Polyak's step, and MoMo, the same with momentum."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import static
from optfn.core.dtypes import own_dtype
from optfn.core.each_leaf import each_leaf
from optfn.core.mapped import total
from optfn.core.moments import average, debias
from optfn.core.numerics import abs_sq, dot, norm_of, ratio, sqrt, tree_scale, tree_sum
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.core.slots import scalar_slot, zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates
from optfn.transforms.scale import scale_by_learning_rate


class PolyakRate(NamedTuple):
    """The last rate."""

    rate: jax.Array


class scale_by_polyak(Transform):
    """Polyak's step, to where the loss's tangent along the gradient reaches the lower bound.

        u = g * min((value - f_min) / (||g||^2 + eps), max_learning_rate)

    `update` takes the loss as the keyword argument `value`. A zero gradient gives zero updates.
    Its metric is the rate.

    Args:
        f_min: a lower bound of the loss, a number or a schedule.
        max_learning_rate: the largest rate, a number or a schedule.
        eps: added to the squared norm.
        variant: `"sps"`, which goes uphill from a value below `f_min`, or `"sps+"`, which takes
            no step there.

    Source: Loizou et al. 2021; `"sps+"`: Garrigos et al. 2023.
    """

    splittable = True

    extra_args: ClassVar = {"value": "scalar"}

    f_min: Any = 0.0
    max_learning_rate: Any = 1.0
    eps: Any = 0.0
    variant: str = static(default="sps", choices=("sps", "sps+"))

    def init_slots(self, params: PyTree) -> PolyakRate:
        return PolyakRate(scalar_slot(0, params))

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"effective_learning_rate": slots.rate}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        gap = jnp.asarray(ctx.extra_args["value"], own_dtype(updates)) - self.f_min
        if self.variant == "sps+":
            gap = jnp.maximum(gap, 0)
        # The rate for the updates over a scale, since the square of the norm may be out of range.
        scale, relative = norm_of(updates)
        inverse = 1 / scale
        square = relative * relative + self.eps * inverse * inverse
        rate = ratio(gap * inverse, square)
        capped = rate * inverse > self.max_learning_rate
        whole = jnp.where(capped, self.max_learning_rate, rate * inverse)
        rate = jnp.where(capped, self.max_learning_rate, rate)
        updates = tree_scale(rate, tree_scale(jnp.where(capped, 1, inverse), updates))
        return updates, PolyakRate(whole)


def polyak_sgd(
    max_learning_rate: Any = 1.0,
    scaling: Any = 1.0,
    f_min: Any = 0.0,
    eps: Any = 0.0,
    variant: str = "sps",
) -> chain:
    """Gradient descent at Polyak's rate, for models whose lowest loss is known.

    For a model that interpolates its data it is zero. A bound that is too low makes steps too
    large. The rule is `scale_by_polyak`, then p <- p - scaling * u.

    Args:
        max_learning_rate: the largest rate, a number or a schedule.
        scaling: a factor on the rate, a number or a schedule.
        f_min: a lower bound of the loss.
        eps: added to the squared norm of the gradient.
        variant: `"sps"` or `"sps+"`; see `scale_by_polyak`.

    Source: Loizou et al. 2021.
    """
    return chain(
        scale_by_polyak(f_min, max_learning_rate, eps, variant), scale_by_learning_rate(scaling)
    )


class Model(NamedTuple):
    """The averages of the gradient, the loss and <g, p>, a lower bound of the loss, the rate."""

    mu: Signed
    value: jax.Array
    along: jax.Array
    lower_bound: jax.Array
    rate: jax.Array


class AdamModel(NamedTuple):
    """`Model` with the average squared gradient."""

    mu: Signed
    nu: NonNegative
    value: jax.Array
    along: jax.Array
    lower_bound: jax.Array
    rate: jax.Array


class scale_by_momo(Transform):
    """The steps of MoMo: Polyak's, on an average of the loss's tangents at the last params.

        mu <- beta * mu + (1 - beta) * g        f, c: the same averages of value and of <g, p>
        k = 1 + learning_rate * weight_decay
        tau = min(learning_rate, max(k * (f - c - lower_bound) + <mu, p>, 0) / ||mu||^2)
        p <- p / k - tau * mu

    At the first step beta is 0. `update` takes the loss as the keyword argument `value`. The update
    is the step itself: no stage that needs a direction may follow. Its metric is tau.

    Args:
        learning_rate: the largest rate, a number or a schedule.
        beta: decay of the averages, a number or a schedule.
        lower_bound: a lower bound of the loss, a number or a schedule.
        weight_decay: a number or a schedule.
        adapt_lower_bound: True estimates a higher bound from the losses.

    Raises:
        ValueError: `update` was not given the params.

    Source: Schaipp et al. 2024.
    """

    splittable = True

    needs_params = True
    extra_args: ClassVar = {"value": "scalar"}

    learning_rate: Any = 1.0
    beta: Any = 0.9
    lower_bound: Any = 0.0
    weight_decay: Any = 0.0
    adapt_lower_bound: bool = static(default=False)

    def init_slots(self, params: PyTree) -> Model:
        bound = scalar_slot(self.resolve(0).lower_bound, params)
        zeros = (scalar_slot(0, params) for _ in range(3))
        return Model(zeros_of(params), next(zeros), next(zeros), bound, next(zeros))

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"effective_learning_rate": slots.rate}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        beta = jnp.where(ctx.step == 0, 0, self.beta)
        mu, along, inner, square = each_leaf(
            _average_line, updates, ctx.params, slots.mu, numbers=(beta,)
        )
        value = average(beta, slots.value, ctx.extra_args["value"])
        along = average(beta, slots.along, tree_sum(along))
        line = _Line(value - along, tree_sum(inner), tree_sum(square), 1)
        bound = slots.lower_bound
        steps, bound, rate = _step_to_bound(self, updates, ctx.params, mu, line, bound)
        return steps, Model(mu, value, along, bound, rate)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


class scale_by_momo_adam(Transform):
    """The steps of MoMo-Adam: `scale_by_momo` in Adam's metric.

        mu <- b1 * mu + (1 - b1) * g        f, c: the same averages of value and of <g, p>
        D = sqrt(nu_hat) + eps        h = 1 - b1^t        k = 1 + learning_rate * weight_decay
        tau = min(learning_rate / h, max(k * (f - c - h * lower_bound) + <mu, p>, 0) / <mu, mu / D>)
        p <- p / k - tau * mu / D

    `update` takes the loss as the keyword argument `value`. The update is the step itself: no stage
    that needs a direction may follow. Its metric is tau.

    Args:
        learning_rate: the largest rate, a number or a schedule.
        b1: decay of the averages, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        lower_bound: a lower bound of the loss, a number or a schedule.
        weight_decay: a number or a schedule.
        adapt_lower_bound: True estimates a higher bound from the losses.

    Raises:
        ValueError: `update` was not given the params.

    Source: Schaipp et al. 2024.
    """

    splittable = True

    needs_params = True
    extra_args: ClassVar = {"value": "scalar"}

    learning_rate: Any = 1e-2
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    lower_bound: Any = 0.0
    weight_decay: Any = 0.0
    adapt_lower_bound: bool = static(default=False)

    def init_slots(self, params: PyTree) -> AdamModel:
        bound = scalar_slot(self.resolve(0).lower_bound, params)
        zeros = (scalar_slot(0, params) for _ in range(3))
        moments = zeros_of(params), zeros_of(params, real=True)
        return AdamModel(*moments, next(zeros), next(zeros), bound, next(zeros))

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"effective_learning_rate": slots.rate}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        t = ctx.next_step.astype(own_dtype(updates))
        mu, nu, direction, along, inner, square = each_leaf(
            _average_adam_line,
            updates,
            *(ctx.params, slots.mu, slots.nu),
            numbers=(self.b1, self.b2, self.eps, t),
        )
        value = average(self.b1, slots.value, ctx.extra_args["value"])
        along = average(self.b1, slots.along, tree_sum(along))
        line = _Line(value - along, tree_sum(inner), tree_sum(square), 1 - self.b1**t)
        bound = slots.lower_bound
        steps, bound, rate = _step_to_bound(self, updates, ctx.params, direction, line, bound)
        return steps, AdamModel(mu, nu, value, along, bound, rate)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


class _Line(NamedTuple):
    """An average of the loss's tangents.

    Attributes:
        height: its value at the origin, where all params are zero.
        inner: its rise from the origin to the params.
        square: its rise over a step of rate -1.
        weight: the sum of the average's weights.
    """

    height: jax.Array
    inner: jax.Array
    square: jax.Array
    weight: Any


def _step_to_bound(
    stage: Any, updates: PyTree, params: PyTree, direction: PyTree, line: _Line, bound: jax.Array
) -> tuple[PyTree, jax.Array, jax.Array]:
    """The step that takes the line down to the bound, decay included, the next bound, the rate."""
    decay = stage.learning_rate * stage.weight_decay
    growth = 1 + decay
    here = growth * line.height + line.inner
    if stage.adapt_lower_bound:
        lower = jnp.maximum(here / (2 * growth * line.weight), stage.lower_bound)
        bound = jnp.where(here < growth * line.weight * bound, lower, bound)
    gap = jnp.maximum(here - growth * line.weight * bound, 0)
    longest = stage.learning_rate / line.weight
    tau = jnp.minimum(longest, ratio(gap, line.square))
    if stage.adapt_lower_bound:
        # Not tau * square, which may be 0 * inf.
        reached = line.height + line.inner - jnp.minimum(longest * line.square, gap) / 2
        bound = jnp.maximum(reached / line.weight, stage.lower_bound)
    numbers = tau, decay / growth
    return each_leaf(_step_along, updates, params, direction, numbers=numbers)[0], bound, tau


def _average_line(g, p, mu, beta):
    mu = average(beta, mu, g)
    return mu, dot(g, p), dot(mu, p), total(abs_sq(mu))


def _average_adam_line(g, p, mu, nu, b1, b2, eps, t):
    mu, nu = average(b1, mu, g), average(b2, nu, abs_sq(g))
    direction = mu / (sqrt(debias(nu, b2, t)) + eps)
    return mu, nu, direction, dot(g, p), dot(mu, p), dot(mu, direction)


def _step_along(g, p, direction, tau, shrink):
    return (-shrink * p - tau * direction,)


def momo(
    learning_rate: Any = 1.0,
    beta: Any = 0.9,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
) -> chain:
    """MoMo: momentum whose rate adapts to the loss, so too large a learning rate does no harm.

    `update` takes the loss as the keyword argument `value`. The rule is `scale_by_momo`.

    Args:
        learning_rate: the largest rate, a number or a schedule.
        beta: decay of the averages.
        lower_bound: a lower bound of the loss.
        weight_decay: a number or a schedule.
        adapt_lower_bound: True estimates a higher bound from the losses.

    Source: Schaipp et al. 2024.
    """
    return chain(scale_by_momo(learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound))


def momo_adam(
    learning_rate: Any = 1e-2,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
) -> chain:
    """MoMo-Adam: Adam whose rate adapts to the loss, so too large a learning rate does no harm.

    `update` takes the loss as the keyword argument `value`. The rule is `scale_by_momo_adam`.

    Args:
        learning_rate: the largest rate, a number or a schedule.
        b1: decay of the first moment and of the average loss.
        b2: decay of the second moment.
        eps: added to the root.
        lower_bound: a lower bound of the loss.
        weight_decay: a number or a schedule.
        adapt_lower_bound: True estimates a higher bound from the losses.

    Source: Schaipp et al. 2024.
    """
    return chain(
        scale_by_momo_adam(
            *(learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound)
        )
    )
