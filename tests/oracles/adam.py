"""Oracles of Adam and its family."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from oracles.paths import count, double, ema, negate, optimistic, per_step, squared, trace


def first_moment(grads: np.ndarray, b1: float, nesterov: bool) -> np.ndarray:
    """Adam's, or Nadam's, which looks one step ahead (Dozat 2016)."""
    if not nesterov:
        return ema(grads, b1)
    m, t = ema(grads, b1, debias=False), count(grads)
    return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * grads / (1 - b1**t)


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
    grads = double(grads)
    m, v = first_moment(grads, b1, nesterov), ema(squared(grads), b2)
    return negate(p, m / (np.sqrt(v + eps_root) + eps), lr, weight_decay)


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
    grads = double(grads)
    m = ema(grads, b1, bias_correction_mu)
    v = ema(squared(grads), b2, bias_correction_nu and max_after_correction)
    v = np.maximum.accumulate(v)
    if bias_correction_nu and not max_after_correction:
        v = v / (1 - b2 ** count(grads))
    return negate(p, m / (np.sqrt(v + eps_root) + eps), lr)


def nadam(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> np.ndarray:
    """Nadam (Dozat 2016)."""
    return adamw(p, grads, lr, b1, b2, eps, eps_root, 0.0, nesterov=True)


def nadamw(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: ArrayLike = 1e-4,
) -> np.ndarray:
    """Nadam with decoupled weight decay."""
    return adamw(p, grads, lr, b1, b2, eps, eps_root, weight_decay, nesterov=True)


def adabelief(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """AdaBelief (Zhuang et al. 2020): s <- b2 * s + (1 - b2) * (g - m)^2 + eps_root."""
    grads = double(grads)
    distances = squared(grads - ema(grads, b1, debias=False))
    s = ema(distances + eps_root / (1 - b2), b2)
    return negate(p, first_moment(grads, b1, nesterov) / (np.sqrt(s) + eps), lr)


def adamax(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> np.ndarray:
    """Adamax (Kingma & Ba 2015, Algorithm 2), with |g| + eps in the maximum."""
    return adamaxw(p, grads, lr, b1, b2, eps, 0.0)


def adamaxw(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: ArrayLike = 1e-4,
) -> np.ndarray:
    """Adamax with decoupled weight decay."""
    grads = double(grads)
    # u_t = max over s <= t of b2^(t-s) * (|g_s| + eps)
    u = np.stack(
        [
            np.max(b2 ** count(grads[: t + 1])[::-1] / b2 * (abs(grads[: t + 1]) + eps), axis=0)
            for t in range(len(grads))
        ]
    )
    return negate(p, ema(grads, b1) / u, lr, weight_decay)


def adan(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    eps_root: float = 1e-8,
    weight_decay: ArrayLike = 0.0,
) -> np.ndarray:
    """Adan (Xie et al. 2022, Algorithm 1), whose betas are 1 minus these, debiased."""
    grads = double(grads)
    change = np.diff(grads, axis=0, prepend=grads[:1])
    n = ema(squared(grads + b2 * change), b3)
    direction = (ema(grads, b1) + b2 * ema(change, b2)) / (np.sqrt(n + eps_root) + eps)
    return negate(p, direction, lr, weight_decay)


def radam(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """Rectified Adam (Liu et al. 2020, Algorithm 2)."""
    grads = double(grads)
    m, v = first_moment(grads, b1, nesterov), ema(squared(grads), b2)
    directions = []
    for t, (m_t, v_t) in enumerate(zip(m, v, strict=True), 1):
        rho, rho_inf = average_length(b2, t), 2 / (1 - b2) - 1
        if rho < threshold:
            directions.append(m_t)
            continue
        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        directions.append(r * m_t / (np.sqrt(v_t + eps_root) + eps))
    return negate(p, np.stack(directions), lr)


def average_length(b2: float, t: int) -> float:
    """rho_inf - 2 t b2^t / (1 - b2^t), a small difference: at first in rational arithmetic."""
    if t > 1000 and b2 > 0:
        return 2 / (1 - b2) - 1 - 2 * t / np.expm1(min(-t * np.log(b2), 700))
    b = Fraction(b2)
    return float(2 / (1 - b) - 1 - 2 * t * b**t / (1 - b**t))


def yogi(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
) -> np.ndarray:
    """Yogi (Zaheer et al. 2018, Algorithm 2), debiased, with both moments from 1e-6."""
    grads = double(grads)
    v, path = np.full(grads[0].shape, 1e-6), []
    for g in grads:
        v = v - (1 - b2) * np.sign(v - squared(g)) * squared(g)
        path.append(v)
    t = count(grads)
    m = ema(grads, b1, debias=False, initial=1e-6) / (1 - b1**t)
    return negate(p, m / (np.sqrt(np.stack(path) / (1 - b2**t)) + eps), lr)


def laprop(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-15,
    weight_decay: ArrayLike = 0.0,
) -> np.ndarray:
    """LaProp (Ziyin et al. 2020, Algorithm 1): the average of normalized gradients."""
    grads = double(grads)
    normalized = grads / (np.sqrt(ema(squared(grads), b2)) + eps)
    return negate(p, ema(normalized, b1), lr, weight_decay)


def optimistic_adam_v2(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = True,
) -> np.ndarray:
    """Adam with an optimistic direction (Daskalakis et al. 2018)."""
    grads = double(grads)
    m, v = first_moment(grads, b1, nesterov), ema(squared(grads), b2)
    return negate(p, optimistic(m / (np.sqrt(v + eps_root) + eps), alpha, beta), lr)


def acprop(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    eps_root: float = 1e-16,
    weight_decay: ArrayLike = 0.0,
) -> np.ndarray:
    """ACProp (Zhuang et al. 2021): centred by the last average, divided by the last root."""
    grads = double(grads)
    m = ema(grads, b1, debias=False)
    m_before = np.concatenate([np.zeros_like(m[:1]), m[:-1]])
    s = ema(squared(grads - m_before) + eps_root / (1 - b2), b2)
    s_before = np.concatenate([np.ones_like(s[:1]), s[:-1]])
    return negate(p, grads / (np.sqrt(s_before) + eps), lr, weight_decay)


def ademamix(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    alpha: ArrayLike = 5.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> np.ndarray:
    """AdEMAMix (Pagliardini et al. 2024, Algorithm 1), whose slow average is not debiased."""
    grads = double(grads)
    mixed = ema(grads, b1) + per_step(alpha, grads) * ema(grads, b3, debias=False)
    v = ema(squared(grads), b2)
    return negate(p, mixed / (np.sqrt(v + eps_root) + eps), lr, weight_decay)


def simplified_ademamix(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.99,
    b2: float = 0.95,
    alpha: ArrayLike = 0.0,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> np.ndarray:
    """Simplified AdEMAMix (Morwani et al. 2025, Algorithm 1)."""
    grads = double(grads)
    v = ema(squared(grads), b2)
    u = (trace(grads, b1) + per_step(alpha, grads) * grads) / (np.sqrt(v + eps_root) + eps)
    return negate(p, u, lr, weight_decay)


def adopt(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.9999,
    eps: float = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: float | None = None,
) -> np.ndarray:
    """ADOPT (Taniguchi et al. 2024, Algorithm 2): v starts at g_0^2, the steps at g_1."""
    grads = double(grads)
    v, n = squared(grads[0]), [np.zeros_like(grads[0])]
    for t, g in enumerate(grads[1:], 1):
        ratio = g / np.maximum(np.sqrt(v), eps)
        c = t**0.25 if clip_value_fn is None else clip_value_fn
        if use_clipping and np.iscomplexobj(ratio):
            ratio = np.clip(ratio.real, -c, c) + 1j * np.clip(ratio.imag, -c, c)
        elif use_clipping:
            ratio = np.clip(ratio, -c, c)
        n.append(ratio)
        v = b2 * v + (1 - b2) * squared(g)
    m = ema(np.stack(n), b1, debias=False)
    return negate(p, b1 * m + (1 - b1) * np.stack(n) if nesterov else m, lr)


def qhadam(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.995,
    b2: float = 0.999,
    v1: float = 0.7,
    v2: float = 1.0,
    eps: float = 1e-8,
) -> np.ndarray:
    """QHAdam (Ma & Yarats 2019, section 4)."""
    grads = double(grads)
    m = v1 * ema(grads, b1) + (1 - v1) * grads
    v = v2 * ema(squared(grads), b2) + (1 - v2) * squared(grads)
    return negate(p, m / (np.sqrt(v) + eps), lr)


def grams(
    p: ArrayLike,
    grads: ArrayLike,
    lr: ArrayLike,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: ArrayLike = 0.0,
) -> np.ndarray:
    """Grams (Cao et al. 2024, Algorithm 1)."""
    grads = double(grads)
    sizes = abs(ema(grads, b1)) / (np.sqrt(ema(squared(grads), b2)) + eps)
    return negate(p, sizes * np.sign(grads), lr, weight_decay)
