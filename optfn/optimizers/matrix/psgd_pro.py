"""PRO: PSGD, whose preconditioner is a Kronecker product and fitted by products alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.data import static
from optfn.core.dtypes import real_dtype
from optfn.core.numerics import abs_sq, ratio
from optfn.core.tree import PyTree
from optfn.linalg import adjoint
from optfn.optimizers.elementwise.adam import adamw
from optfn.optimizers.matrix.kronecker import (
    UPDATE_PROBABILITY,
    Kronecker,
    balanced,
    gram,
    spectral_norm_bound,
    times,
)
from optfn.transforms.clip import clip
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrices import clip_by_matrix_rms
from optfn.transforms.momentum import ema
from optfn.transforms.scale import scale_by_learning_rate

# The number of products by which a spectral norm is estimated, and the longest rotation.
PRODUCTS, LONGEST = 4, 1 / 8


class ProFactors(NamedTuple):
    """The factors of rows and columns, the curvature of the fit of each, and steps since then."""

    left: PyTree
    right: PyTree
    left_bound: PyTree
    right_bound: PyTree
    count: PyTree


class whiten_by_pro(Kronecker):
    """Whitens each matrix by a Kronecker product, fitted without probes and triangular solves.

        u = L^T L g R^T R        the covariance of u over time becomes the identity

    Now and then, with r rows and c columns:

        H = L^T L g R^T R
        l <- max(beta_lip * l + (1 - beta_lip) * s, s)        s = ||H H^T|| + c
        L <- L - precond_lr / l * (H H^T - c I) L, rotated towards a symmetric positive matrix

    and R likewise with H^T H and r; then both are scaled to be of equal size. The rotation is one
    step of the Procrustes problem, min_U ||U L - I||. In place of noise in g, of standard deviation
    damping + eps |g|, its mean is added to H H^T: it bounds L^T L R^T R by 1 / damping. When it is
    due is counted, as in `whiten_by_kron`. Leaves that are no matrices pass unchanged.

    Args:
        preconditioner_update_probability: one over the number of steps between updates of L and R,
            a number or a schedule.
        precond_lr: the learning rate of L and R.
        beta_lip: the share that is kept of l where it falls, a number or a schedule.
        damping: the standard deviation of the noise.
        precond_init_scale: L and R start as the root of it times the identity; None takes it from
            the first gradient, (mean g^4 + damping^4)^(-1/8).
        max_size_triangular: a longer side has a diagonal factor.
        memory_save_mode: which sides else have: "none", "one_diag" the longer one,
            "smart_one_diag" the longer one unless they are equal, "all_diag" both.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Li 2024, "Stochastic Hessian fittings with Lie groups", the coordinates
    Q^0.5 E Q^1.5 of his `psgd_torch`.
    """

    beta_lip: Any = 0.9
    damping: Any = 1e-9
    precond_init_scale: Any = None
    memory_save_mode: str = static(
        default="smart_one_diag",
        choices=("none", "smart_one_diag", "one_diag", "all_diag"),
        kw_only=True,
    )

    Slots = ProFactors

    def init_matrix(self, param: jax.Array) -> ProFactors:
        scale = 1 if self.precond_init_scale is None else jnp.sqrt(self.precond_init_scale)
        zero = jnp.zeros((), real_dtype(param.dtype))
        return ProFactors(*self.first_factors(param, scale), zero, zero, zero)

    def renewed(self, g: jax.Array, slots: ProFactors, key: jax.Array) -> Any:
        left, right, left_bound, right_bound, count = slots
        if self.precond_init_scale is None:
            first = jnp.where(left_bound == 0, jnp.sqrt(_first_scale(g, self.damping)), 1)
            left, right = left * first, right * first
        p, q = _square(left), _square(right)
        deviation = self.damping + jnp.finfo(g.dtype).eps * jnp.abs(g)
        h = _limited(times(p, g, q))
        left, left_bound = self._fitted(left, left_bound, h, _of_noise(p, deviation, q))
        right, right_bound = self._fitted(right, right_bound, h.T, _of_noise(q, deviation.T, p))
        return g, ProFactors(*balanced(left, right), left_bound, right_bound, count)

    def _fitted(self, q: Any, bound: Any, h: Any, noise: Any) -> tuple[Any, ...]:
        """A step of the factor of the rows towards h h^H = c I, and its curvature."""
        found, wanted = gram(q, h) + noise, h.shape[1]
        size = jnp.max(found) if q.ndim == 1 else jnp.max(spectral_norm_bound(found, PRODUCTS))
        size = size + wanted
        bound = jnp.maximum(self.beta_lip * bound + (1 - self.beta_lip) * size, size)
        rate = self.precond_lr / bound
        if q.ndim == 1:
            return q - rate * (found - wanted) * q, bound
        return _rotated(q - rate * (found @ q - wanted * q)), bound


def _first_scale(g: jax.Array, damping: Any) -> jax.Array:
    """(mean |g|^4 + damping^4)^(-1/8), in any range."""
    size = jnp.abs(g)
    largest = jnp.maximum(jnp.max(size), damping)
    largest = jnp.where(largest == 0, 1, largest)
    relative = jnp.mean((size / largest) ** 4) + (damping / largest) ** 4
    relative = jnp.where(relative == 0, 1, relative)
    return relative ** (-1 / 8) / jnp.sqrt(largest)


def _square(q: jax.Array) -> jax.Array:
    return abs_sq(q) if q.ndim == 1 else adjoint(q) @ q


def _of_noise(p: jax.Array, deviation: jax.Array, other: jax.Array) -> jax.Array:
    """The mean of h h^H, or its diagonal, of h = p n other^T with n of this standard deviation."""
    size = jnp.max(deviation)
    size = jnp.where(size == 0, 1, size)
    columns = abs_sq(other) if other.ndim == 1 else jnp.sum(abs_sq(other), axis=0)
    weights = jnp.square(deviation / size) @ columns
    scaled = _limited(p * size)
    if p.ndim == 1:
        return jnp.square(scaled) * weights
    return (scaled * weights[None]) @ adjoint(scaled)


def _limited(h: jax.Array) -> jax.Array:
    """A larger one would overflow when squared; the step is as long then as it can be."""
    limit = float(jnp.finfo(h.dtype).max) ** 0.3
    largest = jnp.max(jnp.abs(h))
    return jnp.where(largest > limit, h / largest * limit, h)


def _rotated(q: jax.Array) -> jax.Array:
    """A step of rotation towards the symmetric positive factor: exp(a r) q to second order.

    Along r = q^H - q, of norm 1, trace(exp(a r) q) grows; a is where a parabola would be largest.
    """
    r = adjoint(q) - q
    r = ratio(r, spectral_norm_bound(r, PRODUCTS))
    rq = r @ q
    rrq = r @ rq
    slope, bend = jnp.trace(rq).real, jnp.trace(rrq).real
    peak = jnp.where(bend < 0, -slope / jnp.where(bend < 0, bend, 1), LONGEST)
    a = jnp.clip(peak, 0, LONGEST)
    return q + a * (rq + 0.5 * a * rrq)


def scale_by_psgd_pro(
    b1: Any = 0.9,
    preconditioner_update_probability: Any = UPDATE_PROBABILITY,
    precond_lr: Any = 0.1,
    beta_lip: Any = 0.9,
    damping: Any = 1e-9,
    precond_init_scale: Any = None,
    *,
    max_size_triangular: int = 8192,
    memory_save_mode: str = "smart_one_diag",
    max_update_rms: Any = 2.0,
    max_update: Any = 10.0,
    views: Any = None,
) -> chain:
    """The direction of PSGD PRO: the average gradient of each matrix, whitened and limited.

        chain(ema(b1), whiten_by_pro(...), clip_by_matrix_rms(max_update_rms), clip(max_update))

    Args:
        b1: the share of the average that is kept, a number or a schedule.
        preconditioner_update_probability: one over the number of steps between updates of the
            factors, a number or a schedule.
        precond_lr: the learning rate of the factors.
        beta_lip: how slowly their learning rate recovers; see `whiten_by_pro`.
        damping: the preconditioner is at most one over it.
        precond_init_scale: what the preconditioner's root starts from, times the identity; None
            takes it from the first gradient.
        max_size_triangular: a longer side has a diagonal factor.
        memory_save_mode: which sides else have one; see `whiten_by_pro`.
        max_update_rms: the limit of the root mean square of each matrix.
        max_update: the limit of each entry.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.
    """
    return chain(
        ema(b1),
        whiten_by_pro(
            preconditioner_update_probability,
            precond_lr,
            beta_lip,
            damping,
            precond_init_scale,
            max_size_triangular=max_size_triangular,
            memory_save_mode=memory_save_mode,
            views=views,
        ),
        clip_by_matrix_rms(max_update_rms, views=views),
        clip(max_update),
    )


def psgd_pro(
    learning_rate: Any = 1e-3,
    b1: Any = 0.9,
    preconditioner_update_probability: Any = UPDATE_PROBABILITY,
    precond_lr: Any = 0.1,
    beta_lip: Any = 0.9,
    damping: Any = 1e-9,
    precond_init_scale: Any = None,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    *,
    max_size_triangular: int = 8192,
    memory_save_mode: str = "smart_one_diag",
    max_update_rms: Any = 2.0,
    max_update: Any = 10.0,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """PSGD PRO: `kron` without random probes and triangular solves, all products.

    The successor that Kron's author recommends: the same whitening of the momentum, but what it
    takes is products of matrices, which are fast on accelerators and right in low precision, and
    nothing is random. Its factors are full matrices, nearly symmetric.

        m <- b1 * m + (1 - b1) * g
        u = L^T L m' R^T R, shrunk to a root mean square of max_update_rms, entries to max_update
        p <- p - learning_rate * (u + weight_decay * p)

    With m' = m / (1 - b1^t), and L and R fitted so that the covariance of L^T L m' R^T R is the
    identity; see `whiten_by_pro`.

    Args:
        learning_rate: a number or a schedule.
        b1: the share of the average that is kept, a number or a schedule.
        preconditioner_update_probability: one over the number of steps between updates of the
            factors, a number or a schedule; by default that of `kron`.
        precond_lr: the learning rate of the factors.
        beta_lip: how slowly their learning rate recovers from a large gradient; nearer to 1 for
            gradients that are mostly zero.
        damping: the preconditioner is at most one over it.
        precond_init_scale: what the preconditioner's root starts from, times the identity; None
            takes it from the first gradient.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        max_size_triangular: a longer side has a diagonal factor.
        memory_save_mode: which sides else have one; by default the longer one. See `whiten_by_pro`.
        max_update_rms: the limit of the root mean square of each matrix.
        max_update: the limit of each entry.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; `adamw(learning_rate, weight_decay=0.0)` by
            default.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Li 2024, "Stochastic Hessian fittings with Lie groups"; his `psgd_torch`.
    """
    return partition_matrices(
        chain(
            scale_by_psgd_pro(
                b1,
                preconditioner_update_probability,
                precond_lr,
                beta_lip,
                damping,
                precond_init_scale,
                max_size_triangular=max_size_triangular,
                memory_save_mode=memory_save_mode,
                max_update_rms=max_update_rms,
                max_update=max_update,
                views=views,
            ),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        adamw(learning_rate, weight_decay=0.0) if rest is None else rest,
        views,
    )
