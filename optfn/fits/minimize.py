"""A whole run with `minimize`, and `value_and_grad_from_state` for custom loops."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.tree_util import Partial

from optfn.compose.chain import chain
from optfn.compose.partition import freeze
from optfn.core.apply import step
from optfn.core.control_flow import cond
from optfn.core.dtypes import own_dtype
from optfn.core.holes import merge, view
from optfn.core.inputs import check_floating, to_arrays
from optfn.core.slots import copy_params, copy_params_wide
from optfn.core.state import State
from optfn.core.transform import Transform, as_transform, restored_hint
from optfn.core.tree import PyTree
from optfn.fits.constraints import MAX_ROUNDS, augmented_lagrangian, place_of_penalty, under
from optfn.fits.implicit import tangents_of_minimum, zero_tangent
from optfn.fits.joined import is_of_one_vector, joined_for
from optfn.fits.objective import (
    Objective,
    check_args,
    check_function,
    check_limit,
    holds_arrays,
    in_program,
    on_hoisted,
)
from optfn.fits.status import TEXTS, Status
from optfn.fits.watching import UNWATCHED, Iterate, Watched, distance, listened_to
from optfn.optimizers.quasi_newton.box import Box
from optfn.optimizers.quasi_newton.lbfgs import lbfgs
from optfn.optimizers.quasi_newton.lbfgsb import lbfgsb
from optfn.optimizers.quasi_newton.search import (
    Evaluations,
    LineSearch,
    LineSearchState,
    conj,
    largest,
    searches_in,
)
from optfn.optimizers.quasi_newton.search import value_and_grad as wide_value_and_grad

GIVEN = ("value", "grad", "value_fn")
# Times the step that a quasi-Newton method expects to be right.
VERY_FAR = 1e6


class Minimum(NamedTuple):
    """The result of `minimize`; under `vmap` every field is a batch.

    Attributes:
        x: the last params; within the bounds.
        value: the function's value at x, in the compute dtype.
        grad_norm: the largest magnitude of an entry of the gradient at x, or with bounds of the
            projected gradient x - P(x - gradient), where P is the projection onto them; with
            constraints the gradient is that of the Lagrangian.
        steps: int32, the number of optimizer steps.
        evaluations: the numbers of evaluations of the value and of the gradient, int32 each.
        status: int32, one of `Status`.
        aux: the function's auxiliary output at x, or None without `has_aux`.
        start_moved: bool, whether the start was outside the bounds; the run began at the nearest
            point between them.
        multipliers: with constraints the multipliers y of the Lagrangian value + <y, constraints>,
            in a tree like `constraints` with the values of each in its place: positive where an
            upper bound holds the minimum back, negative where a lower one does. None without.
        violation: with constraints by how much the one that is missed most is missed; None without.
        trace: the `Iterate` of every point from the start on, [max_steps + 1] each, or with
            constraints of every round, [101]; None without `trace`. Past the last point its numbers
            are NaN and its counts -1.
    """

    x: PyTree
    value: jax.Array
    grad_norm: jax.Array
    steps: jax.Array
    evaluations: Evaluations
    status: jax.Array
    aux: Any = None
    start_moved: jax.Array | bool = False
    multipliers: PyTree = None
    violation: jax.Array | None = None
    trace: Iterate | None = None

    @property
    def converged(self) -> jax.Array:
        """Whether the gradient is within the tolerance."""
        return self.status == Status.CONVERGED

    def __str__(self) -> str:
        """A line for each run; the `repr` where the numbers are not known, as in a trace."""
        fields = self.status, self.value, self.grad_norm, self.steps, *self.evaluations
        fields = (*fields, self.start_moved, -1.0 if self.violation is None else self.violation)
        kinds = (jax.Array, np.ndarray, np.generic, int, float)
        if any(isinstance(x, Tracer) or not isinstance(x, kinds) for x in fields):
            return repr(self)
        columns = np.broadcast_arrays(*map(np.asarray, fields))
        rows = zip(*map(np.ravel, columns), strict=True)
        return "\n".join(
            f"{TEXTS[Status(status)]}: value {value:.6g}, gradient {norm:.2g}, {steps} steps, "
            f"{values} values and {grads} gradients evaluated"
            f"{f'; constraints missed by at most {missed:.2g}' if missed >= 0 else ''}"
            f"{'; the start was outside the bounds' if moved else ''}"
            for status, value, norm, steps, values, grads, moved, missed in rows
        )


def minimize(
    fun: Callable[..., Any],
    x0: PyTree,
    tx: optax.GradientTransformation | None = None,
    *,
    bounds: tuple[PyTree, PyTree] | None = None,
    constraints: Any = None,
    args: tuple[Any, ...] = (),
    has_aux: bool = False,
    value_and_grad: Callable[..., Any] | None = None,
    tol: Any = 1e-5,
    max_steps: Any = 1000,
    callback: Callable[[Iterate], Any] | None = None,
    progress: bool = False,
    trace: bool = False,
) -> Minimum:
    """Minimizes a function without noise from a starting point, also between bounds.

    It stops where no entry of the gradient is larger than `tol` in magnitude, like SciPy's `gtol`.
    Derivatives by `args`, the bounds and what `fun` closes over, forward and backward, are those of
    the minimum, by the implicit function theorem: conjugate gradients, or MINRES under constraints,
    solve an equation with the Hessian to a relative residual of eps^(3/4), and an equation without
    a solution gives NaN. They are as exact as the minimum is, so set a small `tol`; those by `x0`
    are zero.

    The run is one compiled loop, which works under `jit` and, for a batch of starting points or of
    `args`, under `vmap`, where each lane has its own steps and stops on its own. For losses of
    mini-batches write a training loop.

        result = minimize(lambda x, a: jnp.sum((x - a) ** 2), jnp.zeros(3), args=(2.0,))
        print(result)  # converged: value 0, gradient 0, 2 steps, ...

    Args:
        fun: `fun(x, *args)` returns a real scalar, or with `has_aux` a pair of it and arrays. A new
            function compiles again; put data that changes into `args`.
        x0: the starting point, a pytree of real or complex arrays.
        tx: an optimizer, by default `lbfgs()`, or `lbfgsb()` if there are bounds. It may declare
            the extra arguments `value`, `grad` and `value_fn`, and `box`, without which it takes no
            bounds. If it is a `freeze`, the frozen params do not count. For a line search inside
            another wrapper the value is evaluated again, and its failures do not stop the run. One
            of optax's is taken by `from_optax`, and what its line search evaluates is not counted.
        bounds: `(lower, upper)`, each a tree like `x0`, a prefix of it (a number bounds all
            entries) or None, also in the place of a subtree: no bound. Infinite bounds are none,
            and equal ones fix an entry. They are rounded to the dtypes of `x0`, which is moved
            between them if it is outside.
        constraints: a `Constraint(fun, lower, upper)`, or a list, tuple or dict of several. The
            method is an augmented Lagrangian, whose minima `tx` finds one after the other, in
            rounds; `max_steps` counts the steps of all. The gradient is then that of the
            Lagrangian, and `tol` also bounds the violation.
        args: further arguments of `fun`, pytrees of arrays and numbers.
        has_aux: whether `fun` returns a pair; it costs one more evaluation, at the end.
        value_and_grad: `value_and_grad(x, *args)` gives what `jax.value_and_grad(fun,
            has_aux=has_aux)` would, for derivatives of your own: by forward mode, where `fun` has a
            `while_loop`, by a solver's adjoint, or from outside of JAX.
        tol: the largest magnitude of a gradient entry to stop at.
        max_steps: the largest number of optimizer steps.
        callback: `callback(iterate)` is called on the host with the `Iterate` of the start and of
            every step, or with constraints of every round, of Python numbers; in a batch with those
            of all runs. It must not call JAX. An error in it is raised when the run is over.
        progress: whether to show the steps: on a line of the terminal with rich, or in a program, a
            file or a pipe as lines on the standard error stream, fewer and fewer of them.
        trace: whether the minimum holds all iterates; `max_steps` is then known.

    Returns:
        The minimum. After a failed line search the optimizer takes one more step, with `lbfgs` from
        an empty history, before the run ends.

    Raises:
        TypeError: `x0` has integers, `args` is not a tuple, `fun` or `value_and_grad` does not
            return what `has_aux` says, `tx` needs other extra arguments or takes no bounds,
            `bounds` is no pair, a bounded param is complex, `constraints` holds something else than
            a `Constraint` or one that gives no real arrays, a function is none or cannot be hashed,
            `args` holds what is no array, or a limit is no number.
        ValueError: `fun` does not return a real scalar, the gradient is not like `x0`, a limit is
            NaN, negative or no scalar, or with `trace` not known, bounds do not fit, a constraint
            has none, or a lower bound is known to be above its upper bound. (Where it is not known,
            in a trace, the status says so.)
    """
    check_args(args, "minimize(args=...)")
    check_function(fun, "minimize(fun=...)")
    if value_and_grad is not None:
        check_function(value_and_grad, "minimize(value_and_grad=...)")
    if callback is not None and not callable(callback):
        found = type(callback).__name__
        raise TypeError(f"minimize(callback=...) must be a function of an Iterate, found {found}.")
    for name, switch in (("progress", progress), ("trace", trace), ("has_aux", has_aux)):
        if not isinstance(switch, (bool, np.bool_)):
            found = type(switch).__name__
            raise TypeError(f"minimize({name}=...) must be True or False, found {found}.")
    check_limit(tol, "minimize(tol=...)")
    check_limit(max_steps, "minimize(max_steps=...)")
    points = None
    if trace:
        points = _length(max_steps) if constraints is None else MAX_ROUNDS + 1
    watched = Watched(callback is not None or bool(progress), points)
    x0 = to_arrays(x0, "x0")
    where = "minimize(bounds=...)"
    box = None if bounds is None else Box.of(bounds, x0, where, "x0")
    if tx is None:
        tx = lbfgs() if box is None else lbfgsb()
    tx = as_transform(tx, "minimize(tx=...)")
    given = len(args)
    functions = (fun, value_and_grad)
    if any(map(holds_arrays, functions)):  # they are data
        args = (tuple(f if f is None or holds_arrays(f) else Partial(f) for f in functions), *args)
        fun, value_and_grad = _first, None if value_and_grad is None else _second
    objective, mine, start = Objective(fun, bool(has_aux), value_and_grad), None, x0
    if constraints is not None:
        objective, args = under(objective, constraints, x0, args, own=len(args) - given)
    if isinstance(tx, freeze):
        mine = tx._mine(x0)
        box = None if box is None else Box(*(view(side, mine) for side in box))
        objective, tx, start, args = objective.over(mine), tx.transform, view(x0, mine), (x0, *args)

    def run(listener: Any) -> Minimum:
        given = (tx, start, args, box, tol, max_steps, listener)
        return _checked_run(objective, watched, *given)

    result = listened_to(run, callback, progress, is_later=in_program())
    return result if mine is None else result._replace(x=merge(result.x, x0, mine))


def _length(max_steps: Any) -> int:
    """The number of points of the longest run, which a trace has entries for."""
    where = "minimize(trace=True) keeps every step, so max_steps must be"
    if isinstance(max_steps, Tracer):
        raise ValueError(f"{where} known where the run is traced, found a traced array.")
    if not math.isfinite(max_steps):
        raise ValueError(f"{where} finite, found {max_steps}.")
    return math.ceil(max_steps) + 1


def _first(x: PyTree, functions: tuple[Any, ...], *args: Any) -> Any:
    return functions[0](x, *args)


def _second(x: PyTree, functions: tuple[Any, ...], *args: Any) -> Any:
    return functions[1](x, *args)


def _checked_run(
    objective: Objective,
    watched: Watched,
    tx: Transform,
    x0: PyTree,
    args: tuple[Any, ...],
    box: Box | None,
    *limits: Any,
) -> Minimum:
    check_floating("x0", x0)
    _check_declared(tx, box)
    run = _run if place_of_penalty(args) is None else partial(augmented_lagrangian, _run)
    return on_hoisted(
        lambda objective, args: run(objective, watched, tx, x0, args, box, *limits),
        objective,
        x0,
        args,
    )


def _check_declared(tx: Transform, box: Box | None) -> None:
    """Refuses an optimizer that needs more than it gets, or that does not heed the bounds."""
    declared = tx.declared_extra_args()
    if box is None and "box" in declared:
        raise TypeError("minimize(tx=...) moves between bounds: minimize(bounds=...) is missing.")
    if box is not None and "box" not in declared:
        raise TypeError(
            "minimize(bounds=...) needs an optimizer that takes bounds, as the default does; "
            "minimize(tx=...) does not declare the extra argument 'box'."
        )
    unknown = sorted(set(declared) - {*GIVEN, "box"})
    if unknown:
        raise TypeError(
            f"minimize(tx=...) needs the extra argument '{unknown[0]}', but minimize gives "
            f"{', '.join(GIVEN)} only."
        )


class _Point(NamedTuple):
    """The current point of the run; the gradient points uphill."""

    x: PyTree
    value: jax.Array
    grad: PyTree
    grad_norm: jax.Array


class _Run(NamedTuple):
    """The state of the loop.

    `failed_steps` counts failed steps in a row; `ran_away` says whether the last step that moved x
    was stopped at its last trial, very far out, with the value still falling, and two such steps
    are failures too; `trace` holds the iterates, if they are kept.
    """

    point: _Point
    state: State
    steps: jax.Array
    evaluations: Evaluations
    failed_steps: jax.Array
    ran_away: jax.Array
    status: jax.Array
    trace: Iterate | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _run(
    objective: Objective,
    watched: Watched,
    tx: Transform,
    x0: PyTree,
    args: tuple[Any, ...],
    box: Box | None,
    tol: Any,
    max_steps: Any,
    listener: Any,
) -> Minimum:
    value_fn, joined = objective.value_fn(*args), joined_for(tx, x0)
    if joined is not None:
        of_tree = value_fn
        value_fn = lambda vectors: of_tree(joined.apart(vectors))  # noqa: E731
        x0, box = joined.join(x0), box and Box(*map(joined.join, box))
    like = copy_params_wide(x0)
    declared, evaluates = tx.declared_extra_args(), _evaluates_at_first(tx)
    zero, once = jnp.int32(0), Evaluations(jnp.int32(1), jnp.int32(1))

    def size_of(x: PyTree, grad: PyTree) -> jax.Array:
        return largest(grad if box is None else box.projected_gradient(x, grad))

    def evaluated(x: PyTree) -> _Point:
        value, grad = wide_value_and_grad(value_fn, x, like)
        return _Point(x, value, grad, size_of(x, grad))

    crossed = jnp.asarray(False) if box is None else box.crossed

    def judged(run: _Run) -> _Run:
        """The run with its status: the last of these that applies."""
        status = jnp.int32(Status.RUNNING)
        for reason, applies in (
            (Status.MAX_STEPS, run.steps >= max_steps),
            (Status.LINE_SEARCH_FAILED, run.failed_steps >= 2),
            (Status.UNBOUNDED, (run.failed_steps >= 2) & run.ran_away),
            (Status.CONVERGED, run.point.grad_norm <= tol),
            (Status.NOT_FINITE, ~is_finite(run.point)),
            (Status.UNBOUNDED, run.point.value == -jnp.inf),
            (Status.BOUNDS_CROSSED, crossed),
        ):
            status = jnp.where(applies, jnp.int32(reason), status)
        return run._replace(status=status)

    def watched_step(old: PyTree, before: jax.Array, run: _Run) -> _Run:
        """The run, told of and with its trace, after a step from `old` with the status `before`."""
        if watched == UNWATCHED:
            return run
        value, norm = run.point.value, run.point.grad_norm
        here = Iterate(run.steps, value, norm, distance(run.point.x, old), run.evaluations.value)
        changes = before == Status.RUNNING, run.status != Status.RUNNING
        return run._replace(trace=watched.noted(listener, run.trace, run.steps, here, *changes))

    def one_step(run: _Run) -> _Run:
        old = run.point
        given = {"value": old.value, "grad": old.grad, "value_fn": value_fn}
        if "box" in declared:
            given["box"] = box
        x, state = step(tx, old.x, old.grad, run.state, **given)
        x = x if box is None else box.project(x)  # by a rounding
        evaluations = [run.evaluations, *(found.info.evaluations for found in searches_in(state))]
        found = _last_search(tx, state.slots, state.step)
        failed_steps, ran_away = zero, jnp.asarray(False)
        if found is not None:
            rate, failed = found.learning_rate, found.info.failed
            is_far = failed & (rate > VERY_FAR)
            failed_steps = jnp.where(is_far & run.ran_away, 2, failed_steps)
            failed_steps = jnp.where(failed & (rate == 0), run.failed_steps + 1, failed_steps)
            ran_away = jnp.where(rate > 0, is_far, run.ran_away)
        if found is not None and found.grad is not None:
            grad = conj(found.grad)
            point = _Point(x, found.value, grad, size_of(x, grad))
        else:
            point = evaluated(x)
            evaluations.append(once)
        if evaluates:  # the first is at the start, and no step
            state = state._replace(step=jnp.asarray(run.steps + 1, state.step.dtype))
        spent = jax.tree.map(lambda *counts: sum(counts), *evaluations)
        ended = (point, state, run.steps + 1, spent, failed_steps, ran_away, run.status, run.trace)
        return watched_step(old.x, run.status, judged(_Run(*ended)))

    moved = jnp.asarray(False) if box is None else ~box.holds(x0)
    x0 = copy_params(x0 if box is None else box.project(x0))
    run_from = (
        tx.init(x0),
        zero,
        once,
        zero,
        moved & False,
        zero,
        watched.empty_trace(own_dtype(like)),
    )
    if evaluates:
        infinity = jnp.asarray(jnp.inf, own_dtype(like))
        unknown = _Point(x0, infinity, jax.tree.map(jnp.zeros_like, like), infinity)
        none = Evaluations(zero, zero)
        start = _Run(unknown, *run_from)._replace(steps=zero - 1, evaluations=none)
    else:
        start = watched_step(x0, zero, judged(_Run(evaluated(x0), *run_from)))
    end = lax.while_loop(lambda run: run.status == Status.RUNNING, one_step, start)
    x, value, _, norm = end.point
    x = x if joined is None else joined.apart(x)
    aux, evaluations = None, end.evaluations
    if objective.has_aux:
        aux = objective.value_and_aux(x, *args)[1]
        evaluations = evaluations._replace(value=evaluations.value + 1)
    return Minimum(x, value, norm, end.steps, evaluations, end.status, aux, moved)._replace(
        trace=end.trace
    )


@_run.defjvp
def _derivative(
    objective: Objective, watched: Watched, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, ...]:
    """By the implicit function theorem; the start and the optimizer do not matter."""
    result = _run(objective, watched, *primals)
    _, _, args, box, *_ = primals
    _, _, d_args, d_box, *_ = tangents
    dx, d_value, d_aux = tangents_of_minimum(objective, result.x, (args, box), (d_args, d_box))
    tangent = jax.tree.map(zero_tangent, result)
    return result, tangent._replace(x=dx, value=d_value, aux=d_aux)


def _evaluates_at_first(tx: Transform) -> bool:
    """Whether a first update with an unknown value and no gradient evaluates the function there.

    A line search does. Then the function stands once in the program, which compiles the faster.
    """
    stages = tx.stages if type(tx) is chain else (tx,)
    keeps = bool(stages) and isinstance(stages[-1], LineSearch) and stages[-1].keeps_grad
    return keeps and is_of_one_vector(tx)


def is_finite(point: _Point) -> jax.Array:
    return jnp.isfinite(point.value) & jnp.isfinite(point.grad_norm)


def _last_search(tx: Transform, named: Any, step: Any) -> LineSearchState | None:
    """The state of a line search whose step is the optimizer's: its value is at the new params."""
    slots = tx.slots_among(named)
    if isinstance(tx, chain) and tx.stages:
        last = tx.inner_transforms(slots, step)[-1]
        return _last_search(last.transform, last.slots, last.step)
    return slots if isinstance(tx, LineSearch) else None


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.value_and_grad` for a loop with a line search, which has already evaluated both.

        value_and_grad = value_and_grad_from_state(f)
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=f)

    The function is evaluated only before the first update, when the state holds no finite value,
    and if the search moves only some params, in a `partition` or a `freeze`. Under `vmap` it is
    always evaluated, like both branches of any `cond`. Only for functions without noise, and for a
    search that is the last to move the params: not inside `schedule_free`, `sam` and the like, nor
    before a `scale`.

    Args:
        value_fn: `value_fn(params, *args, **kwargs)` returns a real scalar.

    Returns:
        A function `(params, *args, state, **kwargs) -> (value, grad)`, in the compute dtype. As
        with `jax.value_and_grad`, the gradient of a complex param is the conjugate of the direction
        uphill, which `update` takes: give it `jax.tree.map(jnp.conj, grad)`.

    Raises:
        ValueError: when called, if the state does not hold exactly one line search that keeps the
            gradient.
    """

    def found_or_evaluated(params: PyTree, *args: Any, state: Any, **kwargs: Any) -> tuple:
        found = searches_in(state)
        if len(found) != 1 or found[0].grad is None:
            what = (
                f"{len(found)} line searches" if len(found) != 1 else "one that keeps no gradient"
            )
            raise ValueError(
                "value_and_grad_from_state needs the state of one line search that keeps the "
                f"gradient (scale_by_zoom_linesearch, or store_grad=True), found {what}"
                f"{restored_hint(state)}."
            )
        params = to_arrays(params, "the param")

        def evaluate():
            like = copy_params_wide(params)
            value, grad = wide_value_and_grad(lambda p: value_fn(p, *args, **kwargs), params, like)
            return value, conj(grad)

        (last,) = found
        if jax.tree.structure(last.grad) != jax.tree.structure(params):
            return evaluate()
        return cond(jnp.isfinite(last.value), lambda: (last.value, last.grad), evaluate)

    return found_or_evaluated
