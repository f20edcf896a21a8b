"""Random keys, folded from a seed (a hyperparameter), the step and the path of a leaf."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.tree import PyTree, leaf_paths


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


def is_key(x: Any) -> bool:
    """Whether `x` is an array of typed random keys."""
    return jnp.issubdtype(getattr(x, "dtype", float), jax.dtypes.prng_key)
