"""Rules for matrices on a mesh: every device gets whole matrices of its own, by all-to-all.

A matrix that is split over devices is no use to a rule that needs it whole, and to gather it on all
of them moves and computes everything everywhere. So matrices of one shape are stacked, and the
stack is split over the devices instead: one all-to-all makes whole matrices of parts, each device
applies the rule to its share of the stack, and another one puts the results where they were.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from optfn.core.matrix_axes import MatrixAxes


class Split(NamedTuple):
    """How arrays of one kind are split.

    Attributes:
        stack: the axes that count matrices.
        names: for each axis, the names of the axes of the mesh that split it.
    """

    stack: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, x: Any, stack: Sequence[int]) -> "Split":
        return cls(tuple(stack), names_along(x))

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(*self.names)

    @property
    def of_stack(self) -> tuple[tuple[str, ...], ...]:
        """The axes of the mesh that split the stack."""
        return tuple(self.names[axis] for axis in self.stack)

    @property
    def across(self) -> dict[str, int]:
        """The axes of the mesh that split matrices, each with the axis it splits of `flat`."""
        own = [names for axis, names in enumerate(self.names) if axis not in self.stack]
        return {name: 1 + axis for axis, names in enumerate(own) for name in names}

    def flat(self, x: jax.Array) -> jax.Array:
        """A part with the stack as its first axis."""
        x = jnp.moveaxis(x, self.stack, range(len(self.stack)))
        return x.reshape(-1, *x.shape[len(self.stack) :])

    def unflat(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """The inverse of `flat`."""
        sides = [like.shape[axis] for axis in self.stack]
        return jnp.moveaxis(x.reshape(*sides, *x.shape[1:]), range(len(self.stack)), self.stack)


def names_along(x: Any) -> tuple[tuple[str, ...], ...]:
    """For each axis of a traced array the explicit axes of the mesh that split it."""
    spec = (*jax.typeof(x).sharding.spec, *[None] * jnp.ndim(x))[: jnp.ndim(x)]
    return tuple(names if isinstance(names, tuple) else (names,) if names else () for names in spec)


def are_split(x: Any, view: MatrixAxes) -> bool:
    """Whether devices have parts of a traced array of matrices."""
    if not isinstance(x, Tracer) or not view.is_matrix or not x.size:
        return False
    split = Split.of(x, view.axes(x.shape)[0])
    order = jax.typeof(x).sharding.mesh.axis_names
    in_order = all(sorted(names, key=order.index) == list(names) for names in split.names)
    return in_order and any(split.names)


def of_stack(view: MatrixAxes, ndim: int) -> MatrixAxes:
    """The view of an array whose stack has one axis, the first, and of one without a stack."""
    stack, rows, columns = view.axes((1,) * ndim)
    order = [axis for axis in range(ndim) if axis not in stack]
    return replace(
        view,
        rows=tuple(order.index(axis) - len(order) for axis in rows),
        columns=tuple(order.index(axis) - len(order) for axis in columns),
    )


def for_each(number: Any, like: jax.Array, view: MatrixAxes) -> jax.Array:
    """A number for each matrix of an array, split as the stack is."""
    stack, _, _ = view.axes(like.shape)
    spec = PartitionSpec(*Split.of(like, stack).of_stack)
    numbers = jnp.broadcast_to(number, [like.shape[axis] for axis in stack])
    return jax.sharding.reshard(numbers, NamedSharding(jax.typeof(like).sharding.mesh, spec))


def on_whole_matrices(
    rule: Callable[..., Any],
    columns: Sequence[Sequence[jax.Array]],
    splits: Sequence[Split],
    results: int,
    shared: Any,
) -> list[list[jax.Array]]:
    """`rule(shared, *stacks)` on stacks of whole matrices, which are spread over the mesh.

    Args:
        rule: takes the numbers and a stack for each column.
        columns: for each argument the arrays of all leaves, which are of one shape.
        splits: how the arrays of each column are split.
        results: the number of arrays that the rule returns, which are like the first columns.
        shared: numbers, the same everywhere.

    Returns:
        For each result the arrays of all leaves, split as they were.
    """
    mesh = jax.typeof(columns[0][0]).sharding.mesh
    across = set().union(*(split.across for split in splits))
    # Of several names that split one axis the last is the innermost, whose parts join first.
    names = tuple(name for name in reversed(mesh.axis_names) if name in across)
    shares = prod(mesh.shape[name] for name in names)
    specs = [[split.spec] * len(columns[0]) for split in splits]

    def on_parts(shared, columns):
        number = sum(prod(x.shape[axis] for axis in splits[0].stack) for x in columns[0])
        stacks = [
            _spread(_stacked(column, split, shares), split, names)
            for column, split in zip(columns, splits, strict=True)
        ]
        return [
            _unstacked(_gathered(stack, split, names)[:number], column, split)
            for stack, column, split in zip(rule(shared, *stacks), columns, splits, strict=False)
        ]

    spread = jax.shard_map(
        on_parts,
        mesh=mesh,
        in_specs=(PartitionSpec(), specs),
        out_specs=specs[:results],
        check_vma=False,
    )
    return spread(shared, [list(column) for column in columns])


def _stacked(column: Sequence[jax.Array], split: Split, shares: int) -> jax.Array:
    """Parts of matrices, in a number that `shares` divides."""
    stack = jnp.concatenate([split.flat(x) for x in column])
    return jnp.pad(stack, [(0, -len(stack) % shares)] + [(0, 0)] * (stack.ndim - 1))


def _unstacked(stack: jax.Array, column: Sequence[jax.Array], split: Split) -> list[jax.Array]:
    pieces = jnp.split(stack, len(column))
    return [split.unflat(piece, x) for piece, x in zip(pieces, column, strict=True)]


def _spread(stack: jax.Array, split: Split, names: Sequence[str]) -> jax.Array:
    """Whole matrices, a share of the stack on each device."""
    for name in names:
        if name in split.across:
            stack = lax.all_to_all(stack, name, 0, split.across[name], tiled=True)
        else:
            share = len(stack) // lax.axis_size(name)
            stack = lax.dynamic_slice_in_dim(stack, lax.axis_index(name) * share, share)
    return stack


def _gathered(stack: jax.Array, split: Split, names: Sequence[str]) -> jax.Array:
    """The inverse of `_spread`."""
    for name in reversed(names):
        if name in split.across:
            stack = lax.all_to_all(stack, name, split.across[name], 0, tiled=True)
        else:
            stack = lax.all_gather(stack, name, tiled=True)
    return stack
