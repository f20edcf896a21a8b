"""Kron: PSGD, whose preconditioner is a Kronecker product of triangular factors and whitens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.control_flow import refreshed
from optfn.core.dtypes import real_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import full_like_real
from optfn.core.numerics import norms_along
from optfn.core.randomness import seed
from optfn.core.tree import PyTree
from optfn.linalg.lapack import solve_adjoint
from optfn.optimizers.matrix.kronecker import (
    UPDATE_PROBABILITY,
    Kronecker,
    balanced,
    counted,
    gram,
    spectral_norm_bound,
    times,
)
from optfn.transforms.clip import clip_by_block_rms
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrices import clip_by_matrix_rms
from optfn.transforms.momentum import ema
from optfn.transforms.scale import scale_by_learning_rate


class Factors(NamedTuple):
    """The factors of rows and columns, and the number of steps since their last update."""

    left: PyTree
    right: PyTree
    count: PyTree


class whiten_by_kron(Kronecker):
    """Whitens each matrix by a Kronecker product, which is fitted on a Lie group (PSGD).

        u = L^T L g R^T R        the covariance of u over time becomes the identity

    L and R are upper triangular. Now and then, with random V of independent normal numbers:

        g <- g + sqrt(eps) * mean |g| * V        eps of float32
        A = L g R^T        B = L^-T V R^-1
        L <- L - precond_lr * triu(A A^T - B B^T) L / ||A A^T + B B^T||
        R <- R - precond_lr * triu(A^T A - B^T B) R / ||A^T A + B^T B||

    and both are scaled to be of equal size. A step counter, no coin, says when: as soon as there
    were 1 / probability steps since the last time. `kron` puts momentum before it and a limit
    behind. Leaves that are no matrices pass unchanged.

    Args:
        preconditioner_update_probability: one over the number of steps between updates of L and R,
            a number or a schedule.
        precond_lr: the learning rate of L and R.
        precond_init_scale: L and R start as the root of it times the identity.
        seed: of V, a whole number below 2^24 or a random key.
        max_size_triangular: a longer side has a diagonal factor.
        memory_save_mode: which sides else have: "none", "one_diag" the longer one,
            "smart_one_diag" the longer one unless they are equal, "all_diag" both.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Li 2018, "Preconditioned stochastic gradient descent"; Pooladzandi and Li 2024.
    """

    random = True

    precond_init_scale: Any = 1.0
    seed: Any = seed()

    Slots = Factors

    def init_matrix(self, param: jax.Array) -> Factors:
        count = jnp.zeros((), real_dtype(param.dtype))
        return Factors(*self.first_factors(param, jnp.sqrt(self.precond_init_scale)), count)

    def renewed(self, g: jax.Array, slots: Factors, key: jax.Array) -> Any:
        left, right, count = slots
        v = jax.random.normal(key, g.shape, g.dtype)
        g = _noisy(g, v)
        a = times(left, g, right)
        b = _divided(right, _divided(left, v).T).T
        size = jnp.maximum(norms_along(None, a).scale, norms_along(None, b).scale)
        a, b = a / size, b / size
        left = _fitted(left, a, b, self.precond_lr)
        right = _fitted(right, a.T, b.T, self.precond_lr)
        return g, Factors(*balanced(left, right), count)


def _noisy(g: jax.Array, v: jax.Array) -> jax.Array:
    return g + float(jnp.finfo(jnp.float32).eps) ** 0.5 * jnp.mean(jnp.abs(g)) * v


def _divided(q: jax.Array, x: jax.Array) -> jax.Array:
    """q^-H x."""
    return x / q[:, None] if q.ndim == 1 else solve_adjoint(q, x)


def _fitted(q: jax.Array, a: jax.Array, b: jax.Array, rate: Any) -> jax.Array:
    """A step of the factor of the rows towards a a^H = b b^H."""
    forward, backward = gram(q, a), gram(q, b)
    if q.ndim == 1:
        return q - rate * ((forward - backward) / jnp.max(forward + backward)) * q
    step = jnp.triu(forward - backward) / spectral_norm_bound(forward + backward)
    return q - rate * step @ q


class Diagonal(NamedTuple):
    """The factor of each entry, and the number of steps since its last update."""

    factor: PyTree
    count: PyTree


class whiten_entries_by_kron(Leafwise):
    """Whitens each entry alone, for vectors: `whiten_by_kron` with a diagonal preconditioner.

        u = q^2 * g        q <- q - precond_lr * q * (A^2 - B^2) / max(A^2 + B^2)

    with A = q * g and B = V / q, when it is due.

    Args:
        preconditioner_update_probability: one over the number of steps between updates of q, a
            number or a schedule.
        precond_lr: the learning rate of q.
        precond_init_scale: the first q.
        seed: of V, a whole number below 2^24 or a random key.

    Source: Li 2018, "Preconditioned stochastic gradient descent".
    """

    random = True

    preconditioner_update_probability: Any = UPDATE_PROBABILITY
    precond_lr: Any = 0.1
    precond_init_scale: Any = 1.0
    seed: Any = seed()

    Slots = Diagonal

    def init_leaf(self, param: jax.Array) -> Diagonal:
        count = jnp.zeros((), real_dtype(param.dtype))
        return Diagonal(full_like_real(param, self.precond_init_scale), count)

    def update_leaf(
        self, g: jax.Array, slots: Diagonal, param: Any, t: jax.Array, *, key: Any = None
    ) -> tuple[jax.Array, Diagonal]:
        due, count = counted(slots.count, self.preconditioner_update_probability)

        def renewed():
            v = jax.random.normal(key, g.shape, g.dtype)
            noisy, q = _noisy(g, v), slots.factor
            a, b = q * jnp.abs(noisy), jnp.abs(v) / q
            size = jnp.maximum(norms_along(None, a).scale, norms_along(None, b).scale)
            a, b = jnp.square(a / size), jnp.square(b / size)
            return noisy, q - self.precond_lr * q * ((a - b) / jnp.max(a + b))

        if not g.size:
            return g, slots
        g, q = refreshed(due & jnp.any(g != 0), renewed, (g, slots.factor))
        return q * q * g, Diagonal(q, count)


def scale_by_kron(
    b1: Any = 0.9,
    preconditioner_update_probability: Any = UPDATE_PROBABILITY,
    precond_lr: Any = 0.1,
    precond_init_scale: Any = 1.0,
    seed: Any = 0,
    *,
    max_size_triangular: int = 8192,
    memory_save_mode: str = "none",
    max_update_rms: Any = 1.1,
    views: Any = None,
) -> chain:
    """The direction of Kron: the average gradient of each matrix, whitened and limited.

        chain(ema(b1), whiten_by_kron(...), clip_by_matrix_rms(max_update_rms))

    Args:
        b1: the share of the average that is kept, a number or a schedule.
        preconditioner_update_probability: one over the number of steps between updates of the
            factors, a number or a schedule.
        precond_lr: the learning rate of the factors.
        precond_init_scale: what the preconditioner's root starts from, times the identity.
        seed: a whole number below 2^24 or a random key.
        max_size_triangular: a longer side has a diagonal factor.
        memory_save_mode: which sides else have one; see `whiten_by_kron`.
        max_update_rms: the limit of the root mean square of each matrix.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.
    """
    return chain(
        ema(b1),
        whiten_by_kron(
            preconditioner_update_probability,
            precond_lr,
            precond_init_scale,
            seed,
            max_size_triangular=max_size_triangular,
            memory_save_mode=memory_save_mode,
            views=views,
        ),
        clip_by_matrix_rms(max_update_rms, views=views),
    )


def kron(
    learning_rate: Any = 3e-4,
    b1: Any = 0.9,
    preconditioner_update_probability: Any = UPDATE_PROBABILITY,
    precond_lr: Any = 0.1,
    precond_init_scale: Any = 1.0,
    seed: Any = 0,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    *,
    max_size_triangular: int = 8192,
    memory_save_mode: str = "none",
    max_update_rms: Any = 1.1,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """PSGD Kron: momentum, whitened by a Kronecker product that is fitted to the gradients.

    For matrices whose gradients are badly conditioned, at fewer settings than SOAP or Shampoo: it
    has no second decay rate and no eps, and takes no roots or eigenvectors. The factors are updated
    at each step for 500 steps, then more rarely. Each update has a triangular solve for each side,
    which is slow on accelerators; `psgd_pro` has none. The rate is about a third of AdamW's.

        m <- b1 * m + (1 - b1) * g
        u = L^T L m' R^T R, shrunk to a root mean square of max_update_rms
        p <- p - learning_rate * (u + weight_decay * p)

    With m' = m / (1 - b1^t), and L and R fitted so that the covariance of L^T L m' R^T R is the
    identity; see `whiten_by_kron`.

    Args:
        learning_rate: a number or a schedule.
        b1: the share of the average that is kept, a number or a schedule.
        preconditioner_update_probability: one over the number of steps between updates of the
            factors, a number or a schedule; by default 1 up to step 500, then falling by e over
            1000 steps to 0.03 at step 4000. Steps are counted; no coin is thrown.
        precond_lr: the learning rate of the factors.
        precond_init_scale: what the preconditioner's root starts from, times the identity.
        seed: of the probes by which the factors are fitted, a whole number below 2^24 or a random
            key.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        max_size_triangular: a longer side has a diagonal factor.
        memory_save_mode: which sides else have one; see `whiten_by_kron`.
        max_update_rms: the limit of the root mean square of each matrix.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default the same with a factor for each entry:
            `chain(ema(b1), whiten_entries_by_kron(...), clip_by_block_rms(max_update_rms),
            scale_by_learning_rate(learning_rate))`.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Li 2018, "Preconditioned stochastic gradient descent"; Pooladzandi and Li 2024; the
    defaults are those of `kron_torch`.
    """
    fitting = (preconditioner_update_probability, precond_lr, precond_init_scale, seed)
    entrywise = chain(
        ema(b1),
        whiten_entries_by_kron(*fitting),
        clip_by_block_rms(max_update_rms),
        scale_by_learning_rate(learning_rate),
    )
    return partition_matrices(
        chain(
            scale_by_kron(
                b1,
                *fitting,
                max_size_triangular=max_size_triangular,
                memory_save_mode=memory_save_mode,
                max_update_rms=max_update_rms,
                views=views,
            ),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        entrywise if rest is None else rest,
        views,
    )
