"""The arithmetic that every rule shares: finite where the plain formula is not."""

from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.dtypes import cast, compute_dtype, own_dtype, real_dtype
from optfn.core.inputs import is_inexact
from optfn.core.tree import PyTree


def whole(x: Any) -> jax.Array:
    """A number of updates as int32: rounded, not negative, and at most 2**30."""
    return jnp.clip(jnp.round(x), 0, 2.0**30).astype(jnp.int32)


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|^2, real also for complex x."""
    if jnp.iscomplexobj(x):
        return lax.square(x.real) + lax.square(x.imag)
    return lax.square(x)


@jax.custom_jvp
def sqrt(x: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero.

    A second moment of an entry whose gradient is always zero is exactly zero; with the usual
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
    """u, and NaN where x is not finite: a sign or a clip of it would hide that."""
    return u + 0 * x


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0."""
    nothing = b == 0
    return jnp.where(nothing, 0, a / jnp.where(nothing, 1, b))


# From this many entries on, to read them a second time costs more than a branch.
WORTH_A_BRANCH = 2**11


def global_norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm of all leaves together; an empty tree has norm 0.

    Neither 1e25 overflows nor 1e-25 vanishes in float32. NaN and infinity come out as NaN or
    infinity.
    """
    scale, relative = scaled_norm(tree)
    return scale * relative


def root_mean_square(x: jax.Array) -> jax.Array:
    """sqrt(mean(|x|^2)) of one array, in any range; 0 of an empty one."""
    scale, relative = scaled_norm(x)
    return scale * (relative / max(x.size, 1) ** 0.5)


def scaled_norm(tree: PyTree) -> tuple[jax.Array, jax.Array]:
    """The norm as a product of two numbers, of which the first is about the largest entry or 1."""
    leaves = [_floating(x) for x in map(jnp.asarray, jax.tree.leaves(tree))]
    # A complex number is two real ones: divided by a tiny scale as one, it would be NaN.
    parts = [(x.real, x.imag) if jnp.iscomplexobj(x) else (x,) for x in leaves if x.size]
    parts = [part for pair in parts for part in pair]
    if not parts:
        return jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    dtype = jnp.result_type(*parts)
    count = sum(x.size for x in parts)
    if count < WORTH_A_BRANCH:
        return _by_largest(dtype, *parts)
    square = sum(_sum_of_squares(x).astype(dtype) for x in parts)
    info = jnp.finfo(dtype)
    # Squares below tiny vanish: all of them together must not matter.
    in_range = (square > count * float(info.tiny / info.eps)) & (square < jnp.inf)
    one = jnp.ones((), dtype)
    return lax.cond(in_range, lambda *_: (one, sqrt(square)), partial(_by_largest, dtype), *parts)


def _floating(x: jax.Array) -> jax.Array:
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return cast(x, compute_dtype(x.dtype) if inexact else jnp.result_type(float))


def norms_along(axis: Any, x: jax.Array) -> jax.Array:
    """The norm along some axes of one array, which are kept with length 1; None takes all."""
    size = jnp.abs(x)
    scale = _room_for_squares(jnp.max(size, axis=axis, keepdims=True, initial=0))
    return scale * sqrt(jnp.sum(lax.square(size / scale), axis=axis, keepdims=True))


def _by_largest(dtype: Any, *parts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scaled norm of real arrays in any range."""
    scale = _room_for_squares(jnp.stack([_largest(x).astype(dtype) for x in parts]).max())
    return scale, sqrt(sum(_sum_of_squares(x.astype(dtype) / scale) for x in parts))


def _room_for_squares(largest: jax.Array) -> jax.Array:
    """What to divide by, so that squares have room.

    And so must products and reciprocals of it, because a compiler may divide by them: for
    x = a / b by b * scale.
    """
    tiny = float(jnp.finfo(largest.dtype).tiny)
    return lax.stop_gradient(jnp.clip(largest, tiny**0.5, tiny**-0.8))


def _largest(x: jax.Array) -> jax.Array:
    return lax.reduce_max(lax.abs(x), range(x.ndim))


def _sum_of_squares(x: jax.Array) -> jax.Array:
    return lax.reduce_sum(lax.square(x), range(x.ndim))


def tree_sum(tree: PyTree) -> jax.Array:
    """The sum of the scalars in a tree; 0 of an empty one."""
    return reduce(add, jax.tree.leaves(tree), jnp.zeros((), own_dtype(tree)))


def tree_scale(number: jax.Array, tree: PyTree) -> PyTree:
    """Every leaf times a number, which takes the leaf's real dtype."""
    return jax.tree.map(lambda x: x * cast(number, real_dtype(x.dtype)), tree)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The real part of <x, y> of two arrays."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return jnp.sum((x.conj() * y).real)
    return jnp.sum(x * y)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every entry is finite; those of integers are."""
    leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x)]
    return reduce(jnp.logical_and, (jnp.isfinite(x).all() for x in leaves), jnp.asarray(True))
