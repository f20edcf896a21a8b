"""A whole run: `minimize`, and what a loop of one's own with a line search needs."""

import dataclasses
import enum
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optfn.compose.chain import chain
from optfn.compose.partition import freeze
from optfn.core.apply import step
from optfn.core.holes import merge, view
from optfn.core.inputs import check_floating, to_arrays
from optfn.core.slots import copy_params, copy_params_wide
from optfn.core.transform import State, Transform, check_transform_type
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.lbfgs import lbfgs
from optfn.optimizers.quasi_newton.search import (
    Evaluations,
    LineSearch,
    LineSearchState,
    largest,
    searches_in,
    value_and_grad,
)

GIVEN = ("value", "grad", "value_fn")


class Status(enum.IntEnum):
    """How a minimization ended."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    LINE_SEARCH_FAILED = 3
    NOT_FINITE = 4


TEXTS = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "stopped at max_steps",
    Status.LINE_SEARCH_FAILED: "stopped where the line search found no lower value",
    Status.NOT_FINITE: "stopped where the value or the gradient is not finite",
}


class Minimum(NamedTuple):
    """What `minimize` found; under `vmap` every field is a batch.

    Attributes:
        x: the last params.
        value: of the function there, in the compute dtype.
        grad_norm: the largest magnitude of an entry of the gradient there.
        steps: int32, of the optimizer.
        evaluations: how often the value and the gradient were evaluated, int32 each.
        status: int32, one of `Status`.
        aux: what the function gave beside the value there, or None without `has_aux`.
    """

    x: PyTree
    value: jax.Array
    grad_norm: jax.Array
    steps: jax.Array
    evaluations: Evaluations
    status: jax.Array
    aux: Any = None

    @property
    def converged(self) -> jax.Array:
        """Whether the gradient is small enough."""
        return self.status == Status.CONVERGED

    def __str__(self) -> str:
        """A line for each run."""
        columns = self.status, self.value, self.grad_norm, self.steps, *self.evaluations
        rows = zip(*(np.ravel(np.asarray(column)) for column in columns), strict=True)
        return "\n".join(
            f"{TEXTS[Status(status)]}: value {value:.6g}, gradient {norm:.2g}, {steps} steps, "
            f"{values} values and {grads} gradients evaluated"
            for status, value, norm, steps, values, grads in rows
        )


def minimize(
    fun: Callable,
    x0: PyTree,
    tx: Transform | None = None,
    *,
    args: tuple = (),
    has_aux: bool = False,
    tol: Any = 1e-5,
    max_steps: Any = 1000,
) -> Minimum:
    """Minimizes a function without noise from a starting point.

    It stops where no entry of the gradient is larger than `tol` in magnitude, as SciPy's `gtol`
    has it. Everything is one compiled loop, which runs under `jit` and, from a batch of starting
    points or of `args`, under `vmap`, where each lane has its own steps and its own end. For losses
    of mini-batches write a training loop.

        result = minimize(lambda x, a: jnp.sum((x - a) ** 2), jnp.zeros(3), args=(2.0,))
        print(result)  # converged: value 0, gradient 0, 2 steps, ...

    Args:
        fun: `fun(x, *args)` gives a real scalar, or with `has_aux` a pair of it and arrays. A new
            function is compiled anew; data that changes belongs into `args`.
        x0: where to start, a pytree of real or complex arrays.
        tx: an optimizer, `lbfgs()` if none is given. It may ask for the extra arguments `value`,
            `grad` and `value_fn`. Behind a `freeze` the frozen params do not count. A line search
            inside of another wrapper is not asked for the value it found, nor whether it failed.
        args: further arguments of `fun`, pytrees of arrays.
        has_aux: whether `fun` gives a pair. It costs one more evaluation, at the end.
        tol: the largest entry of the gradient to stop at.
        max_steps: the most steps of the optimizer.

    Returns:
        The minimum. After a failed line search the optimizer has one more step, from afresh in
        `lbfgs`, before the run ends.

    Raises:
        TypeError: `x0` holds integers, `args` is no tuple, `fun` gives a pair or none against
            `has_aux`, or `tx` needs other extra arguments.
        ValueError: `fun` gives no scalar.
    """
    if not isinstance(args, tuple):
        raise TypeError(
            f"minimize(args=...) must be a tuple, as in args=(data,), found {type(args).__name__}."
        )
    tx = lbfgs() if tx is None else tx
    check_transform_type(tx, "minimize(tx=...)")
    x0 = to_arrays(x0, "x0")
    if not jax.tree_util.all_leaves([fun]):  # its arrays are data
        fun, args = _call, (fun, *args)
    if isinstance(tx, freeze):
        mine = tx._mine(x0)
        part = _OfPart(fun, tuple(mine))
        options = {"has_aux": has_aux, "tol": tol, "max_steps": max_steps}
        result = minimize(part, view(x0, mine), tx.transform, args=(x0, *args), **options)
        return result._replace(x=merge(result.x, x0, mine))
    check_floating("x0", x0)
    unknown = sorted(set(tx.declared_extra_args()) - set(GIVEN))
    if unknown:
        raise TypeError(
            f"minimize(tx=...) needs the extra argument '{unknown[0]}', but minimize gives "
            f"{', '.join(GIVEN)} only."
        )
    return _run(fun, has_aux, tx, x0, tuple(args), tol, max_steps)


def _call(x: PyTree, fun: Callable, *args: Any) -> Any:
    return fun(x, *args)


@dataclasses.dataclass(frozen=True)
class _OfPart:
    """A function of those params that are not frozen; equal parts of one function compile once."""

    fun: Callable
    mine: tuple[bool, ...]

    def __call__(self, own: PyTree, every: PyTree, *args: Any) -> Any:
        return self.fun(merge(own, every, list(self.mine)), *args)


class _Point(NamedTuple):
    """Where the run is; the gradient is uphill."""

    x: PyTree
    value: jax.Array
    grad: PyTree
    grad_norm: jax.Array


class _Run(NamedTuple):
    """The state of the loop; `failed_steps` is how many steps in a row went nowhere."""

    point: _Point
    state: State
    steps: jax.Array
    evaluations: Evaluations
    failed_steps: jax.Array
    status: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    fun: Callable, has_aux: bool, tx: Transform, x0: PyTree, args: tuple, tol: Any, max_steps: Any
) -> Minimum:
    like = copy_params_wide(x0)
    declared = tx.declared_extra_args()
    zero, once = jnp.int32(0), Evaluations(jnp.int32(1), jnp.int32(1))

    def value_fn(x):
        out = fun(x, *args)
        is_pair = isinstance(out, tuple) and len(out) == 2
        if has_aux != is_pair:
            found = "has_aux is True and it gives one" if has_aux else "it gives a pair without"
            raise TypeError(f"minimize(fun=...) gives a pair with has_aux=True alone; {found}.")
        value: Any = out[0] if has_aux else out
        if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                "minimize(fun=...) must give a real scalar, found "
                f"{jnp.result_type(value)}{list(jnp.shape(value))}."
            )
        return value

    def evaluated(x: PyTree) -> _Point:
        value, grad = value_and_grad(value_fn, x, like)
        return _Point(x, value, grad, largest(grad))

    def judged(run: _Run) -> _Run:
        """With its status: of those that apply here the last."""
        status = jnp.int32(Status.RUNNING)
        for reason, applies in (
            (Status.MAX_STEPS, run.steps >= max_steps),
            (Status.LINE_SEARCH_FAILED, run.failed_steps >= 2),
            (Status.CONVERGED, run.point.grad_norm <= tol),
            (Status.NOT_FINITE, ~is_finite(run.point)),
        ):
            status = jnp.where(applies, jnp.int32(reason), status)
        return run._replace(status=status)

    def one_step(run: _Run) -> _Run:
        old = run.point
        given = {"value": old.value, "grad": old.grad, "value_fn": value_fn}
        given = {name: given[name] for name in declared}
        x, state = step(tx, old.grad, run.state, old.x, **given)
        evaluations = [run.evaluations, *(found.info.evaluations for found in searches_in(state))]
        found, failed_steps = _last_search(tx, state.slots, state.step), zero
        if found is not None:
            failed_steps = jnp.where(
                found.info.failed & (found.learning_rate == 0), run.failed_steps + 1, failed_steps
            )
        if found is not None and found.grad is not None:
            point = _Point(x, found.value, found.grad, largest(found.grad))
        else:
            point = evaluated(x)
            evaluations.append(once)
        spent = jax.tree.map(lambda *counts: sum(counts), *evaluations)
        return judged(_Run(point, state, run.steps + 1, spent, failed_steps, run.status))

    start = _Run(evaluated(copy_params(x0)), tx.init(x0), zero, once, zero, zero)
    end = lax.while_loop(lambda run: run.status == Status.RUNNING, one_step, judged(start))
    aux, evaluations = None, end.evaluations
    if has_aux:
        aux = fun(end.point.x, *args)[1]
        evaluations = evaluations._replace(value=evaluations.value + 1)
    x, value, _, norm = end.point
    return Minimum(x, value, norm, end.steps, evaluations, end.status, aux)


def is_finite(point: _Point) -> jax.Array:
    return jnp.isfinite(point.value) & jnp.isfinite(point.grad_norm)


def _last_search(tx: Transform, named: Any, step: Any) -> LineSearchState | None:
    """Of a line search whose step is the optimizer's: it knows the value at the new params."""
    slots = tx.slots_among(named)
    if isinstance(tx, chain) and tx.stages:
        last = tx.inner_transforms(slots, step)[-1]
        return _last_search(last.transform, last.slots, last.step)
    return slots if isinstance(tx, LineSearch) else None


def value_and_grad_from_state(value_fn: Callable) -> Callable:
    """`jax.value_and_grad` for a loop with a line search, which has evaluated both already.

        value_and_grad = value_and_grad_from_state(f)
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=f)

    Only before the first update, where the state holds no finite value, is the function evaluated;
    under `vmap` it is evaluated always, as any branch there. It is too where the search moved some
    of the params alone, in a `partition` or a `freeze`. Only for functions without noise, and a
    search that is the last to move the params: not inside of `schedule_free`, `sam` and the like,
    nor before a `scale`.

    Args:
        value_fn: `value_fn(params, *args, **kwargs)` gives a real scalar.

    Returns:
        A function `(params, *args, state, **kwargs) -> (value, grad)`, in the compute dtype. Of a
        complex param the gradient is the direction uphill, the conjugate of jax's.

    Raises:
        ValueError: when called, if the state holds not one line search, or no gradient.
    """

    def found_or_evaluated(params: PyTree, *args: Any, state: Any, **kwargs: Any) -> tuple:
        found = searches_in(state)
        if len(found) != 1 or found[0].grad is None:
            what = (
                f"{len(found)} line searches" if len(found) != 1 else "one that keeps no gradient"
            )
            raise ValueError(
                "value_and_grad_from_state needs the state of one line search that keeps the "
                f"gradient (scale_by_zoom_linesearch, or store_grad=True), found {what}."
            )
        params = to_arrays(params, "the param")

        def evaluate():
            like = copy_params_wide(params)
            return value_and_grad(lambda p: value_fn(p, *args, **kwargs), params, like)

        (last,) = found
        if jax.tree.structure(last.grad) != jax.tree.structure(params):
            return evaluate()
        return lax.cond(jnp.isfinite(last.value), lambda: (last.value, last.grad), evaluate)

    return found_or_evaluated
