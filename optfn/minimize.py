"""A whole run with `minimize`, and `value_and_grad_from_state` for custom loops."""

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
from optfn.core.control_flow import cond
from optfn.core.holes import merge, view
from optfn.core.inputs import check_floating, to_arrays
from optfn.core.slots import copy_params, copy_params_wide
from optfn.core.state import State
from optfn.core.transform import Transform, check_transform_type, restored_hint
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.lbfgs import lbfgs
from optfn.optimizers.quasi_newton.search import (
    Evaluations,
    LineSearch,
    LineSearchState,
    conj,
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
    """The result of `minimize`; under `vmap` every field is a batch.

    Attributes:
        x: the last params.
        value: the function's value at x, in the compute dtype.
        grad_norm: the largest magnitude of an entry of the gradient at x.
        steps: int32, the number of optimizer steps.
        evaluations: the numbers of evaluations of the value and of the gradient, int32 each.
        status: int32, one of `Status`.
        aux: the function's auxiliary output at x, or None without `has_aux`.
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
        """Whether the gradient is within the tolerance."""
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

    It stops where no entry of the gradient is larger than `tol` in magnitude, like SciPy's `gtol`.
    The run is one compiled loop, which works under `jit` and, for a batch of starting points or of
    `args`, under `vmap`, where each lane has its own steps and stops on its own. For losses of
    mini-batches write a training loop.

        result = minimize(lambda x, a: jnp.sum((x - a) ** 2), jnp.zeros(3), args=(2.0,))
        print(result)  # converged: value 0, gradient 0, 2 steps, ...

    Args:
        fun: `fun(x, *args)` returns a real scalar, or with `has_aux` a pair of it and arrays. A new
            function compiles again; put data that changes into `args`.
        x0: the starting point, a pytree of real or complex arrays.
        tx: an optimizer, `lbfgs()` by default. It may declare the extra arguments `value`, `grad`
            and `value_fn`. If it is a `freeze`, the frozen params do not count. For a line search
            inside another wrapper the value is evaluated again, and its failures do not stop the
            run.
        args: further arguments of `fun`, pytrees of arrays.
        has_aux: whether `fun` returns a pair; it costs one more evaluation, at the end.
        tol: the largest magnitude of a gradient entry to stop at.
        max_steps: the largest number of optimizer steps.

    Returns:
        The minimum. After a failed line search the optimizer takes one more step, with `lbfgs` from
        an empty history, before the run ends.

    Raises:
        TypeError: `x0` has integers, `args` is not a tuple, `fun` does not return what `has_aux`
            says, or `tx` needs other extra arguments.
        ValueError: `fun` does not return a real scalar.
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
    """A function of the params that are not frozen; equal parts of one function compile once."""

    fun: Callable
    mine: tuple[bool, ...]

    def __call__(self, own: PyTree, every: PyTree, *args: Any) -> Any:
        return self.fun(merge(own, every, list(self.mine)), *args)


class _Point(NamedTuple):
    """The current point of the run; the gradient points uphill."""

    x: PyTree
    value: jax.Array
    grad: PyTree
    grad_norm: jax.Array


class _Run(NamedTuple):
    """The state of the loop; `failed_steps` counts failed steps in a row."""

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
        """The run with its status: the last of these that applies."""
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
        x, state = step(tx, old.x, old.grad, run.state, **given)
        evaluations = [run.evaluations, *(found.info.evaluations for found in searches_in(state))]
        found, failed_steps = _last_search(tx, state.slots, state.step), zero
        if found is not None:
            failed_steps = jnp.where(
                found.info.failed & (found.learning_rate == 0), run.failed_steps + 1, failed_steps
            )
        if found is not None and found.grad is not None:
            point = _Point(x, found.value, conj(found.grad), largest(found.grad))
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
    """The state of a line search whose step is the optimizer's: its value is at the new params."""
    slots = tx.slots_among(named)
    if isinstance(tx, chain) and tx.stages:
        last = tx.inner_transforms(slots, step)[-1]
        return _last_search(last.transform, last.slots, last.step)
    return slots if isinstance(tx, LineSearch) else None


def value_and_grad_from_state(value_fn: Callable) -> Callable:
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
            value, grad = value_and_grad(lambda p: value_fn(p, *args, **kwargs), params, like)
            return value, conj(grad)

        (last,) = found
        if jax.tree.structure(last.grad) != jax.tree.structure(params):
            return evaluate()
        return cond(jnp.isfinite(last.value), lambda: (last.value, last.grad), evaluate)

    return found_or_evaluated
