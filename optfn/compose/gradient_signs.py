"""Wrappers that make the signs of an update agree with the gradient's."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.mapped import entries, total
from optfn.core.state import Context
from optfn.core.tree import PyTree
from optfn.core.updates_kind import check_side_known, makes_steps
from optfn.core.wrapper import Wrapper


class _Signed(Wrapper):
    """A wrapper that compares the updates of a transform with the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"{type(self).__name__}(transform=...)"
        check_side_known(self.transform, where, "turns the update downhill")

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        inner, new = self.transform.apply_named(updates, slots, ctx)
        # A direction points uphill, a step downhill.
        side = -1 if makes_steps(self.transform) else 1
        return jax.tree.map(lambda u, g: self._signed(u, side * g), inner, updates), new

    def _signed(self, u: jax.Array, g: jax.Array) -> jax.Array:
        raise NotImplementedError


class cautious(_Signed):
    """Drops the entries of an update that go against the gradient, and enlarges the others.

        u <- u / max(share, min_share)  where u * g > 0,  else  0

    where share is the fraction of such entries in the array. For any direction with momentum; also
    for a whole optimizer, whose weight decay is then masked too:

        chain(cautious(scale_by_adam()), add_decayed_weights(0.1), scale_by_learning_rate(1e-3))

    Args:
        transform: the direction.
        min_share: the least share to divide by, a number or a schedule.

    Raises:
        ValueError: it is unknown whether the transform points uphill, as it ends with a `scale` or
            an optax transformation without a learning rate or `negate` after it.

    Source: Liang et al. 2024.
    """

    splittable = True

    min_share: Any = 1e-3

    def _signed(self, u: jax.Array, g: jax.Array) -> jax.Array:
        opposed = (jnp.sign(u) * jnp.sign(g).conj()).real <= 0  # NaN is not, and stays visible
        kept = total((~opposed).astype(u.real.dtype)) / entries(u)
        share = jnp.maximum(kept, self.min_share)
        return jnp.where(opposed, 0, u / share.astype(u.real.dtype))


class with_gradient_signs(_Signed):
    """The magnitudes of an update with the signs of the gradient.

        u <- |u| * sign(g)

    It keeps the magnitude of each entry and replaces its sign. `grams` is Adam with it.

    Args:
        transform: the direction.

    Raises:
        ValueError: as for `cautious`.

    Source: Cao et al. 2024.
    """

    elementwise = True

    def _signed(self, u: jax.Array, g: jax.Array) -> jax.Array:
        return abs(u) * jnp.sign(g)
