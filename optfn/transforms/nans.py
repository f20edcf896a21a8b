"""Replacing NaNs by zeros."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.leafwise import Leafwise
from optfn.core.tree import PyTree


class FoundNan(NamedTuple):
    """For every leaf, whether its last gradient had a NaN."""

    found_nan: PyTree


class zero_nans(Leafwise):
    """Replaces every NaN by zero and leaves all other entries as they are, bit for bit.

    For gradients with single entries that are undefined by nature, like that of a norm at zero. The
    step uses the other entries, where `skip_nonfinite` would skip it, so an error may stay hidden:
    `state.slots["zero_nans"].found_nan` marks the leaves with a NaN at the last step. A complex
    number with a NaN in one part is replaced as a whole. Infinities remain, because after an
    overflow the other entries are wrong too.

    Put it before `accumulate` and the wrappers that skip: inside they would skip the whole gradient
    first, so there it is refused.
    """

    elementwise = True
    elementary = True
    needs_every_gradient: ClassVar[bool] = True

    Slots = FoundNan

    def init_leaf(self, param: jax.Array) -> FoundNan:
        return FoundNan(jnp.zeros((), bool))

    def update_leaf(
        self, g: jax.Array, slots: FoundNan, param: Any, t: jax.Array
    ) -> tuple[jax.Array, FoundNan]:
        nan = jnp.isnan(g)
        return jnp.where(nan, 0, g), FoundNan(nan.any())
