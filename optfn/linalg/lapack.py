"""Decompositions and solutions for stacks of matrices, on a CPU of one matrix after the other.

There jaxlib shares a stack out among the threads of the pool in which it runs itself, and waits for
them: two such calls at once on two cores wait for each other for ever (jaxlib 0.10.2). A loop has
no such call, and takes no longer.

Derivatives are products of what was found, so those of every order go this way too. Where the true
one is infinite, because a column depends on others or two values coincide within rounding, that
part of it is zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular

from optfn.linalg.adjoint import adjoint


def _one_by_one(
    of_matrices: Callable[..., Any], derivative: Callable[..., Any]
) -> Callable[..., Any]:
    """The same of stacks `[..., rows, columns]`, and of what `vmap` makes a stack of.

    Args:
        of_matrices: a function of matrices.
        derivative: `(matrices, found, changes of the matrices) -> changes of what was found`, of
            products and of functions that this one has made.
    """

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
        found = of_stacks(*primals)
        return found, derivative(primals, found, tangents)

    return jax.jit(of_stacks)


def _reciprocal(x: jax.Array, size: jax.Array, count: int) -> jax.Array:
    """1 / x, but 0 where the rounding of `count` numbers of that size cannot tell x from 0."""
    known = jnp.abs(x) > count * jnp.finfo(size.dtype).eps * size
    return jnp.where(known, 1 / jnp.where(known, x, 1), 0)


def _diagonal(x: jax.Array) -> jax.Array:
    """The matrices without what is beside their diagonals."""
    return jnp.triu(jnp.tril(x))


def _change_of_qr(
    given: tuple[Any, ...], found: tuple[Any, ...], changes: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    (q, r), (dx,) = found, changes
    count = q.shape[-1]
    first = r[..., :count]
    pivots = jnp.abs(jnp.diagonal(first, axis1=-2, axis2=-1))
    # A column that depends on those before it has no derivative; it is taken for fixed.
    rounding = max(given[0].shape[-2:]) * jnp.finfo(pivots.dtype).eps
    known = pivots > rounding * jnp.max(pivots, axis=-1, keepdims=True)
    eye = jnp.eye(count, dtype=r.dtype)
    moved = dx[..., :count] @ inverse_of_upper(jnp.where(known[..., :, None], first, eye))
    moved = jnp.where(known[..., None, :], moved, 0)
    inside = adjoint(q) @ moved
    below = jnp.tril(inside, -1)
    turned = below - adjoint(below)
    if jnp.iscomplexobj(q):
        turned = turned + 1j * _diagonal(inside).imag
    return moved + q @ (turned - inside), jnp.triu(adjoint(q) @ dx - turned @ r)


def _change_of_eigh(
    given: tuple[Any, ...], found: tuple[Any, ...], changes: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    (w, v), (da,) = found, changes
    inside = adjoint(v) @ ((da + adjoint(da)) / 2) @ v
    gaps = w[..., None, :] - w[..., :, None]
    largest = jnp.max(jnp.abs(w), axis=-1)[..., None, None]
    turned = _reciprocal(gaps, largest, w.shape[-1]) * inside
    return jnp.diagonal(inside, axis1=-2, axis2=-1).real, v @ turned


def _change_of_svd(
    given: tuple[Any, ...], found: tuple[Any, ...], changes: tuple[Any, ...]
) -> tuple[Any, ...]:
    (u, s, vh), (dx,) = found, changes
    v, rows, columns = adjoint(vh), *dx.shape[-2:]
    inside = adjoint(u) @ dx @ v
    across, down = s[..., None, :], s[..., :, None]
    reciprocal = partial(_reciprocal, size=s[..., :1, None], count=max(rows, columns))
    factor = reciprocal(across - down) * reciprocal(across + down)
    of_rows = factor * (inside * across + down * adjoint(inside))
    of_columns = factor * (down * inside + adjoint(inside) * across)
    inverse = reciprocal(across)
    if jnp.iscomplexobj(u):
        of_rows = of_rows + 1j * _diagonal(inside).imag * inverse
    du, dv = u @ of_rows, v @ of_columns
    if rows > columns:
        du = du + (dx @ v - u @ inside) * inverse
    if columns > rows:
        dv = dv + (adjoint(dx) @ u - v @ adjoint(inside)) * inverse
    return du, jnp.diagonal(inside, axis1=-2, axis2=-1).real, adjoint(dv)


def _change_of_inverse(
    given: tuple[Any, ...], inverse: jax.Array, changes: tuple[Any, ...]
) -> jax.Array:
    return -inverse @ jnp.triu(changes[0]) @ inverse


def _change_of_solution(
    given: tuple[Any, ...], x: jax.Array, changes: tuple[Any, ...]
) -> jax.Array:
    (a, _), (da, db) = given, changes
    return adjoint(inverse_of_upper(a)) @ (db - adjoint(jnp.triu(da)) @ x)


def _change_of_solve(given: tuple[Any, ...], x: jax.Array, changes: tuple[Any, ...]) -> jax.Array:
    (a, _), (da, db) = given, changes
    return solve(a, db - da @ x)


qr: Callable[..., Any] = _one_by_one(lambda x: tuple(jnp.linalg.qr(x)), _change_of_qr)
eigh: Callable[..., Any] = _one_by_one(lambda a: tuple(jnp.linalg.eigh(a)), _change_of_eigh)
svd: Callable[..., Any] = _one_by_one(
    lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)), _change_of_svd
)
inverse_of_upper: Callable[..., Any] = _one_by_one(
    lambda r: solve_triangular(r, jnp.eye(r.shape[-1], dtype=r.dtype)), _change_of_inverse
)
# X with A^H X = B, from an upper triangular A and B.
solve_adjoint: Callable[..., Any] = _one_by_one(
    partial(solve_triangular, trans="C"), _change_of_solution
)
# X with A X = B, from any square A.
solve: Callable[..., Any] = _one_by_one(jnp.linalg.solve, _change_of_solve)
