"""L-BFGS-B: quasi-Newton steps inside a box."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.compose.chain import chain
from optfn.core.data import check_count, static
from optfn.core.dtypes import cast, own_dtype, widen
from optfn.core.inputs import matched, to_arrays
from optfn.core.numerics import all_finite
from optfn.core.placement import replicate, split_like
from optfn.core.slots import scalar_slot, zero_slot
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree, describe, leaf_location
from optfn.linalg.lapack import solve
from optfn.optimizers.quasi_newton.box import Box
from optfn.optimizers.quasi_newton.lbfgs import HIGHEST, ZOOM, most_pairs, newest_pair, row_after
from optfn.optimizers.quasi_newton.search import past_rounding
from optfn.transforms.scale import negate


class BoundedMemory(NamedTuple):
    """The last m pairs (s, y), each over the root of <s, y>, of all params as one vector.

    Attributes:
        params: the params at the last update, at least float32, [n].
        gradient: the gradient there, [n].
        steps: the steps s, one per row, [m, n]; a new one overwrites the oldest.
        changes: the changes y of the gradient along these steps, one per row, [m, n].
        scale: <y, y> / <s, y> of the newest pair; 0 without one.
        row: the row to write next, int32; -1 before the first update.
    """

    params: jax.Array
    gradient: jax.Array
    steps: jax.Array
    changes: jax.Array
    scale: jax.Array
    row: jax.Array


class scale_by_lbfgsb(Transform):
    """The direction of L-BFGS-B: to the minimum, inside the box, of a quadratic model.

        m(z) = <g, z - p> + <z - p, B (z - p)> / 2        B = theta I - W^T M W
        c: the first local minimum of m along the path P(p - t g), t >= 0
        z: the minimum of m over the entries in which c is between its bounds, projected
        u = p - z

    B is what BFGS makes of theta I and the last pairs (s, y); W has their y and theta s for rows,
    and theta = <y, y> / <s, y> of the newest pair. Without a pair it is 1 where every entry has two
    bounds, else max(||g||, 1). If the projected z is not downhill, the step from c to z ends at the
    first bound instead. A pair without upward
    curvature, up to rounding, is not stored. If the params have not moved since the last update,
    the line search rejected the direction, and all pairs are dropped.

    `update` takes the keyword argument `box`, the `Box` in which the params are. The stage is
    followed by a line search, which keeps to the box too; see `lbfgsb`. The params are gathered
    into one vector, and the state is as large as that of `scale_by_lbfgs`.

    Args:
        memory_size: the largest number of pairs, a whole number from 1 on.

    Raises:
        TypeError: a param is complex, or `box` is no `Box`.
        ValueError: `update` was not given the params, the bounds are not trees of their shapes, or
            `memory_size` is below 1.

    Source: Byrd, Lu, Nocedal and Zhu 1995; the projection of z is that of Morales and Nocedal 2011.
    """

    needs_params = True
    extra_args: ClassVar = {"box": "any"}

    memory_size: int = static(default=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.memory_size, "scale_by_lbfgsb(memory_size=...)")

    def init_slots(self, params: PyTree) -> BoundedMemory:
        vector = _vector(params, own_dtype(params))
        zeros = jnp.zeros_like(vector)
        rows = jnp.broadcast_to(zeros, (most_pairs(self.memory_size, params), vector.size))
        return BoundedMemory(
            params=scalar_slot(vector, params),
            gradient=scalar_slot(zeros, params),
            steps=scalar_slot(rows, params),
            changes=scalar_slot(rows, params),
            scale=scalar_slot(0, params),
            row=zero_slot(jnp.int32, params) - 1,
        )

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        dtype = own_dtype(updates)
        box = ctx.extra_args["box"]
        if not isinstance(box, Box):
            raise TypeError(f"update(box=...) must be a Box(lower, upper), found {describe(box)}.")
        sides = (
            matched(
                to_arrays(side, f"the {name} bound"), updates, f"the {name} bounds", "the params"
            )
            for name, side in box._asdict().items()
        )
        box = Box(*(_vector(side, dtype) for side in sides))
        x, g = (_vector(tree, dtype) for tree in (ctx.params, updates))
        if not g.size:
            return updates, slots
        whole = {k: widen(replicate(slot), dtype) for k, slot in slots._asdict().items()}
        memory = _remember(BoundedMemory(**whole), x, g)
        closed = jnp.all(jnp.isfinite(box.lower) & jnp.isfinite(box.upper))
        first = jnp.where(closed, 1, jnp.maximum(jnp.linalg.norm(g), 1))
        model = _model(memory, jnp.where(memory.scale > 0, memory.scale, first))
        end = _subspace_minimum(model, x, g, box, _cauchy_point(model, x, g, box))
        # B is positive definite, but for rounding.
        good = all_finite(end) & (jnp.vdot(g, end - x) < 0)
        end = jnp.where(good, end, box.project(x - g / first))
        at_bound = (end <= box.lower) | (end >= box.upper)
        u = jnp.where(at_bound, past_rounding(x - end), x - end)
        return _like(u, updates), jax.tree.map(split_like, memory, slots)


class _Model(NamedTuple):
    """B = theta I - W^T M W.

    Attributes:
        theta: the curvature without pairs.
        rows: W, [2m, n].
        core: the inverse of M, [2m, 2m].
        middle: M, [2m, 2m].
    """

    theta: jax.Array
    rows: jax.Array
    core: jax.Array
    middle: jax.Array


def _model(memory: BoundedMemory, theta: jax.Array) -> _Model:
    """Equations 3.2 to 3.4, where D is the identity, as pairs are over the root of <s, y>."""
    _, _, s, y, _, row = memory
    m = len(s)
    age = (jnp.arange(m) - row) % m  # of the rows in order, the oldest first
    newer = age[:, None] > age[None, :]
    below = jnp.where(newer, _product(s, y.T), 0)
    empty = jnp.all(s == 0, axis=1)
    steps = theta * _product(s, s.T) + jnp.diag(cast(empty, s.dtype))
    eye = jnp.eye(m, dtype=s.dtype)
    core = jnp.block([[-eye, below.T], [below, steps]])
    return _Model(
        theta, jnp.concatenate([y, theta * s]), core, solve(core, jnp.eye(2 * m, dtype=s.dtype))
    )


def _cauchy_point(model: _Model, x: jax.Array, g: jax.Array, box: Box) -> jax.Array:
    """The first local minimum of the model along the path P(x - t g), section 4.

    Each entry moves until the t at which it meets its bound. Sorted, these cut the path into
    pieces; the slope at the start of a piece and the curvature along it are sums over the entries
    that still move, so those of all pieces are cumulative sums.
    """
    theta, rows, _, middle = model
    bound = jnp.where(g < 0, box.upper, box.lower)
    ends = jnp.where(g == 0, jnp.inf, (x - bound) / jnp.where(g == 0, 1, g))
    order = jnp.argsort(ends)
    end, direction, w = ends[order], -g[order], rows[:, order]
    start = jnp.concatenate([jnp.zeros(1, end.dtype), end[:-1]])

    def from_here_on(terms: jax.Array) -> jax.Array:
        return lax.cumsum(terms, axis=terms.ndim - 1, reverse=True)

    square = from_here_on(direction**2)
    along = from_here_on(direction[None, :] * w)  # W d
    stopped = jnp.where(end < jnp.inf, (bound - x)[order], 0)[None, :] * w
    gone = lax.cumsum(stopped, axis=1) - stopped + start[None, :] * along  # W (z - p)
    product = _product(middle, along)
    slope = square * (theta * start - 1) - jnp.sum(product * gone, axis=0)
    curvature = theta * square - jnp.sum(product * along, axis=0)
    least = start - jnp.minimum(slope, 0) / curvature
    here = (least < end) & (start < end)
    t = jnp.where(here.any(), least[jnp.argmax(here)], end[-1])
    return jnp.where(ends <= t, bound, jnp.clip(x - t * g, box.lower, box.upper))


def _subspace_minimum(
    model: _Model, x: jax.Array, g: jax.Array, box: Box, cauchy: jax.Array
) -> jax.Array:
    """The minimum over the entries that are free at the Cauchy point, section 5.1."""
    theta, rows, core, middle = model
    free = (cauchy > box.lower) & (cauchy < box.upper)
    moved = cauchy - x
    slope = g + theta * moved - _product(_product(middle, _product(rows, moved)), rows)
    slope, w = jnp.where(free, slope, 0), jnp.where(free[None, :], rows, 0)
    v = solve(core - _product(w, w.T) / theta, _product(w, slope)[:, None])[:, 0]
    step = -(slope + _product(v, w) / theta) / theta
    projected = box.project(cauchy + step)
    rate = jnp.minimum(box.room(cauchy, step), 1)
    downhill = jnp.vdot(g, projected - x) < 0
    return jnp.where(downhill, projected, box.project(cauchy + rate * step))


def _remember(old: BoundedMemory, x: jax.Array, g: jax.Array) -> BoundedMemory:
    """The memory with the step to x, if the function curves upward along it."""
    vectors = old._replace(params=[old.params], gradient=[old.gradient])
    pair = newest_pair(vectors, [x], [g])
    row, size = jnp.maximum(old.row, 0), lax.rsqrt(pair.product)
    (s,), (y,) = pair.s, pair.y
    kept = pair.kept | pair.moved
    steps, changes = (
        jnp.where(kept, pair.written(rows, size * new, row), 0)
        for rows, new in ((old.steps, s), (old.changes, y))
    )
    newest = pair.square / pair.product
    scale = jnp.where(pair.kept, newest, jnp.where(pair.moved, old.scale, 0))
    after = jnp.where(pair.kept, row_after(row, len(steps)), row)
    return BoundedMemory(x, g, steps, changes, scale, after)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=HIGHEST)


def _vector(tree: PyTree, dtype: Any) -> jax.Array:
    """All leaves as one vector of a real dtype."""
    for i, x in enumerate(jax.tree.leaves(tree)):
        if jnp.iscomplexobj(x):
            raise TypeError(
                f"scale_by_lbfgsb takes real params, found {x.dtype} {leaf_location(tree, i)}; "
                "give real and imaginary parts as params of their own."
            )
    parts = [cast(lax.reshape(replicate(x), (x.size,)), dtype) for x in jax.tree.leaves(tree)]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)


def _like(vector: jax.Array, tree: PyTree) -> PyTree:
    """The inverse of `_vector`."""
    leaves, treedef = jax.tree.flatten(tree)
    parts = lax.split(vector, [x.size for x in leaves])
    apart = [cast(lax.reshape(v, x.shape), x.dtype) for v, x in zip(parts, leaves, strict=True)]
    return treedef.unflatten(map(split_like, apart, leaves))


def lbfgsb(memory_size: int = 10, linesearch: Transform = ZOOM) -> chain:
    """L-BFGS-B: L-BFGS for params between bounds, with a line search that keeps to them.

    `minimize(f, x0, bounds=(lower, upper))` runs it until the projected gradient is small. In your
    own loop the bounds are an extra argument, of trees like the params, and the params must start
    between them:

        box = Box(lower, upper)
        value, grad = value_and_grad(params, state=state)
        given = {"value": value, "grad": grad, "value_fn": f, "box": box}
        params, state = step(tx, params, grad, state, **given)
        params = box.project(params)  # against rounding

    The rule is `scale_by_lbfgsb`. For functions without noise; where no bound is met its steps are
    those of `lbfgs`.

    Args:
        memory_size: the largest number of pairs.
        linesearch: the stage that finds the rate, by default as in `lbfgs`.

    Source: Byrd, Lu, Nocedal and Zhu 1995; Morales and Nocedal 2011.
    """
    return chain(scale_by_lbfgsb(memory_size), negate(), linesearch)
