"""Steps that are relative to the norm of each array's params: LARS, LAMB and Fromage."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.compose.partition import masked
from optfn.core.leafwise import Leafwise
from optfn.core.numerics import norm_of, sqrt
from optfn.core.updates_kind import Updates
from optfn.optimizers.elementwise.adam import scale_by_adam
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.momentum import trace
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_trust_ratio(Leafwise):
    """Multiplies the updates of each array by the ratio of its params' norm to theirs.

        u = g * trust_coefficient * max(||p||, min_norm) / (max(||g||, min_norm) + eps)

    and u = g where one of these norms is zero.

    Args:
        min_norm: the lower bound of both norms, a number or a schedule.
        trust_coefficient: the size of a step relative to the params, a number or a schedule.
        eps: added to the norm of the updates.

    Raises:
        ValueError: `update` was not given the params.

    Source: You et al. 2017.
    """

    splittable = True

    needs_params = True

    min_norm: Any = 0.0
    trust_coefficient: Any = 1.0
    eps: Any = 0.0

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        own, of_g = (norm_of(x).at_least(self.min_norm) for x in (param, g))
        no_ratio = (own.relative == 0) | (of_g.relative == 0)
        # The direction first: the ratio of a large norm to a tiny one may overflow.
        divisor = jnp.where(no_ratio, 1, of_g.relative + self.eps / of_g.scale)
        share = jnp.where(no_ratio, 1, self.trust_coefficient * own.relative)
        before, after = (jnp.where(no_ratio, 1, norm.scale) for norm in (of_g, own))
        return g / before * (share / divisor) * after, slots


def lars(
    learning_rate: Any,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Any = 0.001,
    eps: Any = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Any = 0.9,
    nesterov: bool = False,
) -> chain:
    """LARS: momentum with a rate per layer, for batches of thousands of images.

        u = scale_by_trust_ratio(g + weight_decay * p)
        v <- momentum * v + learning_rate * u        p <- p - v

    This is optax's form; the paper divides by ||g|| + weight_decay * ||p||.

    Args:
        learning_rate: a number or a schedule.
        weight_decay: a number or a schedule.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        trust_coefficient: the size of a step relative to the params.
        eps: added to the norm of the updates.
        trust_ratio_mask: where to rescale, a bool per leaf, None for all; biases and norm scales
            are usually left out: `lambda path, leaf: leaf.ndim > 1`.
        momentum: decay of the sum of the steps.
        nesterov: look ahead by one more step of the sum.

    Source: You et al. 2017.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(
            scale_by_trust_ratio(0.0, trust_coefficient, eps),
            True if trust_ratio_mask is None else trust_ratio_mask,
        ),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


def lamb(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """LAMB: AdamW with a rate per layer, for training transformers on very large batches.

        u = scale_by_trust_ratio(scale_by_adam(g) + weight_decay * p)
        p <- p - learning_rate * u

    Args:
        learning_rate: a number or a schedule; the size of a step relative to the params.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: You et al. 2020.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


class retract_by_learning_rate(Leafwise):
    """A step of relative size `learning_rate`, scaled back towards the params' norm.

        p <- (p - learning_rate * g) / sqrt(1 + learning_rate^2)

    It rotates p if ||g|| = ||p||, as after `scale_by_trust_ratio`, and g is orthogonal to p. The
    last stage of `fromage`.

    Args:
        learning_rate: a number or a schedule.

    Raises:
        ValueError: `update` was not given the params.

    Source: Bernstein et al. 2020.
    """

    elementwise = True
    needs_params = True

    learning_rate: Any

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        # 1 / root - 1, without the difference of two numbers near 1.
        square = self.learning_rate * self.learning_rate
        root = sqrt(1 + square)
        return -self.learning_rate / root * g - square / (root * (1 + root)) * param, slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


def fromage(learning_rate: Any, min_norm: Any = 1e-6) -> chain:
    """Fromage: steps of a fixed size relative to each layer, without a second moment or momentum.

    One rate, about 0.01, suits very different networks. Weights whose gradients are orthogonal to
    them, as before a normalization, keep their norm. The rule is
    p <- (p - learning_rate * u) / sqrt(1 + learning_rate^2), with u from `scale_by_trust_ratio`.

    Args:
        learning_rate: the size of a step relative to the params, a number or a schedule.
        min_norm: the lower bound of the params' and the gradients' norms.

    Source: Bernstein et al. 2020.
    """
    return chain(scale_by_trust_ratio(min_norm), retract_by_learning_rate(learning_rate))
