"""NovoGrad."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import storage_dtype
from optfn.core.dtypes import real_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.mapped import total
from optfn.core.moments import average
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import Signed
from optfn.core.tree import PyTree
from optfn.transforms.scale import scale_by_learning_rate


class LayerMoments(NamedTuple):
    """The decaying sum of normalized gradients, and one average squared norm per array."""

    mu: Signed
    nu: PyTree


class scale_by_novograd(Leafwise):
    """The direction of NovoGrad: a sum of gradients, each over the average norm of its layer.

        nu <- ||g||^2 at the first step,  else  b2 * nu + (1 - b2) * ||g||^2
        mu <- b1 * mu + g / (sqrt(nu + eps_root) + eps) + weight_decay * p
        u = mu

    Args:
        b1: the share of the sum that is kept, a number or a schedule.
        b2: decay of the squared norm, a number or a schedule.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: a number or a schedule; the sum includes the decay.
        mu_dtype: the dtype in which mu is stored; None is float32, or wider for wider params.

    Raises:
        ValueError: `update` was not given the params.

    Source: Ginsburg et al. 2019.
    """

    splittable = True

    needs_params = True

    b1: Any = 0.9
    b2: Any = 0.25
    eps: Any = 1e-8
    eps_root: Any = 0.0
    weight_decay: Any = 0.0
    mu_dtype: Any = storage_dtype("mu", default=None)

    Slots = LayerMoments

    def init_leaf(self, param: jax.Array) -> LayerMoments:
        return LayerMoments(jnp.zeros_like(param), jnp.zeros((), real_dtype(param.dtype)))

    def update_leaf(
        self, g: jax.Array, slots: LayerMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, LayerMoments]:
        square = total(abs_sq(g))
        nu = jnp.where(t == 1, square, average(self.b2, slots.nu, square))
        normalized = g / (sqrt(nu + self.eps_root) + self.eps)
        mu = self.b1 * slots.mu + normalized + self.weight_decay * param
        return mu, LayerMoments(mu, nu)


def novograd(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.25,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
) -> chain:
    """NovoGrad: Adam with one second moment per layer, in half of Adam's memory.

    Made for speech models, it tolerates large batches and large rates without a warm-up. Along a
    steady gradient a layer's step has the norm learning_rate / (1 - b1). A gradient whose squared
    norm overflows stops its layer for good: clip first. The rule is `scale_by_novograd`, then
    p <- p - learning_rate * u.

    Args:
        learning_rate: a number or a schedule.
        b1: the share of the sum that is kept.
        b2: decay of the squared norm.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: a number or a schedule.

    Source: Ginsburg et al. 2019.
    """
    return chain(
        scale_by_novograd(b1, b2, eps, eps_root, weight_decay),
        scale_by_learning_rate(learning_rate),
    )
