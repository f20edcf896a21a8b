"""Float64 NumPy oracles, written from the papers: the paths the optimizers must reproduce.

An optimizer oracle takes one initial array `p`, real or complex, the gradients `grads` of all
steps, shape [T, *p.shape], and the rate `lr`, one number or one per step [T] (so for a weight
decay). It returns the params after each step, [T, *p.shape], in float64 or complex128.

As the gradients are given beforehand, whole sequences over time are written as the papers write
them: `ema` is y_t = b y_{t-1} + (1-b) x_t for all t at once, with y_t / (1 - b^t) where debiased.
Steps count from t = 1. The second moment of a complex gradient is |g|^2.

A schedule oracle takes the number of the update, 0 at the first, and returns the rate as a float.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Schedule = Callable[[int], float]


def _double(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _squared(x: np.ndarray) -> np.ndarray:
    return np.real(x * x.conj())


def _per_step(x: ArrayLike, grads: np.ndarray) -> np.ndarray:
    """One number, or one per step, as [T, 1, ..., 1]: it broadcasts against `grads`."""
    return np.broadcast_to(_double(x), len(grads)).reshape(-1, *[1] * (grads.ndim - 1))


def _count(grads: np.ndarray) -> np.ndarray:
    """t = 1, ..., T against `grads`."""
    return _per_step(np.arange(1, len(grads) + 1), grads)


def _descend(
    p: ArrayLike, directions: np.ndarray, lr: ArrayLike, weight_decay: ArrayLike = 0.0
) -> np.ndarray:
    """p <- p - lr * (u + weight_decay * p)."""
    p, path = _double(p), []
    rates, decays = _per_step(lr, directions), _per_step(weight_decay, directions)
    for u, rate, decay in zip(directions, rates, decays, strict=True):
        p = p - rate * (u + decay * p)
        path.append(p)
    return np.stack(path)


# Averages of the gradients: the updates of all steps, [T, *p.shape].


def ema(grads: ArrayLike, decay: float, debias: bool = True, *, initial: float = 0.0) -> np.ndarray:
    """y <- decay * y + (1 - decay) * g, divided by 1 - decay^t where debiased."""
    grads = _double(grads)
    y, out = np.full_like(grads[0], initial), []
    for g in grads:
        y = decay * y + (1 - decay) * g
        out.append(y)
    averages = np.stack(out)
    return averages / (1 - decay ** _count(grads)) if debias else averages


def trace(grads: ArrayLike, decay: float, nesterov: bool = False) -> np.ndarray:
    """v <- decay * v + g; the update is v, or g + decay * v for Nesterov's."""
    grads = _double(grads)
    v, out = np.zeros_like(grads[0]), []
    for g in grads:
        v = decay * v + g
        out.append(g + decay * v if nesterov else v)
    return np.stack(out)


# Optimizers: the params after each step, [T, *p.shape].


def sgd(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    momentum: float | None = None,
    nesterov: bool = False,
) -> np.ndarray:
    """Gradient descent, with heavy-ball momentum (Polyak 1964; Sutskever et al. 2013)."""
    directions = _double(grads) if momentum is None else trace(grads, momentum, nesterov)
    return _descend(p, directions, lr)


def momentum(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    *,
    bias_correction: bool = False,
) -> np.ndarray:
    """Momentum as an average: v <- b1 * v + (1 - b1) * g, p <- p - lr * v."""
    return _descend(p, ema(grads, b1, bias_correction), lr)


def rmsprop(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    decay: float = 0.9,
    eps: float = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> np.ndarray:
    """RMSprop (Hinton 2012), centered (Graves 2013): g / sqrt(s + eps), or g / (sqrt(s) + eps).

    The momentum accumulates steps that are already scaled by the rate of their time.
    """
    grads = _double(grads)
    s = ema(_squared(grads), decay, bias_correction, initial=initial_scale)
    if centered:
        s = np.maximum(s - _squared(ema(grads, decay, bias_correction)), 0)
    steps = _per_step(lr, grads) * grads / (np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps)
    if momentum is not None:
        steps = trace(steps, momentum, nesterov)
    return _descend(p, steps, 1.0)


def adagrad(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    eps_in_sqrt: bool = True,
) -> np.ndarray:
    """Adagrad (Duchi et al. 2011): g / sqrt(sum g^2 + eps), zero as long as the sum is zero.

    `eps_in_sqrt=False` is g / (sqrt(sum g^2) + eps).
    """
    grads = _double(grads)
    total = initial_accumulator_value + np.cumsum(_squared(grads), axis=0)
    scale = np.sqrt(total + eps) if eps_in_sqrt else np.sqrt(total) + eps
    return _descend(p, np.divide(grads, scale, out=np.zeros_like(grads), where=total > 0), lr)


def adam(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """Adam (Kingma & Ba 2015, Algorithm 1); with `nesterov`, Nadam (Dozat 2016)."""
    return adamw(p, grads, lr, b1, b2, eps, eps_root, 0.0, nesterov=nesterov)


def adamw(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: ArrayLike = 1e-4,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """AdamW (Loshchilov & Hutter 2019): p <- p - lr * (m / (sqrt(v) + eps) + weight_decay * p).

    Nadam's m looks one step ahead, b1 * m / (1 - b1^(t+1)) + (1 - b1) * g / (1 - b1^t).
    """
    grads = _double(grads)
    m, v = ema(grads, b1), ema(_squared(grads), b2)
    if nesterov:
        t = _count(grads)
        m = ema(grads, b1, debias=False)
        m = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * grads / (1 - b1**t)
    return _descend(p, m / (np.sqrt(v + eps_root) + eps), lr, weight_decay)


def amsgrad(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_after_correction: bool = True,
) -> np.ndarray:
    """AMSGrad (Reddi et al. 2018, Algorithm 2; the paper corrects neither bias).

    A corrected second moment enters the maximum corrected; with `max_after_correction=False` the
    maximum is taken of the raw moments and then divided by 1 - b2^t.
    """
    grads = _double(grads)
    m = ema(grads, b1, bias_correction_mu)
    v = ema(_squared(grads), b2, bias_correction_nu and max_after_correction)
    v = np.maximum.accumulate(v)
    if bias_correction_nu and not max_after_correction:
        v = v / (1 - b2 ** _count(grads))
    return _descend(p, m / (np.sqrt(v + eps_root) + eps), lr)


def lion(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: ArrayLike = 1e-3,
) -> np.ndarray:
    """Lion (Chen et al. 2023, Algorithm 2): the sign of the old average mixed with the gradient.

    The sign of a complex number is z / |z|.
    """
    grads = _double(grads)
    m = ema(grads, b2, debias=False)
    m_before = np.concatenate([np.zeros_like(m[:1]), m[:-1]])
    return _descend(p, np.sign(b1 * m_before + (1 - b1) * grads), lr, weight_decay)


# Schedules. A transition over no steps is over.


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
