"""Sums and averages of past updates: the heavy-ball trace and the moving average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.data import static, storage_dtype
from optfn.core.leafwise import Leafwise
from optfn.core.moments import average, debias, look_ahead
from optfn.core.slot_kinds import Signed


class Trace(NamedTuple):
    """A decaying sum of past updates."""

    trace: Signed


class trace(Leafwise):
    """The decaying sum of past updates: momentum as torch and most papers define it.

        v <- decay * v + g        u = v,  or  g + decay * v  with nesterov

    At a constant gradient it grows to g / (1 - decay); `ema` averages and does not.

    Args:
        decay: the share of the sum that is kept, a number or a schedule; 0.9 is usual.
        nesterov: look ahead by one more step of the sum.
        accumulator_dtype: the dtype in which v is stored; None is float32, or wider for wider
            params.

    Source: Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013.
    """

    elementwise = True

    decay: Any
    nesterov: bool = static(default=False)
    accumulator_dtype: Any = storage_dtype("trace", default=None)

    Slots = Trace

    def init_leaf(self, param: jax.Array) -> Trace:
        return Trace(jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: Trace, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Trace]:
        v = self.decay * slots.trace + g
        return (g + self.decay * v if self.nesterov else v), Trace(v)


class Ema(NamedTuple):
    """An exponential moving average of past updates."""

    ema: Signed


class ema(Leafwise):
    """The exponential moving average of past updates.

        v <- decay * v + (1 - decay) * g        u = v / (1 - decay^t)  with debias,  else  v

    `trace` is the sum without the factor 1 - decay. With `nesterov` it looks ahead by one more step
    with the same gradient: u = decay * v + (1 - decay) * g, with debias v / (1 - decay^(t+1)) and
    g / (1 - decay^t) in the place of v and g.

    Args:
        decay: the share of the average that is kept, a number or a schedule.
        debias: divide by the sum of the weights of the gradients so far (exact for a constant
            decay).
        accumulator_dtype: the dtype in which v is stored; None is float32, or wider for wider
            params.
        nesterov: look ahead.
    """

    elementwise = True

    decay: Any
    debias: bool = static(default=True)
    accumulator_dtype: Any = storage_dtype("ema", default=None)
    nesterov: bool = static(default=False, kw_only=True)

    Slots = Ema

    def init_leaf(self, param: jax.Array) -> Ema:
        return Ema(jnp.zeros_like(param))

    def update_leaf(
        self, g: jax.Array, slots: Ema, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Ema]:
        v = average(self.decay, slots.ema, g)
        if self.nesterov:
            biased = average(self.decay, v, g)
            return (look_ahead(v, g, self.decay, t) if self.debias else biased), Ema(v)
        return (debias(v, self.decay, t) if self.debias else v), Ema(v)
