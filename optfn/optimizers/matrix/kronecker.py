"""What preconditioners that are Kronecker products have in common."""

from functools import partial
from math import exp
from typing import Any

import jax
import jax.numpy as jnp

from optfn import schedules
from optfn.core.control_flow import refreshed
from optfn.core.data import static
from optfn.core.dtypes import real_dtype
from optfn.core.matrixwise import Matrixwise
from optfn.core.numerics import abs_sq, norms_along, ratio
from optfn.core.placement import Along
from optfn.core.turns import Turn, delay
from optfn.linalg import adjoint

# That of `kron_torch`: at each step up to step 500, then ever more rarely until step 4000.
UPDATE_PROBABILITY = schedules.exponential(1.0, 1000, exp(-1), transition_begin=500, end_value=0.03)


class Kronecker(Matrixwise):
    """Multiplies each matrix by a factor of its rows and one of its columns, updated now and then.

        u = L^H L g R^H R

    A subclass has slots `left`, `right` and `count`, and defines `renewed`.
    """

    preconditioner_update_probability: Any = UPDATE_PROBABILITY
    precond_lr: Any = 0.1
    max_size_triangular: int = static(default=8192, kw_only=True)
    memory_save_mode: str = static(
        default="none", choices=("none", "smart_one_diag", "one_diag", "all_diag"), kw_only=True
    )

    def renewed(self, g: jax.Array, slots: Any, key: Any) -> tuple[jax.Array, Any]:
        """The gradient to precondition and the slots, after an update of the factors.

        Args:
            g: the gradient.
            slots: the slots.
            key: for random numbers, None unless the rule is `random`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define renewed.")

    def first_factors(self, param: jax.Array, scale: Any) -> tuple[Along, Along]:
        """A multiple of the identity for each side, or its diagonal."""

        def factor(axis, is_diagonal):
            diagonal = scale * jnp.ones(param.shape[axis], real_dtype(param.dtype))
            if is_diagonal:
                return Along(diagonal, (axis,))
            return Along(jnp.diag(diagonal).astype(param.dtype), (axis, None))

        rows, columns = self._diagonal(param.shape)
        return factor(0, rows), factor(1, columns)

    def _diagonal(self, sides: tuple[int, ...]) -> list[bool]:
        """Of each side whether its factor is diagonal."""
        longer = 1 if sides[0] <= sides[1] else 0
        saved = {
            "none": (),
            "smart_one_diag": (longer,) if sides[0] != sides[1] else (),
            "one_diag": (longer,),
            "all_diag": (0, 1),
        }[self.memory_save_mode]
        long = self.max_size_triangular
        return [n <= 1 or n > long or axis in saved for axis, n in enumerate(sides)]

    refreshes = True

    def update_matrix(
        self,
        g: jax.Array,
        slots: Any,
        param: Any,
        t: jax.Array,
        *,
        key: jax.Array | None = None,
        turn: Turn | None = None,
    ) -> tuple[jax.Array, Any]:
        due, count = counted(slots.count, self.preconditioner_update_probability, turn)
        # Zeros say nothing about the size of gradients, and would let the factors grow.
        known = due & jnp.any(g != 0)
        g, slots = refreshed(known, lambda: self.renewed(g, slots, key), (g, slots))
        inner = times(slots.left, g, slots.right)
        u = times(_adjoint(slots.left), inner, _adjoint(slots.right))
        return u, slots._replace(count=count)


def counted(
    count: jax.Array, probability: Any, turn: Turn | None = None
) -> tuple[jax.Array, jax.Array]:
    """Whether a leaf is due, and the number of steps since 1 / probability of them were over."""
    count, enough = count + 1, 1 - 1e-6  # 49 * (1 / 49) < 1
    count = jnp.where(count * probability >= enough, 0, count)
    return count == delay(jnp.ceil(enough / probability), turn), count


def times(left: jax.Array, g: jax.Array, right: jax.Array) -> jax.Array:
    """left g right^T, where a vector is the diagonal of a matrix."""
    return _on_rows(right, _on_rows(left, g).T).T


def _on_rows(q: jax.Array, g: jax.Array) -> jax.Array:
    return q[:, None] * g if q.ndim == 1 else q @ g


def _adjoint(q: jax.Array) -> jax.Array:
    return q if q.ndim == 1 else adjoint(q)


def gram(q: jax.Array, a: jax.Array) -> jax.Array:
    """a a^H, or its diagonal if that of the factor q is all there is."""
    return jnp.sum(abs_sq(a), axis=1) if q.ndim == 1 else a @ adjoint(a)


def balanced(left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Factors of the same product and of equal size, so that neither leaves the dtype's range."""
    shift = jnp.sqrt(jnp.max(jnp.abs(right)) / jnp.max(jnp.abs(left)))
    return left * shift, right / shift


@partial(jax.jit, static_argnames=("steps",))
def spectral_norm_bound(x: jax.Array, steps: int = 2) -> jax.Array:
    """A lower bound of the largest singular value of symmetric or skew-symmetric matrices.

    By the power iteration, from the column of largest norm; so of a matrix of rank one it is exact,
    and never below that column's norm.

    Args:
        x: `[..., n, n]`, one matrix or a stack, equal to its adjoint or to minus its adjoint.
        steps: the number of products with x.

    Returns:
        An array `[..., 1, 1]`, real; 0 for a matrix of zeros.
    """
    norm = norms_along((-2, -1), x)
    x = ratio(x, norm.scale)
    sizes = norms_along(-2, x).value
    largest = jnp.argmax(sizes, axis=-1, keepdims=True)
    v = jnp.take_along_axis(x, largest, axis=-1)
    for _ in range(steps):
        v = x @ ratio(v, norms_along(-2, v).value)
    return norm.scale * norms_along(-2, v).value
