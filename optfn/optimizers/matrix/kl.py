"""KL-Shampoo and KL-SOAP: Kronecker factors that are each whitened by the other."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.partition import partition
from optfn.core.control_flow import refreshed
from optfn.core.dtypes import real_dtype
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import average, zero_moments
from optfn.core.numerics import abs_sq, ratio, sqrt, whole
from optfn.core.placement import Along
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.core.tree import PyTree
from optfn.core.turns import Turn, is_due
from optfn.linalg import adjoint, eigenbasis, power_step
from optfn.optimizers.elementwise.adam import scale_by_adam
from optfn.optimizers.matrix.rotation import (
    adam_in_bases,
    along_sides,
    idle_at,
    late_optimizer,
    rotated,
    rotated_back,
    with_finite_squares,
    zeros_of_length,
)
from optfn.transforms.decay import descend_then_decay


class KLShampooSlots(NamedTuple):
    """The average gradient; of rows and columns the factor, its eigenbasis, and one over the roots
    of its eigenvalues."""

    mu: Signed
    left: PyTree
    right: PyTree
    left_basis: PyTree
    right_basis: PyTree
    left_scale: PyTree
    right_scale: PyTree


class KLSoapSlots(NamedTuple):
    """Those of KL-Shampoo, and Adam's second moment in the eigenbases."""

    mu: Signed
    nu: NonNegative
    left: PyTree
    right: PyTree
    left_basis: PyTree
    right_basis: PyTree
    left_scale: PyTree
    right_scale: PyTree


class _KLFactors(Matrixwise):
    """What the two have in common: the factors, their eigenbases and their eigenvalues."""

    refreshes = True

    b1: Any = 0.9
    b2: Any = 0.98
    eps: Any = 1e-8
    shampoo_beta: Any = None
    precondition_frequency: Any = 10
    init_factor: Any = 0.1
    max_clamp_value: Any = 4000.0

    def _first_factors(self, param: jax.Array) -> tuple[Any, ...]:
        """Those slots before the first gradient."""
        first, dtype = self.init_factor**-0.5, real_dtype(param.dtype)
        scales = [Along(jnp.full(n, first, dtype), (axis,)) for axis, n in enumerate(param.shape)]
        return *along_sides(param, zeros_of_length), *along_sides(param, jnp.eye), *scales

    def _next_factors(self, g: jax.Array, slots: Any, t: jax.Array, turn: Any) -> tuple[Any, ...]:
        """Those slots after a gradient; the first one only gives the bases."""
        is_first, (rows, columns) = t == 1, g.shape
        beta = self.b2 if self.shampoo_beta is None else self.shampoo_beta
        bases = slots.left_basis, slots.right_basis
        left_scale, right_scale = slots.left_scale[:, None], slots.right_scale[None]

        by_left = jnp.where(is_first, g, adjoint(bases[0]) @ g * left_scale)
        by_right = jnp.where(is_first, g, g @ bases[1] * right_scale)
        factors = (
            average(beta, slots.left, by_right @ adjoint(by_right) / columns),
            average(beta, slots.right, adjoint(by_left) @ by_left / rows),
        )
        entries = rotated(g, bases)
        scales = (
            self._scale(beta, slots.left_scale, jnp.mean(abs_sq(entries * right_scale), axis=1)),
            self._scale(beta, slots.right_scale, jnp.mean(abs_sq(entries * left_scale), axis=0)),
        )
        old = slots.left_scale, slots.right_scale
        scales = [jnp.where(is_first, a, b) for a, b in zip(old, scales, strict=True)]

        bases = refreshed(is_first, lambda: jax.tree.map(eigenbasis, factors), bases)
        due = ~is_first & is_due(whole(t - 1), self.precondition_frequency, turn)
        bases = refreshed(due, lambda: jax.tree.map(power_step, factors, bases), bases)
        return *factors, *bases, *scales

    def _scale(self, beta: Any, old: jax.Array, variances: jax.Array) -> jax.Array:
        """One over the root of the average variance along each eigenvector."""
        eigenvalues = average(beta, ratio(1, old**2), variances)
        largest = jnp.maximum(10, jnp.minimum(len(old), self.max_clamp_value))
        return jnp.minimum(ratio(1, sqrt(eigenvalues)), largest)


class scale_by_kl_shampoo(_KLFactors):
    """The direction of KL-Shampoo: the average gradient, whitened by two Kronecker factors.

        L <- b * L + (1 - b) * G R^-1 G^T / columns           b is shampoo_beta
        R <- b * R + (1 - b) * G^T L^-1 G / rows
        l <- b * l + (1 - b) * mean over columns of G'^2 / r          G' = QL^T G QR
        r <- b * r + (1 - b) * mean over rows of G'^2 / l
        QL, QR <- a step of power iteration on L and R, after every `precondition_frequency`-th k
        M <- b1 * M + (1 - b1) * G
        U = QL (QL^T M QR / (sqrt(l r^T) + eps)) QR^T         in the l, r and Q before

    with R^-1 = QR diag(1 / r) QR^T and so for L: the two factors that are nearest to the second
    moment of the gradient in the Kullback-Leibler divergence, instead of Shampoo's, each of which
    ignores the other. k = t - 1: the first gradient only gives the bases, and its update is zero.
    Leaves that are no matrices pass unchanged.

    Gradients whose squares would leave the range, from a norm of 3e14 on in float32, are scaled
    down to that.

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the factors and the eigenvalues.
        eps: added to the root.
        shampoo_beta: what decays them if not b2.
        precondition_frequency: the steps from one refresh to the next, a number or a schedule. A
            refresh costs two QR decompositions, and other steps none, in lanes of `vmap` too.
        init_factor: all eigenvalues at first; its square stands for the mean square of an entry of
            the gradient. The first moving update is M over it, whatever the size of the gradients.
        max_clamp_value: an eigenvalue is taken for at least one over the square of this, or of the
            length of its side if that is smaller, though never of less than 10.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Lin et al. 2025, and the authors' code.
    """

    Slots = KLShampooSlots

    def init_matrix(self, param: jax.Array) -> KLShampooSlots:
        return KLShampooSlots(jnp.zeros_like(param), *self._first_factors(param))

    def update_matrix(
        self,
        g: jax.Array,
        slots: KLShampooSlots,
        param: Any,
        t: jax.Array,
        *,
        turn: Turn | None = None,
    ) -> tuple[jax.Array, KLShampooSlots]:
        is_first = t == 1
        g = with_finite_squares(g)
        bases = slots.left_basis, slots.right_basis
        mu = jnp.where(is_first, slots.mu, average(self.b1, slots.mu, g))
        whitening = slots.left_scale[:, None] * slots.right_scale[None]
        u = rotated_back(rotated(mu, bases) * (whitening / (1 + whitening * self.eps)), bases)
        return idle_at(is_first, u, g), KLShampooSlots(mu, *self._next_factors(g, slots, t, turn))


class scale_by_kl_soap(_KLFactors):
    """The direction of KL-SOAP: Adam in the eigenbases of KL-Shampoo's factors.

        M <- b1 * M + (1 - b1) * G               V <- b2 * V + (1 - b2) * G'^2,  G' = QL^T G QR
        U = QL (QL^T M QR / (sqrt(V) + eps)) QR^T

    with QL and QR from `scale_by_kl_shampoo`. The averages start at zero and are not corrected for
    it; the first gradient only gives the bases, and its update is zero. Leaves that are no matrices
    pass unchanged.

    Gradients whose squares would leave the range are scaled down, as there.

    Args:
        b1: decay of the first moment, a number or a schedule.
        b2: decay of the second moment, the factors and the eigenvalues, a number or a schedule.
        eps: added to the root.
        shampoo_beta: what decays the factors and the eigenvalues if not b2.
        precondition_frequency: the steps from one refresh to the next, a number or a schedule.
        init_factor: all eigenvalues at first, by which each factor starts to whiten the other.
        max_clamp_value: bounds eigenvalues from below; see `scale_by_kl_shampoo`.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Lin et al. 2025, and the authors' code.
    """

    Slots = KLSoapSlots

    def init_matrix(self, param: jax.Array) -> KLSoapSlots:
        return KLSoapSlots(*zero_moments(param), *self._first_factors(param))

    def update_matrix(
        self,
        g: jax.Array,
        slots: KLSoapSlots,
        param: Any,
        t: jax.Array,
        *,
        turn: Turn | None = None,
    ) -> tuple[jax.Array, KLSoapSlots]:
        is_first = t == 1
        g = with_finite_squares(g)
        bases = slots.left_basis, slots.right_basis
        u, mu, nu = adam_in_bases(self, g, slots, bases, is_first)
        return idle_at(is_first, u, g), KLSoapSlots(mu, nu, *self._next_factors(g, slots, t, turn))


def kl_shampoo(
    learning_rate: Any = 1e-4,
    b1: Any = 0.9,
    b2: Any = 0.98,
    eps: Any = 1e-8,
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    shampoo_beta: Any = None,
    precondition_frequency: Any = 10,
    init_factor: Any = 0.1,
    max_clamp_value: Any = 4000.0,
    *,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """KL-Shampoo: gradients whitened by two factors, without grafting onto another optimizer.

    For matrices, where Shampoo needs the step size of Adam and a tuned start: it keeps one average
    and two square matrices for each side, less than `soap` by the second moment. Long sides should
    be cut into blocks, `MatrixAxes(..., block=256)`.

    The rule is `scale_by_kl_shampoo`, whose first update is zero, then

        p <- (1 - learning_rate * weight_decay) * (p - learning_rate * u)

    Args:
        learning_rate: of the matrices, a number or a schedule; to be tuned.
        b1: decay of the first moment.
        b2: decay of the factors and the eigenvalues.
        eps: added to the roots of the eigenvalues' products.
        weight_decay: decoupled, of the params after the step, from the second step on.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        shampoo_beta: what decays the factors if not b2.
        precondition_frequency: the steps from one refresh of the bases to the next.
        init_factor: all eigenvalues at first.
        max_clamp_value: bounds eigenvalues from below; see `scale_by_kl_shampoo`.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default Adam with the same arguments.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Lin et al. 2025, "Understanding and improving Shampoo and SOAP via Kullback-Leibler
    minimization".
    """
    direction = scale_by_kl_shampoo(
        b1,
        b2,
        eps,
        shampoo_beta,
        precondition_frequency,
        init_factor,
        max_clamp_value,
        views=views,
    )
    descent = partial(descend_then_decay, learning_rate, weight_decay, weight_decay_mask)
    return late_optimizer(direction, scale_by_adam(b1, b2, eps), descent, views, rest)


def kl_soap(
    learning_rate: Any = 1e-4,
    b1: Any = 0.9,
    b2: Any = 0.98,
    eps: Any = 1e-8,
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    shampoo_beta: Any = None,
    precondition_frequency: Any = 10,
    init_factor: Any = 0.1,
    max_clamp_value: Any = 4000.0,
    *,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """KL-SOAP: Adam in the eigenbases of KL-Shampoo's factors.

    `soap` with factors that are each whitened by the other, at the same cost. Long sides should be
    cut into blocks, `MatrixAxes(..., block=256)`.

    The rule is `scale_by_kl_soap`, whose first update is zero, then

        p <- (1 - learning_rate * weight_decay) * (p - learning_rate * u)

    Args:
        learning_rate: of the matrices, a number or a schedule; to be tuned.
        b1: decay of the first moment.
        b2: decay of the second moment, the factors and the eigenvalues.
        eps: added to the root.
        weight_decay: decoupled, of the params after the step, from the second step on.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        shampoo_beta: what decays the factors if not b2.
        precondition_frequency: the steps from one refresh of the bases to the next.
        init_factor: all eigenvalues at first.
        max_clamp_value: bounds eigenvalues from below; see `scale_by_kl_shampoo`.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default Adam with the same arguments.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Lin et al. 2025, "Understanding and improving Shampoo and SOAP via Kullback-Leibler
    minimization".
    """
    direction = scale_by_kl_soap(
        b1,
        b2,
        eps,
        shampoo_beta,
        precondition_frequency,
        init_factor,
        max_clamp_value,
        views=views,
    )
    descent = partial(descend_then_decay, learning_rate, weight_decay, weight_decay_mask)
    return late_optimizer(direction, scale_by_adam(b1, b2, eps), descent, views, rest)
