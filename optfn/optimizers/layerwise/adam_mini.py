"""Adam-mini."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.chain import chain
from optfn.core.data import per_leaf
from optfn.core.dtypes import real_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import Moments, average, debias
from optfn.core.numerics import abs_sq, sqrt
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class scale_by_adam_mini(Leafwise):
    """The direction of Adam with one second moment for each block of an array.

        mu <- b1 * mu + (1 - b1) * g        nu <- b2 * nu + (1 - b2) * (mean of |g|^2 in the block)
        u = mu_hat / (sqrt(nu_hat) + eps)

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        block_axes: for each leaf the axes that number its blocks, a tuple of ints; entries along
            the other axes share a block. A tree, a function `(path, leaf) -> axes` or a function
            `params -> tree`. None takes the last axis of arrays with two or more axes, which gives
            a kernel (in, out) one block per output; any other array is one block. The authors take
            `(0,)` for an embedding (tokens, features) and the axis of the heads for queries and
            keys.

    Raises:
        ValueError: an axis that an array does not have.

    Source: Zhang et al. 2024.
    """

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    block_axes: Any = per_leaf(default=None, of=tuple)

    Slots = Moments

    def init_leaf(self, param: jax.Array) -> Moments:
        within = self._within(param.ndim)
        blocks = [1 if axis in within else n for axis, n in enumerate(param.shape)]
        return Moments(jnp.zeros_like(param), jnp.zeros(blocks, real_dtype(param.dtype)))

    def update_leaf(
        self, g: jax.Array, slots: Moments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Moments]:
        within = self._within(g.ndim)
        entries = max(1, g.size // max(1, slots.nu.size))
        square = jnp.sum(abs_sq(g), axis=within, keepdims=True) / entries
        mu = average(self.b1, slots.mu, g)
        nu = average(self.b2, slots.nu, square)
        root = sqrt(debias(nu, self.b2, t))
        return debias(mu, self.b1, t) / (root + self.eps), Moments(mu, nu)

    def _within(self, ndim: int) -> tuple[int, ...]:
        """The axes along which entries share a second moment."""
        axes = self.block_axes
        if axes is None:
            axes = (-1,) if ndim > 1 else ()
        wrong = [axis for axis in axes if not (isinstance(axis, int) and -ndim <= axis < ndim)]
        if wrong:
            raise ValueError(
                f"scale_by_adam_mini(block_axes=...) must be axes of an array of ndim {ndim}, "
                f"found {wrong[0]!r}."
            )
        blocks = {axis % ndim for axis in axes}
        return tuple(axis for axis in range(ndim) if axis not in blocks)


def adam_mini(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    block_axes: Any = None,
) -> chain:
    """Adam-mini: AdamW with about half of its memory.

    Within a block, such as the weights into one neuron, all entries share a rate. The rule is
    `scale_by_adam_mini`, then p <- p - learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        block_axes: for each leaf the axes that number its blocks; see `scale_by_adam_mini`.

    Source: Zhang et al. 2024.
    """
    return chain(
        scale_by_adam_mini(b1, b2, eps, block_axes),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
