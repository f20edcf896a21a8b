"""Random keys, folded from a seed (a hyperparameter), the step and the path of a leaf."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optfn.core.data import number
from optfn.core.tree import PyTree, leaf_paths


def seed(*, also_called: str | None = None) -> Any:
    """Declares a seed: a number, for which a random key is taken too.

    Args:
        also_called: another keyword for it, such as optax's.
    """
    return number(default=0, also_called=also_called, converter=_number_of_key, is_one=True)


def _number_of_key(value: Any) -> Any:
    """A whole number below 2**24 in the place of a key, typed or of two uint32; others as is."""
    if not is_key(value):
        if getattr(value, "dtype", None) != np.uint32 or value.shape[-1:] != (2,):
            return value
        value = jax.random.wrap_key_data(value)
    bits = jax.vmap(jax.random.bits)(value.reshape(-1)).reshape(value.shape)
    return (bits >> 8).astype(jnp.float32)


def key_at(seed: Any, step: Any, where: str) -> jax.Array:
    """The key of a step. The seed is a hyperparameter, which may be traced and swept."""
    if isinstance(seed, (float, np.generic)) and not (
        0 <= float(seed) < 2**24 and float(seed).is_integer()
    ):
        raise ValueError(f"{where} must be a whole number below 2**24, found {seed}.")
    return jax.random.fold_in(jax.random.key(jnp.asarray(seed).astype(jnp.uint32)), step)


def leaf_keys(key: jax.Array, name: str | None, tree: PyTree) -> list[jax.Array]:
    """A key for each leaf, folded with the stage's name and the leaf's path."""
    paths = (f"{name}/{path}" for path in leaf_paths(tree))
    return [jax.random.fold_in(key, zlib.crc32(path.encode())) for path in paths]


def dither(key: jax.Array, x: jax.Array) -> jax.Array:
    """A number in [0, 1) for each entry of a real array, to round it with; multiples of 2^-24.

    Each is a hash of the entry's place, between two words of the key: a few whole operations, which
    XLA computes where the number is read, in the place of twenty rounds in passes of their own. A
    place and a key are mixed thoroughly, but this is no generator for sampling.
    """
    before, after = jax.random.bits(key, (2,), jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, length in enumerate(x.shape):
        place = place * np.uint32(length) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = _mixed(_mixed(place + before) + after)
    return lax.convert_element_type(bits >> np.uint32(8), x.dtype) * 2.0**-24


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which each bit of the result depends on all (Wellons 2018)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def is_key(x: Any) -> bool:
    """Whether `x` is an array of typed random keys."""
    return jnp.issubdtype(getattr(x, "dtype", float), jax.dtypes.prng_key)


def keys_of(key: jax.Array, stack: Sequence[int]) -> jax.Array:
    """A key for each matrix of a stack; keys that are so already stay."""
    return key if key.shape == tuple(stack) else jax.random.split(key, tuple(stack))


def without_keys(x: jax.Array) -> jax.Array:
    """Keys as the numbers they are made of; any other array as it is."""
    return jax.random.key_data(x) if is_key(x) else x


def as_keys(x: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `without_keys`."""
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if is_key(like) else x
