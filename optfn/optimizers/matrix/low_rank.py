"""GaLore and APOLLO: Adam's moments of a projection of each matrix, instead of the matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.boxes import contents_like
from optfn.core.control_flow import refreshed
from optfn.core.data import check_count, child, per_leaf, static
from optfn.core.dtypes import cast, compute_dtype, real_dtype
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.matrixwise import Matrixwise
from optfn.core.moments import average
from optfn.core.numerics import abs_sq, norm_of, norms_along, sqrt, whole
from optfn.core.placement import Along, place, replicate, split_like
from optfn.core.slots import placed
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.optimizers.elementwise.adam import adamw, scale_by_adam
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate

# Which side of a matrix of r rows and c columns is projected: whether it is the rows.
PROJECTS_ROWS = {
    "larger": lambda r, c: r > c,
    "smaller": lambda r, c: r < c,
    "rows": lambda r, c: True,
    "columns": lambda r, c: False,
}


def leading_vectors(x: jax.Array, rank: int, old: jax.Array) -> jax.Array:
    """The first left singular vectors `[..., rows, rank]` of matrices, signed as the old ones are.

    A singular vector has no sign of its own, or phase: each is turned to where its product with the
    old one of its number is positive, so that what was averaged along the old one goes on. The
    vectors count as constants in derivatives.
    """
    x = jax.lax.stop_gradient(x)
    u, _, _ = jnp.linalg.svd(x / norm_of(x).scale, full_matrices=False)
    u = u[..., :rank]
    same = jnp.sum(u.conj() * jax.lax.stop_gradient(old), axis=-2, keepdims=True)
    size = jnp.abs(same)
    return u * jnp.where(size > 0, same / jnp.where(size > 0, size, 1), 1)


def _transposed(x: jax.Array, rows: bool) -> jax.Array:
    """The matrices with the side that is projected as rows; its own inverse."""
    return x if rows else x.mT


class Projected(NamedTuple):
    """The bases of the matrices, None for other leaves, and the slots of the inner optimizer."""

    basis: PyTree
    inner: Any


class _Projection:
    """How a leaf is projected: a stack of matrices `[..., side, other]` to `[..., rank, other]`.

    Args:
        view: how the leaf is a matrix.
        shape: its shape.
        rank: of the projection, at most the shorter side.
        side: a key of `PROJECTS_ROWS`.
    """

    def __init__(self, view: MatrixAxes, shape: tuple[int, ...], rank: int, side: str):
        self.view, self.shape = view, shape
        *self.stack, r, c = jax.eval_shape(
            view.split, jax.ShapeDtypeStruct(shape, jnp.float32)
        ).shape
        self.rows, self.rank = PROJECTS_ROWS[side](r, c), min(rank, r, c)
        self.side, self.other = (r, c) if self.rows else (c, r)

    @classmethod
    def of(cls, view: MatrixAxes, leaf: Any, rank: int, side: str) -> "_Projection | None":
        """None for a leaf that stays as it is: no matrix, or empty."""
        is_matrix = view.is_matrix and leaf.size
        return cls(view, leaf.shape, rank, side) if is_matrix else None

    def split(self, x: jax.Array) -> jax.Array:
        return _transposed(self.view.split(replicate(x)), self.rows)

    def join(self, x: jax.Array) -> jax.Array:
        return self.view.join(_transposed(x, self.rows), self.shape)

    def basis(self, value: jax.Array) -> Along:
        """A basis `[..., side, rank]`, with its axes."""
        return Along(value, self.view.along((0 if self.rows else 1, None), self.shape))

    def low(self, value: jax.Array) -> Along:
        """Projected matrices `[..., rank, other]`, with their axes."""
        return Along(value, self.view.along((None, 1 if self.rows else 0), self.shape))

    def first_basis(self, dtype: Any) -> Along:
        return self.basis(jnp.zeros((*self.stack, self.side, self.rank), dtype))

    def first_low(self, dtype: Any) -> Along:
        return self.low(jnp.zeros((*self.stack, self.rank, self.other), dtype))


def _gradient_only(value: Any, where: Any) -> Transform:
    """The optimizer in the low-rank space, Adam's direction by default."""
    tx = as_transform(scale_by_adam() if value is None else value, where)

    def check(part: Transform) -> None:
        of_trees = [name for name, kind in part.extra_args.items() if "scalar" not in kind]
        if part.needs_params or of_trees:
            needs = "the params" if part.needs_params else f"'{of_trees[0]}'"
            raise ValueError(
                f"{where}: {part.name} needs {needs}, which have other shapes than the projected "
                "gradients it would get. Weight decay and the like stand behind, as in "
                "chain(scale_by_galore(...), add_decayed_weights(...), ...)."
            )
        for inner in part.contents:
            check(inner)

    check(tx)
    return tx


class scale_by_galore(Transform):
    """Runs an optimizer on the projection of each matrix to few dimensions, and projects back.

        P <- the first left singular vectors of g           every update_proj_gap steps
        u = scale * P base_optimizer(P^T g)                  or with g^T, by side

    The state of a matrix of n by m, of which the side n is projected, is that of the inner
    optimizer for r by m, and P, n by r. Adam's entries are those in the basis P: where it changes,
    its averages go on as if it did not. Leaves that are no matrices go to the inner optimizer as
    they are.

    Args:
        rank: r, at most the shorter side.
        update_proj_gap: after how many steps the basis is computed anew; a number or a schedule.
        scale: a factor of the updates of matrices, a number or a schedule.
        base_optimizer: what runs on the projections, `scale_by_adam()` by default. It sees no
            params.
        side: which side is projected, "larger" (the least state, as in optax), "smaller" (the
            authors' `"std"`), "rows" or "columns".
        views: how each leaf is a matrix; see `matrices`.

    Raises:
        ValueError: `base_optimizer` needs the params, or an extra argument like them.

    Source: Zhao et al. 2024, "GaLore: Memory-efficient LLM training by gradient low-rank
    projection".
    """

    rank: int = static(default=128)
    update_proj_gap: Any = 200
    scale: Any = 1.0
    base_optimizer: Transform = child(default=None, converter=_gradient_only)
    side: str = static(default="larger", choices=tuple(PROJECTS_ROWS), kw_only=True)
    views: Any = per_leaf(default=matrices(), of=MatrixAxes, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_count(self.rank, f"{type(self).__name__}(rank=...)")

    def init_slots(self, params: PyTree) -> Projected:
        inner = self.base_optimizer.init_named(self.inner_params(params, "base_optimizer"))
        bases = self._each(lambda own, p: own and own.first_basis(compute_dtype(p.dtype)), params)
        return Projected(bases, inner)

    def inner_params(self, params: PyTree, label: str) -> PyTree:
        """What the inner optimizer knows of the params: the shapes of their projections."""
        return self._each(lambda own, p: own.first_low(p.dtype) if own else p, params)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        return params

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        grads, treedef = jax.tree.flatten(updates)
        own = self._projections(updates if ctx.params is None else ctx.params)
        due = ctx.step % jnp.maximum(whole(self.update_proj_gap), 1) == 0
        old = contents_like(slots.basis, updates, f"the slots {self.name}.basis")
        bases = [
            b if by is None else refreshed(due, lambda x=g, b=b, by=by: _renewed(by, x, b), b)
            for by, g, b in zip(own, grads, old, strict=True)
        ]
        low = [
            g if by is None else _project(by, g, b)
            for by, g, b in zip(own, grads, bases, strict=True)
        ]
        low, inner = self.base_optimizer.apply_named(
            treedef.unflatten(low), slots.inner, ctx._replace(params=None)
        )
        steps = [
            u if by is None else self._project_back(by, u, b, g)
            for by, u, b, g in zip(own, jax.tree.leaves(low), bases, grads, strict=True)
        ]
        kept = jax.tree.structure(slots.basis).unflatten(jax.tree.leaves(bases))
        return treedef.unflatten(steps), Projected(kept, inner)

    def _project_back(self, own: _Projection, u: jax.Array, basis: jax.Array, g: jax.Array) -> Any:
        steps = own.join(jnp.matmul(replicate(basis), replicate(u)))
        return split_like(steps * cast(self.scale, real_dtype(g.dtype)), g)

    def _projections(self, tree: PyTree) -> list[_Projection | None]:
        pairs = zip(self.views.values(tree), jax.tree.leaves(tree), strict=True)
        return [_Projection.of(view, leaf, self.rank, self.side) for view, leaf in pairs]

    def _each(self, first: Any, params: PyTree) -> PyTree:
        own = iter(self._projections(params))
        return placed(lambda p: first(next(own), p), params)


def _renewed(own: _Projection, g: jax.Array, old: jax.Array) -> jax.Array:
    new = leading_vectors(own.split(g), own.rank, replicate(old))
    return split_like(new, old)


def _project(own: _Projection, g: jax.Array, basis: jax.Array) -> jax.Array:
    """The projected gradients, where the inner optimizer's slots lie."""
    low = jnp.matmul(replicate(basis).mT.conj(), own.split(g))
    return place(own.low(low), g)


def galore(
    learning_rate: Any,
    rank: int = 128,
    update_proj_gap: Any = 200,
    scale: Any = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    side: str = "larger",
    views: Any = matrices(),
    rest: optax.GradientTransformation | None = None,
) -> Transform:
    """GaLore: Adam in the few dimensions in which the gradient of each matrix is large.

    For large matrices and little memory: the state of one of n by m, n > m, is 2 r m + r n numbers
    instead of 2 n m. Only what lies in the basis is learned until it changes. Not for small
    matrices, with whose sides `rank` must be compared, and the basis is a singular value
    decomposition, which takes long for large ones: see `apollo` for a rule without it.

        P <- the first left singular vectors of g           every update_proj_gap steps
        u = scale * P adam(P^T g)                            or with g^T, by side
        p <- p - learning_rate * (u + weight_decay * p)

    As `optax.contrib.galore`, but for this: slots are at least float32, where optax rounds the
    basis to the dtype of the params; embeddings and heads are no matrices unless `views` says so;
    stacks of matrices have a basis each; and a new basis continues the signs of the old one, where
    optax takes those that the decomposition happens to return, of which the averages that go on
    depend.

    Args:
        learning_rate: a number or a schedule.
        rank: the number of dimensions, at most the shorter side.
        update_proj_gap: after how many steps the basis is computed anew; a number or a schedule.
        scale: a factor of the updates of matrices; the authors take 0.25 and a rate of 0.01.
        base_optimizer: what runs on the projections, and on the leaves that are no matrices;
            `scale_by_adam()` by default. It sees no params.
        weight_decay: decoupled, times the learning rate.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        side: which side is projected, "larger" (the least state, as in optax), "smaller" (the
            authors' `"std"`), "rows" or "columns".
        views: how each leaf is a matrix or a stack of them; see `matrices`.
        rest: the optimizer of all other leaves; by default the same as for matrices, without a
            projection.

    Raises:
        ValueError: `base_optimizer` needs the params; or, at `init`, an array of three or more axes
            is not described by `views`.

    Source: Zhao et al. 2024, "GaLore: Memory-efficient LLM training by gradient low-rank
    projection".
    """
    whole_tree = chain(
        scale_by_galore(rank, update_proj_gap, scale, base_optimizer, side=side, views=views),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    return whole_tree if rest is None else partition_matrices(whole_tree, rest, views)


class ScaledMoments(NamedTuple):
    """Moments of the projection, the size of the last update, and the basis if it is kept."""

    mu: PyTree
    nu: PyTree
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
        seed: of the random projections, a whole number below 2^24.
        proj: "random", or "svd" for the first singular vectors of g, as in `scale_by_galore`.
        side: which side is projected, "smaller" (the authors' `"std"`), "larger", "rows" or
            "columns".
        views: how each leaf is a matrix; see `matrices`.

    Source: Zhu et al. 2025, "APOLLO: SGD-like memory, AdamW-level performance"; Chen et al. 2024,
    "Fira", for the limit of the growth.
    """

    random = True

    rank: int = static(default=256)
    update_proj_gap: Any = 200
    scale: Any = 1.0
    scale_type: str = static(default="channel", choices=("channel", "tensor"))
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-6
    max_growth: Any = 1.01
    seed: Any = 0
    proj: str = static(default="random", choices=("random", "svd"), kw_only=True)
    side: str = static(default="smaller", choices=tuple(PROJECTS_ROWS), kw_only=True)

    Slots = ScaledMoments

    def __post_init__(self):
        super().__post_init__()
        check_count(self.rank, f"{type(self).__name__}(rank=...)")

    def draws_at(self, step):
        return step - step % jnp.maximum(whole(self.update_proj_gap), 1)

    def init_matrix(self, param):
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

    def update_matrix(self, g, slots, param, t, *, key: Any = None):
        rows, (side, _), rank = self._form(g.shape)
        x = _transposed(g, rows)
        if self.proj == "svd":
            due = (whole(t) - 1) % jnp.maximum(whole(self.update_proj_gap), 1) == 0
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
        return _transposed(u, rows), ScaledMoments(mu, nu, size, basis)

    def _form(self, shape: tuple[int, int]) -> tuple[bool, tuple[int, int], int]:
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
    views: Any = matrices(),
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
        seed: of the random projections, a whole number below 2^24.
        proj: "random", or "svd" for the first singular vectors of g.
        side: which side is projected, "smaller" (the authors' `"std"`), "larger", "rows" or
            "columns".
        views: how each leaf is a matrix or a stack of them; see `matrices`.
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


def apollo_mini(learning_rate: Any, scale: Any = 128.0, **others: Any) -> partition:
    """APOLLO-Mini: one factor for each matrix, from a projection to one dimension.

        apollo(learning_rate, rank=1, scale=scale, scale_type="tensor", **others)

    Args:
        learning_rate: a number or a schedule; the authors take 0.01.
        scale: the factor of which the root is taken, a number or a schedule; larger models want
            more.
        **others: other arguments of `apollo`.

    Source: Zhu et al. 2025, "APOLLO: SGD-like memory, AdamW-level performance".
    """
    return apollo(learning_rate, rank=1, scale=scale, scale_type="tensor", **others)
