"""The derivative of a minimum with respect to data and bounds, by the implicit function theorem.

At a minimum x of f(x, a) between bounds the gradient is zero in the free entries, and the others
are on their bounds. As the data a and the bounds move, both stay so:

    H dx = -d/da (grad f) da    in the free entries,    dx = d bound    in the others,

where H is the Hessian of f by x. H is applied to vectors, never formed, and the equation is solved
by conjugate gradients, for the derivative forward and, transposed, backward.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.sparse.linalg import cg

from optfn.core.dtypes import cast, dtype_of, own_dtype
from optfn.core.inputs import is_inexact
from optfn.core.numerics import global_norm
from optfn.core.slots import copy_params_wide
from optfn.core.tree import PyTree
from optfn.fits.objective import Objective
from optfn.optimizers.quasi_newton.box import Box
from optfn.optimizers.quasi_newton.search import uphill


def tangents_of_minimum(
    objective: Objective, x: PyTree, data: PyTree, d_data: PyTree
) -> tuple[PyTree, jax.Array, PyTree]:
    """The tangents of the minimum, of the value there and of the auxiliary output.

    Args:
        objective: the function.
        x: its minimum.
        data: the pair of the function's further arguments and the box, or None without one.
        d_data: their tangents.
    """
    moving = [jnp.issubdtype(dtype_of(x), jnp.inexact) for x in jax.tree.leaves(data)]
    d_moving = [d for d, m in zip(jax.tree.leaves(d_data), moving, strict=True) if m]
    return _tangents(objective, x, data, d_moving)


@partial(jax.jit, static_argnums=0)
def _tangents(
    objective: Objective, x: PyTree, data: PyTree, d_moving: list[Any]
) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(data)
    moving = [leaf for leaf in leaves if is_inexact(leaf)]
    parts = real_parts(copy_params_wide(x))

    def with_data(moving: list) -> tuple[tuple, Box | None]:
        new = iter(moving)
        return treedef.unflatten([next(new) if is_inexact(leaf) else leaf for leaf in leaves])

    def gradient(parts: list, moving: list) -> list:
        args, _ = with_data(moving)
        _, grad = objective.value_and_grad(from_parts(parts, x), *args)
        return real_parts(uphill(grad, copy_params_wide(x)))

    def value_and_aux(x: PyTree, moving: list) -> tuple:
        args, _ = with_data(moving)
        return objective.value_and_aux(x, *args)

    slope, curvature = jax.linearize(lambda parts: gradient(parts, moving), parts)
    (_, box), (_, d_box) = with_data(moving), with_data(d_moving)
    if box is None or d_box is None:
        held, along = ([jnp.zeros_like(part, dtype) for part in parts] for dtype in (bool, None))
    else:
        sides = zip(parts, slope, *map(jax.tree.leaves, (*box, *d_box)), strict=True)
        pairs = [held_by(*leaf) for leaf in sides]
        held, along = ([pair[i] for pair in pairs] for i in (0, 1))
    _, change = jax.jvp(gradient, (parts, moving), (along, d_moving))
    wanted = [jnp.where(*leaf) for leaf in zip(held, along, map(lax.neg, change), strict=True)]

    def equations(v: list) -> list:
        free = [jnp.where(h, 0, d) for h, d in zip(held, v, strict=True)]
        return list(map(jnp.where, held, v, curvature(free)))

    dx = from_parts(lax.custom_linear_solve(equations, wanted, _solution, symmetric=True), x)
    _, (d_value, d_aux) = jax.jvp(value_and_aux, (x, moving), (dx, d_moving))
    return dx, cast(d_value, own_dtype(x)), d_aux


def held_by(x: Any, slope: Any, *bounds: Any) -> tuple[jax.Array, jax.Array]:
    """Which entries the function pushes against a bound that they are on, and how it moves."""
    lower, upper, d_lower, d_upper = (cast(y, x.dtype) for y in bounds)
    held = (slope > x - lower) | (slope < x - upper) | (lower == upper)
    return held, jnp.where(held, jnp.where(slope > 0, d_lower, d_upper), 0)


def _solution(equations: Any, wanted: list[Any]) -> list[Any]:
    """By conjugate gradients, to a residual of eps^(3/4); NaN where it stays above its root."""
    eps = float(jnp.finfo(own_dtype(wanted)).eps)
    found, _ = cg(equations, wanted, tol=eps**0.75)
    left = jax.tree.map(lax.sub, wanted, equations(found))
    solved = global_norm(left) <= eps**0.5 * global_norm(wanted)
    return [jnp.where(solved, v, jnp.nan) for v in found]


def real_parts(tree: PyTree) -> list[jax.Array]:
    """The leaves, a complex one as two."""
    pairs = ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,) for x in jax.tree.leaves(tree))
    return [part for pair in pairs for part in pair]


def from_parts(parts: list[Any], like: PyTree) -> PyTree:
    """The inverse of `real_parts`, in the dtypes of a tree."""
    left = iter(parts)

    def of_leaf(p: jax.Array) -> jax.Array:
        x = next(left)
        return cast(lax.complex(x, next(left)) if jnp.iscomplexobj(p) else x, p.dtype)

    return jax.tree.map(of_leaf, like)


def zero_tangent(x: jax.Array) -> Any:
    """The tangent of what does not change."""
    return jnp.zeros_like(x) if is_inexact(x) else np.zeros(jnp.shape(x), jax.dtypes.float0)
