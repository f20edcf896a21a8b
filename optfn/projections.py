"""Sets for params to stay in, for `projected`: each array is a point of the set by itself.

As a function, a set gives the nearest tree: `projections.simplex()(params)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from optfn.core.data import show, static
from optfn.core.numerics import norms_along
from optfn.core.projection import Projection as Projection
from optfn.core.projection import custom as custom
from optfn.linalg.orthogonal import polar


class box(Projection):
    """Every entry between two bounds: lower <= x <= upper.

    Params end between the bounds exactly, also those of 16 bits and where a bound is no number of
    their dtype, if any number of it is between them.

    Args:
        lower: a number, a schedule, or an array of the shape of the params; None for no bound.
        upper: the same.

    Raises:
        ValueError: a lower bound is known to be above its upper bound; or, when it is used, a bound
            has another shape.
        TypeError: when it is used, an array is complex.
    """

    entrywise = True

    lower: Any = None
    upper: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self.lower, self.upper
        known = all(isinstance(x, (float, jax.Array)) or hasattr(x, "__array__") for x in sides)
        if known and not any(isinstance(x, Tracer) for x in sides):
            crossed = jnp.any(jnp.asarray(self.lower) > jnp.asarray(self.upper))
            if crossed:
                raise ValueError(
                    f"box(lower={show(self.lower)}, upper={show(self.upper)}): a lower bound is "
                    "above its upper bound."
                )

    def nearest(self, x: jax.Array) -> jax.Array:
        _check_real(x, "box")
        for name, bound, limited in (
            ("lower", self.lower, jnp.maximum),
            ("upper", self.upper, jnp.minimum),
        ):
            if bound is None:
                continue
            if jnp.shape(bound) not in ((), x.shape):
                raise ValueError(
                    f"box({name}=...) has shape {jnp.shape(bound)}, the array has {x.shape}."
                )
            x = limited(x, bound)
        return x


def non_negative() -> box:
    """Every entry at least zero: `box(lower=0)`."""
    return box(lower=0.0)


class _OfVectors(Projection):
    """A set of vectors: the whole array as one, or those along an axis."""

    scale: Any = 1.0
    axis: int | None = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.axis is not None and type(self.axis) is not int:
            raise TypeError(
                f"{name}(axis=...) must be a whole number or None, found {self.axis!r}."
            )
        if isinstance(self.scale, float) and self.scale < 0:
            raise ValueError(f"{name}(scale=...) must not be negative, found {self.scale}.")

    def nearest(self, x: jax.Array) -> jax.Array:
        if self.axis is None:
            return self.nearest_rows(x.reshape(1, -1)).reshape(x.shape)
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(
                f"{type(self).__name__}(axis={self.axis}): the array has shape {x.shape}."
            )
        return jnp.moveaxis(self.nearest_rows(jnp.moveaxis(x, self.axis, -1)), -1, self.axis)

    def nearest_rows(self, x: jax.Array) -> jax.Array:
        """The nearest vectors to those along the last axis."""
        raise NotImplementedError


class simplex(_OfVectors):
    """Vectors of probabilities: no entry is negative, and they add up to `scale`.

    Args:
        scale: the sum, a number or a schedule.
        axis: the axis along which vectors lie, so that with -1 each row of a matrix is one; None
            takes the whole array for one vector.

    Raises:
        TypeError: when it is used, an array is complex.

    Source: Held, Wolfe and Crowder 1974.
    """

    def nearest_rows(self, x: jax.Array) -> jax.Array:
        _check_real(x, "simplex")
        return _on_simplex(x, self.scale)


class l1_ball(_OfVectors):
    """Vectors whose magnitudes add up to at most `scale`; many entries become zero.

    Args:
        scale: the largest sum, a number or a schedule.
        axis: as in `simplex`.

    Source: Duchi et al. 2008.
    """

    def nearest_rows(self, x: jax.Array) -> jax.Array:
        size = jnp.abs(x)
        inside = jnp.sum(size, axis=-1, keepdims=True) <= self.scale
        return jnp.where(inside, x, jnp.sign(x) * _on_simplex(size, self.scale))


class l2_ball(_OfVectors):
    """Vectors whose Euclidean norm is at most `scale`.

    Args:
        scale: the radius, a number or a schedule.
        axis: as in `simplex`; the axis of a layer's inputs bounds the weights of each output.
    """

    def nearest_rows(self, x: jax.Array) -> jax.Array:
        norm = norms_along(-1, x)
        inside = norm.value <= self.scale
        factor = self.scale / jnp.where(inside, 1, norm.relative)
        return jnp.where(inside, x, x / norm.scale * factor)


class l2_sphere(_OfVectors):
    """Vectors whose Euclidean norm is `scale`. Of zero the vector of equal entries is made.

    `hyperball` instead takes steps of a given angle, on the sphere where each array starts.

    Args:
        scale: the radius, a number or a schedule.
        axis: as in `simplex`.
    """

    def nearest_rows(self, x: jax.Array) -> jax.Array:
        norm = norms_along(-1, x)
        zero = norm.relative == 0
        factor = self.scale / jnp.where(zero, 1, norm.relative)
        return jnp.where(zero, self.scale / x.shape[-1] ** 0.5, x / norm.scale * factor)


class orthogonal(Projection):
    """Matrices with orthonormal columns, or rows if they are more wide than high.

    The last two axes are those of a matrix, others count the matrices of a stack. The nearest is
    the polar factor, by a singular value decomposition; where a singular value is zero the nearest
    is not unique, and the result has a zero there too.

    Raises:
        ValueError: when it is used, an array has fewer than two axes.
    """

    def nearest(self, x: jax.Array) -> jax.Array:
        if x.ndim < 2:
            raise ValueError(f"orthogonal() is a set of matrices, found shape {x.shape}.")
        return polar(x)


def _check_real(x: jax.Array, name: str) -> None:
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name} is a set of real arrays, found {x.dtype}.")


def _on_simplex(x: jax.Array, scale: Any) -> jax.Array:
    """max(x - t, 0) of vectors along the last axis, with the t that makes them add up to scale."""
    x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    ordered = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
    count = lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1) + 1
    positive = ordered * count > jnp.cumsum(ordered, axis=-1) - scale
    last = jnp.maximum(jnp.sum(positive, axis=-1, keepdims=True) - 1, 0)
    kept = x >= jnp.take_along_axis(ordered, last, axis=-1)
    # Added up anew: the running sums have rounded more often.
    total = jnp.sum(jnp.where(kept, x, 0), axis=-1, keepdims=True)
    t = (total - scale) / jnp.sum(kept, axis=-1, keepdims=True).astype(x.dtype)
    return jnp.maximum(x - t, 0)
