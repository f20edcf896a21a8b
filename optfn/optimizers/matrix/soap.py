"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.partition import partition
from optfn.core.control_flow import refreshed
from optfn.core.data import static
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import average, zero_moments
from optfn.core.numerics import whole
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.core.tree import PyTree
from optfn.core.turns import Turn, is_due
from optfn.linalg import adjoint, eigenbasis, refined_eigenbasis
from optfn.optimizers.elementwise.adam import scale_by_adam
from optfn.optimizers.matrix.rotation import (
    Sides,
    adam_in_bases,
    along_sides,
    idle_at,
    late_optimizer,
    with_finite_squares,
    zeros_of_length,
)
from optfn.transforms.decay import descend_then_decay


class SoapSlots(NamedTuple):
    """Adam's moments, the second one in the eigenbases, and what these are computed from.

    A side that is too long has None for its factor and its basis.
    """

    mu: Signed
    nu: NonNegative
    left: PyTree
    right: PyTree
    left_basis: PyTree
    right_basis: PyTree


class scale_by_soap(Matrixwise):
    """The direction of SOAP: Adam in the eigenbases of the averages of G G^T and G^T G.

        G' = QL^T G QR
        M <- b1 * M + (1 - b1) * G               V <- b2 * V + (1 - b2) * G'^2
        U = QL (QL^T M QR / (sqrt(V) + eps)) QR^T * sqrt(1 - b2^k) / (1 - b1^k)
        L <- shampoo_beta * L + (1 - shampoo_beta) * G G^T        R likewise, of G^T G
        QL, QR <- a step of power iteration on L and R, after every `precondition_frequency`-th k

    with k = t - 1: the first gradient only gives the bases and its update is zero, so that it is
    not scaled in bases of its own. Where a refresh changes the order of eigenvectors, V is permuted
    with them; see `linalg.refined_eigenbasis`. Leaves that are no matrices pass unchanged.

    Gradients whose squares would leave the range, from a norm of 3e14 on in float32, are scaled
    down to that.

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, a number or a schedule.
        eps: added to the root.
        shampoo_beta: decay of L and R, a number or a schedule; b2 if None.
        precondition_frequency: the steps from one refresh to the next, a number or a schedule. A
            refresh costs two QR decompositions, and other steps none, in lanes of `vmap` too.
        max_precond_dim: a side longer than this has no factor and keeps Q = I.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Vyas et al. 2025.
    """

    b1: Any = 0.95
    b2: Any = 0.95
    eps: Any = 1e-8
    shampoo_beta: Any = None
    precondition_frequency: Any = 10
    max_precond_dim: int = static(default=10000)

    refreshes = True

    Slots = SoapSlots

    def init_matrix(self, param: jax.Array) -> SoapSlots:
        factors = along_sides(param, zeros_of_length, self.max_precond_dim)
        return SoapSlots(
            *zero_moments(param), *factors, *along_sides(param, jnp.eye, self.max_precond_dim)
        )

    def update_matrix(
        self, g: jax.Array, slots: SoapSlots, param: Any, t: jax.Array, *, turn: Turn | None = None
    ) -> tuple[jax.Array, SoapSlots]:
        is_first, k = t == 1, jnp.maximum(t - 1, 1)
        g = with_finite_squares(g)
        bases = slots.left_basis, slots.right_basis

        u, mu, nu = adam_in_bases(self, g, slots, bases, is_first)
        u = u * (jnp.sqrt(1 - self.b2**k) / (1 - self.b1**k))

        factors = self._factors(g, (slots.left, slots.right))
        bases = refreshed(is_first, lambda: jax.tree.map(eigenbasis, factors), bases)
        due = ~is_first & is_due(whole(t - 1), self.precondition_frequency, turn)
        bases, nu = refreshed(due, lambda: _refined(factors, bases, nu), (bases, nu))
        return idle_at(is_first, u, g), SoapSlots(mu, nu, *factors, *bases)

    def _factors(self, g: jax.Array, old: Sides) -> Sides:
        beta = self.b2 if self.shampoo_beta is None else self.shampoo_beta
        left, right = old
        return (
            None if left is None else average(beta, left, g @ adjoint(g)),
            None if right is None else average(beta, right, adjoint(g) @ g),
        )


def _refined(factors: Sides, bases: Sides, nu: jax.Array) -> tuple[Sides, jax.Array]:
    """The bases after a step of power iteration, and the second moment in them."""
    (left, right), (left_basis, right_basis) = factors, bases
    if left is not None:
        left_basis, order = refined_eigenbasis(left, left_basis)
        nu = nu[order]
    if right is not None:
        right_basis, order = refined_eigenbasis(right, right_basis)
        nu = nu[:, order]
    return (left_basis, right_basis), nu


def soap(
    learning_rate: Any = 3e-3,
    b1: Any = 0.95,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    shampoo_beta: Any = None,
    precondition_frequency: Any = 10,
    max_precond_dim: int = 10000,
    *,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """SOAP: Adam, run in the eigenbases of Shampoo's preconditioner.

    For matrices whose gradients are correlated, as those of transformers are: fewer steps than
    AdamW for the same loss, above all with large batches. It keeps, beside Adam's moments, two
    square matrices for each side, so for long sides lower `max_precond_dim` or cut the matrices
    into blocks (`MatrixAxes(..., block=256)`). Where one more average is too much, `muon` is the
    cheaper one.

    The rule is `scale_by_soap`, whose first update is zero, then

        p <- (1 - learning_rate * weight_decay) * (p - learning_rate * u)

    Args:
        learning_rate: of the matrices, a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        weight_decay: decoupled, of the params after the step, from the second step on.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        shampoo_beta: decay of the factors whose eigenvectors are used; b2 if None.
        precondition_frequency: the steps from one refresh of the bases to the next.
        max_precond_dim: a side longer than this keeps the identity for a basis. With 0 it is Adam
            from the second step on.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default Adam with the same arguments.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Vyas et al. 2025, "SOAP: improving and stabilizing Shampoo using Adam".
    """
    direction = scale_by_soap(
        b1, b2, eps, shampoo_beta, precondition_frequency, max_precond_dim, views=views
    )
    descent = partial(descend_then_decay, learning_rate, weight_decay, weight_decay_mask)
    return late_optimizer(direction, scale_by_adam(b1, b2, eps), descent, views, rest)
