"""The orthogonal factor of a matrix: exactly, or by a few steps of Newton and Schulz."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optfn.core.arguments import Argument
from optfn.core.dtypes import compute_dtype, real_dtype
from optfn.core.numerics import Norm, norms_along
from optfn.linalg.adjoint import adjoint
from optfn.linalg.lapack import svd

Normalization = Literal["frobenius", "schatten4", "rows"]

# Odd polynomials a x + b x^3 + c x^5, one row (a, b, c) a step. Most do not converge to 1 but bring
# all singular values near it in few steps: their slope at 0 is as steep as that allows.
POLYNOMIALS: dict[str, Sequence[tuple[float, float, float]]] = {
    # Jordan et al. 2024: singular values from 0.7 to 1.2.
    "keller_jordan": ((3.4445, -4.7750, 2.0315),) * 5,
    # You 2025.
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Amsel et al. 2025, for norms that are 2 % too large, which `_widened` puts into the first row.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    # Grishina et al. 2025.
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    # Boissin et al. 2025, with normalization="rows".
    "turbo": (
        (4.0098, -7.0585, 2.4635),
        (3.4585, -5.5479, 2.5959),
        (2.7573, -3.2939, 1.4254),
        (2.7215, -3.0494, 1.3169),
    ),
    # arXiv 2606.00371: without the fifth power, so that a step is two products.
    "cubic": (
        (3.3656576, -3.3420992, 0.0),
        (2.5744352, -1.4957376, 0.0),
        (2.5368962, -1.4312570, 0.0),
        (2.4418906, -1.2764040, 0.0),
        (2.2230472, -0.9630650, 0.0),
    ),
    # DeepSeek-V4: steep first, then to 1.
    "hybrid": ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2,
    # Newton's own, which converge to 1.
    "exact": ((2.0, -1.5, 0.5),) * 12,
}

# The names of these in optax.
IN_OPTAX = {"standard": "keller_jordan", "dion": "quintic"}

# From this many columns a row on, the Gram form has the fewer operations.
OBLONG = 2


Rows = tuple[tuple[Any, Any, Any], ...]


def polynomials(coefficients: Any = "keller_jordan", steps: int | None = None) -> Rows:
    """The rows (a, b, c) of the polynomials of `orthogonalize`.

    Tables of one length run in one program, so a sweep over tables or over the number of steps
    extends each by the step (1, 0, 0), which changes nothing.

    Args:
        coefficients: a name ("keller_jordan", "quintic", "polar_express", "cans", "turbo", "cubic",
            "hybrid", "exact", or optax's "standard" and "dion"), one row (a, b, c), or rows, as
            sequences or an array.
        steps: how often to take one row, or how many rows there shall be: of a longer table the
            last are taken, and a shorter one is extended. None takes a table as it is and one row
            five times.

    Raises:
        TypeError: the coefficients are no numbers, or `steps` is no whole number.
        ValueError: there is no such name, or the rows have not three entries.
    """
    where = Argument("polynomials(coefficients=...)", coefficients)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise TypeError(
            f"{Argument('polynomials(steps=...)', steps)} must be a whole number, found {steps!r}."
        )
    if isinstance(coefficients, str):
        coefficients = IN_OPTAX.get(coefficients, coefficients)
        if coefficients not in POLYNOMIALS:
            raise ValueError(
                f"{where} must be rows or one of {', '.join(POLYNOMIALS)}, found {coefficients!r}."
            )
        given = POLYNOMIALS[coefficients]
        if coefficients == "polar_express":
            given = _widened(given, 1.02)
    else:
        given = coefficients
    if not all(hasattr(x, "shape") or isinstance(x, (int, float)) for x in jax.tree.leaves(given)):
        raise TypeError(f"{where} must be rows (a, b, c), found {given!r}.")
    shape = np.shape(given) if hasattr(given, "shape") else np.shape(_known(given))
    if len(shape) not in (1, 2) or shape[-1] != 3:
        raise ValueError(f"{where} must be rows (a, b, c), found an array of shape {shape}.")
    rows = [tuple(_number(x) for x in row) for row in (given if len(shape) == 2 else [given])]
    if len(shape) == 1:
        return tuple(rows * (steps or 5))
    missing = 0 if steps is None else max(steps - len(rows), 0)
    return tuple(rows[-steps:] if steps else rows) + ((1.0, 0.0, 0.0),) * missing


def _number(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else float(x)


def _known(rows: Any) -> Any:
    """The rows with 0 for what is traced."""
    return jax.tree.map(lambda x: 0.0 if isinstance(x, jax.Array) else x, rows)


def _widened(rows: Sequence[Sequence[float]], factor: float) -> list[Any]:
    """The polynomials of a matrix whose norm is divided out `factor` times too large."""
    (a, b, c), *rest = rows
    return [(a / factor, b / factor**3, c / factor**5), *rest]


def orthogonalize(
    x: jax.Array,
    coefficients: Any = None,
    *,
    eps: Any = 1e-7,
    normalization: Normalization = "frobenius",
    gram: bool | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Matrices with the singular vectors of `x` and singular values near 1, by Newton-Schulz.

        X = x / ||x||;   X <- a X + (b A + c A A) X,  A = X X^T,   for each row (a, b, c)

    All products, so fast where a decomposition is slow, and right in bfloat16. For the exact factor
    use `polar`.

    An oblong matrix of r rows and c columns, r far below c, takes the Gram form (Zhang et al.
    2025): the polynomials are collected in an r x r matrix and applied to X twice, after the second
    step and at the end. That costs 8 r^2 c instead of 20, and is the same to 1e-12 in float64; in
    float32 they differ by up to 2e-4 where the singular values span four orders of magnitude.

    Args:
        x: `[..., rows, columns]`, one matrix or a stack. Zero matrices stay zero, and any scale is
            admissible.
        coefficients: a name, a row or rows, as `polynomials` takes them, whose entries may be
            traced; Keller Jordan's five steps by default.
        eps: added to the norm, though never more than the norm itself, so that tiny matrices are
            orthogonalized too.
        normalization: "frobenius" divides by the Frobenius norm. "schatten4" divides by the root of
            that of X X^T, which is nearer to the largest singular value and worth about a step.
            "rows" then divides each row by the root of the sum of its row of |X X^T|, which changes
            the singular vectors (Boissin et al. 2025).
        gram: whether to use the Gram form; None uses it from twice as many columns as rows on.
        dtype: the dtype of the products: at least float32 by default; "bfloat16" is usual on
            accelerators. The norm is computed in at least float32.

    Returns:
        An array like `x`.

    Source: Bernstein and Newhouse 2024; Jordan et al. 2024.
    """
    if x.ndim < 2:
        raise ValueError(f"orthogonalize(x) needs a matrix, found an array of shape {x.shape}.")
    rows = polynomials("keller_jordan" if coefficients is None else coefficients)
    table = _table(rows, real_dtype(compute_dtype(x.dtype)))
    return _orthogonalized(x, table, eps, normalization, gram, dtype) if x.size else x


def _table(rows: Rows, dtype: Any) -> Any:
    """An array `[steps, 3]`, known if all of its entries are."""
    if any(isinstance(x, jax.Array) for row in rows for x in row):
        return jnp.stack([jnp.stack([jnp.asarray(x, dtype) for x in row]) for row in rows])
    return np.reshape(np.asarray(rows, dtype), (-1, 3))


@partial(jax.jit, static_argnums=(3, 4, 5))
def _orthogonalized(
    x: jax.Array,
    table: Any,
    eps: Any,
    normalization: Normalization,
    gram: bool | None,
    dtype: Any,
) -> jax.Array:
    wide = x.astype(compute_dtype(x.dtype))
    is_tall = x.shape[-2] > x.shape[-1]
    rows = adjoint(wide) if is_tall else wide
    rows = _normalized(rows, eps, normalization)
    rows = rows.astype(dtype or rows.dtype)
    steps = jnp.asarray(table, jnp.finfo(rows.dtype).dtype)
    is_oblong = rows.shape[-1] >= OBLONG * rows.shape[-2] if gram is None else gram
    rows = (_on_gram_matrix if is_oblong else _on_matrix)(rows, steps).astype(wide.dtype)
    return (adjoint(rows) if is_tall else rows).astype(x.dtype)


def _on_matrix(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    return lax.scan(_step, x, coefficients)[0]


def _step(x: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
    a = x @ adjoint(x)
    return row[0] * x + (row[1] * a + row[2] * (a @ a)) @ x, None


def _on_gram_matrix(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    # From X X^T alone an error grows with each step; after the second one it is computed anew.
    for part in (coefficients[:2], coefficients[2:]):
        if len(part):
            eye = jnp.broadcast_to(
                jnp.eye(x.shape[-2], dtype=x.dtype), (*x.shape[:-1], x.shape[-2])
            )
            a = x @ adjoint(x)
            (product, a), _ = lax.scan(_gram_step, (eye, a), part[:-1])
            x = (_polynomial(a, part[-1]) @ product) @ x
    return x


def _gram_step(carry: tuple[Any, ...], row: jax.Array) -> tuple[tuple[Any, ...], None]:
    product, a = carry
    p = _polynomial(a, row)
    return (p @ product, p @ a @ p), None


def _polynomial(a: jax.Array, row: jax.Array) -> jax.Array:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    return row[0] * eye + row[1] * a + row[2] * (a @ a)


def _normalized(x: jax.Array, eps: Any, normalization: Normalization) -> jax.Array:
    """`x` over its norm; no more rows than columns."""
    norm = norms_along((-2, -1), x)
    if normalization == "frobenius":
        return _over(x, norm, eps)
    x = _over(x, norm, 0)
    a = x @ adjoint(x)
    if normalization == "schatten4":
        # A norm of the fourth root of the sum of fourth powers of the singular values.
        inner = norms_along((-2, -1), a)
        return _over(x, Norm(jnp.ones_like(inner.scale), jnp.sqrt(inner.value)), eps)
    sums = jnp.sum(jnp.abs(a), axis=-1, keepdims=True)
    return jnp.where(sums == 0, 0, x / jnp.sqrt(jnp.where(sums == 0, 1, sums)))


def _over(x: jax.Array, norm: Norm, eps: Any) -> jax.Array:
    share = jnp.minimum(jnp.asarray(eps, norm.scale.dtype) / norm.scale, norm.relative)
    divisor = norm.relative + share
    return x / norm.scale / jnp.where(divisor == 0, 1, divisor)


@jax.jit
def polar(x: jax.Array) -> jax.Array:
    """The orthogonal polar factor U V^T of U S V^T, by a singular value decomposition.

    What `orthogonalize` approximates. A singular value of zero stays zero, within rounding. Its
    derivative is finite also where singular values coincide, as that of single singular vectors is
    not.

    Args:
        x: `[..., rows, columns]`, one matrix or a stack.
    """
    if not x.size:
        return x
    wide = x.astype(compute_dtype(x.dtype))
    return _by_singular_values(_over(wide, norms_along((-2, -1), wide), 0)).astype(x.dtype)


@jax.custom_jvp
def _by_singular_values(x: jax.Array) -> jax.Array:
    u, present, _, vh = _factors(x)
    return (u * present) @ vh


@_by_singular_values.defjvp
def _by_singular_values_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    u, f, s, vh = _factors(x)
    v, f_down, down = adjoint(vh), f.mT, s.mT
    inside = adjoint(u) @ dx @ v
    # Of a function f of the singular values; f is 1, or 0 for a value that stays zero.
    differ = f != f_down
    even = jnp.where(differ, (f - f_down) / jnp.where(differ, s - down, 1), 0)
    odd = (f + f_down) / jnp.where(f + f_down == 0, 1, s + down)
    symmetric, skew = inside + adjoint(inside), inside - adjoint(inside)
    change = u @ ((even * symmetric + odd * skew) / 2) @ vh
    slope = f / jnp.where(f == 0, 1, s)
    if x.shape[-2] > x.shape[-1]:
        change = change + ((dx @ v - u @ inside) * slope) @ vh
    if x.shape[-2] < x.shape[-1]:
        change = change + (u * slope) @ (adjoint(u) @ dx - inside @ vh)
    return (u * f) @ vh, change


def _factors(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """U, 1 for each singular value that is not zero within rounding, these values, and V^H."""
    u, s, vh = svd(x)
    tiny = jnp.finfo(s.dtype).eps * max(x.shape[-2:]) * s[..., :1]
    return u, (s > tiny).astype(s.dtype)[..., None, :], s[..., None, :], vh
