"""APOLLO: gradients whose channels are scaled as a projection of them says."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.control_flow import refreshed
from optfn.core.data import check_count, number, static
from optfn.core.dtypes import cast, real_dtype
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import average
from optfn.core.numerics import abs_sq, norm_of, norms_along, sqrt, whole
from optfn.core.placement import Along
from optfn.core.randomness import seed
from optfn.core.slot_kinds import NonNegative, Signed
from optfn.core.tree import PyTree
from optfn.core.turns import Turn, is_due
from optfn.linalg import leading_vectors
from optfn.optimizers.elementwise.adam import adamw
from optfn.optimizers.matrix.galore import PROJECTS_ROWS, transposed
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class ScaledMoments(NamedTuple):
    """Moments of the projection, the size of the last update, and the basis if it is kept."""

    mu: Signed
    nu: NonNegative
    size: PyTree
    basis: PyTree


class scale_by_apollo(Matrixwise):
    """Scales each channel of a matrix as Adam would scale it, seen through a projection.

        R = P g                                   P renewed every update_proj_gap steps
        mu <- b1 * mu + (1 - b1) * R
        nu <- b2 * nu + (1 - b2) * |R|^2
        a = norm(mu / (sqrt(nu) + eps)) / (norm(R) + 1e-8)      of each channel, or of all
        v = a * g, no longer than max_growth * (the last v's norm + 1e-8)
        u = sqrt(scale) * v * sqrt(1 - b2^t) / (1 - b1^t)

    or with g^T, by side. A channel is an entry of the side that is not projected. A last v of zero
    limits nothing. A random P is drawn again at each step from the key of the step at which it was
    renewed, so it takes no memory; its entries have variance 1 / rank. Leaves that are no matrices
    pass unchanged.

    Args:
        rank: the number of rows of P, at most the side that is projected.
        update_proj_gap: after how many steps P is renewed; a number or a schedule.
        scale: the factor of which the root is taken, a number or a schedule: the less the rank, the
            smaller is a.
        scale_type: "channel", or "tensor" for one factor for the matrix.
        b1, b2: decays of the moments, numbers or schedules.
        eps: added to the root.
        max_growth: by which factor the norm of v may grow in a step; `float("inf")` for any.
        seed: of the random projections, a whole number below 2^24 or a random key.
        proj: "random", or "svd" for the first singular vectors of g, as in `scale_by_galore`.
        side: which side is projected, "smaller" (the authors' `"std"`), "larger", "rows" or
            "columns".
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Zhu et al. 2025, "APOLLO: SGD-like memory, AdamW-level performance"; Chen et al. 2024,
    "Fira", for the limit of the growth.
    """

    random = True
    refreshes = True

    rank: int = static(default=256)
    update_proj_gap: Any = number(default=200, is_one=True)
    scale: Any = 1.0
    scale_type: str = static(default="channel", choices=("channel", "tensor"))
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-6
    max_growth: Any = 1.01
    seed: Any = seed()
    proj: str = static(default="random", choices=("random", "svd"), kw_only=True)
    side: str = static(default="smaller", choices=tuple(PROJECTS_ROWS), kw_only=True)

    Slots = ScaledMoments

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.rank, f"{type(self).__name__}(rank=...)")

    def draws_at(self, step: jax.Array) -> jax.Array:
        return step - step % jnp.maximum(whole(self.update_proj_gap), 1)

    def init_matrix(self, param: jax.Array) -> ScaledMoments:
        rows, (side, other), rank = self._form(param.shape)
        axes = (0, 1) if rows else (1, 0)
        real = real_dtype(param.dtype)
        return ScaledMoments(
            mu=Along(jnp.zeros((rank, other), param.dtype), (None, axes[1])),
            nu=Along(jnp.zeros((rank, other), real), (None, axes[1])),
            size=jnp.zeros((), real),
            basis=Along(jnp.zeros((side, rank), param.dtype), (axes[0], None))
            if self.proj == "svd"
            else None,
        )

    def update_matrix(
        self,
        g: jax.Array,
        slots: ScaledMoments,
        param: Any,
        t: jax.Array,
        *,
        key: Any = None,
        turn: Turn | None = None,
    ) -> tuple[jax.Array, ScaledMoments]:
        rows, (side, _), rank = self._form(g.shape)
        x = transposed(g, rows)
        if self.proj == "svd":
            before = whole(t) - 1
            due = (before == 0) | is_due(before, self.update_proj_gap, turn)
            basis = refreshed(due, lambda: leading_vectors(x, rank, slots.basis), slots.basis)
            low = basis.mT.conj() @ x
        else:
            basis = None
            draw = jax.random.normal(key, (rank, side), real_dtype(x.dtype)) / rank**0.5
            low = cast(draw, x.dtype) @ x
        mu = average(self.b1, slots.mu, low)
        nu = average(self.b2, slots.nu, abs_sq(low))
        axis = -2 if self.scale_type == "channel" else None
        wanted = norms_along(axis, mu / (sqrt(nu) + self.eps)).value
        v = x * (wanted / (norms_along(axis, low).value + 1e-8))
        v, size = _limited(v, slots.size, self.max_growth)
        u = v * (sqrt(self.scale) * sqrt(1 - self.b2**t) / (1 - self.b1**t))
        return transposed(u, rows), ScaledMoments(mu, nu, size, basis)

    def _form(self, shape: tuple[int, ...]) -> tuple[bool, tuple[int, ...], int]:
        """Whether rows are projected, the side that is and the other one, and the rank."""
        rows = PROJECTS_ROWS[self.side](*shape)
        side, other = shape if rows else shape[::-1]
        most = side if self.proj == "random" else min(shape)
        return rows, (side, other), min(self.rank, most)


def _limited(v: jax.Array, last: jax.Array, growth: Any) -> tuple[jax.Array, jax.Array]:
    """The matrix with a norm of at most `growth` times the last one, and its norm."""
    size = norm_of(v).value
    most = jnp.where(last > 0, growth * (last + 1e-8), jnp.inf)
    within = size <= most
    shrink = jnp.where(within, 1, most / jnp.where(within, 1, size))
    return v * shrink, size * shrink


def apollo(
    learning_rate: Any,
    rank: int = 256,
    update_proj_gap: Any = 200,
    scale: Any = 1.0,
    scale_type: str = "channel",
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    mask: Any = None,
    max_growth: Any = 1.01,
    seed: Any = 0,
    *,
    proj: str = "random",
    side: str = "smaller",
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """APOLLO: gradient descent whose channels are scaled as AdamW scales them.

    For large matrices and little memory: the state of one of n by m is 2 r max(n, m) + 1 numbers,
    next to nothing in `apollo_mini`, and a step costs a random projection. Steps are multiples of
    each channel's gradient, which tolerates less noise than Adam's average of it: for large
    batches. Not for small models.

        R = P g                                   P random, renewed every update_proj_gap steps
        a = norm(adam(R)) / norm(R)               of each column of R
        p <- p - learning_rate * (sqrt(scale) * a * g + weight_decay * p)

    where the norm of a * g grows by 1 % in a step at most; see `scale_by_apollo`. Beyond the
    authors' code a rank above the side is that side, the decay is of the params before the step,
    and zero gradients at the start do not limit what comes after.

    Args:
        learning_rate: a number or a schedule; the authors take 0.01.
        rank: the number of rows of P, at most the side that is projected; a quarter of it is usual.
        update_proj_gap: after how many steps P is renewed; a number or a schedule.
        scale: the factor of which the root is taken, a number or a schedule.
        scale_type: "channel", or "tensor" for one factor for the matrix.
        b1, b2: decays of the moments, numbers or schedules.
        eps: added to the root.
        weight_decay: decoupled, times the learning rate; of the other leaves too.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        max_growth: by which factor the norm of a * g may grow in a step.
        seed: of the random projections, a whole number below 2^24 or a random key.
        proj: "random", or "svd" for the first singular vectors of g.
        side: which side is projected, "smaller" (the authors' `"std"`), "larger", "rows" or
            "columns".
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default AdamW with the same numbers.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Zhu et al. 2025, "APOLLO: SGD-like memory, AdamW-level performance".
    """
    direction = scale_by_apollo(
        rank,
        update_proj_gap,
        scale,
        scale_type,
        b1,
        b2,
        eps,
        max_growth,
        seed,
        proj=proj,
        side=side,
        views=views,
    )
    others = adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    return partition_matrices(
        chain(
            direction,
            add_decayed_weights(weight_decay, mask),
            scale_by_learning_rate(learning_rate),
        ),
        others if rest is None else rest,
        views,
    )


def apollo_mini(
    learning_rate: Any,
    scale: Any = 128.0,
    update_proj_gap: Any = 200,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    mask: Any = None,
    max_growth: Any = 1.01,
    seed: Any = 0,
    *,
    proj: str = "random",
    side: str = "smaller",
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """APOLLO-Mini: one factor for each matrix, from a projection to one dimension.

        apollo(learning_rate, rank=1, scale=scale, scale_type="tensor")

    Args:
        learning_rate: a number or a schedule; the authors take 0.01.
        scale: the factor of which the root is taken, a number or a schedule; larger models want
            more.
        update_proj_gap, b1, b2, eps, weight_decay, mask, max_growth, seed, proj, side, views, rest:
            as `apollo` has them.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Zhu et al. 2025, "APOLLO: SGD-like memory, AdamW-level performance".
    """
    return apollo(
        learning_rate,
        1,
        update_proj_gap,
        scale,
        "tensor",
        b1,
        b2,
        eps,
        weight_decay,
        mask,
        max_growth,
        seed,
        proj=proj,
        side=side,
        views=views,
        rest=rest,
    )
