"""Least squares by the method of Levenberg and Marquardt, also robust and between bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from optfn.core.dtypes import cast, compute_dtype, own_dtype
from optfn.core.inputs import check_floating, is_inexact, to_arrays
from optfn.core.numerics import ratio
from optfn.core.slots import copy_params_wide
from optfn.core.tree import PyTree, leaf_location
from optfn.fits.implicit import from_parts, real_parts, tangents_of_minimum, zero_tangent
from optfn.fits.minimize import Minimum
from optfn.fits.objective import (
    Objective,
    check_args,
    check_function,
    check_limit,
    check_scalar,
    holds_arrays,
    on_hoisted,
)
from optfn.fits.status import Status
from optfn.linalg.lapack import inverse_of_upper, qr
from optfn.optimizers.quasi_newton.box import Box
from optfn.optimizers.quasi_newton.search import Evaluations

Loss = Literal["linear", "soft_l1", "huber", "cauchy", "arctan"]
Solver = Literal["qr", "cg"]

# Each a function of the square of a residual, near 0 the square itself.
LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * z / (jnp.sqrt(1 + z) + 1),
    "huber": lambda z: jnp.where(z <= 1, z, 2 * jnp.sqrt(jnp.maximum(z, 1)) - 1),
    "cauchy": jnp.log1p,
    "arctan": jnp.arctan,
}
# The share of the expected decrease that a step must bring.
ENOUGH = 1e-4
FIRST_DAMPING = 1e-3
# So many steps in a row without a lower value end a run.
MOST_FAILED = 30
# So many times entries that leave the box are put on its sides and the others solved for anew.
MOST_SOLUTIONS = 10


def minimize_residuals(
    fun: Callable[..., Any],
    x0: PyTree,
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    args: tuple[Any, ...] = (),
    has_aux: bool = False,
    loss: Loss = "linear",
    scale: Any = 1.0,
    solver: Solver = "qr",
    tol: Any = 1e-5,
    max_steps: Any = 1000,
) -> Minimum:
    """Minimizes half the sum of the squares of residuals, also robust and between bounds.

        sum(scale^2 * loss((r / scale)^2)) / 2        r = fun(x, *args)

    For fits: it needs far fewer evaluations than `minimize` of the sum, where the residuals at the
    minimum are small or nearly linear in x. Each step solves the linearized problem with a damping
    that grows where the value does not fall. A robust loss lets single large residuals count less.

    It stops where no entry of the gradient J^T r is larger than `tol`; of bounds, derivatives by
    `args` and what `fun` closes over, `jit` and `vmap` all holds that is said of `minimize`.

        def residuals(p, t, y):
            return p["a"] * jnp.exp(-p["k"] * t) - y

        result = minimize_residuals(residuals, {"a": 1.0, "k": 1.0}, args=(t, y), loss="soft_l1")

    Args:
        fun: `fun(x, *args)` returns an array of residuals or a tree of them, or with `has_aux` a
            pair of it and arrays. Real and imaginary parts of complex ones are residuals of their
            own.
        x0: the starting point, a pytree of real or complex arrays.
        bounds: `(lower, upper)` as in `minimize`.
        args: further arguments of `fun`, pytrees of arrays.
        has_aux: whether `fun` returns a pair; it costs one more evaluation, at the end.
        loss: a function of the square z of a residual over `scale`: `"linear"` is z, `"soft_l1"`
            2 (sqrt(1 + z) - 1), `"huber"` z up to 1 and then 2 sqrt(z) - 1, `"cauchy"` log(1 + z)
            and `"arctan"` arctan(z).
        scale: the size above which a residual is an outlier, a positive number; it does not matter
            to the loss `"linear"`.
        solver: `"qr"` forms J, by forward mode, and the damping measures each entry of x by its
            column. `"cg"` only applies J and its transpose to vectors, by conjugate gradients, for
            thousands of entries; `fun` must then have a derivative backward.
        tol: the largest magnitude of a gradient entry to stop at.
        max_steps: the largest number of steps, of which each evaluates the residuals once.

    Returns:
        The minimum. Of its evaluations those of the gradient are those of J.

    Raises:
        TypeError: `x0` has integers, `args` is not a tuple, `fun` is no function, cannot be hashed
            or does not return what `has_aux` says, a residual is no floating point array, `bounds`
            is no pair, a bounded param is complex, or a number is none.
        ValueError: `loss` or `solver` is none of these, `scale` is not positive, a limit is NaN or
            negative, the bounds do not fit `x0`, or a lower bound is known to be above its upper
            bound.

    Source: More 1978; bounds by projection as in Kanzow, Yamashita and Fukushima 2004; robust
    losses as in Triggs et al. 2000; the damping is Nielsen's, 1999.
    """
    where = "minimize_residuals"
    check_args(args, f"{where}(args=...)")
    check_function(fun, f"{where}(fun=...)")
    check_scalar(scale, f"{where}(scale=...)")
    check_limit(tol, f"{where}(tol=...)")
    check_limit(max_steps, f"{where}(max_steps=...)")
    if not isinstance(scale, Tracer) and not scale > 0:
        raise ValueError(f"{where}(scale=...) must be positive, found {scale}.")
    for name, choice, choices in (("loss", loss, Loss), ("solver", solver, Solver)):
        if choice not in get_args(choices):
            raise ValueError(
                f"{where}({name}=...) must be one of {get_args(choices)}, found {choice!r}."
            )
    x0 = to_arrays(x0, "x0")
    box = None if bounds is None else Box.of(bounds, x0, f"{where}(bounds=...)", "x0")
    check_floating("x0", x0)
    if holds_arrays(fun):  # it is data
        fun, args = _given, (fun, *args)

    def run(objective: Objective, args: tuple) -> Minimum:
        residuals = Residuals(objective.fun, has_aux, loss)
        return _fit(residuals, solver, x0, (scale, *args), box, tol, max_steps)

    return on_hoisted(run, Objective(fun), x0, args)


def _given(x: PyTree, fun: Callable[..., Any], *args: Any) -> Any:
    return fun(x, *args)


@dataclass(frozen=True)
class Residuals:
    """A user's function of residuals; called as a function of x, the scale and its arguments, it
    gives the value of the loss, as an `Objective` wants it."""

    fun: Callable[..., Any]
    has_aux: bool
    loss: str

    def __call__(self, x: PyTree, scale: Any, *args: Any) -> Any:
        r, aux = self.vector(x, *args)
        value = loss_of(self.loss, r, scale)
        return (value, aux) if self.has_aux else value

    def vector(self, x: PyTree, *args: Any) -> tuple[jax.Array, Any]:
        """All residuals as one real vector in their compute dtype, and the auxiliary output."""
        out = self.fun(x, *args)
        where = "minimize_residuals(fun=...)"
        if self.has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"{where} must give a pair (residuals, aux) with has_aux=True, found "
                f"{type(out).__name__}."
            )
        if not self.has_aux and type(out) is tuple and len(out) == 2:
            raise TypeError(
                f"{where} gives a pair with has_aux=True alone; residuals in two parts are a list "
                "or a dict."
            )
        tree, aux = out if self.has_aux else (out, None)
        tree = to_arrays(tree, f"{where}: the residual")
        for i, leaf in enumerate(jax.tree.leaves(tree)):
            if not is_inexact(leaf):
                raise TypeError(
                    f"{where} must give floating point residuals, found {leaf.dtype} "
                    f"{leaf_location(tree, i)}."
                )
        parts = [cast(part, compute_dtype(part.dtype)) for part in real_parts(tree)]
        dtype = own_dtype((parts, copy_params_wide(x)))
        return jnp.concatenate([jnp.zeros(0, dtype), *(cast(p.ravel(), dtype) for p in parts)]), aux


def loss_of(loss: str, r: jax.Array, scale: Any) -> jax.Array:
    if loss == "linear":
        return jnp.sum(r * r) / 2
    scale = cast(scale, r.dtype)
    return scale**2 * jnp.sum(LOSSES[loss]((r / scale) ** 2)) / 2


def weights_of(loss: str, r: jax.Array, scale: Any) -> tuple[jax.Array, jax.Array]:
    """Factors on the residuals and on the rows of J that make the problem one of least squares.

    With f' and f'' of the loss at z = (r / scale)^2 the gradient is J^T f' r, and the part of the
    Hessian that has no second derivative of r is J^T (f' + 2 z f'') J; where that is not positive,
    as far out, a little of f' is taken.
    """
    if loss == "linear":
        return jnp.ones_like(r), jnp.ones_like(r)
    z = (r / cast(scale, r.dtype)) ** 2
    one = jnp.ones_like(z)

    def first(z: jax.Array) -> jax.Array:
        return jax.jvp(LOSSES[loss], (z,), (one,))[1]

    slope, curvature = jax.jvp(first, (z,), (one,))
    rows = jnp.sqrt(jnp.maximum(slope + 2 * z * curvature, 0.1 * slope))
    return ratio(slope, rows), rows


class Model(NamedTuple):
    """The residuals, linearized at a point.

    Attributes:
        grad: the gradient of the value.
        scale: what a step is measured by in the damping, entry by entry.
        rows: of `"qr"` the triangle of J, or J if that is smaller; None of `"cg"`.
        rhs: the residuals to go with the rows; None of `"cg"`.
    """

    grad: jax.Array
    scale: jax.Array
    rows: Any
    rhs: Any


class Problem(NamedTuple):
    """A problem of vectors, as functions.

    Attributes:
        residuals: of a point.
        loss: its name.
        scale: of the loss.
    """

    residuals: Callable[[jax.Array], jax.Array]
    loss: str
    scale: Any

    def value(self, r: jax.Array) -> jax.Array:
        return loss_of(self.loss, r, self.scale)

    def weighted(self, v: jax.Array) -> tuple[jax.Array, Callable[..., Any], Callable[..., Any]]:
        """The weighted residuals at a point, and the products with their J and its transpose."""
        r, product = jax.linearize(self.residuals, v)
        of_residuals, of_rows = weights_of(self.loss, r, self.scale)
        transposed = jax.linear_transpose(product, v)
        return (
            of_residuals * r,
            lambda p: of_rows * product(p),
            lambda q: transposed(of_rows * q)[0],
        )


class ByQR:
    """Solves the damped problem with J as a matrix."""

    @staticmethod
    def model(problem: Problem, v: jax.Array, before: Model | None) -> Model:
        r, product = jax.linearize(problem.residuals, v)
        of_residuals, of_rows = weights_of(problem.loss, r, problem.scale)
        columns = jax.vmap(product)(jnp.eye(v.size, dtype=v.dtype))
        rows, rhs = (columns * of_rows[None, :]).T, of_residuals * r
        grad, scale = rhs @ rows, jnp.linalg.norm(rows, axis=0)
        scale = scale if before is None else jnp.maximum(scale, before.scale)
        if len(rows) > v.size:
            q, rows = qr(rows)
            rhs = rhs @ q
        return Model(grad, scale, rows, rhs)

    @staticmethod
    def square(problem: Problem, v: jax.Array, model: Model, p: jax.Array) -> jax.Array:
        """|J p|^2"""
        return jnp.sum((model.rows @ p) ** 2)

    @staticmethod
    def step(
        problem: Problem, v: jax.Array, model: Model, damping: Any, held: Any, moves: Any
    ) -> jax.Array:
        """The p of least |J p + r|^2 + damping |scale p|^2, of which the held entries are moves."""
        rows = jnp.where(held[None, :], 0, model.rows)
        scale = jnp.where(held | (model.scale == 0), 1, jnp.sqrt(damping) * model.scale)
        rhs = -(model.rhs + model.rows @ jnp.where(held, moves, 0))
        q, triangle = qr(jnp.concatenate([rows, jnp.diag(scale)]))
        p = inverse_of_upper(triangle) @ (rhs @ q[: len(rhs)])
        return jnp.where(held, moves, p)


class ByCG:
    """Solves it by conjugate gradients on products with J and its transpose."""

    @staticmethod
    def model(problem: Problem, v: jax.Array, before: Model | None) -> Model:
        r, product, transposed = problem.weighted(v)
        grad = transposed(r)
        # The curvature along the gradient, for all entries the same.
        square = ratio(jnp.sum(product(grad) ** 2), jnp.sum(grad**2))
        size = jnp.sqrt(square)
        size = size if before is None else jnp.maximum(size, before.scale[0])
        return Model(grad, jnp.full_like(v, size), None, None)

    @staticmethod
    def square(problem: Problem, v: jax.Array, model: Model, p: jax.Array) -> jax.Array:
        _, product, _ = problem.weighted(v)
        return jnp.sum(product(p) ** 2)

    @staticmethod
    def step(
        problem: Problem, v: jax.Array, model: Model, damping: Any, held: Any, moves: Any
    ) -> jax.Array:
        r, product, transposed = problem.weighted(v)
        square = damping * jnp.where(model.scale == 0, 1, model.scale) ** 2
        moves = jnp.where(held, moves, 0)
        left = -(r + product(moves))
        # As exact as the gradient is small, so that the last steps are those of Gauss and Newton.
        first = jnp.linalg.norm(jnp.where(held, 0, transposed(left)))
        least = first * jnp.minimum(0.1, jnp.sqrt(first))

        def body(now: tuple) -> tuple:
            p, left, way, size, count = now
            image = product(way)
            rate = ratio(size, jnp.sum(image**2) + jnp.sum(square * way**2))
            p, left = p + rate * way, left - rate * image
            slope = jnp.where(held, 0, transposed(left) - square * p)
            new = jnp.sum(slope**2)
            return p, left, slope + ratio(new, size) * way, new, count + 1

        slope = jnp.where(held, 0, transposed(left))
        start = jnp.zeros_like(v), left, slope, jnp.sum(slope**2), jnp.int32(0)
        most = 2 * v.size + 10

        def should_continue(now: tuple) -> jax.Array:
            return (jnp.sqrt(now[3]) > least) & (now[4] < most)

        return moves + lax.while_loop(should_continue, body, start)[0]


METHODS: dict[str, Any] = {"qr": ByQR, "cg": ByCG}


class _Run(NamedTuple):
    """The state of the loop: the point and its model, and the damping with its next factor."""

    v: jax.Array
    value: jax.Array
    model: Model
    grad_norm: jax.Array
    damping: jax.Array
    factor: jax.Array
    steps: jax.Array
    jacobians: jax.Array
    failed: jax.Array
    status: jax.Array


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _fit(
    residuals: Residuals,
    solver: Solver,
    x0: PyTree,
    args: tuple[Any, ...],
    box: Box | None,
    tol: Any,
    max_steps: Any,
) -> Minimum:
    scale, *rest = args
    method = METHODS[solver]
    moved = jnp.asarray(False) if box is None else ~box.holds(x0)
    x0 = x0 if box is None else box.project(x0)
    dtype = own_dtype(x0)
    v0, parts_of = ravel_pytree([cast(part, dtype) for part in real_parts(copy_params_wide(x0))])
    v0 = cast(v0, dtype)
    sides = (-jnp.inf, jnp.inf) if box is None else box
    lower, upper = (
        cast(jnp.broadcast_to(side if box is None else ravel_pytree(side)[0], v0.shape), dtype)
        for side in sides
    )
    eps = float(jnp.finfo(dtype).eps)

    def params_of(v: jax.Array) -> PyTree:
        x = from_parts(parts_of(v), x0)
        return x if box is None else box.project(x)  # by a rounding

    def residuals_at(v: jax.Array) -> jax.Array:
        return cast(residuals.vector(from_parts(parts_of(v), x0), *rest)[0], dtype)

    problem = Problem(residuals_at, residuals.loss, scale)

    def size_of(v: jax.Array, grad: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(jnp.clip(grad, v - upper, v - lower)), initial=0)

    def judged(run: _Run) -> _Run:
        status = jnp.int32(Status.RUNNING)
        for reason, applies in (
            (Status.MAX_STEPS, run.steps >= max_steps),
            (Status.LINE_SEARCH_FAILED, run.failed >= MOST_FAILED),
            (Status.CONVERGED, run.grad_norm <= tol),
            (Status.NOT_FINITE, ~(jnp.isfinite(run.value) & jnp.isfinite(run.grad_norm))),
            (Status.BOUNDS_CROSSED, jnp.asarray(False) if box is None else box.crossed),
        ):
            status = jnp.where(applies, jnp.int32(reason), status)
        return run._replace(status=status)

    def step(run: _Run) -> jax.Array:
        """The step of this damping, into the box."""
        v, model = run.v, run.model
        if box is None:
            nothing = jnp.zeros_like(v)
            return method.step(problem, v, model, run.damping, nothing != 0, nothing)

        def leaves(v: jax.Array) -> jax.Array:
            return (v < lower) | (v > upper)

        def again(now: tuple) -> tuple:
            _, held, moves, count = now
            p = method.step(problem, v, model, run.damping, held, moves)
            out = leaves(v + p) & ~held
            moves = jnp.where(out, jnp.clip(v + p, lower, upper) - v, moves)
            return p, held | out, moves, jnp.where(out.any(), count + 1, MOST_SOLUTIONS)

        pushed = ((v <= lower) & (model.grad >= 0)) | ((v >= upper) & (model.grad <= 0))
        nothing = jnp.zeros_like(v)
        start = nothing, pushed, nothing, jnp.int32(0)
        p, *_ = lax.while_loop(lambda now: now[3] < MOST_SOLUTIONS, again, start)
        return jnp.clip(v + p, lower, upper) - v

    def one_step(run: _Run) -> _Run:
        p = step(run)
        v = jnp.clip(run.v + p, lower, upper)
        value = problem.value(residuals_at(v))
        expected = -(run.model.grad @ p) - method.square(problem, run.v, run.model, p) / 2
        # Where rounding hides the decrease, a step that is expected to be right is taken.
        rounding = 4 * eps * jnp.abs(run.value)
        hidden = (expected <= rounding) & (value <= run.value + rounding) & (expected >= 0)
        share = jnp.where(hidden, 1, ratio(run.value - value, expected))
        good = jnp.isfinite(value) & (share > ENOUGH) & (expected > 0) & jnp.any(v != run.v)
        model = lax.cond(good, lambda: method.model(problem, v, run.model), lambda: run.model)
        new = _Run(
            v=jnp.where(good, v, run.v),
            value=jnp.where(good, value, run.value),
            model=model,
            grad_norm=jnp.where(good, size_of(v, model.grad), run.grad_norm),
            damping=run.damping
            * jnp.where(good, jnp.maximum(1 / 3, 1 - (2 * share - 1) ** 3), run.factor),
            factor=jnp.where(good, 2, 2 * run.factor).astype(dtype),
            steps=run.steps + 1,
            jacobians=run.jacobians + good.astype(jnp.int32),
            failed=jnp.where(good & ~hidden, 0, run.failed + 1),
            status=run.status,
        )
        return judged(new._replace(damping=jnp.maximum(new.damping, eps**2)))

    model = method.model(problem, v0, None) if v0.size else Model(v0, v0, None, None)
    number = partial(jnp.asarray, dtype=dtype)
    start = _Run(
        *(v0, problem.value(residuals_at(v0)), model, size_of(v0, model.grad)),
        *(number(FIRST_DAMPING), number(2)),
        *(jnp.int32(0), jnp.int32(1), jnp.int32(0), jnp.int32(0)),
    )
    end = judged(start)
    if v0.size:
        end = lax.while_loop(lambda run: run.status == Status.RUNNING, one_step, end)
    x, aux, values = params_of(end.v), None, 1 + end.steps
    if residuals.has_aux:
        aux, values = residuals.vector(x, *rest)[1], values + 1
    spent = Evaluations(values, end.jacobians)
    return Minimum(x, end.value, end.grad_norm, end.steps, spent, end.status, aux, moved)


@_fit.defjvp
def _derivative(
    residuals: Residuals, solver: Solver, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, ...]:
    """By the implicit function theorem; the start and the solver do not matter."""
    result = _fit(residuals, solver, *primals)
    _, args, box, *_ = primals
    _, d_args, d_box, *_ = tangents
    objective = Objective(residuals, residuals.has_aux)
    dx, d_value, d_aux = tangents_of_minimum(objective, result.x, (args, box), (d_args, d_box))
    tangent = jax.tree.map(zero_tangent, result)
    return result, tangent._replace(x=dx, value=d_value, aux=d_aux)
