"""Minima under constraints, by minimizing an augmented Lagrangian again and again.

Powell, Hestenes and Rockafellar: of constraints l <= c(x) <= u with multipliers y and a weight w,

    L(x) = f(x) + w / 2 |z - P(z)|^2        z = c(x) + y / w,  P(z) = clip(z, l, u)

is minimized, then y <- w (z - P(z)), and w grows where the constraints have not come much nearer
to holding. The gradient of L is that of the Lagrangian f + <y, c> with the new y; so a minimum of L
at which y no longer changes meets the conditions of Karush, Kuhn and Tucker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.dtypes import cast, compute_dtype, own_dtype
from optfn.core.numerics import dot, tree_sum
from optfn.core.tree import PyTree, leaf_location
from optfn.fits.implicit import zero_tangent
from optfn.fits.kkt import tangents_under_constraints
from optfn.fits.objective import Objective, check_function, holds_arrays
from optfn.fits.status import Status
from optfn.fits.watching import UNWATCHED, Iterate, Watched, distance
from optfn.optimizers.quasi_newton.box import Box
from optfn.optimizers.quasi_newton.search import Evaluations, conj, largest

WHERE = "minimize(constraints=...)"
# The weight grows tenfold where a round leaves more than this share of what is missed.
ENOUGH = 0.25
MAX_ROUNDS = 100
# A round that has not converged is undone if it leaves so many times the violation.
FAR = 1e3
# So many steps of a round show whether it runs away; it goes on after them, if not.
ROUND_STEPS = 200


class Constraint(NamedTuple):
    """lower <= fun(x, *args) <= upper, for `minimize(constraints=...)`.

        Constraint(g, 0, 0)         the equation g(x) = 0
        Constraint(h, 0)            the inequality h(x) >= 0
        Constraint(h, upper=1)      h(x) <= 1

    Attributes:
        fun: `fun(x, *args)` gives real arrays, with the `args` of `minimize`.
        lower: a tree like what `fun` gives, a prefix of it (a number bounds all entries) or None,
            also in the place of a subtree: no bound.
        upper: the same; where it equals `lower` the constraint is an equation.
    """

    fun: Callable[..., Any]
    lower: PyTree = None
    upper: PyTree = None


class Penalty(NamedTuple):
    """What a round adds to the function, as data among its arguments.

    Attributes:
        multipliers: in a tree like the values of the constraints.
        weight: of the square of the distance.
        box: what bounds the values.
        functions: of the constraints that are pytrees, None for the others.
    """

    multipliers: PyTree
    weight: jax.Array
    box: Box
    functions: tuple[Any, ...]

    def shifted(self, values: PyTree) -> PyTree:
        return jax.tree.map(
            lambda c, y: c + y / cast(self.weight, c.dtype), values, self.multipliers
        )

    def distance(self, values: PyTree) -> PyTree:
        """By how much values, an entry each, are above their upper bound or, negative, below."""
        return jax.tree.map(lax.sub, values, self.box.project(values))


@dataclass(frozen=True)
class Lagrangian:
    """The augmented Lagrangian; its auxiliary output is the value, the constraints' and the user's.

    Attributes:
        objective: the function.
        functions: those of the constraints, None for those that are among the data.
        tree: the structure in which the user gave the constraints.
        own: how many leading arguments of the function are not of the constraints.
    """

    objective: Objective
    functions: tuple[Any, ...]
    tree: Any
    own: int

    def __call__(
        self, x: PyTree, penalty: Penalty, *args: Any
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        value, aux = self.objective.value_and_aux(x, *args)
        value = cast(value, compute_dtype(value.dtype))
        added, values = self.added(x, penalty, *args)
        return value + cast(added, value.dtype), (value, values, aux)

    def added(self, x: PyTree, penalty: Penalty, *args: Any) -> tuple[jax.Array, PyTree]:
        """What is added to the value, and the values of the constraints."""
        pairs = zip(self.functions, penalty.functions, strict=True)
        found = [_values(known or given, x, args[self.own :]) for known, given in pairs]
        values = self.tree.unflatten(found)
        far = penalty.distance(penalty.shifted(values))
        square = tree_sum(jax.tree.map(dot, far, far))
        return cast(penalty.weight, square.dtype) / 2 * square, values


@dataclass(frozen=True)
class _Gradient:
    """The gradient of the augmented Lagrangian, given the user's of the function."""

    lagrangian: Lagrangian

    def __call__(self, x: PyTree, penalty: Penalty, *args: Any) -> tuple[Any, ...]:
        value, grad = self.lagrangian.objective.value_and_grad(x, *args)
        of_x = jax.value_and_grad(lambda x: self.lagrangian.added(x, penalty, *args), has_aux=True)
        (more, values), slope = of_x(x)
        value = cast(value, compute_dtype(value.dtype))
        total = value + cast(more, value.dtype)
        return (total, (value, values, None)), jax.tree.map(lax.add, grad, slope)


def under(
    objective: Objective, constraints: Any, x0: PyTree, args: tuple[Any, ...], own: int
) -> tuple[Objective, tuple[Any, ...]]:
    """The augmented Lagrangian with its arguments, from what a user gives for constraints.

    Args:
        objective: the function.
        constraints: a `Constraint`, or a tree of them.
        x0: the start.
        args: the arguments of the function.
        own: how many leading ones are not of the constraints.
    """
    leaves, tree = jax.tree.flatten(constraints, is_leaf=lambda x: isinstance(x, Constraint))
    for c in leaves:
        _check(c)
    shapes = [_shapes(c.fun, x0, args[own:]) for c in leaves]
    boxes = [
        Box.of((c.lower, c.upper), shape, WHERE, "the constraint")
        for c, shape in zip(leaves, shapes, strict=True)
    ]
    dtype = own_dtype(x0)
    zeros = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape) for shape in shapes]
    are_data = [holds_arrays(c.fun) for c in leaves]
    given = tuple(c.fun if data else None for c, data in zip(leaves, are_data, strict=True))
    known = tuple(None if data else c.fun for c, data in zip(leaves, are_data, strict=True))
    sides = (tree.unflatten([getattr(box, side) for box in boxes]) for side in Box._fields)
    penalty = Penalty(tree.unflatten(zeros), jnp.ones((), dtype), Box(*sides), given)
    lagrangian = Lagrangian(objective, known, tree, own)
    derivative = None if objective.derivative is None else _Gradient(lagrangian)
    return Objective(lagrangian, True, derivative), (penalty, *args)


def _check(constraint: Any) -> None:
    if not isinstance(constraint, Constraint):
        found = type(constraint).__name__
        raise TypeError(
            f"{WHERE} must be an optfn.Constraint(fun, lower, upper) or a list, tuple or dict of "
            f"them, found {found}. SciPy's {{'type': 'eq', 'fun': g}} is Constraint(g, 0, 0), "
            "{'type': 'ineq', 'fun': h} is Constraint(h, 0), and NonlinearConstraint(c, lb, ub) is "
            "Constraint(c, lb, ub)."
        )
    check_function(constraint.fun, f"{WHERE}: Constraint(fun=...)")
    if constraint.lower is None and constraint.upper is None:
        raise ValueError(
            f"{WHERE}: a Constraint needs bounds, as in Constraint(g, 0, 0) for g(x) = 0 and "
            "Constraint(h, 0) for h(x) >= 0."
        )


def _shapes(fun: Callable[..., Any], x0: PyTree, args: tuple[Any, ...]) -> PyTree:
    """What a constraint gives, in its compute dtype."""
    shapes = jax.eval_shape(fun, x0, *args)
    for i, s in enumerate(jax.tree.leaves(shapes)):
        if not jnp.issubdtype(s.dtype, jnp.floating):
            raise TypeError(
                f"{WHERE}: a constraint gives real floating point arrays, found {s.dtype} "
                f"{leaf_location(shapes, i)}."
            )
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, compute_dtype(s.dtype)), shapes)


def _values(fun: Callable[..., Any], x: PyTree, args: tuple[Any, ...]) -> PyTree:
    return jax.tree.map(lambda c: cast(c, compute_dtype(c.dtype)), fun(x, *args))


def place_of_penalty(args: tuple[Any, ...]) -> int | None:
    """Which of the arguments of an objective is the penalty; None without constraints."""
    return next((i for i, x in enumerate(args) if isinstance(x, Penalty)), None)


class _Rounds(NamedTuple):
    """The state of the loop.

    Attributes:
        x: the point from which the next round starts.
        multipliers: the next round's.
        weight: the next round's.
        tol: the next round's.
        violation: by how much the constraint that is missed most is missed at x.
        change: the largest change of a multiplier over the weight, in the last round; it bounds the
            violation, and the distance to its bound of what has a multiplier.
        found: the last round's minimum.
        steps: of all rounds.
        evaluations: of all rounds.
        rounds: their number.
        failed: how many in a row have failed.
        status: as in `Minimum`.
        trace: as in `Minimum`.
    """

    x: PyTree
    multipliers: PyTree
    weight: jax.Array
    tol: jax.Array
    violation: jax.Array
    change: jax.Array
    found: Any
    steps: jax.Array
    evaluations: Evaluations
    rounds: jax.Array
    failed: jax.Array
    status: jax.Array
    trace: Iterate | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2))
def augmented_lagrangian(
    run: Callable[..., Any],
    objective: Objective,
    watched: Watched,
    tx: Any,
    x0: PyTree,
    args: tuple[Any, ...],
    box: Box | None,
    tol: Any,
    max_steps: Any,
    listener: Any,
) -> Any:
    """A run under constraints: rounds of `run` from each other's ends.

    Args:
        run: `(objective, watched, tx, x0, args, box, tol, max_steps, listener) -> Minimum`.
        objective: from `under`.
        watched: what is told and kept of each round.
        tx: the optimizer of each round.
        x0: the start.
        args: from `under`, also with others around.
        box: the bounds of x.
        tol: as of `minimize`.
        max_steps: of all rounds together.
        listener: the number of who listens, or None.
    """
    at = place_of_penalty(args)
    assert at is not None
    given, dtype = args[at], own_dtype(x0)
    eps = float(jnp.finfo(dtype).eps)
    flat = eps ** (1 / 3)
    tol = cast(tol, dtype)
    near = jnp.maximum(tol, eps**0.5)

    def with_penalty(multipliers: PyTree, weight: jax.Array) -> tuple:
        penalty = given._replace(multipliers=multipliers, weight=weight)
        return (*args[:at], penalty, *args[at + 1 :])

    def constraints(x: PyTree) -> PyTree:
        return objective.value_and_aux(x, *args)[1][1]

    def is_stuck(x: PyTree, values: PyTree) -> jax.Array:
        """Whether the violation is above the tolerance and has no slope."""
        far = given.distance(values)
        _, pullback = jax.vjp(constraints, x)
        (slope,) = pullback(far)
        slope = largest(slope if box is None else box.projected_gradient(x, conj(slope)))
        slope, most = cast(slope, dtype), cast(largest(far), dtype)
        size = jnp.maximum(cast(largest(x), dtype), 1)
        # For a step of length 1, and for one of the size of x, in any units of the constraints.
        is_flat = (slope <= flat * most) & (slope * size <= flat * most**2)
        return (most > tol) & is_flat

    def one_round(old: _Rounds) -> _Rounds:
        own = with_penalty(old.multipliers, old.weight)
        limit = jnp.minimum(max_steps - old.steps, ROUND_STEPS)
        limit = jnp.where(given.box.crossed, 0, limit)
        found = run(objective, UNWATCHED, tx, old.x, own, box, old.tol, limit, None)
        values, penalty = found.aux[1], own[at]
        shifted = penalty.shifted(values)
        multipliers = jax.tree.map(
            lambda d: cast(old.weight, d.dtype) * d, penalty.distance(shifted)
        )
        nearest = penalty.box.project(shifted)
        change = cast(largest(jax.tree.map(lax.sub, values, nearest)), dtype)
        nearer = change <= jnp.maximum(ENOUGH * old.change, tol)
        violation = cast(largest(given.distance(values)), dtype)
        failing = found.status == Status.LINE_SEARCH_FAILED
        # Far out a function may fall faster than a light penalty rises.
        unfinished = found.status == Status.MAX_STEPS
        ran_away = violation > FAR * jnp.maximum(old.violation, 1)
        ran_away = (failing | unfinished) & ran_away | (found.status == Status.UNBOUNDED)
        unfinished = unfinished & ~ran_away
        # The same round went on for as many steps again, to nothing lower and nothing flatter.
        before = old.found
        stalled = unfinished & (before.status == Status.MAX_STEPS)
        stalled &= ~(found.value < before.value - 4 * eps * jnp.abs(before.value))
        stalled &= ~(found.grad_norm < before.grad_norm / 2)
        unfinished = unfinished & ~stalled
        failed = jnp.where(failing & ~(change < ENOUGH * old.change), old.failed + 1, 0)
        failed = jnp.where(ran_away, 0, failed)
        steps, rounds = old.steps + found.steps, old.rounds + 1
        status = jnp.int32(Status.RUNNING)
        for reason, applies in (
            (Status.STALLED, stalled & ((change <= near) | ~(change < ENOUGH * old.change))),
            (Status.MAX_STEPS, (steps >= max_steps) | (rounds >= MAX_ROUNDS)),
            (Status.LINE_SEARCH_FAILED, failed >= 3),
            (Status.INFEASIBLE, ~(nearer | unfinished | ran_away) & is_stuck(found.x, values)),
            (Status.UNBOUNDED, ran_away & (old.weight > 1 / eps)),
            (Status.CONVERGED, (found.grad_norm <= tol) & (change <= tol)),
            (Status.NOT_FINITE, found.status == Status.NOT_FINITE),
            (Status.BOUNDS_CROSSED, found.status == Status.BOUNDS_CROSSED),
            (Status.BOUNDS_CROSSED, given.box.crossed),
        ):
            status = jnp.where(applies, jnp.int32(reason), status)
        runs = status == Status.RUNNING
        again = ran_away & runs  # from the same point, held back more
        goes_on = unfinished & runs
        found = found._replace(status=jnp.where(goes_on, found.status, status))
        kept = partial(jax.tree.map, partial(jnp.where, again))
        same = partial(jax.tree.map, partial(jnp.where, again | goes_on))
        heavier = jnp.where(ran_away, 100, jnp.where(nearer | unfinished, 1, 10)).astype(dtype)
        evaluations = jax.tree.map(lambda a, b: a + b + 1, old.evaluations, found.evaluations)
        here = Iterate(
            *(steps, cast(found.aux[0], dtype), found.grad_norm, distance(found.x, old.x)),
            evaluations.value,
        )
        changes = old.status == Status.RUNNING, ~runs
        return _Rounds(
            kept(old.x, found.x),
            same(old.multipliers, multipliers),
            old.weight * heavier,
            same(old.tol, jnp.maximum(old.tol / 10, tol)),
            kept(old.violation, violation),
            same(old.change, change),
            found,
            steps,
            evaluations,
            rounds,
            failed,
            status,
            watched.noted(listener, old.trace, rounds, here, *changes),
        )

    moved = jnp.asarray(False) if box is None else ~box.holds(x0)
    x0 = jax.tree.map(jnp.asarray, x0 if box is None else box.project(x0))
    _, (value, values, _) = objective.value_and_aux(x0, *args)
    far = given.distance(values)
    square = cast(tree_sum(jax.tree.map(dot, far, far)), dtype)
    weight = 10 * jnp.maximum(jnp.abs(cast(value, dtype)), 1) / jnp.maximum(square / 2, 1)
    weight = jnp.clip(weight, 1e-8, 1e8)
    zero, once = jnp.int32(0), Evaluations(jnp.int32(1), jnp.int32(0))
    first = with_penalty(given.multipliers, weight)
    rest = first, box, tol, max_steps, None
    shapes = jax.eval_shape(lambda: run(objective, UNWATCHED, tx, x0, *rest))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    here = Iterate(zero, cast(value, dtype), jnp.asarray(jnp.nan, dtype), 0.0, once.value)
    trace = watched.noted(listener, watched.empty_trace(dtype), 0, here, True, False)
    start = _Rounds(
        *(
            x0,
            given.multipliers,
            weight,
            jnp.maximum(tol, jnp.sqrt(tol)),
            cast(largest(far), dtype),
            jnp.asarray(jnp.inf, dtype),
        ),
        *(nothing, zero, once, zero, zero, zero, trace),
    )
    end = lax.while_loop(lambda now: now.status == Status.RUNNING, one_round, start)
    value, values, aux = end.found.aux
    return end.found._replace(
        value=cast(value, dtype),
        steps=end.steps,
        evaluations=end.evaluations,
        status=end.status,
        aux=aux,
        start_moved=moved,
        multipliers=end.multipliers,
        violation=cast(largest(given.distance(values)), dtype),
        trace=end.trace,
    )


@augmented_lagrangian.defjvp
def _derivative(
    run: Callable[..., Any],
    objective: Objective,
    watched: Watched,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Any, ...]:
    """By the implicit function theorem for the conditions of Karush, Kuhn and Tucker."""
    result = augmented_lagrangian(run, objective, watched, *primals)
    _, _, args, box, *_ = primals
    _, _, d_args, d_box, *_ = tangents
    at = place_of_penalty(args)
    assert at is not None
    dx, dy, d_value, d_aux = tangents_under_constraints(
        objective, at, result.x, result.multipliers, (args, box), (d_args, d_box)
    )
    tangent = jax.tree.map(zero_tangent, result)
    return result, tangent._replace(x=dx, value=d_value, aux=d_aux, multipliers=dy)
