"""How an array is a matrix, or a stack of them, and which arrays of a model are."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import jax
import jax.numpy as jnp

from optfn.core.paths import by_path


@dataclass(frozen=True)
class MatrixAxes:
    """Which axes of an array are the rows of a matrix, and which its columns.

    All other axes count the matrices of a stack. Rows are the outputs of a layer (its fan-out),
    columns its inputs (fan-in), so that the layer is y = W x. Axes counted from the end stay right
    when layers are stacked in front:

        MatrixAxes(rows=-1, columns=-2)          (..., in, out)              Flax, Haiku
        MatrixAxes(rows=-2, columns=-1)          (..., out, in)              Equinox, torch
        MatrixAxes(rows=(-2, -1), columns=-3)    (..., embed, heads, size)   queries, keys, values
        MatrixAxes(rows=-1, columns=-3)          the same, a matrix for each head
        MatrixAxes(rows=-1, columns=(-3, -2))    (..., heads, size, embed)   the output of attention
        MatrixAxes(rows=-1, columns=(-4, -3, -2))    (k, k, in, out)         a convolution

    Args:
        rows: the number of an axis, or a tuple of them in the order in which they are joined.
        columns: likewise.
        block: cuts each matrix into blocks of this many rows and columns, of which the last ones
            have what remains, and takes each for a matrix of its own; None does not cut. Zeros fill
            the last ones up, so a divisor of the sides costs the least.

    Raises:
        ValueError: an axis stands twice, or only one of rows and columns is empty.
    """

    rows: int | tuple[int, ...]
    columns: int | tuple[int, ...]
    block: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            given = getattr(self, name)
            axes = given if isinstance(given, (tuple, list)) else (given,)
            try:
                object.__setattr__(self, name, tuple(map(operator.index, axes)))
            except TypeError:
                raise TypeError(
                    f"MatrixAxes({name}=...) must be the number of an axis or a tuple of them, "
                    f"found {given!r}."
                ) from None
        both = [axis for axes in self._sides for axis in axes]
        if len(set(both)) < len(both):
            raise ValueError(f"{self}: an axis is either of the rows or of the columns, and once.")
        if bool(self.rows) != bool(self.columns):
            raise ValueError(f"{self}: a matrix has rows and columns.")
        if self.block is not None and self.block < 1:
            raise ValueError(f"{self}: block must be a positive number.")

    @property
    def is_matrix(self) -> bool:
        """False for `NO_MATRIX`, of which every entry stands alone."""
        return bool(self.rows)

    @property
    def _sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return cast(Any, self.rows), cast(Any, self.columns)

    def axes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The numbers, from 0 on, of the axes of the stack, of the rows and of the columns."""
        ndim = len(shape)
        rows, columns = self._sides
        both = rows + columns
        own = [axis % ndim for axis in both if -ndim <= axis < ndim]
        if len(set(own)) < len(both):
            raise ValueError(f"{self} does not fit an array of shape {shape}.")
        stack = tuple(axis for axis in range(ndim) if axis not in own)
        return stack, tuple(own[: len(rows)]), tuple(own[len(rows) :])

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many rows and columns each matrix of an array has, before it is cut into blocks."""
        _, rows, columns = self.axes(shape)
        return prod(shape[axis] for axis in rows), prod(shape[axis] for axis in columns)

    def split(self, x: jax.Array) -> jax.Array:
        """The matrices `[..., rows, columns]` of an array."""
        stack, rows, columns = self.axes(x.shape)
        sides = self.sides(x.shape)
        x = x.transpose(stack + rows + columns)
        x = x.reshape(*x.shape[: len(stack)], *sides)
        return x if self.block is None else _cut(x, self.block)

    def join(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `split`: an array of this shape."""
        stack, rows, columns = self.axes(shape)
        if self.block is not None:
            matrices = _uncut(matrices, self.sides(shape))
        order = stack + rows + columns
        x = matrices.reshape([shape[axis] for axis in order])
        return x.transpose([order.index(axis) for axis in range(len(shape))])

    def along(self, axes: tuple[int | None, ...], shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """Which axis of the array is each axis of a stacked slot, for `Along`.

        Args:
            axes: for each axis of a slot of one matrix 0, its rows, 1, its columns, or None.
            shape: the shape of the array.
        """
        stack, *both = self.axes(shape)
        single = [own[0] if len(own) == 1 else None for own in both]
        if self.block is not None:
            return (*stack, *single, *[None] * len(axes))
        return (*stack, *(None if axis is None else single[axis] for axis in axes))


NO_MATRIX = MatrixAxes(rows=(), columns=())


def _cut(x: jax.Array, block: int) -> jax.Array:
    """The blocks `[..., down, across, rows, columns]` of matrices."""
    *stack, rows, columns = x.shape
    (down, r), (across, c) = _blocks(rows, block), _blocks(columns, block)
    missing = [(0, 0)] * len(stack) + [(0, down * r - rows), (0, across * c - columns)]
    return jnp.pad(x, missing).reshape(*stack, down, r, across, c).swapaxes(-3, -2)


def _uncut(x: jax.Array, sides: tuple[int, int]) -> jax.Array:
    *stack, down, across, r, c = x.shape
    whole = x.swapaxes(-3, -2).reshape(*stack, down * r, across * c)
    return whole[..., : sides[0], : sides[1]]


def _blocks(side: int, block: int) -> tuple[int, int]:
    """The number of blocks on a side, and how long they are."""
    length = min(side, block)
    return -(-side // length) if side else 1, length


VECTORS = ("bias", "scale", "b", "beta", "gamma", "gain", "offset", "shift")
TABLES = ("embedding", "wte", "wpe", "head", "lm_head", "logits", "unembed", "pos", "tok")


class matrices(by_path):
    """Which leaves are matrices and how, for the `views` of matrix optimizers.

        muon(0.02, views=matrices({"layers/**/kernel": MatrixAxes(rows=-1, columns=-2)}))

    Patterns as in `by_path` decide first. Then the name of a leaf: what is called bias, scale,
    gamma or the like, or lies in an embedding or a head, is no matrix, stacked by a scan or not.
    Then the shape: an array of fewer than two axes is no matrix, and one of two is `(in, out)`, as
    in Flax and Haiku, or `(out, in)` if its name is `weight`, as in Equinox. An array of more axes
    could be anything, and is an error.

    Args:
        patterns: a dict from patterns of paths to `MatrixAxes`, or to `NO_MATRIX`.
        default: what decides after the patterns: a function `(path, leaf) -> MatrixAxes`, or a
            `MatrixAxes` for all; None for the rule above.

    Raises:
        ValueError: at `init` and `update`: an array of three or more axes is not described, or a
            pattern matches nothing.
    """

    def __init__(
        self,
        patterns: Mapping[str, MatrixAxes] | None = None,
        default: Callable[[str, Any], MatrixAxes] | MatrixAxes | None = None,
    ):
        if patterns:
            super().__init__(patterns, default)
        else:
            self.patterns, self.default = (), default

    def __call__(self, path: str, leaf: Any = None) -> MatrixAxes:
        first = self._first(path)
        if first is not None:
            return dict(self.patterns)[first]
        if isinstance(self.default, MatrixAxes):
            return self.default
        return (self.default or by_name_and_shape)(path, leaf)

    def check(self, leaves: Any, places: Any, where: str) -> None:
        if self.patterns:
            by_path(dict(self.patterns), NO_MATRIX).check(leaves, places, where)

    def __repr__(self) -> str:
        arguments = [repr(dict(self.patterns))] if self.patterns else []
        if self.default is not None:
            arguments.append(f"default={getattr(self.default, '__qualname__', self.default)!s}")
        return f"matrices({', '.join(arguments)})"


def by_name_and_shape(path: str, leaf: Any) -> MatrixAxes:
    """The rule of `matrices` without patterns."""
    entries = path.lower().split("/")
    name, shape = entries[-1], jnp.shape(leaf)
    if len(shape) < 2 or name in VECTORS or any(map(_is_table, entries)):
        return NO_MATRIX
    if len(shape) == 2:
        return MatrixAxes(-2, -1) if name == "weight" else MatrixAxes(-1, -2)
    raise ValueError(
        f"'{path}' has {len(shape)} axes, {shape}: which are a matrix? Say it by the path, as in "
        f'views=optfn.matrices({{"{path}": optfn.MatrixAxes(rows=-1, columns=-2)}}) for a stack of '
        "(in, out); optfn.NO_MATRIX leaves it to the other optimizer."
    )


def views_or_rule(views: Any) -> Any:
    """The argument `views`, of which None is the rule by name and shape."""
    return matrices() if views is None else views


def _is_table(entry: str) -> bool:
    return entry in TABLES or "embed" in entry or entry.endswith("_head")


def matrices_and_tables(path: str, leaf: Any) -> MatrixAxes:
    """For `views`: all that is no vector is a matrix `(in, out)`, embeddings and heads too.

    An embedding is `(out, in)`, as its rows are looked up, and so is a `weight`, as in Equinox.
    """
    *_, name = path.lower().split("/")
    if jnp.ndim(leaf) < 2 or name in VECTORS:
        return NO_MATRIX
    shared_with_head = name == "weight" or "embed" in path.lower()
    return MatrixAxes(-2, -1) if shared_with_head else MatrixAxes(-1, -2)
