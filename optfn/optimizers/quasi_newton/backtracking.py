"""A line search that shortens a step until the function is low enough."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.control_flow import cond, while_loop
from optfn.core.data import static
from optfn.core.dtypes import cast, like_number
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.search import (
    Line,
    LineSearch,
    LineSearchInfo,
    LineSearchState,
    uphill,
)


class Trial(NamedTuple):
    """The next rate to try, the last one with its result, and the evaluations so far."""

    rate: jax.Array
    tried: jax.Array
    value: jax.Array
    grad: PyTree
    trials: jax.Array
    grads: jax.Array
    accepted: jax.Array


class scale_by_backtracking_linesearch(LineSearch):
    """Scales the updates u by a rate that is shortened until it lowers the function.

        f(p + rate * u) <= f(p) + slope_rtol * rate * <g, u> + rtol * |f(p)| + atol

    A search starts at the last rate times `increase_factor` and multiplies each rate that fails by
    `decrease_factor`; a value that is not finite fails. It is the last stage of an optimizer whose
    updates point downhill, such as `sgd(1.0)`; if they point uphill, the negative gradient is used
    instead. Each trial costs one value, and a gradient is taken only at the end, so this search
    suits functions whose gradient is expensive. L-BFGS needs `scale_by_zoom_linesearch` instead:
    here a rate may be too small.

    `update` takes the keyword arguments `value_fn`, a function of the params, and `value` and
    `grad`, its value and its uphill gradient at the params. If no rate meets the condition,
    `info.failed` is True in the state, and the last rate is taken if it lowers the function;
    otherwise the rate is 0 and the next search starts at `max_learning_rate`.

    Args:
        max_backtracking_steps: the most times that a rate is shortened, a number or a schedule.
        slope_rtol: the required share of the decrease along the initial slope, a number or a
            schedule.
        decrease_factor: the factor on a rate that failed, a number or a schedule.
        increase_factor: the factor on the last rate, where a search starts, a number or a schedule;
            inf starts at `max_learning_rate`.
        max_learning_rate: the largest rate, a number or a schedule.
        atol: an absolute tolerance, a number or a schedule.
        rtol: a tolerance relative to the value, a number or a schedule.
        store_grad: whether the state keeps the gradient at the new params, for
            `value_and_grad_from_state`; not for mini-batches.

    Raises:
        ValueError: `update` was not given the params.

    Source: Armijo 1966; Vaswani et al. 2019.
    """

    max_backtracking_steps: Any
    slope_rtol: Any = 1e-4
    decrease_factor: Any = 0.8
    increase_factor: Any = 1.5
    max_learning_rate: Any = 1.0
    atol: Any = 0.0
    rtol: Any = 0.0
    store_grad: bool = static(default=False)

    @property
    def keeps_grad(self) -> bool:
        return self.store_grad

    def search(self, line: Line, last_rate: jax.Array) -> LineSearchState:
        dtype = line.slope.dtype
        most = line.largest_rate(self.max_learning_rate)
        first = jnp.where(last_rate > 0, jnp.minimum(self.increase_factor * last_rate, most), most)
        first = jnp.where(line.only_evaluates, 1, first)
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        grad = line.grad if self.store_grad else None
        start = Trial(first, zero, line.value, grad, none, none, jnp.zeros((), bool))

        def should_continue(trial: Trial) -> jax.Array:
            most = self.max_backtracking_steps
            again = ~line.only_evaluates | (trial.trials == 0)
            return ~trial.accepted & (like_number(trial.trials, most) <= most) & again

        def tried(old: Trial) -> Trial:
            rate, params = old.rate, line.at(old.rate)
            trials = old.trials + 1
            if self.store_grad:
                value, pullback = jax.vjp(line.value_fn, params)
            else:
                value, pullback = line.value_fn(params), None
            kind, value = value.dtype, cast(value, dtype)
            slack = self.rtol * jnp.abs(line.value) + self.atol
            finite = jnp.isfinite(value)
            enough = line.value + self.slope_rtol * rate * line.slope + slack
            accepted = finite & (value <= enough)
            last = like_number(trials, self.max_backtracking_steps) > self.max_backtracking_steps
            lower = accepted | (finite & last & (value < line.value)) | line.only_evaluates
            grad, grads = old.grad, old.grads
            if pullback is not None:
                grad = cond(
                    lower,
                    lambda: uphill(pullback(jnp.ones((), kind))[0], line.grad),
                    lambda: line.grad,
                )
                grads = grads + cast(lower, jnp.int32)
            value, reached = (jnp.where(lower, *x) for x in ((value, line.value), (rate, zero)))
            return Trial(self.decrease_factor * rate, reached, value, grad, trials, grads, accepted)

        start = start._replace(accepted=~(line.slope < 0) & ~line.only_evaluates)
        end = while_loop(should_continue, tried, start)
        failed = ~end.accepted | (end.trials == 0)
        info = LineSearchInfo(end.trials, end.grads, failed)
        return LineSearchState(end.tried, end.value, end.grad, info)
