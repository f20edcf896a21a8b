"""The adjoint of matrices."""

import jax
import jax.numpy as jnp


def adjoint(x: jax.Array) -> jax.Array:
    """The conjugate transpose of each matrix."""
    return x.mT.conj() if jnp.iscomplexobj(x) else x.mT
