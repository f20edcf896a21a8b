"""Updates that keep the params in a set."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.leafwise import Leafwise


class keep_params_nonnegative(Leafwise):
    """Cuts updates off where they would make a param negative: u = max(g, -p).

    For rates, counts and other nonnegative quantities: projected gradient descent. It must be the
    last stage, after the learning rate, where updates are steps. A param that reaches zero is
    exactly zero, in any precision, and a negative param becomes zero in one step. Real and
    imaginary parts of a complex param are cut off separately.

    If gradients have a lower precision than their params, `update` rounds its updates, which may
    leave a param slightly below zero; `step` does not.

    Raises:
        ValueError: `update` was not given the params.
    """

    elementwise = True
    elementary = True
    needs_params = True

    def update_leaf(
        self, update: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return _at_least(update, -param), slots


def _at_least(x: jax.Array, least: Any) -> jax.Array:
    if jnp.iscomplexobj(x):
        return jax.lax.complex(_at_least(x.real, least.real), _at_least(x.imag, least.imag))
    return jnp.maximum(x, least)
