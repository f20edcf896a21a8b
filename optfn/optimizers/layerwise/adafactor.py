"""Adafactor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.data import as_switch, static
from optfn.core.leafwise import Leafwise
from optfn.core.moments import average, zeros_along, zeros_like_real
from optfn.core.numerics import abs_sq, sqrt
from optfn.core.slot_kinds import NonNegative
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.transforms.clip import clip_by_block_rms
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.momentum import ema
from optfn.transforms.scale import negate, scale_by_learning_rate
from optfn.transforms.size import scale_by_param_block_rms


class FactoredMoments(NamedTuple):
    """Average squares of rows and columns, or of every entry; unused fields are None."""

    v_row: PyTree
    v_col: PyTree
    v: NonNegative


class scale_by_factored_rms(Leafwise):
    """Divides by the root of an average square, factored into a row's and a column's.

        b = 1 - (t - step_offset)^(-decay_rate)
        row <- b * row + (1 - b) * mean over columns (|g|^2 + epsilon)
        col <- b * col + (1 - b) * mean over rows (|g|^2 + epsilon)
        u = g / sqrt(row * col / mean(row))

    The two longest axes are factored. Arrays whose second longest side is short keep an average for
    every entry, and u = g / sqrt(v).

    Args:
        factored: False keeps an average for every entry of every array.
        decay_rate: how fast the decay b approaches 1, a number or a schedule.
        step_offset: the steps of an earlier run, which do not count; during them, b = 0.
        min_dim_size_to_factor: the second longest side from which an array is factored.
        epsilon: added to the squares.

    Source: Shazeer and Stern 2018.
    """

    factored: bool = static(default=True)
    decay_rate: Any = 0.8
    step_offset: Any = 0
    min_dim_size_to_factor: int = static(default=128)
    epsilon: Any = 1e-30

    Slots = FactoredMoments

    def init_leaf(self, param: jax.Array) -> FactoredMoments:
        axes = self._factored_axes(param.shape)
        if axes is None:
            return FactoredMoments(None, None, zeros_like_real(param))
        row, col = (np.delete(range(param.ndim), axis).tolist() for axis in axes)
        return FactoredMoments(zeros_along(param, row), zeros_along(param, col), None)

    def update_leaf(
        self, g: jax.Array, slots: FactoredMoments, param: Any, t: jax.Array
    ) -> tuple[jax.Array, FactoredMoments]:
        b = 1 - jnp.maximum(t - self.step_offset, 1) ** -self.decay_rate
        # Squares that overflow would make the means infinite, and a ratio of two such means NaN.
        square = jnp.minimum(abs_sq(g) + self.epsilon, jnp.finfo(g.dtype).max / max(g.size, 1))
        axes = self._factored_axes(g.shape)
        if axes is None:
            v = average(b, slots.v, square)
            return g / sqrt(v), FactoredMoments(None, None, v)
        longest, second = axes
        row = average(b, slots.v_row, jnp.mean(square, axis=longest))
        col = average(b, slots.v_col, jnp.mean(square, axis=second))
        rows, cols = jnp.expand_dims(row, longest), jnp.expand_dims(col, second)
        # Roots first: a derivative of the ratio has the square of a mean, which may underflow.
        u = g / sqrt(rows) * sqrt(jnp.mean(rows, axis=second, keepdims=True)) / sqrt(cols)
        return u, FactoredMoments(row, col, None)

    def _factored_axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The longest axis and the second longest."""
        if not self.factored or len(shape) < 2:
            return None
        *_, second, longest = np.argsort(shape)
        if shape[second] < self.min_dim_size_to_factor:
            return None
        return int(longest), int(second)


def adafactor(
    learning_rate: Any = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Any = 1.0,
    momentum: Any = None,
    dtype_momentum: DTypeLike | None = None,
    weight_decay_rate: Any = None,
    eps: Any = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
) -> chain:
    """Adafactor: Adam without a first moment, whose second is stored as a row and a column.

    For models whose params just fit into memory. Its rates are relative to the params' root mean
    square; with `multiply_by_parameter_scale=False` they are like Adam's. The rule is
    `scale_by_factored_rms`, then `clip_by_block_rms`, the learning rate,
    `scale_by_param_block_rms`, `ema` and `add_decayed_weights`; None or False leaves a stage out.

    Args:
        learning_rate: a number or a schedule; None is 1, for updates that are scaled elsewhere.
        min_dim_size_to_factor: the second longest side from which an array is factored.
        decay_rate: how fast the decay of the average squares approaches 1.
        decay_offset: the steps of an earlier run, which do not count.
        multiply_by_parameter_scale: multiply by the root mean square of the params.
        clipping_threshold: the largest root mean square of a direction; None does not clip.
        momentum: decay of an average of the updates; None for no average.
        dtype_momentum: the dtype in which that average is stored; see `ema`. (optax's default is
            float32, for float64 params too.)
        weight_decay_rate: a decay that the learning rate does not scale; None for no decay.
        eps: added to the squares.
        factored: False keeps an average for every entry.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Shazeer and Stern 2018.
    """
    stages: list[Transform] = [
        scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)
    ]
    if clipping_threshold is not None:
        stages.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        stages.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if as_switch(multiply_by_parameter_scale, "adafactor(multiply_by_parameter_scale=...)"):
        stages.append(scale_by_param_block_rms())
    if momentum is not None:
        stages.append(ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    if weight_decay_rate is not None:
        stages.append(add_decayed_weights(weight_decay_rate, weight_decay_mask))
    return chain(*stages, negate())
