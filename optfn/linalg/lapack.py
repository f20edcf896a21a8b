"""Decompositions and solutions for stacks of matrices, on a CPU of one matrix after the other.

There jaxlib shares a stack out among the threads of the pool in which it runs itself, and waits for
them: two such calls at once on two cores wait for each other for ever (jaxlib 0.10.2). A loop has
no such call, and takes no longer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular


def _one_by_one(of_matrices: Callable) -> Callable:
    """The same of stacks `[..., rows, columns]`, and of what `vmap` makes a stack of."""

    @custom_vmap
    def of_one(*matrices: jax.Array) -> Any:
        return of_matrices(*matrices)

    def of_each(stacks: list[jax.Array]) -> Any:
        return lax.map(lambda matrices: of_one(*matrices), stacks)

    @of_one.def_vmap
    def _in_lanes(size: int, batched: list[bool], *matrices: jax.Array) -> tuple:
        stacks = [
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(matrices, batched, strict=True)
        ]
        found = of_each(stacks)
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def of_stacks(*stacks: jax.Array) -> Any:
        if jax.default_backend() != "cpu":
            return of_matrices(*stacks)
        axes = stacks[0].shape[:-2]
        if not axes:
            return of_one(*stacks)
        found = of_each([x.reshape(-1, *x.shape[-2:]) for x in stacks])
        return jax.tree.map(lambda y: y.reshape(*axes, *y.shape[1:]), found)

    @of_stacks.defjvp
    def _derivative(primals: tuple, tangents: tuple) -> tuple:
        return jax.jvp(of_matrices, primals, tangents)

    return jax.jit(of_stacks)


qr = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)))
eigh = _one_by_one(lambda a: tuple(jnp.linalg.eigh(a)))
svd = _one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)))
# X with A^H X = B, from an upper triangular A and B.
solve_adjoint = _one_by_one(partial(solve_triangular, trans="C"))
