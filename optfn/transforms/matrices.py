"""Stages for matrices that are not algorithms: orthogonalization and factors of their shape."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import numbers, per_leaf, static
from optfn.core.leafwise import Leafwise
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.matrixwise import Matrixwise
from optfn.core.numerics import norm_of, shrunk
from optfn.linalg import orthogonalize, polynomials
from optfn.linalg.orthogonal import Normalization

# By what the orthogonal factor of a matrix of r rows and c columns is multiplied.
SHAPE_FACTORS: dict[str, Callable[[int, int], float]] = {
    "width": lambda r, c: max(1, r / c) ** 0.5,
    "spectral": lambda r, c: (r / c) ** 0.5,
    "rms": lambda r, c: max(r, c) ** 0.5,
}


class scale_by_matrix_shape(Leafwise):
    """Multiplies each matrix by a factor of its numbers of rows r (fan-out) and columns c (fan-in).

        u = factor * g * sqrt(max(1, r / c))    "width": Jordan et al. 2024
        u = factor * g * sqrt(r / c)            "spectral": a rate that stays right over widths
        u = factor * g * sqrt(max(r, c))        "rms": every update has about the root mean square
                                                factor; 0.2 is that of AdamW's (Liu et al. 2025)

    After `newton_schulz`, whose updates have singular values about 1. Leaves that are no matrices
    pass unchanged.

    Args:
        convention: "width", "spectral" or "rms".
        factor: a number or a schedule.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.
    """

    elementary = True

    convention: str = static(default="width", choices=tuple(SHAPE_FACTORS))
    factor: Any = 1.0
    views: Any = per_leaf(default=None, none_is=matrices(), of=MatrixAxes, kw_only=True)

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        if not self.views.is_matrix or not g.size:
            return g, slots
        rows, columns = self.views.sides(g.shape)
        return g * (self.factor * SHAPE_FACTORS[self.convention](rows, columns)), slots


class clip_by_matrix_rms(Matrixwise):
    """Shrinks each matrix of the updates so that its root mean square is at most `threshold`.

        u = g / max(1, sqrt(mean(|g|^2)) / threshold)

    As `clip_by_block_rms` does with whole arrays; here each matrix of a stack is for itself. Leaves
    that are no matrices pass unchanged.

    Args:
        threshold: a number or a schedule, not negative; 0 gives zero updates.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Shazeer and Stern 2018.
    """

    threshold: Any

    def update_matrix(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return shrunk(g, norm_of(g).over_root(g.size), self.threshold), slots


class newton_schulz(Matrixwise):
    """Orthogonalizes each matrix: its singular vectors stay, its singular values become about 1.

        u = orthogonalize(g)        near U V^T, if g = U S V^T

    The direction of steepest descent in the spectral norm. After momentum it is Muon's; see `muon`.
    Leaves that are no matrices pass unchanged.

    Args:
        coefficients: the polynomials, as `linalg.polynomials` takes them: a name, a row or rows.
            They are leaves: tables of the same number of rows run in one program.
        eps: added to the norm that is divided out, though never more than the norm itself.
        normalization: "frobenius", "schatten4" or "rows"; see `linalg.orthogonalize`.
        dtype: the dtype of the products; at least float32 by default.
        adaptive: whether to multiply u by <g, u>, which is near the sum of the singular values of
            g. That is the whole step of steepest descent: as large as the gradient, and zero where
            it is zero.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Bernstein and Newhouse 2024, also for `adaptive`; Jordan et al. 2024.
    """

    many_products = True

    coefficients: Any = numbers(default="keller_jordan")
    eps: Any = 1e-7
    normalization: Normalization = static(
        default="frobenius", choices=("frobenius", "schatten4", "rows"), kw_only=True
    )
    dtype: str | None = static(default=None, kw_only=True)
    adaptive: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", polynomials(self.coefficients))
        super().__post_init__()

    def update_matrix(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        u = orthogonalize(
            g,
            self.coefficients,
            eps=self.eps,
            normalization=self.normalization,
            dtype=self.dtype,
        )
        if self.adaptive:
            u = jnp.sum((g.conj() * u).real) * u
        return u, slots
