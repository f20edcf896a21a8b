"""GaLore: an optimizer that runs on a projection of each matrix."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.boxes import contents_like
from optfn.core.control_flow import refreshed
from optfn.core.data import check_count, child, per_leaf, static
from optfn.core.dtypes import cast, compute_dtype, own_dtype, real_dtype
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.numerics import is_multiple
from optfn.core.optax_axes import views_by_numbers, views_or_numbers
from optfn.core.placement import Along, place, replicate, split_like
from optfn.core.slots import placed
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.turns import is_due, turns
from optfn.linalg import leading_vectors
from optfn.optimizers.elementwise.adam import scale_by_adam
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate

# Which side of a matrix of r rows and c columns is projected: whether it is the rows.
PROJECTS_ROWS: dict[str, Callable[[int, int], bool]] = {
    "larger": lambda r, c: r > c,
    "smaller": lambda r, c: r < c,
    "rows": lambda r, c: True,
    "columns": lambda r, c: False,
}


def transposed(x: jax.Array, rows: bool) -> jax.Array:
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
        return transposed(self.view.split(replicate(x)), self.rows)

    def join(self, x: jax.Array) -> jax.Array:
        return self.view.join(transposed(x, self.rows), self.shape)

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


def _gradient_only(
    value: optax.GradientTransformation | None, where: str = "scale_by_galore(base_optimizer=...)"
) -> Transform:
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


def _views_by_numbers(numbers: Any) -> Any:
    return views_by_numbers(numbers, "scale_by_galore(weight_dimension_numbers=...)")


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
        views: how each leaf is a matrix; None is `matrices()`: by name and shape. Or, as in optax,
            `weight_dimension_numbers`; see `galore`.

    Raises:
        ValueError: `base_optimizer` needs the params, or an extra argument like them.

    Source: Zhao et al. 2024, "GaLore: Memory-efficient LLM training by gradient low-rank
    projection".
    """

    refreshes = True

    rank: int = static(default=128)
    update_proj_gap: Any = 200
    scale: Any = 1.0
    base_optimizer: Transform = child(default=None, converter=_gradient_only)
    side: str = static(default="larger", choices=tuple(PROJECTS_ROWS), kw_only=True)
    views: Any = per_leaf(
        default=None,
        none_is=matrices(),
        of=MatrixAxes,
        kw_only=True,
        also_called="weight_dimension_numbers",
        read=_views_by_numbers,
    )

    def __post_init__(self) -> None:
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
        old = contents_like(slots.basis, updates, f"the slots {self.name}.basis")
        bases = self._refreshed(own, grads, old, ctx.step)
        low = list(map(_project, own, grads, bases))
        low, inner = self.base_optimizer.apply_named(
            treedef.unflatten(low), slots.inner, ctx._replace(params=None)
        )
        scale = cast(self.scale, own_dtype(updates))
        steps = [
            u if by is None else _project_back(by, u, b, g, scale)
            for by, u, b, g in zip(own, jax.tree.leaves(low), bases, grads, strict=True)
        ]
        kept = jax.tree.structure(slots.basis).unflatten(jax.tree.leaves(bases))
        return treedef.unflatten(steps), Projected(kept, inner)

    def _refreshed(
        self, own: list[Any], grads: list[Any], old: list[Any], step: jax.Array
    ) -> list[Any]:
        """The bases after the renewal of those that are due."""
        own_turns = turns([by is not None for by in own])
        if not any(own_turns):
            due = is_multiple(step, self.update_proj_gap)
            return refreshed(due, lambda: list(map(_renewed, own, grads, old)), old)
        return [
            None
            if by is None
            else refreshed(
                (step == 0) | is_due(step, self.update_proj_gap, turn),
                partial(_renewed, by, g, basis),
                basis,
            )
            for turn, by, g, basis in zip(own_turns, own, grads, old, strict=True)
        ]

    def _projections(self, tree: PyTree) -> list[_Projection | None]:
        pairs = zip(self.views.values(tree), jax.tree.leaves(tree), strict=True)
        return [_Projection.of(view, leaf, self.rank, self.side) for view, leaf in pairs]

    def _each(self, first: Any, params: PyTree) -> PyTree:
        own = iter(self._projections(params))
        return placed(lambda p: first(next(own), p), params)


def _renewed(own: _Projection | None, g: jax.Array, old: jax.Array | None) -> jax.Array | None:
    if own is None or old is None:
        return None
    new = leading_vectors(own.split(g), own.rank, cast(replicate(old), g.dtype))
    return split_like(cast(new, old.dtype), old)


def _project(own: _Projection | None, g: jax.Array, basis: jax.Array | None) -> jax.Array:
    """The projected gradient, where the inner optimizer's slots lie."""
    if own is None or basis is None:
        return g
    whole_basis = cast(replicate(basis), g.dtype)
    return place(own.low(jnp.matmul(whole_basis.mT.conj(), own.split(g))), g)


def _project_back(
    own: _Projection, u: jax.Array, basis: jax.Array, g: jax.Array, scale: jax.Array
) -> jax.Array:
    steps = own.join(jnp.matmul(cast(replicate(basis), g.dtype), replicate(u)))
    return split_like(steps * cast(scale, real_dtype(g.dtype)), g)


def galore(
    learning_rate: Any,
    rank: int = 128,
    update_proj_gap: Any = 200,
    scale: Any = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    *,
    side: str = "larger",
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> Transform:
    """GaLore: Adam in the few dimensions in which the gradient of each matrix is large.

    For large matrices and little memory: the state of one of n by m, n > m, is 2 r m + r n numbers
    instead of 2 n m. Only what lies in the basis is learned until it changes. Not for matrices
    whose shorter side is near the rank, which save nothing. The basis is from a singular value
    decomposition, which takes long for large matrices: `apollo` needs none.

        P <- the first left singular vectors of g           every update_proj_gap steps
        u = scale * P adam(P^T g)                            or with g^T, by side
        p <- p - learning_rate * (u + weight_decay * p)

    As `optax.contrib.galore`, but for this: slots are at least float32, where optax rounds the
    basis to the dtype of the params; embeddings and heads are no matrices unless `views` says so;
    stacks of matrices have a basis each; and a new basis continues the signs of the old one, where
    optax takes those that the decomposition happens to return, on which the averages that go on
    depend. Without a change of the basis the paths are the same.

    Args:
        learning_rate: a number or a schedule.
        rank: the number of dimensions, at most the shorter side.
        update_proj_gap: after how many steps the basis is computed anew; a number or a schedule.
        scale: a factor of the updates of matrices; the authors take 0.25 and a rate of 0.01.
        base_optimizer: what runs on the projections, and on the leaves that are no matrices;
            `scale_by_adam()` by default. It sees no params.
        weight_decay: decoupled, times the learning rate.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        weight_dimension_numbers: optax's way to say how leaves are matrices, in the place of
            `views`: `GaLoreDimensionNumbers` for all arrays of two axes or more, or a tree of them
            with None for what is no matrix, or a function from the params to one.
        side: which side is projected, "larger" (the least state, as in optax), "smaller" (the
            authors' `"std"`), "rows" or "columns".
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default the same as for matrices, without a
            projection.

    Raises:
        ValueError: `base_optimizer` needs the params; or, at `init`, an array of three or more axes
            is not described by `views`.

    Source: Zhao et al. 2024, "GaLore: Memory-efficient LLM training by gradient low-rank
    projection".
    """
    where = "galore(weight_dimension_numbers=...)"
    views = views_or_numbers(views, weight_dimension_numbers, where)
    whole_tree = chain(
        scale_by_galore(rank, update_proj_gap, scale, base_optimizer, side=side, views=views),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    return whole_tree if rest is None else partition_matrices(whole_tree, rest, views)
