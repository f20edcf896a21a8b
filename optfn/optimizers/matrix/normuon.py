"""NorMuon: orthogonalized momentum whose rows are normalized by their second moments."""

from typing import Any

import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.optimizers.matrix.muon import adam_of_muon, scale_by_muon, scaled_to_shape
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrix_norms import scale_by_row_moment
from optfn.transforms.scale import scale_by_learning_rate


def normuon(
    learning_rate: Any,
    beta: Any = 0.95,
    b2: Any = 0.95,
    eps: Any = 1e-10,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    *,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = None,
    nesterov: bool = True,
    dtype: str | None = None,
    shape_scale: str = "width",
    consistent_rms: Any = None,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """NorMuon: Muon whose steps move all outputs of a layer alike.

    For the matrices for which `muon` is, at the cost of one more number for each row. The rows of
    Muon's steps of tall matrices have different norms; here each is divided by the root of its
    average square, and the step keeps its norm.

        m <- beta * m + (1 - beta) * g                g' = beta * m + (1 - beta) * g  with nesterov
        O = orthogonalize(g')
        v_i <- b2 * v_i + (1 - b2) * mean_j(O_ij^2)   w_ij = O_ij / (sqrt(v_i) + eps)
        u = factor * w * ||O||_F / (||w||_F + eps)
        p <- p - learning_rate * (u + weight_decay * p)

    The second moment is the stage `scale_by_row_moment`, which other directions can take.

    Args:
        learning_rate: of the matrices, a number or a schedule: 0.02, or AdamW's with
            `consistent_rms=0.2`.
        beta: the share of the average gradient that is kept.
        b2: the share of the average square of a row that is kept.
        eps: added to the roots and to the norm.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        ns_coeffs, ns_steps: the polynomials, as `linalg.polynomials` takes them.
        nesterov: look ahead by one more step.
        dtype: the dtype of the products of the orthogonalization; at least float32 by default.
        shape_scale: the factor, "width" or "spectral"; see `scale_by_matrix_shape`.
        consistent_rms: the root mean square of a step, in the place of `shape_scale`.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default that of `muon`.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Li et al. 2025, "NorMuon: making Muon more efficient and scalable".
    """
    return partition_matrices(
        chain(
            scale_by_muon(ns_coeffs, ns_steps, beta, nesterov=nesterov, dtype=dtype, views=views),
            scale_by_row_moment(b2, eps, views=views),
            scaled_to_shape(shape_scale, consistent_rms, views),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        adam_of_muon() if rest is None else rest,
        views,
    )
