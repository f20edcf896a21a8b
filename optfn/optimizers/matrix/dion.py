"""Dion and Dion2: momentum orthogonalized in part, and the rest of it left for later."""

from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.data import numbers, static
from optfn.core.matrixwise import Matrixwise
from optfn.core.numerics import norms_along, ratio
from optfn.core.placement import Along
from optfn.core.randomness import key_at, seed
from optfn.core.slot_kinds import Signed
from optfn.core.tree import PyTree
from optfn.linalg import adjoint, orthogonalize, polynomials
from optfn.linalg.lapack import qr
from optfn.optimizers.elementwise.adam import adamw
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrices import scale_by_matrix_shape
from optfn.transforms.scale import scale_by_learning_rate


class DionSlots(NamedTuple):
    """What was not applied yet, and the subspace in which the last step lay."""

    momentum: Signed
    basis: PyTree


class scale_by_dion(Matrixwise):
    """The direction of Dion: orthonormal factors of a low rank, by one step of a power iteration.

        M <- M + g
        P = qr(M Q).Q        R = M^H P
        M <- M - (1 - mu) P R^H
        Q <- R, its columns divided by their norms + epsilon
        u = P Q^H

    Only what was applied decays, so that the rest of M is applied at later steps. A wide matrix is
    transposed first. Its singular values are 1 or 0 once the iteration has settled; before, the
    columns of Q are unit vectors but not orthogonal. Leaves that are no matrices pass unchanged.

    Args:
        rank_fraction: the rank as a share of the shorter side, above 0 and at most 1; rounded up.
        mu: the share of what was applied that is kept in M, a number or a schedule.
        epsilon: added to the norms of the columns, though never more than the norm of R.
        seed: of the normal numbers that Q starts from, a whole number below 2^24 or a random key.
            Matrices of one shape start from the same.
        rank_multiple_of: the rank is rounded up to a multiple of it, as far as the sides allow.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Raises:
        ValueError: rank_fraction is not in its range.

    Source: Ahn et al. 2025, "Dion: distributed orthonormalized updates".
    """

    rank_fraction: float = static(default=1.0)
    mu: Any = 0.95
    epsilon: Any = 1e-8
    seed: Any = seed()
    rank_multiple_of: int = static(default=1, kw_only=True)

    Slots = DionSlots

    def __post_init__(self) -> None:
        _check_share(self.rank_fraction, "scale_by_dion(rank_fraction=...)")
        super().__post_init__()

    def init_matrix(self, param: jax.Array) -> DionSlots:
        sides = param.shape
        longer = int(sides[0] < sides[1])
        multiple = self.rank_multiple_of
        rank = min(multiple * ceil(self.rank_fraction * min(sides) / multiple), *sides)
        key = key_at(self.seed, 0, "scale_by_dion(seed=...)")
        basis = jax.random.normal(key, (sides[1 - longer], rank), param.dtype)
        return DionSlots(jnp.zeros_like(param), Along(basis, (1 - longer, None)))

    def update_matrix(
        self, g: jax.Array, slots: DionSlots, param: Any, t: jax.Array
    ) -> tuple[jax.Array, DionSlots]:
        m = slots.momentum + g
        is_wide = m.shape[0] < m.shape[1]
        x = adjoint(m) if is_wide else m
        scale = norms_along((0, 1), x).scale
        x = x / scale
        p, _ = qr(x @ slots.basis)
        r = adjoint(x) @ p
        q, basis = _normalized_columns(r, self.epsilon / scale, slots.basis)
        u, applied = p @ adjoint(q), p @ adjoint(r) * scale
        if is_wide:
            u, applied = adjoint(u), adjoint(applied)
        return u, DionSlots(m - (1 - self.mu) * applied, basis)


def _normalized_columns(r: jax.Array, eps: Any, old: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The columns over their norms, zero where they are nothing but rounding, and the next basis.

    A direction without a gradient keeps its column of the old basis: one of zeros would leave the
    next direction to how the decomposition completes it.
    """
    norms, whole = norms_along(0, r).value, norms_along((0, 1), r).value
    counts = norms > jnp.finfo(norms.dtype).eps * max(r.shape) * whole
    q = jnp.where(counts, ratio(r, jnp.where(counts, norms + jnp.minimum(eps, whole), 1)), 0)
    return q, jnp.where(counts | jnp.isnan(norms), q, old)


def dion(
    learning_rate: Any,
    rank_fraction: float = 1.0,
    mu: Any = 0.95,
    epsilon: Any = 1e-8,
    seed: Any = 0,
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    *,
    rank_multiple_of: int = 1,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """Dion: orthonormal steps of low rank, whose remainder stays in the momentum.

    Where Muon's products of whole matrices cost too much, as for large models in many parts: at a
    rank of an eighth of the shorter side it computes with thin matrices only. At full rank it takes
    about as many steps as Muon, and more at lower ranks. For small models `muon` is simpler.

        M <- M + g;   P, Q the factors of M of low rank;   M <- M - (1 - mu) * what they hold of M
        p <- p - learning_rate * (sqrt(rows / columns) * P Q^T + weight_decay * p)

    Args:
        learning_rate: of the matrices, a number or a schedule: about 0.01, at any width.
        rank_fraction: the rank as a share of the shorter side; see `scale_by_dion`.
        mu: the share of what was applied that is kept.
        epsilon: added to the norms of the columns.
        seed: of the first basis, a whole number below 2^24 or a random key.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        rank_multiple_of: the rank is rounded up to a multiple of it.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; `adamw(3e-4, b2=0.95, weight_decay=0.0)` by
            default.

    Raises:
        ValueError: rank_fraction is not above 0 and at most 1; or at `init`, an array of three or
            more axes is not described by `views`.

    Source: Ahn et al. 2025, "Dion: distributed orthonormalized updates".
    """
    return _orthonormal(
        scale_by_dion(
            rank_fraction, mu, epsilon, seed, rank_multiple_of=rank_multiple_of, views=views
        ),
        learning_rate,
        weight_decay,
        weight_decay_mask,
        views,
        rest,
    )


class Dion2Slots(NamedTuple):
    """What was not applied yet."""

    momentum: Signed


class scale_by_dion2(Matrixwise):
    """The direction of Dion2: the largest rows of the momentum, orthogonalized.

        M <- M + g
        S = the k rows of M of largest sum |M_ij|        columns, if there are fewer of them
        u = orthogonalize(M[S]) in these rows, 0 in the others
        M[S] <- ef_decay * M[S]

    Rows that take no step keep all of their momentum. Leaves that are no matrices pass unchanged.

    Args:
        fraction: k as a share of the shorter side, above 0 and at most 1; rounded up.
        ef_decay: the share that is kept of the momentum of these rows, a number or a schedule.
        epsilon: added to the norm that is divided out, though never more than the norm itself.
        coefficients: the polynomials, as `linalg.polynomials` takes them.
        dtype: the dtype of the products; at least float32 by default.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Raises:
        ValueError: fraction is not in its range.

    Source: Ahn et al. 2025, arXiv 2512.16928.
    """

    fraction: float = static(default=0.25)
    ef_decay: Any = 0.95
    epsilon: Any = 1e-8
    coefficients: Any = numbers(default="polar_express")
    dtype: str | None = static(default=None, kw_only=True)

    Slots = Dion2Slots

    def __post_init__(self) -> None:
        _check_share(self.fraction, "scale_by_dion2(fraction=...)")
        object.__setattr__(self, "coefficients", polynomials(self.coefficients))
        super().__post_init__()

    def init_matrix(self, param: jax.Array) -> Dion2Slots:
        return Dion2Slots(jnp.zeros_like(param))

    def update_matrix(
        self, g: jax.Array, slots: Dion2Slots, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Dion2Slots]:
        m = slots.momentum + g
        is_tall = m.shape[0] > m.shape[1]
        rows = m.mT if is_tall else m
        _, largest = jax.lax.top_k(jnp.sum(jnp.abs(rows), axis=1), ceil(self.fraction * len(rows)))
        chosen = rows[largest]
        u = orthogonalize(chosen, self.coefficients, eps=self.epsilon, dtype=self.dtype)
        u = jnp.zeros_like(rows).at[largest].set(u)
        rows = rows.at[largest].set(self.ef_decay * chosen)
        return (u.mT, Dion2Slots(rows.mT)) if is_tall else (u, Dion2Slots(rows))


def dion2(
    learning_rate: Any,
    fraction: float = 0.25,
    ef_decay: Any = 0.95,
    epsilon: Any = 1e-8,
    coefficients: Any = "polar_express",
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    *,
    dtype: str | None = None,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """Dion2: orthogonalized steps of the rows with most momentum, which alone decays.

    Simpler than Dion and like Muon in all but cost: with `fraction=1.0` it is Muon without
    Nesterov's look ahead, and with a quarter of the rows the orthogonalization costs a quarter to a
    sixteenth. Where that is a small part of the step, as in small models, use `muon`.

        M <- M + g;   u = orthogonalize(the k largest rows of M);   those rows of M <- ef_decay * M
        p <- p - learning_rate * (sqrt(rows / columns) * u + weight_decay * p)

    Args:
        learning_rate: of the matrices, a number or a schedule: about 0.01, at any width.
        fraction: the share of the rows that step, of the columns if there are fewer of them.
        ef_decay: the share of their momentum that is kept.
        epsilon: added to the norm that is divided out.
        coefficients: the polynomials, as `linalg.polynomials` takes them.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        dtype: the dtype of the products; at least float32 by default.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; `adamw(3e-4, b2=0.95, weight_decay=0.0)` by
            default.

    Raises:
        ValueError: fraction is not above 0 and at most 1; or at `init`, an array of three or more
            axes is not described by `views`.

    Source: Ahn et al. 2025, arXiv 2512.16928.
    """
    return _orthonormal(
        scale_by_dion2(fraction, ef_decay, epsilon, coefficients, dtype=dtype, views=views),
        learning_rate,
        weight_decay,
        weight_decay_mask,
        views,
        rest,
    )


def _orthonormal(
    direction: Matrixwise,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any,
    views: Any,
    rest: optax.GradientTransformation | None,
) -> partition:
    return partition_matrices(
        chain(
            direction,
            scale_by_matrix_shape("spectral", views=views),
            add_decayed_weights(weight_decay, mask),
            scale_by_learning_rate(learning_rate),
        ),
        adamw(3e-4, b2=0.95, weight_decay=0.0) if rest is None else rest,
        views,
    )


def _check_share(value: Any, where: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"{where} must be a number above 0 and at most 1, found {value!r}.")
