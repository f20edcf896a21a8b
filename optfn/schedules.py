"""Schedules: functions of the step count that are pytrees.

Every argument is a number and a leaf, step counts included: it may be traced, swept by `vmap`,
differentiated and replaced without recompilation. Step 0 is the first update; past its end a
schedule keeps its last value.

A schedule that is one transition does not take place over zero steps, as in optax: its value stays
`init_value`. A part of a longer one, such as a warm-up, is over at once.

    warmup_cosine(peak_value=3e-4, warmup_steps=100, total_steps=1000)(step)

Arguments have optax's order and meaning where a call by position can be mistaken for optax's; what
differs is given by name, and a call in optax's order raises an error that says what to write.
"""

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optfn.core import optax_names
from optfn.core.data import check_within, child, numbers, static
from optfn.core.schedule import Schedule as Schedule
from optfn.core.schedule import custom as custom

A_Schedule = TypeVar("A_Schedule", bound=type[Schedule])

# The shapes of a tail; see `wsd`.
TAILS = ("linear", "cosine", "sqrt")


def _other_in_optax(cls: A_Schedule) -> A_Schedule:
    """The class, whose calls with optax's arguments raise an error that says what to write."""
    init, arguments = cls.__init__, inspect.signature(cls.__init__)

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        try:
            arguments.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__}({_listed(arguments)}): {error}. "
                f"{optax_names.of_schedule(cls.__name__)}"
            ) from None
        init(self, *args, **kwargs)

    setattr(cls, "__init__", checked)  # noqa: B010
    return cls


def _listed(arguments: inspect.Signature) -> str:
    """The names of the arguments; those after a star are given by name."""
    _, *own = arguments.parameters.values()
    bare = [x.replace(annotation=x.empty, default=x.empty) for x in own]
    return str(inspect.Signature(bare))[1:-1]


class constant(Schedule):
    """The same value at every step.

    A plain number does as well, unless a schedule may replace it later.

    Args:
        value: the value.
    """

    value: Any

    def at(self, step: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.value, step.shape)


class linear(Schedule):
    """A straight line from one value to another.

    Args:
        init_value: the value up to step `transition_begin`.
        end_value: the value from step `transition_begin + transition_steps` on.
        transition_steps: the length of the line; over zero steps the value stays `init_value`.
        transition_begin: the step at which the line starts.
    """

    init_value: Any
    end_value: Any
    transition_steps: Any
    transition_begin: Any = 0.0

    def at(self, step: jax.Array) -> jax.Array:
        share = _transition(step, self.transition_steps, self.transition_begin)
        return _mix(self.init_value, self.end_value, share)


class polynomial(Schedule):
    """A power of the remaining time: (init - end) * (1 - step / transition_steps)^power + end.

    Args:
        init_value: the value up to step `transition_begin`.
        end_value: the value from step `transition_begin + transition_steps` on.
        power: 1 is a straight line, 2 slows down towards the end.
        transition_steps: the length of the transition; over zero steps the value stays
            `init_value`.
        transition_begin: the step at which the transition starts.
    """

    init_value: Any
    end_value: Any
    power: Any
    transition_steps: Any
    transition_begin: Any = 0.0

    def at(self, step: jax.Array) -> jax.Array:
        share = _transition(step, self.transition_steps, self.transition_begin)
        return _mix(self.end_value, self.init_value, _power(1 - share, self.power))


@_other_in_optax
class exponential(Schedule):
    """Multiplication by a rate: init_value * decay_rate^(step / transition_steps).

    By epoch it is the 0.95^epoch * a0 of Ng's lectures; with `staircase` their discrete staircase:
    `exponential(a0, 1000, 0.5, staircase=True)` halves every 1000 steps.

    Args:
        init_value: the value up to step `transition_begin`.
        transition_steps: the number of steps per factor.
        decay_rate: the factor for every `transition_steps` steps. With a rate of zero, as over
            zero steps, the value stays `init_value`.
        transition_begin: the step at which the decay starts.
        staircase: apply each factor at once, at the end of its steps.
        end_value: a bound: the value falls no further, or for a rate of 1 or more rises no
            further. None for no bound.
    """

    init_value: Any
    transition_steps: Any
    decay_rate: Any
    transition_begin: Any = 0.0
    staircase: bool = static(default=False)
    end_value: Any = None

    def at(self, step: jax.Array) -> jax.Array:
        changes = (self.transition_steps > 0) & (self.decay_rate != 0)
        begun = jnp.maximum(step - jnp.maximum(self.transition_begin, 0), 0)
        rate, elapsed = jnp.where(changes, self.decay_rate, 1), _elapsed(self, begun)
        value = self.init_value * _power(rate, elapsed)
        if self.end_value is None:
            return value
        beyond = jnp.where(rate < 1, value < self.end_value, value > self.end_value) & changes
        # The power may have overflowed, and its derivative with it.
        value = self.init_value * _power(rate, jnp.where(beyond, 0, elapsed))
        return jnp.where(beyond, self.end_value, value)


class linear_half_life(Schedule):
    """A decay whose half-life grows, or falls, along a straight line.

        b^h = 1/2        h from that of init_value to that of end_value

    For the decay of a long average, such as b3 of `ademamix`, which the authors let grow from b1 in
    this way: along a straight line of b itself nearly all growth comes at the end.

    Args:
        init_value: the decay at step 0, above 0 and below 1.
        end_value: the decay from step `transition_steps` on, above 0 and below 1.
        transition_steps: the length of the line; over zero steps the decay stays `init_value`.

    Source: Pagliardini et al. 2024.
    """

    init_value: Any
    end_value: Any
    transition_steps: Any

    def at(self, step: jax.Array) -> jax.Array:
        share = _transition(step, self.transition_steps)
        first, last = (-1 / jnp.log2(b) for b in (self.init_value, self.end_value))
        b = 2 ** (-1 / _mix(first, last, share))
        return jnp.where(share < 1, jnp.where(share > 0, b, self.init_value), self.end_value)


class inverse_time(Schedule):
    """Hyperbolic decay: init_value / (1 + decay_rate * step / transition_steps).

    By epoch it is the a0 / (1 + decay_rate * epoch) of Ng's lectures; see `per_epoch`.

    Args:
        init_value: the value at step 0.
        decay_rate: the growth of the divisor every `transition_steps` steps.
        transition_steps: the number of steps per growth; with zero the value stays `init_value`.
        staircase: let the divisor grow at once, at the end of these steps.
    """

    init_value: Any
    decay_rate: Any
    _: KW_ONLY
    transition_steps: Any = 1.0
    staircase: bool = static(default=False, kw_only=True)

    def at(self, step: jax.Array) -> jax.Array:
        return self.init_value / (1 + self.decay_rate * _elapsed(self, step))


class inverse_sqrt(Schedule):
    """The k / sqrt(t) * a0 of Ng's lectures, with t = step + 1, which is 1 at the first update.

    Args:
        init_value: a0.
        k: a factor.
    """

    init_value: Any
    k: Any = 1

    def at(self, step: jax.Array) -> jax.Array:
        return self.k * self.init_value / jnp.sqrt(step + 1)


class _Piecewise(Schedule):
    """The base of the piecewise schedules: n + 1 values with n boundaries between them."""

    values: Sequence[Any] = numbers()
    boundaries: Sequence[Any] = numbers()

    def __post_init__(self) -> None:
        if isinstance(self.boundaries, Mapping):
            name = type(self).__name__
            raise TypeError(
                f"{name}(boundaries=...) must be a sequence of steps, found the dict "
                f"{self.boundaries}. {optax_names.of_schedule(name)}"
            )
        super().__post_init__()
        _check_lengths(self, self.values, "values", self.boundaries)


@_other_in_optax
class piecewise_constant(_Piecewise):
    """One value up to each boundary: `values[i]` from step `boundaries[i - 1]` on.

    Args:
        values: n + 1 values.
        boundaries: n steps, ascending.
    """

    def at(self, step: jax.Array) -> jax.Array:
        result = jnp.broadcast_to(self.values[0], step.shape)
        for boundary, value in zip(self.boundaries, self.values[1:], strict=True):
            result = jnp.where(step >= boundary, value, result)
        return result


class _Through(_Piecewise):
    """The base of the schedules that pass through points."""

    def at(self, step: jax.Array) -> jax.Array:
        result = jnp.broadcast_to(self.values[0], step.shape)
        start = 0.0
        for i, boundary in enumerate(self.boundaries):
            share = self._share(_progress(step - start, boundary - start))
            result = jnp.where(
                step >= start, _mix(self.values[i], self.values[i + 1], share), result
            )
            start = boundary
        return result

    def _share(self, progress: Any) -> Any:
        """The share of the way from a point to the next, for a share of the time between them."""
        raise NotImplementedError


@_other_in_optax
class piecewise_linear(_Through):
    """Straight lines through points: `values[0]` at step 0, `values[i]` at `boundaries[i - 1]`.

    Args:
        values: n + 1 values.
        boundaries: n steps, ascending.
    """

    def _share(self, progress: Any) -> Any:
        return progress


@_other_in_optax
class piecewise_cosine(_Through):
    """Half cosines through points: `values[0]` at step 0, `values[i]` at `boundaries[i - 1]`.

    The slope is zero at each point.

    Args:
        values: n + 1 values.
        boundaries: n steps, ascending.
    """

    def _share(self, progress: Any) -> Any:
        return _ease(progress)


def from_points(points: Any, interpolate: str = "linear") -> Schedule:
    """The schedule through points `(step, value)`, as read off a figure, a log or a paper.

        schedules.from_points({0: 0.0, 100: 3e-4, 900: 3e-4, 1000: 0.0})

    Up to the first point it has the first value, from the last on the last one, and at each point
    exactly the point's. Two points at one step are a jump.

    Args:
        points: a dict from steps to values, pairs, or an array `[n, 2]`; steps ascend.
        interpolate: "linear", straight lines; "cosine", half cosines, whose slope is zero at each
            point; or "step", the value of the last point that was reached.

    Returns:
        A `piecewise_linear`, `piecewise_cosine` or `piecewise_constant`, whose numbers are leaves.

    Raises:
        TypeError: the points are no pairs.
        ValueError: there is no point; a step is below 0 or before the step of the point before it;
            or there is no such `interpolate`.
    """
    if interpolate not in ("linear", "cosine", "step"):
        raise ValueError(
            "from_points(interpolate=...) must be 'linear', 'cosine' or 'step', found "
            f"{interpolate!r}."
        )
    pairs = points.items() if isinstance(points, Mapping) else points
    try:
        steps, values = zip(*((step, value) for step, value in pairs), strict=True)
    except (TypeError, ValueError):
        empty = hasattr(points, "__len__") and len(points) == 0
        raise (ValueError if empty else TypeError)(
            "from_points(points=...) must be pairs (step, value), as in {0: 0.1, 100: 0.01}, found "
            f"{points!r:.80}."
        ) from None
    scalars = [x for x in steps if isinstance(x, (int, float, np.number, jax.Array))]
    known = [float(x) for x in scalars if np.ndim(x) == 0 and not isinstance(x, Tracer)]
    if any(x < 0 for x in known) or known != sorted(known):
        raise ValueError(f"from_points(points=...): steps must ascend from 0, found {known}.")
    if interpolate == "step":
        return piecewise_constant(values, steps[1:])
    through = piecewise_linear if interpolate == "linear" else piecewise_cosine
    return through((values[0], *values), steps)


@_other_in_optax
class cosine(Schedule):
    """Half a cosine from one value to another.

        end + (init - end) * ((1 + cos(pi * step / total_steps)) / 2)^exponent

    Args:
        init_value: the value at step 0.
        total_steps: the step from which the value is `end_value`; over zero steps it stays
            `init_value`.
        end_value: the last value. (optax takes its share of init_value, `alpha`.)
        exponent: a larger one falls sooner.

    Source: Loshchilov and Hutter 2017.
    """

    init_value: Any
    total_steps: Any
    _: KW_ONLY
    end_value: Any = 0.0
    exponent: Any = 1.0

    def at(self, step: jax.Array) -> jax.Array:
        left = _power(1 - _ease(_transition(step, self.total_steps)), self.exponent)
        return _mix(self.end_value, self.init_value, left)


@_other_in_optax
class cosine_restarts(Schedule):
    """Cosine decay with warm restarts: SGDR.

    Cycle n takes transition_steps * steps_factor^n steps, its start rounded to a whole step, and
    falls from init_value * value_factor^n to end_value. With `warmup_steps` each cycle first rises
    to its first value along a straight line from end_value. (Cycles that follow no rule are a
    `join` of `warmup_cosine`s.)

    Args:
        init_value: the first value of the first cycle, after its warm-up.
        transition_steps: the length of the first cycle, warm-up included.
        end_value: the value each cycle falls towards.
        steps_factor: the length of a cycle over that of the last; at least 1.
        value_factor: the first value of a cycle over that of the last.
        warmup_steps: the length of the line at the start of each cycle.

    Source: Loshchilov and Hutter 2017.
    """

    init_value: Any
    transition_steps: Any
    _: KW_ONLY
    end_value: Any = 0.0
    steps_factor: Any = 1.0
    value_factor: Any = 1.0
    warmup_steps: Any = 0.0

    def at(self, step: jax.Array) -> jax.Array:
        period, factor = jnp.maximum(self.transition_steps, 1), self.steps_factor
        grows = factor > 1
        safe = jnp.where(grows, factor, 2)

        def start(n):
            geometric = period * (safe**n - 1) / (safe - 1)
            return jnp.floor(jnp.where(grows, geometric, period * n) + 0.5)

        # By rounding, the cycle from the closed form may be off by one.
        n = jnp.where(grows, jnp.log1p(step * (safe - 1) / period) / jnp.log(safe), step / period)
        n = jnp.floor(jax.lax.stop_gradient(n))
        n = jnp.where(step < start(n), n - 1, n)
        n = jnp.where(step >= start(n + 1), n + 1, n)
        first, into = self.init_value * _power(self.value_factor, n), step - start(n)
        up = _mix(self.end_value, first, _progress(into, self.warmup_steps))
        rest = start(n + 1) - start(n) - self.warmup_steps
        over = _ease(_progress(into - self.warmup_steps, rest))
        return jnp.where(into < self.warmup_steps, up, _mix(first, self.end_value, over))


@_other_in_optax
class one_cycle(Schedule):
    """Up to a peak and down again, far below the start: super-convergence.

    With `anneal="cosine"` it has two phases: up to the peak at `pct_start` of the steps, then down
    to the end. With `anneal="linear"` it has three: up, down to the start value at `pct_final`,
    then down to the end. The start is peak_value / div_factor, the end start / final_div_factor.

    All arguments are given by name: optax's `cosine_onecycle_schedule` and
    `linear_onecycle_schedule` have one order each, torch another.

    Args:
        peak_value: the highest value.
        total_steps: the step at which the end is reached.
        pct_start: the share of the steps before the peak, rounded down to a whole step.
        pct_final: for linear: the share before the start value is reached again.
        div_factor: peak over start.
        final_div_factor: start over end.
        anneal: "cosine" or "linear".

    Source: Smith and Topin 2018.
    """

    _: KW_ONLY
    peak_value: Any
    total_steps: Any
    pct_start: Any = 0.3
    pct_final: Any = 0.85
    div_factor: Any = 25.0
    final_div_factor: Any = 1e4
    anneal: str = static(default="cosine", choices=("cosine", "linear"), kw_only=True)

    def at(self, step: jax.Array) -> jax.Array:
        start = self.peak_value / self.div_factor
        end = start / self.final_div_factor
        top = jnp.floor(self.pct_start * self.total_steps)
        if self.anneal == "cosine":
            up = _mix(start, self.peak_value, _ease(_progress(step, top)))
            down = _ease(_progress(step - top, self.total_steps - top))
            return jnp.where(step < top, up, _mix(self.peak_value, end, down))
        back = jnp.floor(self.pct_final * self.total_steps)
        return piecewise_linear(
            (start, self.peak_value, start, end), (top, back, self.total_steps)
        ).at(step)


@_other_in_optax
class warmup_constant(Schedule):
    """A straight line up, and the same value from then on.

    Args:
        peak_value: the value from step `warmup_steps` on.
        warmup_steps: the length of the line.
        init_value: the value at step 0.
    """

    peak_value: Any
    warmup_steps: Any
    _: KW_ONLY
    init_value: Any = 0.0

    def at(self, step: jax.Array) -> jax.Array:
        return _mix(self.init_value, self.peak_value, _progress(step, self.warmup_steps))


@_other_in_optax
class warmup_cosine(Schedule):
    """A straight line up, then half a cosine down: the usual schedule for transformers.

    Args:
        peak_value: the value at step `warmup_steps`.
        warmup_steps: the length of the line.
        total_steps: the step from which the value is `end_value`, warm-up included.
        init_value: the value at step 0.
        end_value: the last value.
        exponent: of the cosine; a larger one falls sooner.
    """

    peak_value: Any
    warmup_steps: Any
    total_steps: Any
    _: KW_ONLY
    init_value: Any = 0.0
    end_value: Any = 0.0
    exponent: Any = 1.0

    def at(self, step: jax.Array) -> jax.Array:
        return _up_and_down(self, step, lambda x: _power(1 - _ease(x), self.exponent))


class warmup_linear(Schedule):
    """A straight line up, then one down.

    Args:
        peak_value: the value at step `warmup_steps`.
        warmup_steps: the length of the first line.
        total_steps: the step from which the value is `end_value`, warm-up included.
        init_value: the value at step 0.
        end_value: the last value.
    """

    peak_value: Any
    warmup_steps: Any
    total_steps: Any
    _: KW_ONLY
    init_value: Any = 0.0
    end_value: Any = 0.0

    def at(self, step: jax.Array) -> jax.Array:
        return _up_and_down(self, step, lambda x: 1 - x)


class wsd(Schedule):
    """Warmup, stable, decay: the rate stays at its peak until the last stretch.

    A run can be extended or branched at any point of the stable part.

    Args:
        peak_value: the value of the stable part.
        warmup_steps: the length of the straight line up to it.
        decay_steps: the length of the tail.
        total_steps: the step at which the tail ends, warm-up included.
        init_value: the value at step 0.
        end_value: the last value.
        tail: the shape of the tail after a share x of it: "linear" 1 - x, "cosine", or "sqrt"
            1 - sqrt(x).

    Source: Hu et al. 2024 (MiniCPM); the square root: Haegele et al. 2024.
    """

    peak_value: Any
    warmup_steps: Any
    decay_steps: Any
    total_steps: Any
    _: KW_ONLY
    init_value: Any = 0.0
    end_value: Any = 0.0
    tail: str = static(default="linear", choices=TAILS, kw_only=True)

    def at(self, step: jax.Array) -> jax.Array:
        up = _mix(self.init_value, self.peak_value, _progress(step, self.warmup_steps))
        down = _mix(self.peak_value, self.end_value, _cooled(self, step))
        return jnp.where(step < self.warmup_steps, up, down)


class cool_down(Schedule):
    """Any schedule, and in the last stretch from its value there down to the end.

        schedules.cool_down(schedules.warmup_constant(3e-4, 100), decay_steps=200, total_steps=1000)

    The tail 1 - sqrt(x), by default, falls at once and then ever more slowly: at the end of a run
    at a constant rate it reaches about the loss of a cosine over the whole run, and its length can
    be chosen late. After a warm-up and a constant it is `wsd`, after a power law `power_cool`.

    Args:
        schedule: the schedule up to step total_steps - decay_steps.
        decay_steps: the length of the tail; a tenth to a fifth of the steps is usual.
        total_steps: the step at which the tail ends.
        end_value: the last value.
        tail: the shape of the tail; see `wsd`.

    Source: Haegele et al. 2024.
    """

    schedule: Any = child()
    _: KW_ONLY
    decay_steps: Any
    total_steps: Any
    end_value: Any = 0.0
    tail: str = static(default="sqrt", choices=TAILS, kw_only=True)

    def at(self, step: jax.Array) -> jax.Array:
        before = self.schedule(_up_to_tail(self, step))
        return _mix(before, self.end_value, _cooled(self, step))


class power_cool(Schedule):
    """A warm-up, a power law, and a tail: the rate falls as the run gets longer, not as it ends.

        peak_value * (step / transition_begin)^power       from step transition_begin on

    Before that step the value is the peak, after a straight line up to it. As the law does not know
    the number of steps, one rate serves runs of any length, and a run can be extended or branched
    anywhere before the tail, which starts from the value of the law there.

    Args:
        peak_value: the highest value.
        warmup_steps: the length of the straight line up to it.
        decay_steps: the length of the tail; a tenth of the steps is usual.
        total_steps: the step at which the tail ends, warm-up included.
        power: the exponent of the law, below 0: -0.51 was found for transformers, -0.5 is the
            inverse root.
        transition_begin: the step at which the law starts, no sooner than the end of the warm-up;
            None is that end. In the paper's words, where a * tokens^power is the largest rate.
        init_value: the value at step 0.
        end_value: the last value.
        tail: the shape of the tail; see `wsd`.

    Raises:
        ValueError: the power is above 0.

    Source: Shen et al. 2024, "Power scheduler".
    """

    peak_value: Any
    warmup_steps: Any
    decay_steps: Any
    total_steps: Any
    _: KW_ONLY
    power: Any = -0.51
    transition_begin: Any = None
    init_value: Any = 0.0
    end_value: Any = 0.0
    tail: str = static(default="linear", choices=TAILS, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(self.power, (-math.inf, 0), "power_cool(power=...)")

    def at(self, step: jax.Array) -> jax.Array:
        return _mix(self._law(_up_to_tail(self, step)), self.end_value, _cooled(self, step))

    def _law(self, step: jax.Array) -> Any:
        begin = self.warmup_steps if self.transition_begin is None else self.transition_begin
        begin = jnp.maximum(jnp.maximum(begin, self.warmup_steps), 1)
        law = self.peak_value * (jnp.maximum(step, begin) / begin) ** self.power
        up = _mix(self.init_value, self.peak_value, _progress(step, self.warmup_steps))
        return jnp.where(step < self.warmup_steps, up, law)


class ema_warmup(Schedule):
    """The decay of a young average: min(end_value, (1 + step) / (offset + step)).

    It makes `ema_of_params` forget the first and worst params soon.

    Args:
        end_value: the final decay.
        offset: above 1; a larger one forgets faster.

    Source: TensorFlow's ExponentialMovingAverage, whose offset is 10.
    """

    end_value: Any
    offset: Any = 10.0

    def at(self, step: jax.Array) -> jax.Array:
        return jnp.minimum(self.end_value, (1 + step) / (self.offset + step))


class ema_power_law(Schedule):
    """The decay of an average that remembers a share of the run: (1 - 1 / t)^(gamma + 1).

    With t = step + 1. For `ema_of_params`: the s-th params in the average weigh about s^gamma, and
    no time constant has to be chosen. In float32 the weight of new params, 1 - decay, about
    (gamma + 1) / t, is a multiple of 6e-8; with a gamma of 6.94 it is right to a percent for up to
    2 million params. In longer runs average one of many, with `every`.

    Args:
        gamma: the power; 6.94 is a memory of a tenth of the run (its standard deviation), 16.97
            of a twentieth, and 0 the mean of all params.

    Source: Karras et al. 2024 (EDM2).
    """

    gamma: Any

    def at(self, step: jax.Array) -> jax.Array:
        # A power of step / (step + 1), near 1, would be dominated by the rounding of its base.
        later = jnp.where(step > 0, step, 1)
        decay = jnp.exp(-(self.gamma + 1) * jnp.log1p(1 / later))
        return jnp.where(step > 0, decay, 0)


class join(Schedule):
    """One schedule after the other, each counting from the boundary where it starts.

    Args:
        schedules: n + 1 schedules, or functions of the step.
        boundaries: n steps, ascending.
    """

    schedules: Sequence[Any] = child()
    boundaries: Sequence[Any] = numbers()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lengths(self, self.schedules, "schedules", self.boundaries)

    def at(self, step: jax.Array) -> Any:
        starts, ends = (0, *self.boundaries), (*self.boundaries, jnp.inf)
        result = 0.0
        for schedule, start, end in zip(self.schedules, starts, ends, strict=True):
            # Each part sees its own range only: beyond, it and its derivative may overflow.
            part = schedule(jnp.clip(step, start, end) - start)
            result = jnp.where(step >= start, part, result)
        return result


class per_epoch(Schedule):
    """Any schedule of the epoch number: the value is constant within an epoch.

    The first epoch, one pass over the data, has number 0. Ng's lectures count from 1 in
    a0 / (1 + decay_rate * epoch) and 0.95^epoch * a0: set `first_epoch=1` for their tables.
    (`inverse_sqrt` adds 1 already.)

    Args:
        schedule: a schedule of the epoch number.
        steps_per_epoch: the number of updates in one pass.
        first_epoch: the number of the first epoch.
    """

    schedule: Any = child()
    steps_per_epoch: Any
    first_epoch: Any = 0

    def at(self, step: jax.Array) -> jax.Array:
        epoch = _whole(step, jnp.maximum(self.steps_per_epoch, 1))
        return self.schedule(epoch + self.first_epoch)


def _mix(a, b, share):
    """a at share 0, b at share 1, exactly at both ends."""
    return (1 - share) * a + share * b


def _progress(step, steps):
    """The share of `steps` that has passed, from 0 to 1; for zero steps 1 from step 0 on."""
    share = jnp.clip(step / jnp.where(steps > 0, steps, 1), 0, 1)
    return jnp.where(step < jnp.maximum(steps, 0), share, 1.0)


def _transition(step, steps, begin=0.0):
    """The share of `steps` that has passed since `begin`; for zero steps 0 for good."""
    return jnp.where(steps > 0, _progress(step - jnp.maximum(begin, 0), steps), 0.0)


def _ease(share):
    """Half a cosine from 0 to 1."""
    return (1 - jnp.cos(jnp.pi * share)) / 2


def _elapsed(schedule, step):
    """Steps in units of `transition_steps`, whole ones for a staircase; none of zero steps."""
    unit = jnp.where(schedule.transition_steps > 0, schedule.transition_steps, 1)
    units = _whole(step, unit) if schedule.staircase else step / unit
    return jnp.where(schedule.transition_steps > 0, units, 0)


def _up_to_tail(schedule, step):
    """The step, or the one at which the tail starts if that is over."""
    start = schedule.total_steps - schedule.decay_steps
    return jnp.maximum(jnp.minimum(step, start), 0)


def _cooled(schedule, step):
    """The share of the way from the value before the tail to the end."""
    start = schedule.total_steps - schedule.decay_steps
    over = _progress(step - start, schedule.decay_steps)
    if schedule.tail == "cosine":
        return _ease(over)
    if schedule.tail == "sqrt":
        # The selection keeps derivatives finite at the start of the tail.
        return jnp.where(over > 0, jnp.sqrt(jnp.where(over > 0, over, 1)), 0)
    return over


def _power(base, exponent):
    """base ** exponent, with finite derivatives where the base is 0."""
    zero = base == 0
    return jnp.where(zero, jnp.where(exponent == 0, 1.0, 0.0), jnp.where(zero, 1, base) ** exponent)


def _whole(step, unit):
    """floor(step / unit), exact even if the compiler divides by a rounded reciprocal."""
    n = jnp.floor(step / unit)
    n = jnp.where(step < n * unit, n - 1, n)
    return jnp.where(step >= (n + 1) * unit, n + 1, n)


def _up_and_down(schedule, step, left):
    """A straight line to the peak; then `left` of it, which goes from 1 to 0, for what passed."""
    up = _mix(schedule.init_value, schedule.peak_value, _progress(step, schedule.warmup_steps))
    rest = schedule.total_steps - schedule.warmup_steps
    share = left(_progress(step - schedule.warmup_steps, rest))
    down = _mix(schedule.end_value, schedule.peak_value, share)
    return jnp.where(step < schedule.warmup_steps, up, down)


def _check_lengths(schedule, items, name, boundaries):
    if len(items) != len(boundaries) + 1:
        raise ValueError(
            f"{type(schedule).__name__}(...): {len(boundaries)} boundaries need "
            f"{len(boundaries) + 1} {name}, found {len(items)}."
        )
    known = [x for x in boundaries if isinstance(x, float)] if type(boundaries) is tuple else []
    if known != sorted(known):
        raise ValueError(
            f"{type(schedule).__name__}(boundaries=...) must ascend, found {boundaries}."
        )


if not TYPE_CHECKING:  # which would take any name for a schedule

    def __getattr__(name: str) -> Any:
        raise optax_names.missing(__name__, name)
