"""Formats: what stands in a state in the place of an array, and how the array is read from it.

A format is a NamedTuple of arrays that is known by its type, shapes and dtypes: `decode` needs
nothing else, and `encode` stores a new array in the same way. So the state of a wrapped optimizer
is a fixed point, and nobody has to remember how it was made.
"""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optfn.core.dtypes import cast
from optfn.core.numerics import ratio
from optfn.core.rounding import goes_up, nearest_whole, neighbours, round_to
from optfn.storage.groups import Groups

# A stored number that is not zero is read as at least this: less may be flushed to zero.
TINY = float(np.finfo(np.float32).tiny)
# The inverse of a larger number is flushed to zero.
LARGEST = 1 / TINY
# What the few operations of float32 in a formula add to its relative error.
ROUNDING = 2.0**-22


class Format:
    """An array of real numbers in another form, which a NamedTuple holds."""

    __slots__ = ()

    def decode(self) -> jax.Array:
        """The array, in float32."""
        raise NotImplementedError

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Self:
        """Another array, stored as this one is.

        Args:
            x: a real array of the same shape.
            key: rounds stochastically; None rounds to nearest.
        """
        raise NotImplementedError


class _Codes(NamedTuple):
    codes: jax.Array
    scales: jax.Array


class Grouped(_Codes, Format):
    """A number for each entry, and for each group of entries its scale, the largest magnitude.

    A number stands for a share of the scale, from -1 to 1. It is found with the exact scale, which
    is rounded only when it is stored; so encoding what was decoded changes nothing, unless what was
    decoded is too small for float32 to hold its digits.

    A format for entries that are not negative stores roots, so that small ones keep their digits.
    One that is not zero has a positive number, and is read as a positive one. An entry that is not
    finite makes its group so, and one of either sign beyond 8.5e37 too. Denormal entries count as
    zeros where XLA flushes them, as on a CPU.
    """

    __slots__ = ()

    dtype: ClassVar[Any]  # of the codes
    most: ClassVar[float]  # the number of the share 1
    least: ClassVar[float] = 1.0  # the smallest positive number
    roots: ClassVar[bool] = False
    twice: ClassVar[float] = 0.0  # what a rounding before that to a number adds, in their distances

    @classmethod
    def share(cls, number: jax.Array) -> jax.Array:
        """The share of a number, an odd function."""
        return number / cls.most

    @classmethod
    def number(cls, share: jax.Array) -> jax.Array:
        """The inverse of `share`, not rounded."""
        return share * cls.most

    @classmethod
    def around(cls, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The numbers next to one that is not negative."""
        lower = lax.floor(size)
        return lower, lower + 1

    @classmethod
    def nearest(cls, number: jax.Array) -> jax.Array:
        """The number of this format that is nearest."""
        return nearest_whole(number)

    @classmethod
    def error_bound(cls, x: jax.Array, groups: Groups, scale_dtype: Any) -> jax.Array:
        """The largest error of every entry, rounded to nearest; infinite beyond the range."""
        x = groups.split(cast(x, jnp.float32))
        sizes = lax.sqrt(x) if cls.roots else lax.abs(x)
        exact = groups.largest(sizes)
        stored = cast(cls.stored_scales(exact, scale_dtype), jnp.float32)
        exact, change = groups.spread(exact), groups.spread(lax.abs(stored - exact))
        shares = ratio(sizes, exact)
        number = cls.number(shares)
        lower, upper = cls.around(number)
        half = (upper - lower) * (0.5 + cls.twice) + number * ROUNDING
        ends = cls.share(lax.max(number - half, 0 * number)), cls.share(number + half)
        off = lax.max(shares - ends[0], ends[1] - shares)
        error = exact * off + change * (shares + off) + sizes * ROUNDING
        error = jnp.where(change < jnp.inf, error, jnp.inf)
        if cls.roots:
            error = jnp.where(lax.square(sizes + error) < jnp.inf, error, jnp.inf)
            error = error * (2 * sizes + error)
            least = lax.square(groups.spread(stored) * cls.share(jnp.float32(cls.least)))
            error = lax.max(error, jnp.where(x > 0, least * (1 + 4 * ROUNDING), 0))
        # XLA multiplies numbers by the quotient of scale and `most`, which is flushed below TINY.
        return groups.join(error) + cls.most * TINY

    @classmethod
    def of(cls, x: jax.Array, groups: Groups, scale_dtype: Any, key: Any = None) -> Self:
        """An array in this format."""
        x = groups.split(cast(x, jnp.float32))
        if cls.roots:
            x = jnp.where(x < 0, jnp.nan, x)
        scales = groups.largest(x)
        # The root of the largest, not the largest root: fewer roots.
        roots, scales = (lax.sqrt(x), lax.sqrt(scales)) if cls.roots else (x, scales)
        numbers = cls._rounded(ratio(roots, groups.spread(scales)), key)
        if cls.roots:
            numbers = jnp.where(roots > 0, lax.max(numbers, lax.full_like(x, cls.least)), numbers)
        own_key = None if key is None else jax.random.fold_in(key, 1)
        return cls(cls.packed(numbers, groups), cls.stored_scales(scales, scale_dtype, own_key))

    @classmethod
    def stored_scales(
        cls, scales: jax.Array, dtype: Any, key: jax.Array | None = None
    ) -> jax.Array:
        """Scales as they are stored.

        Those of float32 have 17 digits, so that the rounding of a product with them does not move
        them when it is stored again. Those of roots stay above zero, and so do their squares. What
        is rounded to nearest in 16 bits stands still while the largest entry moves little.
        """
        if cls.roots:
            least = max(float(jnp.finfo(dtype).smallest_subnormal), TINY**0.5)
            scales = jnp.where(scales > 0, jnp.maximum(scales, least), scales)
        else:
            scales = jnp.where(scales > LARGEST, jnp.inf, scales)
        exact = jnp.dtype(dtype) == jnp.float32
        return lax.reduce_precision(scales, 8, 16) if exact else round_to(scales, dtype, key)

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Self:
        return self.of(x, self.groups, self.scales.dtype, key)

    def decode(self) -> jax.Array:
        numbers = self.unpacked()
        x = self.share(numbers) * self.groups.spread(cast(self.scales, jnp.float32))
        if self.roots:
            x = jnp.where(numbers > 0, jnp.maximum(lax.square(x), TINY), x)
        return self.groups.join(x)

    @property
    def groups(self) -> Groups:
        """How the array is cut into groups."""
        return Groups.between(jnp.shape(self.codes), jnp.shape(self.scales))

    def unpacked(self) -> jax.Array:
        """The numbers in groups, in float32."""
        return cast(self.groups.split(self.codes), jnp.float32)

    @classmethod
    def packed(cls, numbers: jax.Array, groups: Groups) -> jax.Array:
        """The inverse of `unpacked`."""
        return groups.join(cast(numbers, cls.dtype))

    @classmethod
    def _rounded(cls, shares: jax.Array, key: jax.Array | None) -> jax.Array:
        number = cls.number(shares)
        if key is None:
            return cls.nearest(number)
        lower, upper = cls.around(lax.min(lax.abs(number), jnp.full_like(number, cls.most)))
        # The mean is to be that of the entries, which are the shares or their squares.
        power = lax.square if cls.roots else lax.abs
        entries = (power(x) for x in (cls.share(lower), cls.share(upper), shares))
        return lax.select(goes_up(key, *entries), upper, lower) * lax.sign(number)


class Companded(Grouped):
    """Whole numbers that are denser at small shares than at large ones."""

    __slots__ = ()

    @classmethod
    def share(cls, number: jax.Array) -> jax.Array:
        return number / (2 * cls.most - lax.abs(number))

    @classmethod
    def number(cls, share: jax.Array) -> jax.Array:
        return 2 * cls.most * share / (1 + lax.abs(share))


class Float(Grouped):
    """Numbers of a floating dtype."""

    __slots__ = ()

    @classmethod
    def around(cls, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        lower, upper = neighbours(size, cls.dtype)
        return lower, jnp.where(jnp.isfinite(upper), upper, lower)

    @classmethod
    def nearest(cls, number: jax.Array) -> jax.Array:
        return cast(cast(number, cls.dtype), number.dtype)


class Unsigned(Grouped):
    """Floating numbers of a byte without a sign, whose bit is one digit more.

    They are the numbers of float16 that end in `zeros` zero bits.
    """

    __slots__ = ()

    dtype, roots, twice = jnp.uint8, True, 2.0**-7
    zeros: ClassVar[int]

    @classmethod
    def around(cls, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        code = cls._code(size)
        code = code - (cls._number(code) > size).astype(code.dtype)
        upper = lax.min(cls._number(code + np.uint16(1)), jnp.full_like(size, cls.most))
        return cls._number(code), upper

    @classmethod
    def nearest(cls, number: jax.Array) -> jax.Array:
        return cls._number(cls._code(number, 1 << (cls.zeros - 1)))

    @classmethod
    def packed(cls, numbers: jax.Array, groups: Groups) -> jax.Array:
        return groups.join(cast(cls._code(numbers), cls.dtype))

    def unpacked(self) -> jax.Array:
        return self._number(cast(self.groups.split(self.codes), jnp.uint16))

    @classmethod
    def _code(cls, number: jax.Array, more: int = 0) -> jax.Array:
        bits = lax.bitcast_convert_type(cast(number, jnp.float16), jnp.uint16)
        bits = bits + np.uint16(more)
        return lax.shift_right_logical(bits, lax.full_like(bits, cls.zeros))

    @classmethod
    def _number(cls, code: jax.Array) -> jax.Array:
        bits = lax.shift_left(code, lax.full_like(code, cls.zeros))
        return cast(lax.bitcast_convert_type(bits, jnp.float16), jnp.float32)


class Packed(Grouped):
    """Two numbers of four bits in a byte, one of each half of a group, which has an even size."""

    __slots__ = ()

    dtype = jnp.uint8
    zero: ClassVar[int] = 0  # the code of the number 0

    @property
    def groups(self) -> Groups:
        half = Groups.between(jnp.shape(self.codes), jnp.shape(self.scales))
        return half._replace(length=2 * half.length)

    def unpacked(self) -> jax.Array:
        groups = self.groups
        codes = groups.halved.split(self.codes)
        halves = [
            lax.bitwise_and(codes, jnp.uint8(15)),
            lax.shift_right_logical(codes, jnp.uint8(4)),
        ]
        return cast(lax.concatenate(halves, groups.axis + 1), jnp.float32) - self.zero

    @classmethod
    def packed(cls, numbers: jax.Array, groups: Groups) -> jax.Array:
        codes = cast(numbers + cls.zero, cls.dtype)
        first, second = lax.split(codes, [groups.size // 2] * 2, axis=groups.axis + 1)
        return groups.halved.join(first | lax.shift_left(second, lax.full_like(second, 4)))


class Int8(Companded):
    """One byte for an entry of either sign."""

    __slots__ = ()
    dtype, most = jnp.int8, 127


class UInt8Roots(Grouped):
    """One byte for an entry that is not negative."""

    __slots__ = ()
    dtype, most, roots = jnp.uint8, 255, True


class Int4(Packed, Companded):
    """Half a byte for an entry of either sign."""

    __slots__ = ()
    most, zero = 7, 7


class UInt4Roots(Packed):
    """Half a byte for an entry that is not negative."""

    __slots__ = ()
    most, roots = 15, True


class Float16(Float):
    """Two bytes for an entry of either sign, with 11 digits."""

    __slots__ = ()
    dtype, most, least = jnp.float16, 65504, 2.0**-24


class Float16Roots(Float16):
    """Two bytes for an entry that is not negative."""

    __slots__ = ()
    roots = True


class E4M3(Float):
    """One byte for an entry of either sign, with 4 digits."""

    __slots__ = ()
    dtype, most, least = jnp.float8_e4m3fn, 448, 2.0**-9


class E4M4Roots(Unsigned):
    """One byte for an entry that is not negative, with 5 digits."""

    __slots__ = ()
    zeros, most, least = 6, 2 - 2.0**-4, 2.0**-18


class E5M2(Float):
    """One byte for an entry of either sign, with 3 digits."""

    __slots__ = ()
    dtype, most, least = jnp.float8_e5m2, 57344, 2.0**-16


class E5M3Roots(Unsigned):
    """One byte for an entry that is not negative, with 4 digits."""

    __slots__ = ()
    zeros, most, least = 7, 61440, 2.0**-17


class _Sums(NamedTuple):
    rows: jax.Array
    columns: jax.Array


class RankOne(_Sums, Format):
    """The sums of the rows and of the columns of matrices of entries that are not negative.

    The product of both over the sum of all: exact for matrices of rank one. Where neither sum is
    zero, the product is not either.
    """

    __slots__ = ()

    @classmethod
    def of(cls, x: jax.Array) -> Self:
        """The sums of an array, whose last two axes are the rows and the columns."""
        x = cast(x, jnp.float32)
        return cls(jnp.sum(x, -1, keepdims=True), jnp.sum(x, -2, keepdims=True))

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Self:
        return self.of(x)

    def decode(self) -> jax.Array:
        share = ratio(self.rows, jnp.sum(self.rows, -2, keepdims=True))
        x = share * self.columns
        positive = (self.rows > 0) & (self.columns > 0)
        return jnp.where(positive, jnp.maximum(x, TINY), x)


class _Parts(NamedTuple):
    high: jax.Array
    low: jax.Array


class Split(_Parts, Format):
    """bfloat16, and in 8 bits more what it lacks, as a share of half its last digit."""

    __slots__ = ()

    @classmethod
    def of(cls, x: jax.Array, key: jax.Array | None = None) -> Self:
        """An array in two parts, of which a key rounds the low one stochastically."""
        x = cast(x, jnp.float32)
        high = cast(x, jnp.bfloat16)
        return cls(high, rest_of(x, high, key))

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Self:
        return self.of(x, key)

    def decode(self) -> jax.Array:
        return with_rest(self.high, self.low)


# The rest of a number is read as slightly less than was stored, so that the sum never lies half way
# to the next number, where it might be rounded to that one.
_SHORT = 1 - 2.0**-12


def rest_of(x: jax.Array, high: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """What a rounded number lacks, in 127ths of half its last digit, as int8."""
    # Below a power of two the next number is half as far: 63.5 of them must not become 64.
    most = 127 * (1 - 2.0**-20) if key is None else 127 / _SHORT
    share = (x - cast(high, x.dtype)) / _half_digit(high) * most
    share = jnp.clip(jnp.where(jnp.isfinite(share), share, 0), -127, 127)
    if key is not None:
        lower = lax.floor(share)
        return cast(lax.select(goes_up(key, lower, lower + 1, share), lower + 1, lower), jnp.int8)
    return cast(nearest_whole(share), jnp.int8)


def with_rest(high: jax.Array, low: jax.Array) -> jax.Array:
    """A rounded number with what it lacks, in float32."""
    wide = cast(high, jnp.float32)
    rest = cast(low, jnp.float32) * (_SHORT / 127) * _half_digit(high)
    return jnp.where(jnp.isfinite(wide), wide + rest, wide)


def _half_digit(x: jax.Array) -> jax.Array:
    """Half the last digit of numbers of 16 bits, in float32."""
    info = jnp.finfo(x.dtype)
    exponent = lax.bitcast_convert_type(cast(x, jnp.float32), jnp.uint32) & jnp.uint32(0x7F800000)
    power = lax.bitcast_convert_type(exponent, jnp.float32)
    return jnp.maximum(power, float(info.tiny)) * 2.0 ** -(info.nmant + 1)
