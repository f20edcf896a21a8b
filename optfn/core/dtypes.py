"""The dtype policy.

Rules compute in at least float32, whatever the params are stored in; hyperparameters are cast to
the real compute dtype, never to the params' (in bfloat16, 0.999 is 1).
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.tree import PyTree


@cache
def compute_dtype(*dtypes: Any) -> np.dtype:
    """The dtype to compute in: the promotion of these, at least float32."""
    wide = jnp.dtype(jnp.float32)
    for dtype in dtypes:
        # 8-bit and 16-bit types fit into float32, and jax does not promote the 8-bit ones.
        if is_complex(dtype) or jnp.finfo(dtype).bits >= 32:
            wide = np.promote_types(wide, dtype)  # also where jax refuses to promote
    return wide


def dtype_of(x: Any) -> np.dtype:
    """The dtype of an array, or the default one for a Python scalar."""
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def real_dtype(dtype: Any) -> np.dtype:
    """float32 for float32 and complex64, float64 for float64 and complex128."""
    return jnp.finfo(dtype).dtype


def own_dtype(tree: PyTree) -> np.dtype:
    """The real dtype for numbers computed from a whole tree; integer leaves do not count."""
    dtypes = {x.dtype for x in jax.tree.leaves(tree)}
    return real_dtype(compute_dtype(*(d for d in dtypes if jnp.issubdtype(d, jnp.inexact))))


def cast(x: Any, dtype: Any) -> jax.Array:
    """`x` as a strongly typed array of `dtype`; no operation where it already is one.

    A real target for a complex value is an error: the imaginary part would be lost silently.
    """
    if isinstance(x, jax.Array) and x.dtype == dtype and not getattr(x, "weak_type", False):
        return x
    if jnp.iscomplexobj(x) and not is_complex(dtype):
        raise TypeError(f"a complex value cannot be stored as {jnp.dtype(dtype).name}.")
    return jnp.asarray(x, dtype)


def widen(x: jax.Array, compute: Any) -> jax.Array:
    """A stored slot in at least the compute precision: real stays real, complex stays complex."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    return cast(x, compute_dtype(x.dtype, real_dtype(compute)))


def read(x: jax.Array, compute: Any) -> jax.Array:
    """A stored slot as a rule reads it that computes in the dtype `compute`.

    A real slot that is stored as a complex number, because a user asked for that, is real.
    """
    if is_complex(x.dtype) and not is_complex(compute):
        x = x.real
    return widen(x, compute)


def is_narrow(dtype: Any) -> bool:
    """Whether it is a floating point dtype of fewer bits than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


def floating_name(dtype: Any, where: Any) -> str:
    """The name of a real or complex floating point dtype, the same for all its spellings.

    `where` is for errors.
    """
    try:
        found = jnp.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(f"{where} must be a floating point dtype, found {dtype!r}.")
    return found.name


def storage_of(own: Any, dtype: Any) -> np.dtype:
    """The dtype in which a slot of the dtype `own` is stored if `dtype` is asked for.

    None asks for none, and a complex slot stays complex.
    """
    if dtype is None:
        return jnp.dtype(own)
    return compute_dtype(dtype, own) if is_complex(own) else jnp.dtype(dtype)


def like_number(count: jax.Array, number: Any) -> jax.Array:
    """A count in the dtype of a hyperparameter, to compare it with."""
    return cast(count, dtype_of(number))


def cast_numbers(tree: PyTree, dtype: Any) -> PyTree:
    """Every hyperparameter of an optimizer in one real dtype.

    Known numbers become NumPy scalars, so that a rule's expressions in them alone (`1 - b1`) are
    evaluated while tracing, in the arithmetic of `dtype`.
    """
    known = np.dtype(dtype).type
    return jax.tree.map(lambda x: known(x) if isinstance(x, float) else cast(x, dtype), tree)
