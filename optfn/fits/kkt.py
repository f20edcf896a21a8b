"""The derivative of a minimum under constraints with respect to data and bounds.

A minimum x with multipliers y of f(x, a) under constraints c(x, a) between bounds is a root of

    grad f + J^T y  in the free entries of x,      x - bound  in the others,
    c - bound  where a constraint is active,       y  elsewhere,

which the implicit function theorem differentiates. In the free entries and the active constraints
the derivative of this is symmetric,

    H  J^T
    J  0

where H is the Hessian of the Lagrangian. It is applied to vectors, never formed, and the equation
is solved by MINRES, for the derivative forward and, transposed, backward.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from optfn.core.dtypes import cast, own_dtype
from optfn.core.inputs import is_inexact
from optfn.core.numerics import norm_in_range
from optfn.core.slots import copy_params_wide
from optfn.core.tree import PyTree
from optfn.fits.implicit import from_parts, held_by, real_parts
from optfn.fits.objective import Objective
from optfn.linalg.minres import minres
from optfn.optimizers.quasi_newton.search import uphill

# So small that a multiplier decides alone whether its constraint is active.
WEIGHT = 1e-6
# Products with the matrix, for each unknown; rounding makes them more than one.
PRODUCTS = 10


def tangents_under_constraints(
    objective: Objective, at: int, x: PyTree, multipliers: PyTree, data: PyTree, d_data: PyTree
) -> tuple[PyTree, PyTree, jax.Array, PyTree]:
    """The tangents of the minimum, of the multipliers, of the value and of the auxiliary output.

    Args:
        objective: the augmented Lagrangian.
        at: which of its arguments is the penalty.
        x: the minimum.
        multipliers: the multipliers there.
        data: the pair of the arguments and the box, or None without one.
        d_data: their tangents.
    """
    leaves = zip(*map(jax.tree.leaves, (data, d_data)), strict=True)
    d_moving = [d for leaf, d in leaves if is_inexact(jnp.asarray(leaf))]
    return _tangents(objective, at, x, multipliers, data, d_moving)


@partial(jax.jit, static_argnums=(0, 1))
def _tangents(
    objective: Objective, at: int, x: PyTree, multipliers: PyTree, data: PyTree, d_moving: list
) -> tuple:
    leaves, treedef = jax.tree.flatten(data)
    moving = [leaf for leaf in leaves if is_inexact(leaf)]
    like = copy_params_wide(x)
    flat, parts_of = ravel_pytree(real_parts(like))
    y, multipliers_of = ravel_pytree(multipliers)

    def with_data(moving: list) -> tuple:
        new = iter(moving)
        return treedef.unflatten([next(new) if is_inexact(leaf) else leaf for leaf in leaves])

    def point_of(flat: jax.Array) -> PyTree:
        return from_parts(parts_of(flat), x)

    def slope(flat: jax.Array, moving: list) -> jax.Array:
        """The gradient of the Lagrangian with the multipliers as they are."""
        args, _ = with_data(moving)
        penalty = args[at]
        weight = jnp.full_like(penalty.weight, WEIGHT)
        penalty = penalty._replace(multipliers=multipliers, weight=weight)
        args = (*args[:at], penalty, *args[at + 1 :])
        _, grad = objective.value_and_grad(point_of(flat), *args)
        return ravel_pytree(real_parts(uphill(grad, like)))[0]

    def outputs(flat: jax.Array, moving: list) -> tuple:
        return objective.value_and_aux(point_of(flat), *with_data(moving)[0])[1]

    def of_constraints(tree: PyTree) -> jax.Array:
        return cast(ravel_pytree(tree)[0], flat.dtype)

    def values(flat: jax.Array, moving: list) -> jax.Array:
        return of_constraints(outputs(flat, moving)[1])

    def missed(flat: jax.Array, moving: list) -> jax.Array:
        lower, upper = map(of_constraints, with_data(moving)[0][at].box)
        return values(flat, moving) - jnp.where(y > 0, upper, lower)

    here, curvature = jax.linearize(lambda flat: slope(flat, moving), flat)
    _, forward = jax.linearize(lambda flat: values(flat, moving), flat)
    backward = jax.linear_transpose(forward, flat)
    (_, box), (_, d_box) = with_data(moving), with_data(d_moving)
    held, along = jnp.zeros(flat.shape, bool), jnp.zeros_like(flat)
    if box is not None and d_box is not None:
        sides = [ravel_pytree(real_parts(side))[0] for side in (*box, *d_box)]
        held, along = held_by(flat, here, *sides)
    active = (y != 0) | jnp.equal(*map(of_constraints, with_data(moving)[0][at].box))

    def equations(root: jax.Array) -> jax.Array:
        dx, dy = root[: flat.size], root[flat.size :]
        free = jnp.where(held, 0, dx)
        (pull,) = backward(jnp.where(active, dy, 0))
        top, bottom = curvature(free) + pull, forward(free)
        return jnp.concatenate([jnp.where(held, dx, top), jnp.where(active, bottom, dy)])

    change, missing = (jax.jvp(f, (flat, moving), (along, d_moving))[1] for f in (slope, missed))
    wanted = jnp.concatenate([jnp.where(held, along, -change), jnp.where(active, -missing, 0)])
    root = lax.custom_linear_solve(equations, wanted, _solution, symmetric=True)
    dx, dy = root[: flat.size], root[flat.size :]
    _, (d_value, _, d_aux) = jax.jvp(outputs, (flat, moving), (dx, d_moving))
    return point_of(dx), multipliers_of(cast(dy, y.dtype)), cast(d_value, own_dtype(x)), d_aux


def _solution(equations: Callable, wanted: jax.Array) -> jax.Array:
    """Solved twice, for the rest too; NaN where the residual stays above the root of eps."""
    eps = float(jnp.finfo(wanted.dtype).eps)
    most = PRODUCTS * max(wanted.size, 10)
    found = minres(equations, wanted, eps**0.75, most)
    found += minres(equations, wanted - equations(found), eps**0.25, most)
    left = norm_in_range(wanted - equations(found))
    return jnp.where(left <= eps**0.5 * norm_in_range(wanted), found, jnp.nan)
