"""Decompositions of stacks of matrices, on a CPU of one matrix after the other.

There jaxlib shares a stack out among the threads of the pool in which it runs itself, and waits for
them: two such calls at once on two cores wait for each other for ever (jaxlib 0.10.2). A loop has
no such call, and takes no longer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap


def _one_by_one(decompose: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """The same of `[..., rows, columns]`, and of what `vmap` makes a stack of."""

    @custom_vmap
    def of_one(x: jax.Array) -> Any:
        return decompose(x)

    @of_one.def_vmap
    def _of_each(axis_size: int, batched: list, x: jax.Array) -> tuple:
        found = lax.map(of_one, x)
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def of_stack(x: jax.Array) -> Any:
        if jax.default_backend() != "cpu":
            return decompose(x)
        if x.ndim == 2:
            return of_one(x)
        found = lax.map(of_one, x.reshape(-1, *x.shape[-2:]))
        return jax.tree.map(lambda y: y.reshape(*x.shape[:-2], *y.shape[1:]), found)

    @of_stack.defjvp
    def _derivative(primals: tuple, tangents: tuple) -> tuple:
        return jax.jvp(decompose, primals, tangents)

    return jax.jit(of_stack)


qr = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)))
eigh = _one_by_one(lambda a: tuple(jnp.linalg.eigh(a)))
svd = _one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))
