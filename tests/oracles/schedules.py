"""Oracles of schedules. A transition over no steps is over."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Schedule = Callable[[int], float]


def _fraction(step: int, steps: int) -> float:
    """The part of a transition that lies behind `step`, from 0 to 1."""
    return 1.0 if step >= max(steps, 0) else max(step, 0) / max(steps, 1)


def _periods(step: int, transition_steps: int, staircase: bool) -> float:
    return step // transition_steps if staircase else step / transition_steps


def _from_to(start: float, end: float, left: float) -> float:
    """From `start` at left = 1 to `end` at left = 0."""
    return end + (start - end) * left


def schedule_constant(step: int, value: float) -> float:
    """The same rate at every step."""
    return value


def schedule_linear(step: int, init_value: float, end_value: float, transition_steps: int) -> float:
    """A straight line, constant from `transition_steps` on."""
    return _from_to(init_value, end_value, 1 - _fraction(step, transition_steps))


def schedule_polynomial(
    step: int, init_value: float, end_value: float, power: float, transition_steps: int
) -> float:
    """end + (init - end) * (1 - step / transition_steps)^power, constant after it."""
    return _from_to(init_value, end_value, (1 - _fraction(step, transition_steps)) ** power)


def schedule_exponential(
    step: int,
    init_value: float,
    decay_rate: float,
    transition_steps: int = 1,
    staircase: bool = False,
) -> float:
    """decay_rate^n * init after n periods; the staircase falls at whole periods only."""
    return init_value * decay_rate ** _periods(step, transition_steps, staircase)


def schedule_linear_half_life(
    step: int, init_value: float, end_value: float, transition_steps: int
) -> float:
    """The decay whose half-life lies on a straight line (Pagliardini et al. 2024)."""
    first, last = (math.log(0.5) / math.log(b) for b in (init_value, end_value))
    return 0.5 ** (1 / _from_to(first, last, 1 - _fraction(step, transition_steps)))


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


def schedule_cosine(
    step: int, init_value: float, total_steps: int, end_value: float = 0.0
) -> float:
    """Half a cosine wave from the initial to the end value (Loshchilov & Hutter 2017)."""
    left = (1 + math.cos(math.pi * _fraction(step, total_steps))) / 2
    return _from_to(init_value, end_value, left)


def schedule_cosine_restarts(
    step: int,
    init_value: float,
    transition_steps: int,
    end_value: float = 0.0,
    steps_factor: float = 1.0,
    value_factor: float = 1.0,
) -> float:
    """SGDR (Loshchilov & Hutter 2017): cosine cycles, each `steps_factor` (>= 1) times as long.

    A cycle starts at the sum of the periods before it, rounded to a whole step, halves up, and
    ends where the next one starts.
    """
    cycle, start, periods = 0, 0, float(transition_steps)
    while step >= (end := math.floor(periods + 0.5)):
        cycle, start = cycle + 1, end
        periods += transition_steps * steps_factor**cycle
    return schedule_cosine(step - start, init_value * value_factor**cycle, end - start, end_value)


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
    if step < up:
        return schedule_cosine(step, init_value, up, peak_value)
    return schedule_cosine(step - up, peak_value, total_steps - up, end_value)


def schedule_warmup_cosine(
    step: int,
    peak_value: float,
    warmup_steps: int,
    total_steps: int,
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> float:
    """A straight line up to the peak, then half a cosine wave down to `total_steps`."""
    if step < warmup_steps:
        return schedule_linear(step, init_value, peak_value, warmup_steps)
    return schedule_cosine(step - warmup_steps, peak_value, total_steps - warmup_steps, end_value)


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
        return schedule_linear(step, init_value, peak_value, warmup_steps)
    return schedule_linear(step - warmup_steps, peak_value, end_value, total_steps - warmup_steps)


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
        return schedule_linear(step, init_value, peak_value, warmup_steps)
    x = _fraction(step - (total_steps - decay_steps), decay_steps)
    left = {"linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2, "sqrt": 1 - math.sqrt(x)}
    return _from_to(peak_value, end_value, left[tail])


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
