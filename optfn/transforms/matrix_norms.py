"""Stages that make the rows of a matrix, or whole matrices, alike in size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.data import static
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import zeros_along
from optfn.core.numerics import norms_along, ratio, sqrt
from optfn.core.tree import PyTree


class normalize_matrices(Matrixwise):
    """Scales each matrix of r rows and c columns to the norm of an orthogonal one.

        u = g * sqrt(min(r, c)) / (||g||_F + eps)

    After `newton_schulz`, whose few steps leave singular values that are only near 1 (Muon+). After
    any other direction it makes all matrices alike; `scale_by_matrix_shape("rms", 0.2)` then gives
    each a root mean square of 0.2. Zero matrices stay zero, and leaves that are no matrices pass
    unchanged.

    Args:
        eps: added to the norm.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: arXiv 2602.21545.
    """

    eps: Any = 0.0

    def update_matrix(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        norm = norms_along(None, g)
        factor = ratio(min(g.shape) ** 0.5, norm.relative + self.eps / norm.scale)
        return g / norm.scale * factor, slots


class equalize_rows(Matrixwise):
    """Scales the rows of each matrix to one norm, and keeps the norm of the matrix.

        u_i = g_i / ||g_i|| * ||g||_F / sqrt(r)        for each of r rows

    Before `newton_schulz`, whose few steps then start from a better condition (MuonEq). Rows of
    zeros stay zero, so that a matrix which has some loses norm. Leaves that are no matrices pass
    unchanged.

    Args:
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: arXiv 2603.28254.
    """

    def update_matrix(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        of_rows, whole = norms_along(1, g), norms_along(None, g).over_root(g.shape[0])
        units = g / of_rows.scale * ratio(1, of_rows.relative)
        return units * whole.relative * whole.scale, slots


class RowMoment(NamedTuple):
    """The root of the average square of each row, kept as a root since squares leave the range."""

    rms: PyTree


class scale_by_row_moment(Matrixwise):
    """Divides each row of a matrix by the root of its average square; the matrix keeps its norm.

        v_i <- b2 * v_i + (1 - b2) * mean_j(g_ij^2)        one number for a row
        w_ij = g_ij / (sqrt(v_i) + eps)
        u = w * ||g||_F / (||w||_F + eps)

    After `newton_schulz`: the rows of an orthogonal factor of a tall matrix differ in norm, so that
    some outputs of a layer learn faster than others. That is NorMuon; see `normuon`. Its state is
    one number a row. Leaves that are no matrices pass unchanged.

    Args:
        b2: decay of the average, a number or a schedule.
        eps: added to the roots and to the norm; for factors that are orthogonal. Take 0 for a
            direction of any other size.
        side: "rows" keeps one number for each row, "columns" one for each column, and "longer" one
            for each row of a tall or square matrix and each column of a wide one.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Li et al. 2025.
    """

    b2: Any = 0.95
    eps: Any = 1e-10
    side: str = static(default="rows", choices=("rows", "columns", "longer"))

    Slots = RowMoment

    def init_matrix(self, param: jax.Array) -> RowMoment:
        return RowMoment(zeros_along(param, (self._axis(param.shape),)))

    def update_matrix(
        self, g: jax.Array, slots: RowMoment, param: Any, t: jax.Array
    ) -> tuple[jax.Array, RowMoment]:
        across = 1 - self._axis(g.shape)
        now = norms_along(across, g).over_root(g.shape[across]).value
        rms = _root_of_average(self.b2, slots.rms, now.squeeze(across))
        w = ratio(g, jnp.expand_dims(rms, across) + self.eps)
        old, new = norms_along(None, g), norms_along(None, w)
        factor = ratio(old.relative, new.relative + self.eps / new.scale)
        return w / new.scale * factor * old.scale, RowMoment(rms)

    def _axis(self, shape: tuple[int, ...]) -> int:
        """Along which axis of a matrix the numbers lie."""
        if self.side == "longer":
            return int(shape[1] > shape[0])
        return int(self.side == "columns")


def _root_of_average(decay: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    """sqrt(decay * old^2 + (1 - decay) * new^2), in any range."""
    largest = jnp.maximum(old, new)
    old, new = ratio(old, largest), ratio(new, largest)
    return largest * sqrt(decay * old * old + (1 - decay) * new * new)
