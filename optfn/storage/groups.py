"""Groups of neighbours along one axis of an array, each with a scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Groups(NamedTuple):
    """How an array is cut into groups along one of its axes.

    The groups are equally long but for the last one, so the number of groups says how long: it can
    be read off the shapes of an array and of its scales.

    Attributes:
        axis: the axis, not negative.
        length: its length.
        count: the number of groups.
    """

    axis: int
    length: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int, size: int) -> "Groups":
        """Groups of at most `size` entries along an axis."""
        return cls(axis, shape[axis], -(-shape[axis] // size))

    @classmethod
    def between(cls, shape: tuple[int, ...], scales: tuple[int, ...]) -> "Groups":
        """The groups of an array with scales of this shape."""
        axis = next((i for i, (n, m) in enumerate(zip(shape, scales, strict=True)) if n != m), 0)
        return cls(axis, shape[axis], scales[axis])

    @property
    def size(self) -> int:
        """The entries of a group."""
        return -(-self.length // max(self.count, 1))

    @property
    def halved(self) -> "Groups":
        """As many groups of half the size."""
        return self._replace(length=self.length // 2)

    def split(self, x: jax.Array) -> jax.Array:
        """`[..., length, ...]` to `[..., count, size, ...]`; zeros fill the last group."""
        missing = self.count * self.size - self.length
        if missing:
            widths = [(0, missing if axis == self.axis else 0, 0) for axis in range(x.ndim)]
            x = lax.pad(x, jnp.zeros((), x.dtype), widths)
        before, after = x.shape[: self.axis], x.shape[self.axis + 1 :]
        return lax.reshape(x, (*before, self.count, self.size, *after))

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        before, after = x.shape[: self.axis], x.shape[self.axis + 2 :]
        x = lax.reshape(x, (*before, self.count * self.size, *after))
        return lax.slice_in_dim(x, 0, self.length, axis=self.axis)

    def spread(self, scales: jax.Array) -> jax.Array:
        """`[..., count, ...]` to `[..., count, 1, ...]`, to be multiplied with a split array."""
        return lax.expand_dims(scales, [self.axis + 1])

    def largest(self, x: jax.Array) -> jax.Array:
        """The largest magnitude in each group of a split array, `[..., count, ...]`.

        NaN if one is NaN: among magnitudes their bits are ordered as the numbers are, NaN above
        all, and the maximum of whole numbers is faster.
        """
        whole = jnp.dtype(f"int{8 * x.dtype.itemsize}")
        bits = lax.bitcast_convert_type(lax.abs(x), whole)
        axis, size = self.axis + 1, self.size
        while size % 2 == 0 and size > 16:  # faster on a CPU than a reduction alone
            size //= 2
            bits = lax.max(*lax.split(bits, [size, size], axis=axis))
        most = lax.reduce_max(bits, (axis,))
        return lax.bitcast_convert_type(most, x.dtype)
