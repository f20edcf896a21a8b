"""Updates that keep the params in a set."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.leafwise import Leafwise


class keep_params_nonnegative(Leafwise):
    """Cuts updates off where they would make a param negative: u = max(g, -p).

    For rates, counts and other quantities that have no sign: projected gradient descent. It is the
    last stage, after the learning rate; before it, the updates are none. A param at the border is
    exactly zero, with params of any precision, and one that was negative goes there at once. The
    real and the imaginary parts of a complex param are cut off each on their own.

    With gradients of a lower precision than their params the updates that `update` gives are
    rounded, and a param may come out below zero by that; with `step` it does not.

    Raises:
        ValueError: `update` was not given the params.
    """

    elementwise = True
    elementary = True
    needs_params = True

    def update_leaf(self, update, slots, param, t):
        return _at_least(update, -param), slots


def _at_least(x: jax.Array, least: Any) -> jax.Array:
    if jnp.iscomplexobj(x):
        return jax.lax.complex(_at_least(x.real, least.real), _at_least(x.imag, least.imag))
    return jnp.maximum(x, least)
