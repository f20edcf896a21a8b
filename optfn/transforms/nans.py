"""NaNs made zero."""

from typing import NamedTuple

import jax.numpy as jnp

from optfn.core.leafwise import Leafwise
from optfn.core.tree import PyTree


class FoundNan(NamedTuple):
    """For every leaf, whether its last gradient had a NaN."""

    found_nan: PyTree


class zero_nans(Leafwise):
    """Replaces every NaN by zero and leaves all other entries as they are, bit for bit.

    For gradients of which single entries are undefined by nature, as that of a norm at zero. It
    goes on with the others, where `skip_nonfinite` skips the step, and so it may hide an error:
    `state.slots["zero_nans"].found_nan` says in which leaves a NaN was at the last step. A complex
    number with a NaN in one part is replaced as a whole. Infinities remain: an overflow says that
    the other entries are wrong too.
    """

    elementwise = True
    elementary = True

    Slots = FoundNan

    def init_leaf(self, param):
        return FoundNan(jnp.zeros((), bool))

    def update_leaf(self, g, slots, param, t):
        nan = jnp.isnan(g)
        return jnp.where(nan, 0, g), FoundNan(nan.any())
