"""A line search that only shortens steps, until the function is lower."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.data import static
from optfn.core.dtypes import cast
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.search import (
    Evaluations,
    Line,
    LineSearch,
    LineSearchInfo,
    LineSearchState,
    uphill,
)


class Trial(NamedTuple):
    """The rate to try next, what the last one gave, and how many were tried."""

    rate: jax.Array
    tried: jax.Array
    value: jax.Array
    grad: PyTree
    trials: jax.Array
    grads: jax.Array
    accepted: jax.Array


class scale_by_backtracking_linesearch(LineSearch):
    """Scales the updates u by a rate that lowers the function, tried from above.

        f(p + rate * u) <= f(p) + slope_rtol * rate * <g, u> + rtol * |f(p)| + atol

    The first rate is the last one times `increase_factor`, and each that fails is multiplied by
    `decrease_factor`; a value that is not finite fails. It is the last stage of an optimizer whose
    updates point downhill, as those of `sgd(1.0)` do; where they point uphill, the negative
    gradient takes their place. Each rate that is tried costs a value, and the gradient is only
    taken at the end, so this is the search for functions whose gradient is dear. L-BFGS needs the
    other one, `scale_by_zoom_linesearch`: here a rate may be too small.

    `update` takes the keyword arguments `value` and `grad`, of the function at the params, the
    latter uphill as the gradients are, and `value_fn`, a function of the params. Where the
    condition was not met, `info.failed` is True in the state and the last rate is taken if it
    lowers the function, else 0; the next search then begins at `max_learning_rate`.

    Args:
        max_backtracking_steps: how often a rate is shortened at the most, a number or a schedule.
        slope_rtol: the share of the first slope that must be gained, a number or a schedule.
        decrease_factor: on a rate that failed, a number or a schedule.
        increase_factor: on the last rate, to begin with, a number or a schedule; inf begins at
            `max_learning_rate`.
        max_learning_rate: the largest rate, a number or a schedule.
        atol: an absolute tolerance, a number or a schedule.
        rtol: a tolerance relative to the value, a number or a schedule.
        store_grad: whether the gradient at the new params is taken and kept, for
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
        most = jnp.asarray(self.max_learning_rate, dtype)
        first = jnp.where(last_rate > 0, jnp.minimum(self.increase_factor * last_rate, most), most)
        zero, none = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        grad = line.grad if self.store_grad else None
        start = Trial(first, zero, line.value, grad, none, none, jnp.zeros((), bool))

        def should_continue(trial: Trial) -> jax.Array:
            return ~trial.accepted & (trial.trials <= self.max_backtracking_steps)

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
            last = trials > self.max_backtracking_steps
            lower = accepted | (finite & last & (value < line.value))
            grad, grads = old.grad, old.grads
            if pullback is not None:
                grad = lax.cond(
                    lower,
                    lambda: uphill(pullback(jnp.ones((), kind))[0], line.grad),
                    lambda: line.grad,
                )
                grads = grads + lower
            value, reached = (jnp.where(lower, *x) for x in ((value, line.value), (rate, zero)))
            return Trial(self.decrease_factor * rate, reached, value, grad, trials, grads, accepted)

        start = start._replace(accepted=~(line.slope < 0))
        end = lax.while_loop(should_continue, tried, start)
        failed = ~end.accepted | (end.trials == 0)
        info = LineSearchInfo(Evaluations(end.trials, end.grads), failed)
        return LineSearchState(end.tried, end.value, end.grad, info)
