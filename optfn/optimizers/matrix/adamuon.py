"""AdaMuon: Muon with a second moment of the entries of its steps."""

from typing import Any

import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.linalg import polynomials
from optfn.optimizers.elementwise.rmsprop import scale_by_rms
from optfn.optimizers.elementwise.sign import scale_by_sign
from optfn.optimizers.matrix.muon import adam_of_muon
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrices import newton_schulz, scale_by_matrix_shape
from optfn.transforms.matrix_norms import normalize_matrices
from optfn.transforms.momentum import ema
from optfn.transforms.scale import scale_by_learning_rate


def adamuon(
    learning_rate: Any,
    beta: Any = 0.95,
    eps: Any = 1e-8,
    weight_decay: Any = 0.01,
    weight_decay_mask: Any = None,
    *,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = None,
    nesterov: bool = True,
    dtype: str | None = None,
    consistent_rms: Any = 0.2,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """AdaMuon: the signs of the momentum, orthogonalized, with a step size for every entry.

    For the matrices for which `muon` is, where a state of AdamW's size is affordable.

        m <- beta * m + (1 - beta) * g                g' = beta * m + (1 - beta) * g  with nesterov
        O = orthogonalize(sign(g'))
        v <- beta * v + (1 - beta) * O^2              w = O / (sqrt(v) + eps)
        u = consistent_rms * sqrt(r * c) * w / (||w||_F + eps)
        p <- p - learning_rate * (u + weight_decay * p)

    Two rules go by this name. This is that of the paper and of its authors' code: signs first, one
    beta for both averages. The first version of the paper, which `pytorch_optimizer.AdaMuon` has,
    orthogonalizes the momentum itself and corrects the second average for its zero start. It is
    made of the same stages:

        chain(
            ema(0.9, debias=False),
            newton_schulz(),
            scale_by_rms(0.95, 1e-10, eps_in_sqrt=False, bias_correction=True),
            normalize_matrices(1e-10),
            scale_by_matrix_shape("rms", 0.2),
            scale_by_learning_rate(learning_rate),
        )

    Args:
        learning_rate: of the matrices, a number or a schedule: about AdamW's, or up to 0.02.
        beta: the share of both averages that is kept, a number or a schedule.
        eps: added to the roots and to the norm.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        ns_coeffs, ns_steps: the polynomials, as `linalg.polynomials` takes them.
        nesterov: look ahead by one more step.
        dtype: the dtype of the products of the orthogonalization; at least float32 by default.
        consistent_rms: the root mean square of a step; 0.2 is that of AdamW's.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default that of `muon`.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Si et al. 2025, "AdaMuon: adaptive Muon optimizer".
    """
    return partition_matrices(
        chain(
            ema(beta, debias=False, nesterov=nesterov),
            scale_by_sign(),
            newton_schulz(polynomials(ns_coeffs, ns_steps), dtype=dtype, views=views),
            scale_by_rms(beta, eps, eps_in_sqrt=False),
            normalize_matrices(eps, views=views),
            scale_by_matrix_shape("rms", consistent_rms, views=views),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        adam_of_muon() if rest is None else rest,
        views,
    )
