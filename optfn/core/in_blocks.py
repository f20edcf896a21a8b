"""Views that cut large matrices into blocks."""

from dataclasses import replace
from typing import Any

import jax

from optfn.core.arguments import Argument
from optfn.core.data import check_count
from optfn.core.matrix_axes import MatrixAxes
from optfn.core.paths import by_path
from optfn.core.tree import PerLeaf, PyTree


def in_blocks(views: Any, block: int) -> Any:
    """The same views, with matrices of more than `block` rows or columns cut into blocks.

        shampoo(0.01, views=in_blocks(matrices(), 512), max_preconditioner_dim=None)

    Each block is then a matrix of its own to every stage with these views, as said at `MatrixAxes`.
    A matrix of no longer sides stays whole, if the views are a function; in a tree of views every
    matrix is cut, which for small ones makes a single block. A view that says how it is cut stays.

    Args:
        views: a tree or a function, as a matrix optimizer takes it; see `matrices`.
        block: the longest side, a positive number.

    Raises:
        TypeError: the views are neither a function nor a tree of `MatrixAxes`.
        ValueError: block is not a whole number above 0.
    """
    check_count(block, "in_blocks(block=...)")
    given = PerLeaf.of(views, str(Argument("in_blocks(views=...)", views)), MatrixAxes)
    if given.function is None:
        return jax.tree.map(lambda view: _cut(view, block), views)
    return (_BlocksOfParams if given.is_of_params else _Blocks)(views, block)


class _Blocks(by_path):
    """A function of paths and leaves, equal to another of the same views and block."""

    def __init__(self, views: Any, block: int):
        self.views: Any = views
        self.block = block

    def __call__(self, path: str, leaf: Any = None) -> MatrixAxes:
        view = self.views(path, leaf)
        is_small = view.is_matrix and max(view.sides(leaf.shape)) <= self.block
        return view if is_small else _cut(view, self.block)

    def check(self, leaves, places, where: str) -> None:
        if isinstance(self.views, by_path):
            self.views.check(leaves, places, where)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._content() == other._content()

    __hash__ = by_path.__hash__

    def _content(self) -> tuple:
        return self.views, self.block

    def __repr__(self) -> str:
        views = getattr(self.views, "__qualname__", self.views)
        return f"in_blocks({views!s}, {self.block})"


class _BlocksOfParams(_Blocks):
    """The same of a function of the params."""

    def __call__(self, params: PyTree) -> PyTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        return jax.tree.map(lambda view: _cut(view, self.block), self.views(params))


def _cut(view: MatrixAxes, block: int) -> MatrixAxes:
    return replace(view, block=block) if view.is_matrix and view.block is None else view
