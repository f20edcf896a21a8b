"""One optimizer for the matrices of a model and another for the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from optfn.compose.partition import partition
from optfn.core.arguments import Argument
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.tree import PyTree, count_arguments


def partition_matrices(
    matrix: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    views: Any = matrices(),
) -> partition:
    """`matrix` for the leaves that are matrices, `rest` for biases, norms, embeddings and heads.

        partition({"matrix": matrix, "rest": rest}, matrix_labels(views))

    Args:
        matrix: an optimizer, such as `chain(newton_schulz(), scale_by_learning_rate(0.02))`.
        rest: another one, such as `adamw(3e-4)`.
        views: how each leaf is a matrix; see `matrices`. It is for the choice; stages of `matrix`
            have views of their own.
    """
    return partition({"matrix": matrix, "rest": rest}, matrix_labels(views))


def matrix_labels(views: Any = matrices()) -> Any:
    """The label "matrix" for the leaves that are matrices and "rest" for others, for `partition`.

    Args:
        views: a tree or a function, as a matrix optimizer takes it; see `matrices`.
    """
    if views is None:
        raise TypeError(
            f"{Argument('matrix_labels(views=...)', views)} must be a MatrixAxes per leaf, as a "
            "tree or a function, found None."
        )
    if not callable(views):
        return _labels_of(views)
    return _LabelsOfParams(views) if count_arguments(views, "views=...") == 1 else _Labels(views)


@dataclass(frozen=True)
class _Labels:
    """A function of paths and leaves, equal to another of the same views."""

    views: Callable[..., Any]

    def __call__(self, path: str, leaf: Any) -> str:
        return _label(self.views(path, leaf))

    def __repr__(self) -> str:
        return f"matrix_labels({getattr(self.views, '__qualname__', self.views)!s})"


class _LabelsOfParams(_Labels):
    """The same of a function of the params."""

    def __call__(self, params: PyTree) -> PyTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _labels_of(self.views(params))


def _labels_of(views: PyTree) -> PyTree:
    return jax.tree.map(_label, views)


def _label(view: MatrixAxes) -> str:
    return "matrix" if view.is_matrix else "rest"
