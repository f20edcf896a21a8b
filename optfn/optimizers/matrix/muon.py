"""Muon: momentum, orthogonalized."""

from typing import Any, Literal

import optax
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.optax_axes import views_or_numbers
from optfn.linalg import polynomials
from optfn.linalg.orthogonal import Normalization
from optfn.optimizers.elementwise.adam import adamw
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.matrices import newton_schulz, scale_by_matrix_shape
from optfn.transforms.momentum import ema
from optfn.transforms.scale import scale_by_learning_rate

Preconditioning = Normalization | Literal["schatten", "aol"]
IN_OPTAX: dict[str, Normalization] = {"schatten": "schatten4", "aol": "rows"}


def scale_by_muon(
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = None,
    beta: Any = 0.95,
    eps: Any = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    debias: bool = False,
    preconditioning: Preconditioning = "frobenius",
    dtype: str | None = None,
    views: Any = None,
    weight_dimension_numbers: Any = None,
) -> chain:
    """The direction of Muon: the average gradient of each matrix, orthogonalized.

        chain(ema(beta, debias, nesterov=nesterov), newton_schulz(ns_coeffs, eps))

    Args:
        ns_coeffs, ns_steps: the polynomials, as `linalg.polynomials` takes them.
        beta: the share of the average that is kept, a number or a schedule.
        eps: added to the norm that is divided out.
        mu_dtype: the dtype in which the average is stored; see `ema`.
        nesterov: look ahead by one more step.
        adaptive: whether steps are as large as the average gradient; see `newton_schulz`.
        debias: correct the average for its zero start, as optax does: with `nesterov` that weighs
            the gradient otherwise during the first steps.
        preconditioning: "frobenius", "schatten4" or "rows"; see `linalg.orthogonalize`. The last
            two are also "schatten" and "aol", as in optax.
        dtype: the dtype of the products; at least float32 by default.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.
        weight_dimension_numbers: optax's way to say it, in the place of `views`.
    """
    where = "scale_by_muon(weight_dimension_numbers=...)"
    views = views_or_numbers(views, weight_dimension_numbers, where)
    return chain(
        ema(beta, debias, mu_dtype, nesterov=nesterov),
        newton_schulz(
            polynomials(ns_coeffs, ns_steps),
            eps,
            normalization=_in_our_words(preconditioning),
            dtype=dtype,
            adaptive=adaptive,
            views=views,
        ),
    )


def _in_our_words(preconditioning: Any) -> Any:
    is_theirs = isinstance(preconditioning, str) and preconditioning in IN_OPTAX
    return IN_OPTAX[preconditioning] if is_theirs else preconditioning


def muon(
    learning_rate: Any,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = None,
    beta: Any = 0.95,
    eps: Any = 1e-7,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    debias: bool = False,
    preconditioning: Preconditioning = "frobenius",
    dtype: str | None = None,
    shape_scale: str = "width",
    muon_weight_dimension_numbers: Any = None,
    consistent_rms: Any = None,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """Muon: steps whose singular values are all alike, from orthogonalized momentum.

    For the hidden matrices of a network; everything else (biases, norms, embeddings, the head) has
    an optimizer of its own, `rest`. It reaches AdamW's loss in fewer steps and keeps one average
    instead of two. Not for fine-tuning a model that was trained with AdamW.

        v <- beta * v + (1 - beta) * g                g' = beta * v + (1 - beta) * g  with nesterov
        u = factor * orthogonalize(g')                singular values about 1, by Newton-Schulz
        p <- p - learning_rate * (u + weight_decay * p)

    Args:
        learning_rate: of the matrices, a number or a schedule: about 0.02, or AdamW's with
            `consistent_rms=0.2`.
        ns_coeffs: the polynomials, as `linalg.polynomials` takes them. They are leaves, so tables
            of the same number of rows run in one program.
        ns_steps: how often to take one row, or how many rows there shall be.
        beta: the share of the average that is kept, a number or a schedule.
        eps: added to the norm that is divided out, though never more than the norm itself.
        weight_decay: decoupled, times the learning rate, of the matrices only.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        mu_dtype: the dtype in which averages of gradients are stored, also by the default `rest`;
            None is float32, or wider for wider params.
        nesterov: look ahead by one more step.
        adaptive: whether to multiply the step of each matrix by the sum of the singular values of
            g', about. It then shrinks with the gradient, so it needs another rate; see
            `newton_schulz`.
        debias: correct the average for its zero start, as optax does.
        preconditioning: what is divided out before: "frobenius", "schatten4" or "rows"; the last
            two are also "schatten" and "aol", as in optax.
        dtype: the dtype of the products: at least float32 by default; "bfloat16" is usual on
            accelerators.
        shape_scale: the factor, "width" or "spectral"; see `scale_by_matrix_shape`.
        muon_weight_dimension_numbers: optax's way to say what `views` say, in their place:
            `MuonDimensionNumbers` for all arrays of two axes or more, or a tree of them with None
            for `rest`, or a function from the params to one.
        consistent_rms: the root mean square of a step, in the place of `shape_scale`; 0.2 is that
            of AdamW's, whose rate and decay can then be kept.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves; by default that of Jordan et al.,
            `adamw(3e-4, b2=0.95, eps=1e-10, weight_decay=0.0)`.

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et
    al. 2025 for the factor "rms".
    """
    where = "muon(muon_weight_dimension_numbers=...)"
    views = views_or_numbers(views, muon_weight_dimension_numbers, where)
    return partition_matrices(
        chain(
            scale_by_muon(
                ns_coeffs,
                ns_steps,
                beta,
                eps,
                mu_dtype,
                nesterov=nesterov,
                adaptive=adaptive,
                debias=debias,
                preconditioning=preconditioning,
                dtype=dtype,
                views=views,
            ),
            scaled_to_shape(shape_scale, consistent_rms, views),
            add_decayed_weights(weight_decay, weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        ),
        adam_of_muon(mu_dtype) if rest is None else rest,
        views,
    )


def scaled_to_shape(shape_scale: str, consistent_rms: Any, views: Any) -> scale_by_matrix_shape:
    """The factor of a matrix: that of `shape_scale`, or the root mean square of a step if given."""
    if consistent_rms is None:
        return scale_by_matrix_shape(shape_scale, views=views)
    return scale_by_matrix_shape("rms", consistent_rms, views=views)


def adam_of_muon(mu_dtype: DTypeLike | None = None) -> chain:
    """The optimizer of Jordan et al. for what is no matrix."""
    return adamw(3e-4, b2=0.95, eps=1e-10, mu_dtype=mu_dtype, weight_decay=0.0)
