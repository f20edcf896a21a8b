"""Inverse roots of symmetric matrices: by their eigenvalues, or by products alone."""

from functools import partial
from math import ceil, log, log1p
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.dtypes import compute_dtype, real_dtype
from optfn.linalg.adjoint import adjoint
from optfn.linalg.lapack import eigh


@jax.jit
def inverse_root(a: jax.Array, p: Any, eps: Any = 0.0) -> jax.Array:
    """The p-th inverse root of symmetric matrices that have no negative eigenvalues.

        a^(-1/p) = Q (w - min(0, least w) + eps)^(-1/p) Q^T        for a = Q w Q^T

    The eigenvalues are raised by eps, and before that, where rounding made the least one negative,
    by as much. So no direction has a larger root than eps^(-1/p), and rows of zeros (a padding)
    change nothing for the others. With eps = 0 it is the root of the pseudo-inverse: directions
    without a component, within rounding, have 0.

    Its derivative is that of the function of the matrix, which is finite also where eigenvalues
    coincide, as the derivatives of single eigenvectors are not.

    Args:
        a: `[..., n, n]`, one matrix or a stack, of which the lower triangles and the diagonals are
            read. Hermitian if complex.
        p: any positive number, not only whole ones; it may be traced.
        eps: a number that is not negative; it may be traced.

    Returns:
        An array like `a`.

    Source: Anil et al. 2020 and Shi et al. 2023, who raise the eigenvalues so.
    """
    _check_square("inverse_root", a)
    if not a.size:
        return a
    wide = a.astype(compute_dtype(a.dtype))
    number = partial(jnp.asarray, dtype=real_dtype(wide.dtype))
    return _by_eigenvalues(wide, number(p), number(eps)).astype(a.dtype)


@jax.custom_jvp
def _by_eigenvalues(a: jax.Array, p: jax.Array, eps: jax.Array) -> jax.Array:
    _, q, root = _roots_of_eigenvalues(a, p, eps)
    return (q * root[..., None, :]) @ adjoint(q)


@_by_eigenvalues.defjvp
def _by_eigenvalues_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    a, p, eps = primals
    da, dp, deps = tangents
    w, q, root = _roots_of_eigenvalues(a, p, eps)
    safe = jnp.where(root == 0, 1, w)
    slope = -root / (p * safe)
    own = slope * deps + root * jnp.log(safe) / p**2 * dp
    # Daleckii and Krein: quotients of differences, and slopes where two eigenvalues coincide.
    far = w[..., :, None] - w[..., None, :]
    near = jnp.abs(far) <= jnp.finfo(w.dtype).eps ** 0.5 * jnp.maximum(
        w[..., :, None], w[..., None, :]
    )
    quotient = (root[..., :, None] - root[..., None, :]) / jnp.where(near, 1, far)
    mean = (slope[..., :, None] + slope[..., None, :]) / 2
    da = (da + adjoint(da)) / 2
    inside = jnp.where(near, mean, quotient) * (adjoint(q) @ da @ q)
    along = (q * own[..., None, :]) @ adjoint(q)
    return (q * root[..., None, :]) @ adjoint(q), q @ inside @ adjoint(q) + along


def _roots_of_eigenvalues(a: jax.Array, p: jax.Array, eps: jax.Array) -> tuple[Any, ...]:
    """The raised eigenvalues, the eigenvectors, and the inverse roots of the former."""
    w, q = eigh(a)
    least, most = w[..., :1], w[..., -1:]
    w = w - jnp.minimum(least, 0) + eps
    rounded = w.shape[-1] * jnp.finfo(w.dtype).eps * most
    present = w > jnp.where(eps == 0, jnp.maximum(rounded, 0), 0)
    root = jnp.where(present, jnp.where(present, w, 1) ** (-1 / p), 0)
    # A comparison would hide what is not finite.
    return w, q, root + 0 * w


@partial(jax.jit, static_argnames=("p",))
def inverse_root_newton(a: jax.Array, p: int, eps: Any = 0.0) -> jax.Array:
    """`inverse_root` by the coupled iteration of Newton: products only, for accelerators.

        M = z (a + eps I),   X = z^(1/p) I,          z = (p + 1) / (2 ||a + eps I||)
        T = ((p + 1) I - M) / p,   X <- X T,   M <- T^p M          until M = I

    The number of steps is fixed, by p and the precision: as many as the smallest eigenvalue that
    rounding leaves needs, about 25 in single and 50 in double precision. So it has derivatives of
    both kinds and takes equally long for all matrices of a stack; a matrix that converged early
    stays.

    Eigenvalues must not be negative: eps is at least n times the unit roundoff of `a` times the
    norm, with n rows. Where smaller eigenvalues matter use `inverse_root`.

    Args:
        a: `[..., n, n]`, symmetric with no negative eigenvalues; one matrix or a stack.
        p: a positive whole number.
        eps: added to the eigenvalues; it may be traced.

    Returns:
        An array like `a`; the root of a zero matrix without eps is zero.

    Source: Iannazzo 2006; Anil et al. 2020.
    """
    _check_square("inverse_root_newton", a)
    if isinstance(p, bool) or int(p) != p or p < 1:
        raise ValueError(f"inverse_root_newton(p=...) must be a positive whole number, found {p}.")
    if not a.size:
        return a
    p = int(p)
    wide = a.astype(compute_dtype(a.dtype))
    unit = jnp.finfo(a.dtype).eps
    eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=wide.dtype), wide.shape)
    largest = jnp.max(jnp.abs(wide), (-2, -1), keepdims=True)
    scale = jnp.where(largest == 0, 1, largest)
    wide, eps = wide / scale, jnp.asarray(eps, scale.dtype) / scale
    norm = jnp.sqrt(jnp.sum(jnp.abs(wide) ** 2, (-2, -1), keepdims=True))
    eps = jnp.maximum(eps, a.shape[-1] * unit * norm)
    norm = norm + eps
    z = (p + 1) / (2 * jnp.where(norm == 0, 1, norm))

    def step(carry, _):
        x, m = carry
        t = ((p + 1) * eye - m) / p
        return (x @ t, jnp.linalg.matrix_power(t, p) @ m), None

    start = z ** (1 / p) * eye, z * (wide + eps * eye)
    # Each step brings a small eigenvalue ((p + 1) / p)^p nearer to 1; then the error is squared.
    steps = ceil(-log(unit) / (p * log1p(1 / p))) + 6
    (x, _), _ = lax.scan(step, start, length=steps)
    return (jnp.where(norm == 0, 0, x) / scale ** (1 / p)).astype(a.dtype)


def _check_square(where: str, a: jax.Array) -> None:
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"{where}(a) needs square matrices, found an array of shape {a.shape}.")
