"""optax's dimension numbers, which say how an array is a matrix, read as views."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.matrix_axes import NO_MATRIX, MatrixAxes
from optfn.core.tree import PerLeaf, PyTree, is_leaf


def views_or_numbers(views: Any, numbers: Any, where: str) -> Any:
    """`views`, or those of optax's dimension numbers if these are given in their place.

    Args:
        views: the argument `views`, None if it is not given.
        numbers: the other argument, as `views_by_numbers` takes it, or None.
        where: its name, as in `"muon(numbers=...)"`.
    """
    if numbers is None:
        return views
    if views is not None:
        raise TypeError(f"{where.removesuffix(')')}, views=...) are the same argument.")
    return views_by_numbers(numbers, where)


def views_by_numbers(numbers: Any, where: str) -> Any:
    """A function from params to views.

    Args:
        numbers: a `MuonDimensionNumbers` or `GaLoreDimensionNumbers` for all arrays of two axes or
            more, a tree of them with None for what is no matrix, or a function from the params to
            such a tree.
        where: the argument that holds them, for messages.
    """
    is_function = callable(numbers) and is_leaf(numbers)
    return _Views(numbers if is_function else _read(numbers, where), where)


@dataclass(frozen=True)
class _Views:
    """Equal to another of the same numbers."""

    numbers: PerLeaf | Callable[[PyTree], PyTree]
    where: str

    def __call__(self, params: PyTree) -> PyTree:
        views = self.numbers
        if not isinstance(views, PerLeaf):
            views = _read(views(params), self.where)
        leaves, treedef = jax.tree.flatten(params)
        pairs = zip(views.values(params), leaves, strict=True)
        return treedef.unflatten(
            NO_MATRIX if views.is_one and jnp.ndim(leaf) < 2 else view for view, leaf in pairs
        )

    def __repr__(self) -> str:
        return self.where.replace("...", repr(self.numbers))


def _read(numbers: PyTree, where: str) -> PerLeaf:
    def is_one(x: Any) -> bool:
        return x is None or hasattr(x, "reduction_axis")

    def read(x: Any) -> Any:
        if x is None:
            return NO_MATRIX
        return MatrixAxes(x.output_axis, x.reduction_axis) if is_one(x) else x

    return PerLeaf.of(jax.tree.map(read, numbers, is_leaf=is_one), where, MatrixAxes)
