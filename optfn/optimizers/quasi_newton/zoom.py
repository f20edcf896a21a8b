"""A line search for the strong Wolfe conditions, which narrows an interval."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.control_flow import while_loop
from optfn.core.data import static
from optfn.core.dtypes import like_number
from optfn.core.tree import PyTree
from optfn.optimizers.quasi_newton.search import (
    Line,
    LineSearch,
    LineSearchInfo,
    LineSearchState,
    value_and_grad,
)

# The margin that a new rate keeps from both ends of an interval, as a share of its width. If the
# value at the far end is not finite, the rate is at the near margin, like CG_DESCENT's nan_decay.
NEAR = 0.1


class Point(NamedTuple):
    """A rate, and the value and the slope there."""

    rate: jax.Array
    value: jax.Array
    slope: jax.Array


class Interval(NamedTuple):
    """The state of a search.

    Attributes:
        points: three points as rows, [3, 3]: the largest rate known to be too small, the smallest
            known to be too large (infinite if none is) and the best one. One array compiles faster
            than nine numbers.
        grad: the gradient at the best point.
        rate: the rate to try next.
        trials: the number of rates tried.
        accepted: whether the conditions hold at the best point.
    """

    points: jax.Array
    grad: PyTree
    rate: jax.Array
    trials: jax.Array
    accepted: jax.Array


class scale_by_zoom_linesearch(LineSearch):
    """Scales the updates u by a rate that satisfies the strong Wolfe conditions.

        f(p + rate * u) <= f(p) + slope_rtol * rate * <g, u> + tol
        |<g(p + rate * u), u>| <= curv_rtol * |<g, u>| + tol

    For functions without noise. It is the last stage of an optimizer such as `lbfgs`, whose updates
    point downhill; if they point uphill, the negative gradient is used instead. Near a minimum
    rounding hides the first condition; there these two may replace it:

        <g(p + rate * u), u> <= (2 * slope_rtol - 1) * <g, u>
        f(p + rate * u) <= f(p) + approx_dec_rtol * |f(p)|

    A rate is too small if the function still falls steeply there, and too large if it is too high,
    rises or is not finite. Between two such rates the next is the minimizer of a cubic.

    `update` takes the keyword arguments `value_fn`, a function of the params, and `value` and
    `grad`, its value and its uphill gradient at the params. The state keeps both at the new params,
    for `value_and_grad_from_state`. Each trial costs one value and one gradient. If no rate meets
    the conditions, `info.failed` is True in the state and the best rate tried is taken, or 0 if
    none was good.

    Args:
        max_linesearch_steps: the most rates to try, a number or a schedule.
        max_learning_rate: the largest rate, a number or a schedule; None sets no bound. It is
            accepted if the function still falls there.
        tol: an absolute tolerance of the conditions, a number or a schedule.
        increase_factor: the largest factor on a rate that is too small, a number or a schedule.
        slope_rtol: the required share of the decrease along the initial slope, a number or a
            schedule.
        curv_rtol: the share of the initial slope that may remain, a number or a schedule.
        approx_dec_rtol: the relative rise of the value that counts as rounding, a number or a
            schedule; None, or a number below 0, turns the second pair of conditions off.
        stepsize_precision: the width of an interval that is not narrowed further, if a good rate is
            known; a number or a schedule.
        initial_guess_strategy: the first rate to try: `"keep"` for the last one, `"one"` for 1, as
            quasi-Newton methods need.

    Raises:
        ValueError: `update` was not given the params.

    Source: Nocedal and Wright 2006, section 3.5; Hager and Zhang 2006.
    """

    max_linesearch_steps: Any
    max_learning_rate: Any = None
    tol: Any = 0.0
    increase_factor: Any = 2.0
    slope_rtol: Any = 1e-4
    curv_rtol: Any = 0.9
    approx_dec_rtol: Any = 1e-6
    stepsize_precision: Any = 1e-5
    initial_guess_strategy: str = static(default="keep", choices=("keep", "one"))

    def __post_init__(self) -> None:
        if self.approx_dec_rtol is None:
            object.__setattr__(self, "approx_dec_rtol", -1.0)
        super().__post_init__()

    def search(self, line: Line, last_rate: jax.Array) -> LineSearchState:
        dtype = line.slope.dtype
        most = jnp.inf if self.max_learning_rate is None else self.max_learning_rate
        most = line.largest_rate(most)
        first = jnp.ones((), dtype)
        if self.initial_guess_strategy == "keep":
            first = jnp.where(last_rate > 0, last_rate, first)
        here = [jnp.zeros((), dtype), line.value, line.slope]
        start = Interval(
            points=jnp.stack([*here, jnp.asarray(jnp.inf, dtype), *here[1:], *here]).reshape(3, 3),
            grad=line.grad,
            rate=jnp.minimum(first, most),
            trials=jnp.zeros((), jnp.int32),
            accepted=~(line.slope < 0) & ~line.only_evaluates,
        )

        def should_continue(interval: Interval) -> jax.Array:
            low, high, best = points_of(interval)
            closed = (high.rate - low.rate <= self.stepsize_precision) & (best.rate > 0)
            most_trials = self.max_linesearch_steps
            left = like_number(interval.trials, most_trials) < most_trials
            again = ~line.only_evaluates | (interval.trials == 0)
            return ~interval.accepted & ~closed & left & again

        end = while_loop(should_continue, partial(self._narrowed, line, most), start)
        rate, value, _ = points_of(end)[2]
        failed = ~end.accepted | (end.trials == 0)
        info = LineSearchInfo(end.trials, end.trials, failed)
        return LineSearchState(rate, value, end.grad, info)

    def _narrowed(self, line: Line, most: jax.Array, old: Interval) -> Interval:
        """The interval after one more trial."""
        value, grad = value_and_grad(line.value_fn, line.at(old.rate), line.grad)
        here = Point(old.rate, value, line.slope_of(grad))
        last, _, best = points_of(old)

        rounding = jnp.maximum(self.approx_dec_rtol, 0) * jnp.abs(line.value)
        enough = line.value + self.slope_rtol * here.rate * line.slope + self.tol
        flat = here.slope <= (2 * self.slope_rtol - 1) * line.slope
        flat &= (value <= line.value + rounding) & (self.approx_dec_rtol >= 0)
        finite = jnp.isfinite(value) & jnp.isfinite(here.slope)
        lower = finite & ((value <= enough) | flat)
        level = jnp.abs(here.slope) <= self.curv_rtol * jnp.abs(line.slope) + self.tol
        large = ~finite | (here.slope >= 0) | (value > enough + rounding)
        accepted = lower & (level | (~large & (here.rate >= most)))
        better = accepted | (lower & (value < best.value)) | line.only_evaluates

        replaced = jnp.stack([~large, large, better])
        points = jnp.where(replaced[:, None], jnp.stack(here)[None, :], old.points)
        grad = jax.tree.map(lambda x, y: jnp.where(better, x, y), grad, old.grad)
        rate = self._next_rate(points, last, here, most)
        return Interval(points, grad, rate, old.trials + 1, accepted)

    def _next_rate(self, points: jax.Array, last: Point, here: Point, most: jax.Array) -> jax.Array:
        """The minimizer of a cubic, inside the interval or, while it has no far end, beyond."""
        low, high, _ = (Point(*point) for point in points)
        bounded = high.rate < jnp.inf
        a, b = (
            Point(*(jnp.where(bounded, x, y) for x, y in zip(*two, strict=True)))
            for two in ((low, last), (high, here))
        )
        width = high.rate - low.rate
        shortest = jnp.where(bounded, low.rate + NEAR * width, 1.1 * here.rate)
        longest = jnp.where(bounded, high.rate - NEAR * width, self.increase_factor * here.rate)
        rate = _minimizer(a, b)
        middle = jnp.where(bounded, low.rate + width / 2, longest)
        rate = jnp.where(jnp.isfinite(rate), jnp.clip(rate, shortest, longest), middle)
        rate = jnp.where(jnp.isfinite(b.value), rate, shortest)
        return jnp.minimum(rate, most)


def points_of(interval: Interval) -> tuple[Point, Point, Point]:
    low, high, best = (Point(*point) for point in interval.points)
    return low, high, best


def _minimizer(a: Point, b: Point) -> jax.Array:
    """The minimizer of the cubic through two points with these slopes; not finite without one."""
    d = a.slope + b.slope - 3 * (a.value - b.value) / (a.rate - b.rate)
    root = jnp.sqrt(d * d - a.slope * b.slope)
    return b.rate - (b.rate - a.rate) * (b.slope + root - d) / (b.slope - a.slope + 2 * root)
