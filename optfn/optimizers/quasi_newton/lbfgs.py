"""L-BFGS: a quasi-Newton direction from the last steps and the gradient's changes along them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.chain import chain
from optfn.core.data import check_count, static
from optfn.core.dtypes import cast, own_dtype, real_dtype, widen
from optfn.core.numerics import global_norm, ratio
from optfn.core.placement import on_devices_of, replicate, split_like
from optfn.core.slots import scalar_slot
from optfn.core.transform import Context, Transform
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.zoom import scale_by_zoom_linesearch
from optfn.transforms.scale import negate, scale_by_learning_rate


class Memory(NamedTuple):
    """The last m pairs (s, y), with all leaves together as one vector of n real numbers.

    Attributes:
        params: the params at the last update, [n].
        gradient: the gradient there, [n].
        steps: the steps s, one per row, [m, n]; a new one overwrites the oldest.
        changes: the changes y of the gradient along these steps, one per row, [m, n].
        inverse: the inverse of the triangle of products <s_i, y_j>, i no newer than j, [m, m]; zero
            in the rows and columns that hold no pair.
        scale: <s, y> / <y, y> of the newest pair; 0 without one.
        row: the row to write next, int32; -1 before the first update.
    """

    params: jax.Array
    gradient: jax.Array
    steps: jax.Array
    changes: jax.Array
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
    together are one vector, in which a complex number is two.

    A pair without upward curvature, up to rounding, is not stored. If the params have not moved
    since the last update, the line search rejected the direction: all pairs are dropped, and the
    direction is the gradient's.

    For functions without noise, followed by a line search; see `lbfgs`. The state has
    2 * memory_size + 2 numbers for each number of the params, in flat arrays: the compiler chooses
    their sharding, or, with explicit axes, they are replicated on every device.

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

    def __post_init__(self):
        super().__post_init__()
        check_count(self.memory_size, "scale_by_lbfgs(memory_size=...)")

    def init_slots(self, params: PyTree) -> Memory:
        start = _vector(params, own_dtype(params))
        m, n = self.memory_size, start.size
        return Memory(
            params=scalar_slot(start, params),
            gradient=scalar_slot(jnp.zeros(n), params),
            steps=scalar_slot(jnp.zeros((m, n)), params),
            changes=scalar_slot(jnp.zeros((m, n)), params),
            inverse=scalar_slot(jnp.zeros((m, m)), params),
            scale=scalar_slot(0, params),
            row=on_devices_of(jnp.full((), -1, jnp.int32), jax.tree.leaves(params)),
        )

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        dtype = own_dtype(updates)
        params, grad = _vector(ctx.params, dtype), _vector(updates, dtype)
        if params.shape != slots.params.shape:
            raise ValueError(
                f"the params have {params.size} numbers, the memory of {self.name} "
                f"{slots.params.size}: does the state belong to params of these shapes?"
            )
        memory = jax.tree.map(lambda x: widen(x, dtype), slots)
        memory = _remember(memory, params, grad)
        first = 1 / jnp.maximum(global_norm(grad), 1)
        if self.scale_init_precond:
            scale = jnp.where(memory.scale > 0, memory.scale, first)
        else:
            scale = jnp.ones((), dtype)
        u = _newton(memory, grad, scale)
        # H is positive definite, but for rounding.
        u = jnp.where(_dot(grad, u) > 0, u, first * grad)
        return _like(u, updates), memory


def _remember(old: Memory, params: jax.Array, grad: jax.Array) -> Memory:
    """The memory with the step to these params, if the function curves upward along it.

    A step of length zero means that the line search rejected the direction, and empties the memory.
    """
    both = jnp.stack([params - old.params, grad - old.gradient])
    (length, product), (_, square) = _dot(both, both.T)
    rounding = jnp.finfo(both.dtype).eps * jnp.sqrt(length) * jnp.sqrt(square)
    kept = (old.row >= 0) & (product > rounding) & (product < jnp.inf) & (square < jnp.inf)
    product, square = (jnp.where(kept, x, 1) for x in (product, square))
    moved = jnp.any(both[0] != 0)
    row = jnp.maximum(old.row, 0)

    def written(rows: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.where(kept, new, lax.dynamic_index_in_dim(rows, row, keepdims=False))
        return lax.dynamic_update_index_in_dim(rows, new, row, 0)

    steps, changes = written(old.steps, both[0]), written(old.changes, both[1])
    # Appending the column (b, c) to a triangle appends the column (-inverse b / c, 1 / c) to its
    # inverse; dropping its first row and column drops those of its inverse. So no row has to move.
    this = jnp.arange(len(steps)) == row
    rest = jnp.where(this[:, None] | this[None, :], 0, old.inverse)
    column = (
        cast(this, product.dtype) - jnp.sum(rest * _dot(steps, both[1])[None, :], axis=1)
    ) / product
    renewed = jnp.where(this[None, :], column[:, None], rest)
    inverse = jnp.where(kept, renewed, jnp.where(moved, old.inverse, 0))
    scale = jnp.where(kept, product / square, jnp.where(moved, old.scale, 0))
    after = jnp.where(row + 1 < len(steps), row + 1, 0)
    return Memory(params, grad, steps, changes, inverse, scale, jnp.where(kept, after, row))


def _newton(memory: Memory, grad: jax.Array, scale: jax.Array) -> jax.Array:
    """The two loops over the memory: each solves a triangle, whose inverse the memory holds."""
    _, _, steps, changes, inverse, _, _ = memory
    triangle = jnp.sum(inverse * jnp.eye(len(inverse), dtype=inverse.dtype), axis=0)
    along = jnp.sum(inverse * _dot(steps, grad)[None, :], axis=1)
    rest = scale * (grad - _dot(along, changes))
    back = jnp.sum((ratio(along, triangle) - _dot(changes, rest))[:, None] * inverse, axis=0)
    return rest + _dot(back, steps)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _vector(tree: PyTree, dtype: Any) -> jax.Array:
    """All leaves in one vector; a complex number is two real ones."""
    parts = [jnp.zeros(0, dtype)]
    for x in jax.tree.leaves(tree):
        x = replicate(x)
        parts += [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    return jnp.concatenate([cast(x, dtype).reshape(-1) for x in parts])


def _like(vector: jax.Array, tree: PyTree) -> PyTree:
    """The inverse of `_vector`, in the shapes and dtypes of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    start = 0

    def take(x):
        nonlocal start
        part = vector[start : start + x.size].reshape(x.shape)
        start += x.size
        return cast(part, real_dtype(x.dtype))

    parts = [lax.complex(take(x), take(x)) if jnp.iscomplexobj(x) else take(x) for x in leaves]
    return treedef.unflatten(map(split_like, parts, leaves))


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
