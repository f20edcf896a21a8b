"""Arithmetic shared by all rules: finite where the plain formula is not."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from optfn.core.control_flow import cond
from optfn.core.dtypes import cast, compute_dtype, own_dtype, real_dtype, widen
from optfn.core.inputs import is_inexact
from optfn.core.mapped import entries, everywhere, largest, parts_over, total
from optfn.core.tree import PyTree


def whole(x: Any) -> jax.Array:
    """A number of updates as int32: rounded, and clipped to [0, 2**30]."""
    return jnp.clip(jnp.round(x), 0, 2.0**30).astype(jnp.int32)


def is_multiple(count: jax.Array, n: Any) -> jax.Array:
    """Whether a whole number is a multiple of another, which is rounded and at least 1."""
    return count % jnp.maximum(whole(n), 1) == 0


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|^2, real also for complex x."""
    if jnp.iscomplexobj(x):
        return lax.square(x.real) + lax.square(x.imag)
    return lax.square(x)


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero.

    An entry whose gradient is always zero has a second moment of exactly zero; with the usual
    derivative, infinity, one such entry turns every hypergradient into NaN.
    """
    return lax.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    positive = x > 0
    slope = jnp.where(positive, 0.5 / jnp.sqrt(jnp.where(positive, x, 1)), 0)
    return sqrt(x), slope * dx


def propagate_nan(u: jax.Array, x: jax.Array) -> jax.Array:
    """u, but NaN where x is not finite; a sign or a clip of x would hide it."""
    return u + 0 * x


def ratio(a: Any, b: jax.Array) -> jax.Array:
    """a / b, but 0 where b is 0."""
    nothing = b == 0
    return jnp.where(nothing, 0, a / jnp.where(nothing, 1, b))


# With this many entries or more, a second pass over them costs more than a branch.
WORTH_A_BRANCH = 2**11
# So many scalars are summed, or compared, by a scan.
WORTH_A_SCAN = 16


def global_norm(updates: PyTree, axis_name: Any = ()) -> jax.Array:
    """The Euclidean norm of all leaves together; an empty tree has norm 0.

    In float32 entries of 1e25 do not overflow and entries of 1e-25 do not vanish. If an entry is
    not finite, neither is the norm.

    Args:
        updates: any tree of arrays.
        axis_name: inside `shard_map`, the name of the axis, or a tuple of names, over which arrays
            are in parts: the norm is of the whole arrays. By default it is of this device's parts.
            A leaf that does not vary over an axis is whole.

    Raises:
        ValueError: the `shard_map` does not track what varies (`check_vma=False`).
    """
    with parts_over(axis_name):
        return norm_of(updates).value


def norm_in_range(tree: PyTree) -> jax.Array:
    """`global_norm` of arrays whose squares are in range, as those of params are.

    It has no branch, which would copy donated buffers.
    """
    return sqrt(tree_sum([total(abs_sq(_floating(x))) for x in jax.tree.leaves(tree)]))


def root_mean_square(x: jax.Array) -> jax.Array:
    """sqrt(mean(|x|^2)) of one array, in any range; 0 for an empty one."""
    scale, relative = norm_of(x)
    return scale * (relative / max(entries(x), 1) ** 0.5)


class Norm(NamedTuple):
    """A norm as the product of two numbers, since the norm of many entries may be out of range.

    To divide an array by a norm, divide it by `scale` and multiply by the inverse of `relative`: a
    compiler makes one division by the norm of two.

    Attributes:
        scale: 1, or about the largest entry.
        relative: the norm of the entries divided by `scale`.
    """

    scale: jax.Array
    relative: jax.Array

    @property
    def value(self) -> jax.Array:
        """The norm as one number, infinite if it is out of range."""
        return self.scale * self.relative

    def at_least(self, least: Any) -> "Norm":
        """The norm, or a number if that is larger; a NaN stays."""
        less = self.value < least
        return Norm(jnp.where(less, least, self.scale), jnp.where(less, 1, self.relative))

    def over_root(self, count: int) -> "Norm":
        """The norm over the root of a number of entries: their root mean square."""
        return Norm(self.scale, self.relative / max(count, 1) ** 0.5)


def norm_of(tree: PyTree) -> Norm:
    """The Euclidean norm of all leaves together, in any range."""
    leaves = [_floating(x) for x in map(jnp.asarray, jax.tree.leaves(tree))]
    # Complex arrays are split: a complex division by a tiny scale would give NaN.
    parts = [(x.real, x.imag) if jnp.iscomplexobj(x) else (x,) for x in leaves if x.size]
    parts = [part for pair in parts for part in pair]
    if not parts:
        return Norm(jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32))
    traced = any(isinstance(x, Tracer) for x in parts)
    return (_norm_of_parts if traced else _norm_of_parts_jitted)(*parts)


def _norm_of_parts(*parts: jax.Array) -> Norm:
    """The norm of real arrays, of which there is at least one."""
    dtype = jnp.result_type(*parts)
    count = sum(map(entries, parts))
    if count < WORTH_A_BRANCH:
        return _by_largest(dtype, *parts)
    square = _folded(lax.add, [total(lax.square(x)).astype(dtype) for x in parts])
    info = jnp.finfo(dtype)
    # Squares below tiny vanish; their sum must be negligible.
    in_range = (square > count * float(info.tiny / info.eps)) & (square < jnp.inf)
    one = jnp.ones((), dtype)
    return cond(in_range, lambda *_: Norm(one, sqrt(square)), partial(_by_largest, dtype), *parts)


_norm_of_parts_jitted = jax.jit(_norm_of_parts)  # one program instead of many, outside a trace


def _floating(x: jax.Array) -> jax.Array:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return cast(x, compute_dtype(x.dtype) if inexact else jnp.result_type(float))


def norms_along(axis: Any, x: jax.Array) -> Norm:
    """The norms over some axes of one array, kept with length 1; None means all axes."""
    size = jnp.abs(x)
    scale = _room_for_squares(jnp.max(size, axis=axis, keepdims=True, initial=0))
    return Norm(scale, sqrt(jnp.sum(lax.square(size / scale), axis=axis, keepdims=True)))


def joined(norms: Sequence[Norm]) -> Norm:
    """The norm of some parts together, of the norms of the parts; entry by entry."""
    scale = reduce(jnp.maximum, (norm.scale for norm in norms))
    shares = (lax.square(norm.relative * (norm.scale / scale)) for norm in norms)
    return Norm(scale, sqrt(reduce(add, shares)))


def shrunk(updates: PyTree, norm: Norm, limit: Any) -> PyTree:
    """The updates times min(1, limit / norm), a NaN where the norm is not finite."""
    within = norm.value <= limit
    # Where nothing is clipped the divisor is 1, so that a zero gradient has a finite derivative.
    shrink = limit / jnp.where(within, 1, norm.relative)
    shrink = jnp.where(jnp.isfinite(norm.relative), shrink, jnp.nan)
    scale = jnp.where(within, 1, norm.scale)

    def clipped(g):
        return jnp.where(within, g, cast(widen(g, scale.dtype) / scale * shrink, g.dtype))

    return jax.tree.map(clipped, updates)


def _by_largest(dtype: Any, *parts: jax.Array) -> Norm:
    """The norm of real arrays in any range, which reads them twice."""
    scale = _room_for_squares(_folded(lax.max, [largest(lax.abs(x)).astype(dtype) for x in parts]))
    squares = [total(lax.square(x.astype(dtype) / scale)) for x in parts]
    return Norm(scale, sqrt(_folded(lax.add, squares)))


def _room_for_squares(largest: jax.Array) -> jax.Array:
    """A divisor near the largest entry, so that squares neither overflow nor vanish.

    Its products and reciprocals must be in range too: a compiler may divide by those, for example
    x = a / b by b * scale.
    """
    tiny = float(jnp.finfo(largest.dtype).tiny)
    return lax.stop_gradient(jnp.clip(largest, tiny**0.5, tiny**-0.8))


def tree_sum(tree: PyTree) -> jax.Array:
    """The sum of the scalars in a tree; 0 for an empty one."""
    dtype, leaves = own_dtype(tree), jax.tree.leaves(tree)
    return _folded(lax.add, [cast(x, dtype) for x in leaves] or [jnp.zeros((), dtype)])


def _folded(operation: Callable[..., Any], numbers: Sequence[jax.Array]) -> jax.Array:
    """The sum or the largest of numbers.

    XLA repeats a chain of operations in each leaf that reads the result, and so compiles in the
    square of their number. It does not repeat a scan.
    """
    if len(numbers) < WORTH_A_SCAN:
        return reduce(operation, numbers)
    return lax.associative_scan(operation, jnp.stack(numbers))[-1]


def tree_scale(number: jax.Array, tree: PyTree) -> PyTree:
    """Every leaf times a number, which is cast to the leaf's real dtype."""
    return jax.tree.map(lambda x: x * cast(number, real_dtype(x.dtype)), tree)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The real part of the inner product <x, y> of two arrays."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return total((x.conj() * y).real)
    return total(x * y)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry is finite, as entries of integer leaves always are."""
    leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x)]
    return reduce(jnp.logical_and, (everywhere(jnp.isfinite(x)) for x in leaves), jnp.asarray(True))
