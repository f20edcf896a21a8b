"""Views that cut large matrices into blocks."""

from dataclasses import replace
from typing import Any

from optfn.core.data import check_count
from optfn.core.matrix_axes import MatrixAxes
from optfn.core.of_views import of_views


def in_blocks(views: Any, block: int) -> Any:
    """The same views, with matrices of more than `block` rows or columns cut into blocks.

        shampoo(0.01, views=in_blocks(matrices(), 512), max_preconditioner_dim=None)

    Each block is then a matrix of its own to every stage with these views, as said at `MatrixAxes`.
    A matrix of no longer sides stays whole, if the views are a function; in a tree of views every
    matrix is cut, which for small ones makes a single block. A view that says how it is cut stays.

    Args:
        views: a tree or a function, as a matrix optimizer takes it; None is `matrices()`.
        block: the longest side, a positive number.

    Raises:
        TypeError: the views are neither a function nor a tree of `MatrixAxes`.
        ValueError: block is not a whole number above 0.
    """
    check_count(block, "in_blocks(block=...)")
    return of_views(_cut, views, "in_blocks", block=block)


def _cut(view: MatrixAxes, leaf: Any, block: int) -> MatrixAxes:
    if not view.is_matrix or view.block is not None:
        return view
    is_small = leaf is not None and max(view.sides(leaf.shape)) <= block
    return view if is_small else replace(view, block=block)
