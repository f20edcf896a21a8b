"""Shampoo: both sides of a matrix are preconditioned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.graft import graft
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.control_flow import refreshed
from optfn.core.data import static
from optfn.core.in_blocks import in_blocks
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import average, debias
from optfn.core.numerics import abs_sq, whole
from optfn.core.placement import Along
from optfn.core.slot_kinds import Signed
from optfn.core.tree import PyTree
from optfn.core.turns import Turn, is_due
from optfn.linalg import adjoint, inverse_root
from optfn.optimizers.elementwise.adam import adamw, scale_by_adam
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class Factors(NamedTuple):
    """The average gradient, and for each side of a matrix its factor and that one's inverse root.

    A side that is too long for a square factor has a vector, the diagonal.
    """

    mu: Signed
    rows: PyTree
    columns: PyTree
    rows_root: PyTree
    columns_root: PyTree


class scale_by_shampoo(Matrixwise):
    """The direction of Shampoo: the average gradient, preconditioned from both sides.

        mu <- b1 * mu + (1 - b1) * g
        L <- b2 * L + (1 - b2) * g g^T        R <- b2 * R + (1 - b2) * g^T g;  sums with b2 = 1
        u = (L_hat + eps I)^-exponent mu_hat (R_hat + eps I)^-exponent

    L_hat, R_hat and mu_hat are corrected for their zero start. The roots are computed anew with the
    update `start_preconditioning_step`, and then with each whose number `precondition_frequency`
    divides; they are identities before. They are computed only then, also in the lanes of a `vmap`.
    Leaves that are no matrices pass unchanged.

    A factor that a gradient would make infinite stays as it is.

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the factors, a number or a schedule; 1 sums them up.
        eps: added to the eigenvalues of the factors.
        precondition_frequency: the updates between two roots, a number or a schedule.
        start_preconditioning_step: the first update with roots, a number or a schedule; None for
            `precondition_frequency`.
        exponent: 1/4 for Shampoo; 1/2 is often better where b2 < 1. With both b1 and b2 zero, 1/4
            gives the orthogonal polar factor of the gradient.
        max_square_dim: a side that is longer has the diagonal of its factor only; None for none.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
            `in_blocks` cuts them.

    Source: Gupta et al. 2018; Shi et al. 2023.
    """

    refreshes = True

    Slots = Factors

    b1: Any = 0.9
    b2: Any = 1.0
    eps: Any = 1e-12
    precondition_frequency: Any = 1
    start_preconditioning_step: Any = None
    exponent: Any = 0.25
    max_square_dim: int | None = static(default=None, kw_only=True)

    def init_matrix(self, param: jax.Array) -> Factors:
        factors = [self._first(param, axis, jnp.zeros) for axis in (0, 1)]
        roots = [self._first(param, axis, _identity) for axis in (0, 1)]
        return Factors(jnp.zeros_like(param), *factors, *roots)

    def update_matrix(
        self, g: jax.Array, slots: Factors, param: Any, t: jax.Array, *, turn: Turn | None = None
    ) -> tuple[jax.Array, Factors]:
        mu = average(self.b1, slots.mu, g)
        rows = self._grown(slots.rows, g)
        columns = self._grown(slots.columns, adjoint(g))

        def roots():
            return self._root(rows, t), self._root(columns, t)

        old = slots.rows_root, slots.columns_root
        rows_root, columns_root = refreshed(self._is_due(t, turn), roots, old)
        u = _preconditioned(rows_root, debias(mu, self.b1, t), columns_root)
        return u, Factors(mu, rows, columns, rows_root, columns_root)

    def _first(self, param: jax.Array, axis: int, fill: Any) -> Along:
        """A slot for one side, square or a vector."""
        n = param.shape[axis]
        if self.max_square_dim is not None and n > self.max_square_dim:
            return Along(fill((n,), param.real.dtype), (axis,))
        return Along(fill((n, n), param.dtype), (axis, None))

    def _grown(self, factor: jax.Array, g: jax.Array) -> jax.Array:
        """The factor of the rows of g with one gradient more."""
        product = g @ adjoint(g) if factor.ndim == 2 else jnp.sum(abs_sq(g), axis=1)
        grown = self.b2 * factor + jnp.where(self.b2 < 1, 1 - self.b2, 1) * product
        return jnp.where(jnp.all(jnp.isfinite(grown)), grown, factor)

    def _root(self, factor: jax.Array, t: jax.Array) -> jax.Array:
        factor = factor / jnp.where(self.b2 < 1, 1 - self.b2**t, 1)
        if factor.ndim == 2:
            return inverse_root(factor, 1 / self.exponent, self.eps)
        raised = factor + self.eps
        return jnp.where(raised > 0, jnp.where(raised > 0, raised, 1) ** -self.exponent, 0)

    def _is_due(self, t: jax.Array, turn: Any) -> jax.Array:
        start = self.start_preconditioning_step
        now, every = whole(t), self.precondition_frequency
        start = jnp.maximum(whole(every), 1) if start is None else whole(start)
        return (now == start) | (now > start) & is_due(now, every, turn)


def _identity(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.eye(*shape, dtype=dtype) if len(shape) == 2 else jnp.ones(shape, dtype)


def _preconditioned(left: jax.Array, x: jax.Array, right: jax.Array) -> jax.Array:
    x = left @ x if left.ndim == 2 else left[:, None] * x
    return x @ right if right.ndim == 2 else x * right[None, :]


def shampoo(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 1.0,
    eps: Any = 1e-12,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    precondition_frequency: Any = 1,
    start_preconditioning_step: Any = None,
    max_preconditioner_dim: int | None = 1024,
    exponent: Any = 0.25,
    *,
    max_square_dim: int | None = None,
    grafting: optax.GradientTransformation | None = None,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """Distributed Shampoo: gradients of matrices, preconditioned from both sides.

    For the matrices of a network; everything else has an optimizer of its own, `rest`. It keeps
    the correlations between rows and between columns that Adam leaves out, and with Adam's norm of
    each matrix (`graft`) takes over Adam's rate and schedule. Inverse roots are costly: with
    `precondition_frequency` of 10 to 100 they are a small share of a step. A matrix of r rows and c
    columns has 3 r c + 2 r^2 + 2 c^2 numbers of state. Where memory is short take `muon`.

        u = scale_by_shampoo, with the norm that `grafting` gives each matrix or block
        p <- p - learning_rate * (u + weight_decay * p)

    Before `start_preconditioning_step` the updates are those of `grafting`. For Shampoo without
    grafting put `scale_by_shampoo` into a chain.

    Args:
        learning_rate: a number or a schedule, as for Adam.
        b1: decay of the average gradient.
        b2: decay of the factors; 1 sums them up.
        eps: added to the eigenvalues of the factors.
        weight_decay: decoupled, times the learning rate.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        precondition_frequency: the updates between two roots, a number or a schedule.
        start_preconditioning_step: the first update with roots; None for `precondition_frequency`.
        max_preconditioner_dim: matrices with longer sides are cut into blocks of this length, each
            of them a matrix of its own; None cuts none. See `in_blocks`.
        exponent: of the factors, with a minus; see `scale_by_shampoo`.
        max_square_dim: a side of a matrix or block that is longer has the diagonal of its factor
            only; None for none.
        grafting: the stage whose norms are taken; by default `scale_by_adam(b1, 0.999, 1e-8)`.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default Adam with the same rate and decay.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Gupta et al. 2018; Anil et al. 2020; Shi et al. 2023.
    """
    late = start_preconditioning_step is None
    start = precondition_frequency if late else start_preconditioning_step
    cut = views if max_preconditioner_dim is None else in_blocks(views, max_preconditioner_dim)
    direction = scale_by_shampoo(
        b1,
        b2,
        eps,
        precondition_frequency,
        start_preconditioning_step,
        exponent,
        max_square_dim=max_square_dim,
        views=cut,
    )
    return partition_matrices(
        chain(
            graft(direction, scale_by_adam(b1) if grafting is None else grafting, start, views=cut),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        adamw(learning_rate, b1, weight_decay=weight_decay, mask=weight_decay_mask)
        if rest is None
        else rest,
        views,
    )
