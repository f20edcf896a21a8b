"""L-BFGS: a quasi-Newton direction from the last steps and the gradient's changes along them."""

from functools import reduce
from operator import add, or_
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.chain import chain
from optfn.core.data import check_count, static
from optfn.core.dtypes import cast, own_dtype, widen
from optfn.core.numerics import global_norm, ratio
from optfn.core.placement import whole_like
from optfn.core.slots import copy_params_wide, scalar_slot, zero_slot, zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.zoom import scale_by_zoom_linesearch
from optfn.transforms.scale import negate, scale_by_learning_rate

HIGHEST = lax.Precision.HIGHEST


class Memory(NamedTuple):
    """The last m pairs (s, y), in trees like the params.

    Attributes:
        params: the params at the last update, at least float32.
        gradient: the gradient there.
        steps: the steps s, one per row, [m, *shape] for each param; a new one overwrites the
            oldest.
        changes: the changes y of the gradient along these steps, one per row.
        inverse: the inverse of the triangle of products <s_i, y_j>, i no newer than j, [m, m]; zero
            in the rows and columns that hold no pair.
        scale: <s, y> / <y, y> of the newest pair; 0 without one.
        row: the row to write next, int32; -1 before the first update.
    """

    params: PyTree
    gradient: PyTree
    steps: PyTree
    changes: PyTree
    inverse: jax.Array
    scale: jax.Array
    row: jax.Array


class scale_by_lbfgs(Transform):
    """The direction of L-BFGS: the gradient times an inverse Hessian H built from the last steps.

        s = p - p_before        y = g - g_before        r = 1 / <s, y>
        H <- (I - r s y^T) H (I - r y s^T) + r s s^T        for each pair, the oldest first
        u = H g

    H starts as the identity times <s, y> / <y, y> of the newest pair, or times 1 / max(||g||, 1)
    without one. It is never formed: u takes four products of the memory with a vector. All leaves
    together are one vector, in which a complex number is two, but each is stored in its own shape
    and sharded as its param is.

    A pair without upward curvature, up to rounding, is not stored. If the params have not moved
    since the last update, the line search rejected the direction: all pairs are dropped, and the
    direction is the gradient's.

    For functions without noise, followed by a line search; see `lbfgs`. The state has 2 m + 2
    numbers for each number of the params, where m is `memory_size`, but at most three times
    their number: more pairs of so few params save hardly an evaluation.

    Args:
        memory_size: the largest number of pairs, a whole number from 1 on.
        scale_init_precond: False starts from the identity itself.

    Raises:
        ValueError: `update` was not given the params; or `memory_size` is below 1.

    Source: Liu and Nocedal 1989.
    """

    needs_params = True

    memory_size: int = static(default=10)
    scale_init_precond: bool = static(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.memory_size, "scale_by_lbfgs(memory_size=...)")

    def init_slots(self, params: PyTree) -> Memory:
        m = most_pairs(self.memory_size, params)
        return Memory(
            params=copy_params_wide(params),
            gradient=zeros_of(params),
            steps=zeros_of(params, times=m),
            changes=zeros_of(params, times=m),
            inverse=scalar_slot(jnp.zeros((m, m)), params),
            scale=scalar_slot(0, params),
            row=zero_slot(jnp.int32, params) - 1,
        )

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        if not leaves:
            return updates, slots
        dtype = own_dtype(updates)
        # Lists, as Flax's boxes around the memory are not those around the params.
        trees = ("params", "gradient", "steps", "changes")
        old = slots._replace(**{name: jax.tree.leaves(getattr(slots, name)) for name in trees})
        old = jax.tree.map(lambda x: widen(x, dtype), old)
        memory = _remember(old, self._as_old(ctx.params, old), self._as_old(updates, old))
        grad = memory.gradient
        first = 1 / jnp.maximum(global_norm(grad), 1)
        if self.scale_init_precond:
            scale = jnp.where(memory.scale > 0, memory.scale, first)
        else:
            scale = jnp.ones((), dtype)
        u = _newton(memory, grad, scale)
        # H is positive definite, but for rounding.
        downhill = _products(grad, u) > 0
        u = [jnp.where(downhill, x, first * g) for x, g in zip(u, grad, strict=True)]
        new = jax.tree.unflatten(jax.tree.structure(slots), jax.tree.leaves(memory))
        return treedef.unflatten(u), new

    def _as_old(self, tree: PyTree, old: Memory) -> list[jax.Array]:
        """The params or the gradient in the dtypes of the memory, whose shapes they must have."""
        leaves = jax.tree.leaves(tree)
        found, wanted = ([x.shape for x in xs] for xs in (leaves, old.params))
        if found != wanted:
            raise ValueError(
                f"the params have the shapes {found}, the memory of {self.name} {wanted}: does the "
                "state belong to these params?"
            )
        return [cast(x, y.dtype) for x, y in zip(leaves, old.params, strict=True)]


def most_pairs(memory_size: int, params: PyTree) -> int:
    """How many pairs to keep: at most three for each real number of the params."""
    sizes = (x.size * (2 if jnp.iscomplexobj(x) else 1) for x in jax.tree.leaves(params))
    return max(min(memory_size, 3 * sum(sizes)), 1)


class Pair(NamedTuple):
    """The last step and the change of the gradient along it, in lists of arrays.

    Attributes:
        s: the step.
        y: the change of the gradient.
        product: <s, y>; 1 where the pair is not kept.
        square: <y, y>; 1 where the pair is not kept.
        kept: whether the function curves upward along the step, up to rounding.
        moved: whether the step has any length. One of length zero means that the line search
            rejected the direction, and empties the memory.
    """

    s: list[Any]
    y: list[Any]
    product: jax.Array
    square: jax.Array
    kept: jax.Array
    moved: jax.Array

    def written(self, rows: jax.Array, new: jax.Array, row: jax.Array) -> jax.Array:
        """The rows with a new one in the place of the oldest, if the pair is kept."""
        new = jnp.where(self.kept, new, lax.dynamic_index_in_dim(rows, row, keepdims=False))
        return lax.dynamic_update_index_in_dim(rows, new, row, 0)


def newest_pair(old: Any, params: list[Any], grad: list[Any]) -> Pair:
    """The pair of these params and the last ones: `params`, `gradient` and `row` of a memory."""
    s = [new - before for new, before in zip(params, old.params, strict=True)]
    y = [new - before for new, before in zip(grad, old.gradient, strict=True)]
    length, product, square = _products(s, s), _products(s, y), _products(y, y)
    rounding = jnp.finfo(product.dtype).eps * jnp.sqrt(length) * jnp.sqrt(square)
    kept = (old.row >= 0) & (product > rounding) & (product < jnp.inf) & (square < jnp.inf)
    product, square = (jnp.where(kept, x, 1) for x in (product, square))
    moved = reduce(or_, (jnp.any(x != 0) for x in s))
    return Pair(s, y, product, square, kept, moved)


def row_after(row: jax.Array, m: int) -> jax.Array:
    """The row to write after this one: that of the oldest pair."""
    return jnp.where(row + 1 < m, row + 1, 0)


def _remember(old: Memory, params: list[Any], grad: list[Any]) -> Memory:
    """The memory with the step to these params, if the function curves upward along it."""
    pair = newest_pair(old, params, grad)
    row, kept, moved = jnp.maximum(old.row, 0), pair.kept, pair.moved
    steps = [pair.written(rows, s, row) for rows, s in zip(old.steps, pair.s, strict=True)]
    changes = [pair.written(rows, y, row) for rows, y in zip(old.changes, pair.y, strict=True)]
    # Appending the column (b, c) to a triangle appends the column (-inverse b / c, 1 / c) to its
    # inverse; dropping its first row and column drops those of its inverse. So no row has to move.
    m = len(old.inverse)
    this = jnp.arange(m) == row
    rest = jnp.where(this[:, None] | this[None, :], 0, old.inverse)
    along = jnp.sum(rest * _products(steps, pair.y)[None, :], axis=1)
    column = (cast(this, pair.product.dtype) - along) / pair.product
    renewed = jnp.where(this[None, :], column[:, None], rest)
    inverse = jnp.where(kept, renewed, jnp.where(moved, old.inverse, 0))
    newest = pair.product / pair.square
    scale = jnp.where(kept, newest, jnp.where(moved, old.scale, 0))
    row = jnp.where(kept, row_after(row, m), row)
    return Memory(params, grad, steps, changes, inverse, scale, row)


def _newton(memory: Memory, grad: list[Any], scale: jax.Array) -> list[jax.Array]:
    """The two loops over the memory: each solves a triangle, whose inverse the memory holds."""
    _, _, steps, changes, inverse, _, _ = memory
    triangle = jnp.sum(inverse * jnp.eye(len(inverse), dtype=inverse.dtype), axis=0)
    along = jnp.sum(inverse * _products(steps, grad)[None, :], axis=1)
    rest = [scale * (g - _combined(along, y)) for g, y in zip(grad, changes, strict=True)]
    back = jnp.sum((ratio(along, triangle) - _products(changes, rest))[:, None] * inverse, axis=0)
    return [x + _combined(back, s) for x, s in zip(rest, steps, strict=True)]


def _products(rows: list[Any], xs: list[Any]) -> jax.Array:
    """The real inner product of all leaves with as many others, or with each of m rows of them."""
    return reduce(add, map(_product, rows, xs))


def _product(rows: jax.Array, x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return _product(rows.real, x.real) + _product(rows.imag, x.imag)
    own = rows.ndim - x.ndim
    axes = tuple(range(own, rows.ndim)), tuple(range(x.ndim))
    return lax.dot_general(rows, x, (axes, ((), ())), HIGHEST, out_sharding=whole_like(x, own))


def _combined(coefficients: jax.Array, rows: jax.Array) -> jax.Array:
    """The sum of the rows times the coefficients."""
    if jnp.iscomplexobj(rows):
        return lax.complex(*(_combined(coefficients, x) for x in (rows.real, rows.imag)))
    return jnp.tensordot(coefficients.astype(rows.dtype), rows, 1, precision=HIGHEST)


ZOOM = scale_by_zoom_linesearch(20, increase_factor=4.0, initial_guess_strategy="one")


def lbfgs(
    learning_rate: Any = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: Transform | None = ZOOM,
) -> chain:
    """L-BFGS: quasi-Newton steps with a line search, for smooth functions without noise.

    The method of choice for up to millions of params where the whole loss is evaluated at every
    step: regressions, fits, inverse problems. Not for mini-batches, whose noise it takes for
    curvature. `minimize` runs it until the gradient is small; in your own loop:

        value_and_grad = value_and_grad_from_state(f)
        value, grad = value_and_grad(params, state=state)
        params, state = step(tx, params, grad, state, value=value, grad=grad, value_fn=f)

    The rule is `scale_by_lbfgs`, then p <- p - learning_rate * rate * u, with the rate from the
    line search. Gradients near 1e-8 need double precision.

    Args:
        learning_rate: a number or a schedule that multiplies the direction before the line search;
            None is 1.
        memory_size: the largest number of pairs.
        scale_init_precond: False starts each inverse Hessian from the identity itself.
        linesearch: the stage that finds the rate, by default `scale_by_zoom_linesearch` with up to
            20 trials, the first at 1 and each at most four times the one before; None for no search
            and no extra arguments of `update`.

    Source: Liu and Nocedal 1989.
    """
    downhill = negate() if learning_rate is None else scale_by_learning_rate(learning_rate)
    search = () if linesearch is None else (linesearch,)
    return chain(scale_by_lbfgs(memory_size, scale_init_precond), downhill, *search)
