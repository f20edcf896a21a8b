"""Oracles of schedules. One over no steps stays at its first value; a part of one is over."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Schedule = Callable[[int], float]


def _fraction(step: float, steps: float) -> float:
    """The part of a transition that lies behind `step`, from 0 to 1."""
    return 1.0 if step >= max(steps, 0) else max(step, 0) / max(steps, 1)


def _moved(step: float, steps: float, begin: float = 0) -> float:
    """The part of a schedule's only transition that lies behind; none without steps."""
    return _fraction(step - max(begin, 0), steps) if steps > 0 else 0.0


def _periods(step: int, transition_steps: int, staircase: bool) -> float:
    if transition_steps <= 0:
        return 0
    return step // transition_steps if staircase else step / transition_steps


def _from_to(start: float, end: float, left: float) -> float:
    """From `start` at left = 1 to `end` at left = 0."""
    return end * (1 - left) + start * left


def schedule_constant(step: int, value: float) -> float:
    """The same rate at every step."""
    return value


def schedule_linear(
    step: int,
    init_value: float,
    end_value: float,
    transition_steps: int,
    transition_begin: int = 0,
) -> float:
    """A straight line, constant up to its beginning and from its end on."""
    moved = _moved(step, transition_steps, transition_begin)
    return _from_to(init_value, end_value, 1 - moved)


def schedule_polynomial(
    step: int,
    init_value: float,
    end_value: float,
    power: float,
    transition_steps: int,
    transition_begin: int = 0,
) -> float:
    """end + (init - end) * (1 - step / transition_steps)^power, constant before and after it."""
    moved = _moved(step, transition_steps, transition_begin)
    return _from_to(init_value, end_value, (1 - moved) ** power)


def schedule_exponential(
    step: int,
    init_value: float,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: float | None = None,
) -> float:
    """decay_rate^n * init after n periods; the staircase falls at whole periods only.

    `end_value` bounds a fall from below and a rise from above. Without steps or rate: constant.
    """
    if transition_steps <= 0 or decay_rate == 0:
        return init_value
    begun = max(step - max(transition_begin, 0), 0)
    value = init_value * decay_rate ** _periods(begun, transition_steps, staircase)
    if end_value is None:
        return value
    return max(value, end_value) if decay_rate < 1 else min(value, end_value)


def schedule_linear_half_life(
    step: int, init_value: float, end_value: float, transition_steps: int
) -> float:
    """The decay whose half-life lies on a straight line (Pagliardini et al. 2024)."""
    first, last = (math.log(0.5) / math.log(b) for b in (init_value, end_value))
    return 0.5 ** (1 / _from_to(first, last, 1 - _moved(step, transition_steps)))


def schedule_inverse_time(
    step: int,
    init_value: float,
    decay_rate: float,
    transition_steps: int = 1,
    staircase: bool = False,
) -> float:
    """init / (1 + decay_rate * n) after n periods."""
    return init_value / (1 + decay_rate * _periods(step, transition_steps, staircase))


def schedule_inverse_sqrt(step: int, init_value: float, k: float = 1.0) -> float:
    """k / sqrt(t) * init, where t = 1 at the first update."""
    return k * init_value / math.sqrt(step + 1)


def schedule_piecewise_constant(
    step: int, values: Sequence[float], boundaries: Sequence[int]
) -> float:
    """values[0] at first, values[i] from step boundaries[i-1] on."""
    return values[bisect_right(boundaries, step)]


def schedule_piecewise_linear(
    step: int, values: Sequence[float], boundaries: Sequence[int]
) -> float:
    """values[0] at step 0, values[i] at boundaries[i-1], straight lines between, constant after."""
    return float(np.interp(step, [0, *boundaries], values))


def schedule_piecewise_cosine(
    step: int, values: Sequence[float], boundaries: Sequence[int]
) -> float:
    """values[0] at step 0, values[i] at boundaries[i-1], half cosines between, constant after."""
    i = bisect_right(boundaries, step)
    if i == len(boundaries):
        return values[-1]
    start, end = (0, *boundaries)[i], boundaries[i]
    return _half_cosine(values[i], values[i + 1], _fraction(step - start, end - start))


def _half_cosine(start: float, end: float, share: float, exponent: float = 1.0) -> float:
    return _from_to(start, end, ((1 + math.cos(math.pi * share)) / 2) ** exponent)


def schedule_cosine(
    step: int, init_value: float, total_steps: int, end_value: float = 0.0, exponent: float = 1.0
) -> float:
    """Half a cosine wave from the initial to the end value (Loshchilov & Hutter 2017)."""
    return _half_cosine(init_value, end_value, _moved(step, total_steps), exponent)


def schedule_cosine_restarts(
    step: int,
    init_value: float,
    transition_steps: int,
    end_value: float = 0.0,
    steps_factor: float = 1.0,
    value_factor: float = 1.0,
    warmup_steps: int = 0,
) -> float:
    """SGDR (Loshchilov & Hutter 2017): cosine cycles, each `steps_factor` (>= 1) times as long.

    A cycle starts at the sum of the periods before it, rounded to a whole step, halves up, and
    ends where the next one starts. Its first steps are a line up from the end value.
    """
    cycle, start, periods = 0, 0, float(transition_steps)
    while step >= (end := math.floor(periods + 0.5)):
        cycle, start = cycle + 1, end
        periods += transition_steps * steps_factor**cycle
    return schedule_warmup_cosine(
        step - start,
        init_value * value_factor**cycle,
        warmup_steps,
        end - start,
        end_value,
        end_value,
    )


def schedule_one_cycle(
    step: int,
    peak_value: float,
    total_steps: int,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> float:
    """The one-cycle policy (Smith & Topin 2018): up to the peak and down again.

    Cosine: up until `pct_start`, then down to the final value. Linear: up, down to the initial
    value until `pct_final`, then down to the final value. Phases end at whole steps, rounded down.
    """
    init_value = peak_value / div_factor
    end_value = init_value / final_div_factor
    up, down = int(pct_start * total_steps), int(pct_final * total_steps)
    if anneal == "linear":
        values = [init_value, peak_value, init_value, end_value]
        return schedule_piecewise_linear(step, values, [up, down, total_steps])
    return schedule_piecewise_cosine(step, [init_value, peak_value, end_value], [up, total_steps])


def _risen(step: int, init_value: float, peak_value: float, warmup_steps: int) -> float:
    return _from_to(init_value, peak_value, 1 - _fraction(step, warmup_steps))


def schedule_warmup_constant(
    step: int, peak_value: float, warmup_steps: int, init_value: float = 0.0
) -> float:
    """A straight line up to the peak, then the peak."""
    return _risen(step, init_value, peak_value, warmup_steps)


def schedule_warmup_cosine(
    step: int,
    peak_value: float,
    warmup_steps: int,
    total_steps: int,
    init_value: float = 0.0,
    end_value: float = 0.0,
    exponent: float = 1.0,
) -> float:
    """A straight line up to the peak, then half a cosine wave down to `total_steps`."""
    if step < warmup_steps:
        return _risen(step, init_value, peak_value, warmup_steps)
    share = _fraction(step - warmup_steps, total_steps - warmup_steps)
    return _half_cosine(peak_value, end_value, share, exponent)


def schedule_warmup_linear(
    step: int,
    peak_value: float,
    warmup_steps: int,
    total_steps: int,
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> float:
    """A straight line up to the peak, then one down to `total_steps`."""
    if step < warmup_steps:
        return _risen(step, init_value, peak_value, warmup_steps)
    share = _fraction(step - warmup_steps, total_steps - warmup_steps)
    return _from_to(peak_value, end_value, 1 - share)


def schedule_wsd(
    step: int,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    total_steps: int,
    init_value: float = 0.0,
    end_value: float = 0.0,
    tail: Literal["linear", "cosine", "sqrt"] = "linear",
) -> float:
    """Warmup, stable, decay; the square-root tail is 1 - sqrt(x) (Haegele et al. 2024)."""
    if step < warmup_steps:
        return _risen(step, init_value, peak_value, warmup_steps)
    left = _left_of_tail(step, decay_steps, total_steps, tail)
    return _from_to(peak_value, end_value, left)


def _left_of_tail(step: float, decay_steps: float, total_steps: float, tail: str) -> float:
    x = _fraction(step - (total_steps - decay_steps), decay_steps)
    left = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "sqrt": 1 - math.sqrt(x)}
    return left[tail]


def schedule_cool_down(
    step: int,
    schedule: Schedule,
    decay_steps: int,
    total_steps: int,
    end_value: float = 0.0,
    tail: Literal["linear", "cosine", "sqrt"] = "sqrt",
) -> float:
    """Any schedule, with a tail from the value that it has where the tail begins."""
    begin = max(total_steps - decay_steps, 0)
    if step < begin:
        return schedule(step)
    return _from_to(schedule(begin), end_value, _left_of_tail(step, decay_steps, total_steps, tail))


def schedule_power_cool(
    step: int,
    peak_value: float,
    warmup_steps: int,
    decay_steps: int,
    total_steps: int,
    power: float = -0.51,
    transition_begin: int | None = None,
    init_value: float = 0.0,
    end_value: float = 0.0,
    tail: Literal["linear", "cosine", "sqrt"] = "linear",
) -> float:
    """The power scheduler (Shen et al. 2024): the lower of the peak and a power law, and a tail."""
    begin = max(transition_begin if transition_begin is not None else 0, warmup_steps, 1)

    def law(step: float) -> float:
        if step < warmup_steps:
            return _risen(step, init_value, peak_value, warmup_steps)
        a = peak_value / begin**power
        return min(peak_value, a * step**power) if step > 0 else peak_value

    return schedule_cool_down(step, law, decay_steps, total_steps, end_value, tail)


def schedule_join(step: int, schedules: Sequence[Schedule], boundaries: Sequence[int]) -> float:
    """schedules[i] from step boundaries[i-1] on, with its steps counted from there."""
    i = bisect_right(boundaries, step)
    return schedules[i](step - (0, *boundaries)[i])


def schedule_per_epoch(
    step: int, schedule: Schedule, steps_per_epoch: int, first_epoch: int = 0
) -> float:
    """A schedule of the epoch, one pass over the data, instead of the step."""
    return schedule(first_epoch + step // steps_per_epoch)


def schedule_ema_warmup(step: int, end_value: float, offset: float = 10.0) -> float:
    """What is kept of an average that is still young, at most the end value."""
    return min(end_value, (1 + step) / (offset + step))


def schedule_ema_power_law(step: int, gamma: float) -> float:
    """What is kept at the t-th update, t = step + 1, so that weights go as a power of t."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)
