"""One optimizer for the matrices of a model and another for the rest."""

from typing import Any

import optax

from optfn.compose.partition import partition
from optfn.core.matrix_axes import MatrixAxes
from optfn.core.of_views import of_views


def partition_matrices(
    matrix: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    views: Any = None,
) -> partition:
    """`matrix` for the leaves that are matrices, `rest` for biases, norms, embeddings and heads.

        partition({"matrix": matrix, "rest": rest}, matrix_labels(views))

    Args:
        matrix: an optimizer, such as `chain(newton_schulz(), scale_by_learning_rate(0.02))`.
        rest: another one, such as `adamw(3e-4)`.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape. It is for
            the choice; stages of `matrix` have views of their own.
    """
    return partition({"matrix": matrix, "rest": rest}, matrix_labels(views))


def matrix_labels(views: Any = None) -> Any:
    """The label "matrix" for the leaves that are matrices and "rest" for others, for `partition`.

    Args:
        views: a tree or a function, as a matrix optimizer takes it; None is `matrices()`.
    """
    return of_views(_label, views, "matrix_labels")


def _label(view: MatrixAxes, leaf: Any) -> str:
    return "matrix" if view.is_matrix else "rest"
