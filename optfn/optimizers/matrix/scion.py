"""Scion: steps to the farthest point of a ball, against the momentum."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from optfn.compose.chain import chain
from optfn.compose.partition import partition
from optfn.compose.partition_matrices import partition_matrices
from optfn.core.data import numbers, static
from optfn.core.dtypes import cast, compute_dtype
from optfn.core.matrix_axes import NO_MATRIX, MatrixAxes, matrices_and_tables, views_or_rule
from optfn.core.matrixwise import Matrixwise
from optfn.core.numerics import Norm, norms_along, propagate_nan, ratio
from optfn.core.tree import PerLeaf, PyTree
from optfn.linalg import orthogonalize, polar, polynomials
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.momentum import ema
from optfn.transforms.scale import scale_by_learning_rate

BallNorm = Literal["spectral", "sign", "column", "row"]
NORMS = get_args(BallNorm)


class scale_by_lmo(Matrixwise):
    """The linear minimization oracle of a norm: the point of a ball that is farthest along g.

        u = argmax <g, w>  over all w with  norm(w) <= radius

    The norm of a matrix of r rows (outputs) and c columns (inputs) says what a step may do to a
    layer y = W x. With |.| for a root mean square:

        "spectral"    largest |W x| / |x|             u = radius * sqrt(r / c) * orthogonalize(g)
        "sign"        c times the largest entry       u = radius * sign(g) / c
        "column"      largest |column|                u = radius * g_j / |g_j|
        "row"         largest |y_i| / |x|             u = radius * g_i / (sqrt(c) ||g_i||)

    "spectral" is for hidden layers, "column" for those whose input is one-hot, "sign" and "row" for
    heads. Of a leaf that is no matrix, each vector along the last axis has its root mean square as
    its norm: u = radius * g / |g|; so have biases, gains, and the rows of an embedding.

    Args:
        norm: "spectral", "sign", "column" or "row".
        radius: of the ball, a number or a schedule.
        coefficients: the polynomials of "spectral"; see `newton_schulz`.
        dtype: the dtype of the products of "spectral"; at least float32 by default.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.

    Source: Pethick et al. 2025.
    """

    many_products = True

    norm: str = static(default="spectral", choices=NORMS)
    radius: Any = 1.0
    coefficients: Any = numbers(default="keller_jordan")
    dtype: str | None = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", polynomials(self.coefficients))
        super().__post_init__()

    def update_matrix(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        if self.norm == "spectral":
            g = orthogonalize(g, self.coefficients, dtype=self.dtype)
        return self.radius * FARTHEST[self.norm](g), slots

    def update_rest(self, g: jax.Array) -> jax.Array:
        vectors = jnp.atleast_1d(g)
        norm = norms_along(-1, vectors).over_root(vectors.shape[-1])
        return self.radius * _over(vectors, norm).reshape(g.shape)


def _farthest_spectral(orthogonal: jax.Array) -> jax.Array:
    rows, columns = orthogonal.shape[-2:]
    return orthogonal * (rows / columns) ** 0.5


def _farthest_sign(g: jax.Array) -> jax.Array:
    return propagate_nan(jnp.sign(g), g) / g.shape[-1]


def _farthest_column(g: jax.Array) -> jax.Array:
    return _over(g, norms_along(-2, g).over_root(g.shape[-2]))


def _farthest_row(g: jax.Array) -> jax.Array:
    norm = norms_along(-1, g)
    return _over(g, Norm(norm.scale, norm.relative * g.shape[-1] ** 0.5))


# The farthest point of the unit ball; of "spectral" given the orthogonal factor.
FARTHEST = {
    "spectral": _farthest_spectral,
    "sign": _farthest_sign,
    "column": _farthest_column,
    "row": _farthest_row,
}


def _over(g: jax.Array, norm: Norm) -> jax.Array:
    """g over its norms and the authors' 1e-8, which is no part of a tiny norm worth mention."""
    divisor = norm.relative + jnp.minimum(1e-8 / norm.scale, 1e-3 * norm.relative)
    return g / norm.scale * ratio(1, divisor)


def scion(
    learning_rate: Any,
    norm: BallNorm = "spectral",
    radius: Any = 50.0,
    beta: Any = 0.9,
    weight_decay: Any = 1.0,
    *,
    ns_coeffs: Any = "keller_jordan",
    ns_steps: int | None = None,
    dtype: str | None = None,
    views: Any = None,
    rest: optax.GradientTransformation | None = None,
) -> partition:
    """Scion: every layer in a ball of its norm, and steps towards its farthest point.

    One momentum is its whole state, for all params, and its rates stay right over widths. `muon`
    with "spectral" shapes differs in the decay, which here bounds the params. They must start in
    the ball, better on its sphere: see `start_on_sphere`.

        m <- beta * m + (1 - beta) * g
        u = radius * argmax <m, w>  over norm(w) <= 1           see `scale_by_lmo`
        p <- p - learning_rate * (u + weight_decay * p)

    With a decay of 1, norm(p) <= radius holds for good (Frank and Wolfe's method, constrained
    Scion); with 0 it is unconstrained Scion.

    Args:
        learning_rate: a number or a schedule, about 2^-12 at the radii below.
        norm: of the matrices, "spectral", "sign", "column" or "row"; see `scale_by_lmo`.
        radius: of their ball, a number or a schedule: about 50 for a transformer, 8 for a
            convolutional network, 1 for a perceptron.
        beta: the share of the average that is kept, 1 minus what the authors call momentum.
        weight_decay: 1 for the constrained method, 0 for the other.
        ns_coeffs, ns_steps: the polynomials of "spectral", as `linalg.polynomials` takes them.
        dtype: the dtype of the products of "spectral"; at least float32 by default.
        views: how a leaf is a matrix or a stack of them; None is `matrices()`: by name and shape.
        rest: the optimizer of all other leaves. By default the same with the authors' radii for a
            transformer: embeddings and heads with "sign" and 3000, and for biases and gains the
            root mean square and 50. (An embedding counts as a head that shares its weights, which
            has a column for each feature.)

    Raises:
        ValueError: at `init`, if an array of three or more axes is not described by `views`.

    Source: Pethick et al. 2025, "Training deep learning models with norm-constrained LMOs".
    """
    polynomial = polynomials(ns_coeffs, ns_steps)

    def towards(norm: BallNorm, radius: Any, views: Any) -> chain:
        return chain(
            ema(beta, debias=False),
            scale_by_lmo(norm, radius, polynomial, dtype=dtype, views=views),
            add_decayed_weights(weight_decay),
            scale_by_learning_rate(learning_rate),
        )

    if rest is None:
        vectors = towards("spectral", 50.0, NO_MATRIX)
        rest = partition_matrices(
            towards("sign", 3000.0, matrices_and_tables), vectors, matrices_and_tables
        )
    return partition_matrices(towards(norm, radius, views), rest, views)


def start_on_sphere(
    params: PyTree, norm: BallNorm = "spectral", radius: float = 50.0, views: Any = None
) -> PyTree:
    """Params whose matrices are moved to the sphere of a norm, where `scion` starts.

        p = radius * argmax <p, w>  over norm(w) <= 1

    Of normally distributed params this is the authors' initialization: an orthogonal matrix for
    "spectral", random signs for "sign", and random units for "column" and "row". Leaves that are no
    matrices are unchanged.

        params = start_on_sphere(model.init(key, x)["params"])

    Args:
        params: a pytree of arrays.
        norm: "spectral", "sign", "column" or "row".
        radius: as `scion` has it.
        views: how each leaf is a matrix; None is `matrices()`: by name and shape.
    """
    if norm not in NORMS:
        raise ValueError(f"start_on_sphere(norm=...) must be one of {NORMS}, found {norm!r}.")
    leaves, treedef = jax.tree.flatten(params)
    axes = PerLeaf.of(views_or_rule(views), "start_on_sphere(views=...)", MatrixAxes).values(params)

    def moved(p: jax.Array, view: MatrixAxes) -> jax.Array:
        if not view.is_matrix:
            return p
        stack = view.split(cast(p, compute_dtype(p.dtype)))
        farthest = FARTHEST[norm](polar(stack) if norm == "spectral" else stack)
        return cast(radius * view.join(farthest, p.shape), p.dtype)

    return treedef.unflatten(map(moved, leaves, axes))
