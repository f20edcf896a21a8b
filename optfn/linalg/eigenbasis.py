"""Eigenvectors of symmetric matrices: exactly, or followed by a step of power iteration."""

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.dtypes import compute_dtype
from optfn.linalg.lapack import eigh, qr


@jax.jit
def eigenbasis(a: jax.Array) -> jax.Array:
    """The eigenvectors of symmetric matrices as columns, the largest eigenvalue first.

    Always an orthonormal basis, of zero and of singular matrices too. Its derivative is that of the
    eigenvectors where they are determined; between eigenvalues that rounding cannot tell apart it
    is zero instead of infinite.

    Args:
        a: `[..., n, n]`, symmetric or Hermitian, one matrix or a stack, of any scale.

    Returns:
        An array like `a`.
    """
    _check_square(a, "eigenbasis(a)")
    if not a.size:
        return a
    wide = _of_common_scale(a)
    return jnp.flip(eigh(wide)[1], axis=-1).astype(a.dtype)


@jax.jit
def power_step(a: jax.Array, q: jax.Array) -> jax.Array:
    """A basis nearer to the eigenvectors of symmetric matrices: the orthogonal factor of `a @ q`.

    One step of orthogonal iteration, which costs a product and a QR decomposition. Repeated, it
    converges to the eigenvectors in the order of their eigenvalues; see `refined_eigenbasis` for
    matrices in which that order changes.

    Args:
        a: `[..., n, n]`, symmetric or Hermitian, one matrix or a stack, of any scale.
        q: `[..., n, n]`, orthonormal bases.

    Returns:
        An array like `q`, orthonormal even where `a` is singular.
    """
    _check_square(a, "power_step(a, q)")
    if not a.size:
        return q
    wide = q.astype(compute_dtype(q.dtype))
    return qr(_of_common_scale(a) @ wide)[0].astype(q.dtype)


@jax.jit
def refined_eigenbasis(a: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A `power_step` whose basis is first put into the order of the eigenvalues it estimates.

        order = by the diagonal of q^T a q, the largest first
        q <- the orthogonal factor of a @ q[:, order]

    For matrices that change slowly, whose eigenvectors are then followed much more cheaply than
    computed.

    Args:
        a: `[..., n, n]`, symmetric or Hermitian, one matrix or a stack, of any scale.
        q: `[..., n, n]`, orthonormal bases, such as those of earlier matrices.

    Returns:
        The new bases, like `q` and orthonormal even where `a` is singular, and the order, an
        integer array `[..., n]`: column i continues column `order[i]` of `q`, so what is kept for
        each column is permuted by it.

    Source: Vyas et al. 2025 (SOAP).
    """
    _check_square(a, "refined_eigenbasis(a, q)")
    if not a.size:
        return q, jnp.zeros(a.shape[:-1], int)
    wide = q.astype(compute_dtype(q.dtype))
    product = _of_common_scale(a) @ wide
    estimates = jnp.sum((wide.conj() * product).real, axis=-2)
    order = jnp.argsort(estimates, axis=-1, descending=True)
    product = jnp.take_along_axis(product, order[..., None, :], axis=-1)
    return qr(product)[0].astype(q.dtype), order


def _check_square(a: jax.Array, call: str) -> None:
    if a.ndim < 2 or a.shape[-2] != a.shape[-1]:
        raise ValueError(f"{call} needs square matrices, found an array of shape {a.shape}.")


def _of_common_scale(a: jax.Array) -> jax.Array:
    """Each matrix with a largest entry of about 1, so that no product of two leaves the range."""
    wide = a.astype(compute_dtype(a.dtype))
    largest = jnp.max(jnp.abs(wide), axis=(-2, -1), keepdims=True)
    # A power of two, which changes no bit of a mantissa.
    _, exponent = jnp.frexp(lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 1)))
    half = exponent // 2
    one = jnp.ones_like(largest)
    return wide * jnp.ldexp(one, -half) * jnp.ldexp(one, half - exponent)
