"""The derivative of a minimum under constraints with respect to data and bounds.

A minimum x with multipliers y of f(x, a) under constraints c(x, a) between bounds is a root of

    grad f + J^T y  in the free entries of x,      x - bound  in the others,
    c - bound  where a constraint is active,       y  elsewhere,

which the implicit function theorem differentiates. Constraints are few, so the equation is formed
and solved as a matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from optfn.core.dtypes import cast, own_dtype
from optfn.core.inputs import is_inexact
from optfn.core.slots import copy_params_wide
from optfn.core.tree import PyTree
from optfn.fits.implicit import from_parts, held_by, real_parts
from optfn.fits.objective import Objective
from optfn.linalg.lapack import solve
from optfn.optimizers.quasi_newton.search import uphill

# So small that a multiplier decides alone whether its constraint is active.
WEIGHT = 1e-6


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
    root, n = jnp.concatenate([flat, cast(y, flat.dtype)]), flat.size

    def with_data(moving: list) -> tuple:
        new = iter(moving)
        return treedef.unflatten([next(new) if is_inexact(leaf) else leaf for leaf in leaves])

    def of(root: jax.Array) -> tuple[PyTree, PyTree]:
        return from_parts(parts_of(root[:n]), x), multipliers_of(cast(root[n:], y.dtype))

    def slope(root: jax.Array, moving: list) -> jax.Array:
        (point, own), (args, _) = of(root), with_data(moving)
        penalty = args[at]._replace(multipliers=own, weight=jnp.full_like(args[at].weight, WEIGHT))
        _, grad = objective.value_and_grad(point, *args[:at], penalty, *args[at + 1 :])
        return ravel_pytree(real_parts(uphill(grad, like)))[0]

    def outputs(root: jax.Array, moving: list) -> tuple:
        return objective.value_and_aux(of(root)[0], *with_data(moving)[0])[1]

    def flat_constraints(root: jax.Array, moving: list) -> tuple:
        bounds = with_data(moving)[0][at].box
        trees = (outputs(root, moving)[1], bounds.lower, bounds.upper)
        return tuple(cast(ravel_pytree(tree)[0], flat.dtype) for tree in trees)

    here = slope(root, moving)
    (_, box), (_, d_box) = with_data(moving), with_data(d_moving)
    held, along = jnp.zeros(n, bool), jnp.zeros_like(flat)
    if box is not None and d_box is not None:
        sides = [ravel_pytree(real_parts(side))[0] for side in (*box, *d_box)]
        held, along = held_by(flat, here, *sides)
    _, lower, upper = flat_constraints(root, moving)
    active = (root[n:] != 0) | (lower == upper)

    def equations(root: jax.Array, moving: list) -> jax.Array:
        values, lower, upper = flat_constraints(root, moving)
        missed = values - jnp.where(y > 0, upper, lower)
        missed = jnp.where(active, missed, root[n:])
        return jnp.concatenate([jnp.where(held, root[:n] - flat, slope(root, moving)), missed])

    matrix = jax.jacfwd(equations)(root, moving)
    _, change = jax.jvp(lambda moving: equations(root, moving), (moving,), (d_moving,))
    wanted = jnp.concatenate([along, jnp.zeros_like(root[n:])]) - change
    inverse = solve(matrix, jnp.eye(root.size, dtype=root.dtype))
    left = matrix @ inverse - jnp.eye(root.size, dtype=root.dtype)
    solved = jnp.linalg.norm(left) <= float(jnp.finfo(root.dtype).eps) ** 0.25
    inverse = jnp.where(solved, inverse, jnp.nan)
    found = inverse @ wanted
    found = found + inverse @ (wanted - matrix @ found)
    dx, dy = of(found)
    _, (d_value, _, d_aux) = jax.jvp(outputs, (root, moving), (found, d_moving))
    return dx, dy, cast(d_value, own_dtype(x)), d_aux
