"""SPlus: signs in the eigenbasis of Shampoo."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.control_flow import refreshed
from optfn.core.data import per_leaf, static
from optfn.core.leafwise import Leafwise
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import average
from optfn.core.numerics import propagate_nan, whole
from optfn.core.slot_kinds import Signed
from optfn.core.tree import PyTree
from optfn.core.turns import Turn, is_due
from optfn.core.updates_kind import Updates
from optfn.linalg import adjoint
from optfn.linalg.lapack import eigh
from optfn.optimizers.elementwise.sign import scale_by_sign
from optfn.optimizers.matrix.rotation import (
    along_sides,
    rotated,
    rotated_back,
    zeros_of_length,
)
from optfn.transforms.decay import decays
from optfn.transforms.momentum import ema


class Bases(NamedTuple):
    """The average gradient, and for each side of a matrix its factor and that one's eigenvectors.

    A side that is too long for a factor has None.
    """

    mu: Signed
    rows: PyTree
    columns: PyTree
    rows_basis: PyTree
    columns_basis: PyTree


class scale_by_splus(Matrixwise):
    """The direction of SPlus: the signs of the average gradient, taken in Shampoo's eigenbasis.

        mu <- b1 * mu + (1 - b1) * g
        u = Q_L sign(Q_L^T mu Q_R) Q_R^T
        L <- b2 * L + (1 - b2) * g g^T        R <- b2 * R + (1 - b2) * g^T g
        Q_L, Q_R <- eigenvectors of L, R      after the first and each `inverse_every`-th update

    All entries of u in the basis are of size 1. The eigenvectors, identities at first, are computed
    only then, also in the lanes of a `vmap`. Derivatives take the bases for constants. Leaves that
    are no matrices pass unchanged.

    A factor that a gradient would make infinite stays as it is.

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the factors, a number or a schedule.
        inverse_every: the updates between two bases, a number or a schedule.
        max_dim: a side that is as long or longer keeps the basis it has.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.

    Source: Frans et al. 2025.
    """

    refreshes = True

    Slots = Bases

    b1: Any = 0.9
    b2: Any = 0.999
    inverse_every: Any = 100
    max_dim: int = static(default=10000, kw_only=True)

    def init_matrix(self, param: jax.Array) -> Bases:
        shorter = self.max_dim - 1
        factors = along_sides(param, zeros_of_length, shorter)
        return Bases(jnp.zeros_like(param), *factors, *along_sides(param, jnp.eye, shorter))

    def update_matrix(
        self, g: jax.Array, slots: Bases, param: Any, t: jax.Array, *, turn: Turn | None = None
    ) -> tuple[jax.Array, Bases]:
        mu = average(self.b1, slots.mu, g)
        bases = slots.rows_basis, slots.columns_basis
        u = rotated_back(jnp.sign(rotated(mu, bases)), bases)
        factors = self._grown(slots.rows, g), self._grown(slots.columns, adjoint(g))
        now = whole(t)
        due = (now == 1) | is_due(now, self.inverse_every, turn)
        bases = refreshed(due, lambda: tuple(map(_eigenvectors, factors)), bases)
        return propagate_nan(u, mu), Bases(mu, *factors, *bases)

    def _grown(self, factor: Any, g: jax.Array) -> Any:
        """The factor of the rows of g with one gradient more."""
        if factor is None:
            return None
        grown = average(self.b2, factor, g @ adjoint(g))
        return jnp.where(jnp.all(jnp.isfinite(grown)), grown, factor)


def _eigenvectors(factor: Any) -> Any:
    # Where eigenvalues coincide the eigenvectors are not differentiable.
    return None if factor is None else lax.stop_gradient(eigh(factor)[1])


class descend_by_sides(Leafwise):
    """The last stage of SPlus: a rate in inverse proportion to the sides of a matrix.

        s = learning_rate * 2 / (rows + columns)        of a matrix
        s = learning_rate * nonstandard_constant        of other leaves and of very large matrices
        p <- (1 - s * weight_decay) * (p - s * u)

    Instead of `add_decayed_weights` and `scale_by_learning_rate`, after directions whose entries do
    not become smaller where a matrix is larger. The decay is of the params after the step.

    Args:
        learning_rate: a number or a schedule.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        nonstandard_constant: a number.
        max_dim: the longest side of a matrix that is not very large.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.

    Raises:
        ValueError: `update` was not given the params.

    Source: Frans et al. 2025.
    """

    needs_params = True
    decays_params = True

    learning_rate: Any
    weight_decay: Any = 0.01
    mask: Any = per_leaf(default=None, of=bool)
    nonstandard_constant: Any = 0.001
    max_dim: int = static(default=10000, kw_only=True)
    views: Any = per_leaf(default=None, none_is=matrices(), of=MatrixAxes, kw_only=True)

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        rate = self.learning_rate * self._factor(g.shape)
        step = -rate * g
        if decays(self.mask):
            step -= rate * self.weight_decay * (param + step)
        return step, slots

    def _factor(self, shape: tuple[int, ...]) -> Any:
        if self.views.is_matrix:
            sides = self.views.sides(shape)
            if max(sides) <= self.max_dim:
                return 2 / max(sum(sides), 1)
        return self.nonstandard_constant

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


def splus(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    inverse_every: Any = 100,
    nonstandard_constant: Any = 0.001,
    max_dim: int = 10000,
    *,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """SPlus: steps of equal size along all directions of Shampoo's eigenbasis.

    For the matrices of a network. As only signs are taken in the basis, it stays right for long and
    is computed rarely; the rate does not depend on the width. Its authors evaluate at an average of
    the params, for the steps are noisy:

        ema_of_params(splus(0.1), 0.999)        and evaluation_params(tx, state, params)

    A matrix of r rows and c columns has r c + 2 r^2 + 2 c^2 numbers of state. It needs full-rank
    gradients: directions that no gradient has are as large as all others.

        u = scale_by_splus        s = learning_rate * 2 / (rows + columns)
        p <- (1 - s * weight_decay) * (p - s * u)

    Args:
        learning_rate: a number or a schedule, about 0.1.
        b1: decay of the average gradient.
        b2: decay of the factors.
        weight_decay: a number or a schedule, of the params after the step; see `descend_by_sides`.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        inverse_every: the updates between two bases, a number or a schedule.
        nonstandard_constant: the factor on the rate of leaves that are no matrices.
        max_dim: longer sides have no basis.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default the authors': the signs of the average
            gradient, with the same rate, times `nonstandard_constant`, and decay.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Frans et al. 2025, "A stable whitening optimizer for efficient neural network training".
    """
    descend = descend_by_sides(
        learning_rate,
        weight_decay,
        weight_decay_mask,
        nonstandard_constant,
        max_dim=max_dim,
        views=views,
    )
    return partition_matrices(
        chain(scale_by_splus(b1, b2, inverse_every, max_dim=max_dim, views=views), descend),
        chain(ema(b1, debias=False), scale_by_sign(), descend) if rest is None else rest,
        views,
    )
