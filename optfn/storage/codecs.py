"""Codecs: the choice of a format for a slot, by what its entries can be.

Each codec has formats for both kinds of slots: for entries of either sign, and for entries that are
not negative, such as a second moment, whose relative error counts.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp

from optfn.core.data import Data, check_count, part, static
from optfn.core.dtypes import cast
from optfn.core.randomness import is_key
from optfn.core.rounding import round_to
from optfn.core.slot_kinds import NON_NEGATIVE, SIGNED, Kind
from optfn.storage import formats
from optfn.storage.formats import TINY, Format, Grouped
from optfn.storage.groups import Groups
from optfn.storage.selection import check_names, ends_with


def _real(x: Any, where: str) -> jax.Array:
    """A real array, or an error that names it."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        found = type(x).__name__ if dtype is None else f"one of {dtype}"
        raise TypeError(f"{where} must be an array of real floating point numbers, found {found}.")
    return jnp.asarray(x)


def _check_key(key: Any, where: str) -> None:
    is_raw = getattr(key, "dtype", None) == jnp.uint32
    if key is not None and not is_key(key) and not is_raw:
        raise TypeError(f"{where} must be a random key or None, found {type(key).__name__}.")


def _checking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a codec that is given what it can be given."""

    @functools.wraps(method)
    def checked(
        self: "Codec", x: Any, kind: Kind = SIGNED, *rest: jax.Array | None, **named: Any
    ) -> Any:
        where = f"{type(self).__name__}.{method.__name__}"
        if kind not in get_args(Kind):
            wanted = " or ".join(map(repr, get_args(Kind)))
            raise ValueError(f"{where}(kind=...) must be {wanted}, found {kind!r}.")
        for key in (*rest, *named.values()):
            _check_key(key, f"{where}(key=...)")
        return method(self, _real(x, f"{where}(x=...)"), kind, *rest, **named)

    return checked


class Codec(Data):
    """How slots are stored.

    A codec of your own defines `encode`, which gives an array of a narrower dtype or a `Format`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in {"encode", "error_bound"} & vars(cls).keys():
            setattr(cls, name, _checking(vars(cls)[name]))

    def _repr_name(self) -> str:
        name = super()._repr_name()
        return f"storage.{name}" if type(self).__module__.startswith("optfn.") else name

    def encode(self, x: jax.Array, kind: Kind = SIGNED, key: jax.Array | None = None) -> Any:
        """What stands for an array in the state.

        Args:
            x: a real array.
            kind: `"signed"` or `"non_negative"`.
            key: rounds stochastically; None rounds to nearest.
        """
        raise NotImplementedError(f"{type(self).__name__} must define encode.")

    def error_bound(self, x: jax.Array, kind: Kind = SIGNED) -> jax.Array:
        """The largest error of every entry, rounded to nearest, like `x` in shape."""
        raise NotImplementedError(f"{type(self).__name__} does not say its error.")

    def for_slot(self, name: str, kind: Kind) -> "Codec | None":
        """The codec for a slot, None to leave it as it is.

        Args:
            name: its qualified name, such as `"scale_by_adam.mu"`.
            kind: what its entries can be.
        """
        return self

    def check_names(self, names: list[str], where: str) -> None:
        """Refuses names that are none of these slots; `where` is for errors."""


def decode(stored: Any) -> jax.Array:
    """The array that a codec has encoded, in float32."""
    _check_stored(stored, "decode(stored)")
    return stored.decode() if isinstance(stored, Format) else cast(stored, jnp.float32)


def _check_stored(stored: Any, where: str) -> None:
    if not isinstance(stored, Format):
        _real(stored, f"{where} must be what a codec has encoded; it")


def encode_like(stored: Any, x: jax.Array, key: jax.Array | None = None) -> Any:
    """An array, stored as another one is."""
    where = "encode_like(stored, x, key)"
    _check_stored(stored, f"{where}: stored")
    _check_key(key, f"{where}: key")
    x = _real(x, f"{where}: x")
    form = jax.eval_shape(decode, stored)
    if x.shape != form.shape:
        raise ValueError(f"{where}: x has shape {x.shape}, stored is an array of {form.shape}.")
    return stored.encode(x, key) if isinstance(stored, Format) else round_to(x, stored.dtype, key)


class bf16(Codec):
    """bfloat16: 2 bytes an entry, 8 binary digits and the range of float32.

    An average that moves by less than 2^-9 of itself at a step, as a second moment with b2 = .999
    does in the end, stands still where it is rounded to nearest: round stochastically.

    The error is at most 2^-8 of the entry.
    """

    def encode(self, x: jax.Array, kind: Kind = SIGNED, key: jax.Array | None = None) -> Any:
        return round_to(cast(x, jnp.float32), jnp.bfloat16, key)

    def error_bound(self, x: jax.Array, kind: Kind = SIGNED) -> jax.Array:
        return _unless_infinite(x, jnp.abs(x) * 2.0**-8 + TINY)


class _grouped(Codec):
    """A format for each kind of slot, with a scale for each group of neighbours along an axis."""

    group: int = static(default=64)
    axis: int = static(default=-1)
    scale_dtype: str = static(default="float32", choices=("float32", "float16", "bfloat16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_count(self.group, f"{name}(group=...)")
        if type(self.axis) is not int:
            raise TypeError(f"{name}(axis=...) must be a whole number, found {self.axis!r}.")

    def formats(self) -> tuple[type[Grouped], type[Grouped]]:
        """The formats of entries of either sign and of entries that are not negative."""
        raise NotImplementedError

    def encode(self, x: jax.Array, kind: Kind = SIGNED, key: jax.Array | None = None) -> Any:
        own, groups = self.layout(x.shape, kind)
        return own.of(x, groups, self.scale_dtype, key) if x.ndim else cast(x, jnp.float32)

    def error_bound(self, x: jax.Array, kind: Kind = SIGNED) -> jax.Array:
        own, groups = self.layout(x.shape, kind)
        return own.error_bound(x, groups, self.scale_dtype) if x.ndim else jnp.zeros_like(x)

    def layout(self, shape: tuple[int, ...], kind: Kind) -> tuple[type[Grouped], Groups]:
        """The format of an array, and how it is cut into groups; scalars are not."""
        own = self.formats()[kind == NON_NEGATIVE]
        return own, Groups.of(shape, self._axis_of(shape), self.group) if shape else Groups(0, 0, 0)

    def _axis_of(self, shape: tuple[int, ...]) -> int:
        """The axis, counted from the first."""
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                f"{type(self).__name__}(axis=...) is {self.axis}, but an array to be stored has "
                f"shape {shape}."
            )
        return self.axis % len(shape)


class int8(_grouped):
    """8 bits an entry and a scale for every 64: both moments of AdamW in 2.125 bytes a param.

    The usual choice. With `a` the largest magnitude of a group, an entry m of either sign and an
    entry v that is not negative are stored as

        round(127 z),  z = 2 y / (1 + |y|),  y = m / a          round(255 sqrt(v / a))

    The error of m is at most a/504 near zero and a/127 at the largest entry, the error of sqrt(v)
    sqrt(a)/510. A v that is not zero never becomes zero. An average that moves by less than that at
    a step may stand still where it is rounded to nearest: `store(..., rounding="stochastic")`.

    Args:
        group: how many neighbours share a scale.
        axis: the axis along which they lie.
        scale_dtype: the dtype of the scales. In 16 bits they stand still while the largest entry of
            a group moves little, unless rounding is stochastic, and their own rounding, 2^-8 or
            2^-11, is added to the error. Those of float16 end at 6e-8 and 65504.

    Source: FlashOptim (Gonzalez et al. 2026), which has groups of 32 and scales in float16.
    """

    def formats(self) -> tuple[type[Grouped], type[Grouped]]:
        return formats.Int8, formats.UInt8Roots


_LEAST = 16  # entries of a group of int4: with fewer, scales take more than the codes save


class int4(_grouped):
    """4 bits an entry and a scale for every 128: both moments of AdamW in 1.06 bytes a param.

    For the least memory; with a rate that suits float32 it may train worse. The formulas are those
    of `int8`, with 7 in the place of 127 and 15 in that of 255. Two entries of a group share a
    byte, so groups are even and equally long; an array that no axis cuts so is stored by `int8`.

    The error of m is at most a/25 near zero and a/7 at the largest entry, the error of sqrt(v)
    sqrt(a)/30; but where v is below a/900, it is read as a/225.

    Args:
        group: how many neighbours share a scale, at most.
        axis: the axis along which they lie, if it can be.
        scale_dtype: the dtype of the scales.

    Source: Li, Chen and Zhu 2023, with other codes.
    """

    group: int = static(default=128)

    def formats(self) -> tuple[type[Grouped], type[Grouped]]:
        return formats.Int4, formats.UInt4Roots

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < _LEAST:
            raise ValueError(f"int4(group=...) must be at least {_LEAST}, found {self.group}.")

    def layout(self, shape: tuple[int, ...], kind: Kind) -> tuple[type[Grouped], Groups]:
        groups = self._even_groups(shape) if shape else None
        if groups is None:
            return int8(axis=self.axis, scale_dtype=self.scale_dtype).layout(shape, kind)
        return self.formats()[kind == NON_NEGATIVE], groups

    def _even_groups(self, shape: tuple[int, ...]) -> Groups | None:
        """Groups that are even and equally long, of at least 16 entries; None if there are none."""
        first = self._axis_of(shape)
        for axis in (first, *(i for i in reversed(range(len(shape))) if i != first)):
            sizes = (n for n in range(min(self.group, shape[axis]), _LEAST - 1, -1) if n % 2 == 0)
            size = next((n for n in sizes if shape[axis] % n == 0), None)
            if size:
                return Groups.of(shape, axis, size)
        return None


class fp8(_grouped):
    """8-bit floating point and a scale for every 256: both moments of AdamW in 2.03 bytes a param.

    Small entries keep their digits, four with e4m3 and three with e5m2, so they are finer than
    with `int8` below 1/30 of the largest entry and coarser above. Entries that are not negative are
    stored by their roots, with a digit more in the place of the sign.

    The error of m is at most 1/16 of m with e4m3 and 1/8 with e5m2, that of sqrt(v) 1/31 and 1/15;
    below 2^-14 (2^-29) of the largest entry there are fewer digits.

    Args:
        form: `"e4m3"` or `"e5m2"`.
        group: how many neighbours share a scale.
        axis: the axis along which they lie.
        scale_dtype: the dtype of the scales.

    Source: Micikevicius et al. 2022.
    """

    group: int = static(default=256)
    form: str = static(default="e4m3", choices=("e4m3", "e5m2"))

    def __init__(
        self, form: str = "e4m3", group: int = 256, axis: int = -1, scale_dtype: str = "float32"
    ):
        given = {"form": form, "group": group, "axis": axis, "scale_dtype": scale_dtype}
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def formats(self) -> tuple[type[Grouped], type[Grouped]]:
        if self.form == "e4m3":
            return formats.E4M3, formats.E4M4Roots
        return formats.E5M2, formats.E5M3Roots


class f16(_grouped):
    """float16 and a scale for every 256 entries: 2 bytes an entry with 11 binary digits.

    Without scales gradients below 6e-8 would vanish and those above 65504 would be infinite.

    The error is at most 2^-11 of the entry, or of its root; below 2^-29 of the largest entry there
    are fewer digits.

    Args:
        group: how many neighbours share a scale.
        axis: the axis along which they lie.
        scale_dtype: the dtype of the scales.
    """

    group: int = static(default=256)

    def formats(self) -> tuple[type[Grouped], type[Grouped]]:
        return formats.Float16, formats.Float16Roots


class factored(Codec):
    """The sums of rows and columns in the place of a second moment, as whose product it is read.

    Adafactor's memory for any optimizer: entries of either sign, and those of fewer than two axes,
    are left as they are. Matrices of rank one are exact; for others no error is bounded.
    """

    def encode(self, x: jax.Array, kind: Kind = SIGNED, key: jax.Array | None = None) -> Any:
        return formats.RankOne.of(x) if kind == NON_NEGATIVE and x.ndim > 1 else x

    def error_bound(self, x: jax.Array, kind: Kind = SIGNED) -> jax.Array:
        is_stored = kind == NON_NEGATIVE and x.ndim > 1
        return jnp.full_like(x, jnp.inf) if is_stored else jnp.zeros_like(x)


class split(Codec):
    """24 bits: bfloat16, and a byte for what it lacks, in 127ths of half its last digit.

    The error is at most 2^-15.8 of the entry.
    """

    def encode(self, x: jax.Array, kind: Kind = SIGNED, key: jax.Array | None = None) -> Any:
        return formats.Split.of(x, key)

    def error_bound(self, x: jax.Array, kind: Kind = SIGNED) -> jax.Array:
        return _unless_infinite(x, jnp.abs(x) * 2.0**-15.8 + TINY)


def _unless_infinite(x: jax.Array, bound: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(cast(x, jnp.bfloat16)), bound, jnp.inf)


def _by_name(value: Any, where: Any = "the codecs") -> dict[str, Codec]:
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{where} must be a dict {{name of a slot: codec}}, found {value!r}.")
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"{where}: the name of a slot must be a string, found {name!r}.")
    return {name: as_codec(codec, f"{where}, '{name}',") for name, codec in value.items()}


class by_slot(Codec):
    """A codec for each slot, by its name or by what its entries can be.

        by_slot({"mu": bf16(), "nu": int8()})
        by_slot({"signed": int8(), "non_negative": factored()})

    Args:
        codecs: by the name of a slot, which may be qualified as in `"scale_by_adam.mu"`, or by
            `"signed"` or `"non_negative"`. The longest name that fits decides. Other slots are left
            as they are.
    """

    codecs: Mapping[str, Codec] = part(converter=_by_name)

    def for_slot(self, name: str, kind: Kind) -> "Codec | None":
        fitting = [own for own in self.codecs if ends_with(name, own)]
        own = max(fitting, key=len, default=kind)
        return self.codecs.get(own)

    def check_names(self, names: list[str], where: str) -> None:
        check_names(self.codecs, names, where, " that may be rounded")

    def encode(self, x: jax.Array, kind: Kind = SIGNED, key: jax.Array | None = None) -> Any:
        codec = self.for_slot("", kind)
        return x if codec is None else codec.encode(x, kind, key)

    def error_bound(self, x: jax.Array, kind: Kind = SIGNED) -> jax.Array:
        codec = self.for_slot("", kind)
        return jnp.zeros_like(x) if codec is None else codec.error_bound(x, kind)


def as_codec(value: Any, where: Any = "the codec") -> Codec:
    """A codec from what users put in the place of one: also a dict of codecs by slot."""
    if isinstance(value, Codec):
        return value
    if isinstance(value, Mapping):
        return by_slot(_by_name(value, where))
    names = "bf16(), f16(), fp8(), int8(), int4(), factored(), split() or by_slot({...})"
    meant, hint = _name_of(value), ""
    if isinstance(value, type) and issubclass(value, Codec):
        hint = f"; call it, as in {meant}()"
    elif f"{meant}()" in names.split(", "):
        hint = f"; write storage.{meant}()"
    raise TypeError(
        f"{where} must be a codec of optfn.storage such as {names}, found {value!r}{hint}."
    )


def _name_of(value: Any) -> str:
    """The name of the codec that is meant by its class, its name or a dtype."""
    name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return {"bfloat16": "bf16", "float16": "f16"}.get(name, name)
