"""Smaller steps when the loss stops improving."""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.data import check_within, static
from optfn.core.dtypes import cast, own_dtype
from optfn.core.numerics import tree_scale
from optfn.core.slots import scalar_slot
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree


class Plateau(NamedTuple):
    """The factor on the updates, and the counts that control it; scalars.

    Attributes:
        scale: the factor.
        best_value: the best mean so far; infinite before the first.
        plateau_count: means in a row without improvement.
        cooldown_count: means still to ignore after the last reduction.
        avg_count: values in the current mean.
        avg_value: the current mean.
    """

    scale: jax.Array
    best_value: jax.Array
    plateau_count: jax.Array
    cooldown_count: jax.Array
    avg_count: jax.Array
    avg_value: jax.Array


class reduce_on_plateau(Transform):
    """Multiplies the updates by a factor that falls when the value stops improving.

        improved:  value < best - (rtol * |best| + atol)        > best + (...) for "max"
        after `patience` values in a row that did not:  scale <- max(factor * scale, min_scale)

    The last stage of an optimizer, after the learning rate. After a reduction it waits `cooldown`
    values before it counts again. `update` takes the keyword argument `value`: a loss or a metric,
    of the step or of the last evaluation. NaN is no improvement. The factor is
    `state.slots["reduce_on_plateau"].scale`.

    With `rtol=0` it is the mode "abs" of torch's `ReduceLROnPlateau`, with `atol=0` the mode "rel",
    except that a patience of n here is n - 1 there. In torch and optax `rtol` has the wrong sign
    for a negative value, so that a negative loss always improves.

    Args:
        factor: what the scale is multiplied by, a number or a schedule; so are all others but
            `direction`.
        patience: values in a row without improvement, from 1 on.
        rtol: the least improvement, as a share of the best value.
        atol: the least improvement beyond that share.
        cooldown: values to ignore after a reduction.
        accumulation_size: values averaged into one, from 1 on: 1 for losses of a validation set,
            more for losses of batches.
        min_scale: the least scale.
        direction: "min" for a loss, "max" for an accuracy.

    Raises:
        ValueError: a count or a tolerance is too small; or `factor`, `rtol` or `min_scale` is not
            from 0 to 1.
    """

    elementwise = True
    extra_args: ClassVar = {"value": "scalar"}

    factor: Any = 0.1
    patience: Any = 10
    rtol: Any = 1e-4
    atol: Any = 0.0
    cooldown: Any = 0
    accumulation_size: Any = 1
    min_scale: Any = 0.0
    direction: str = static(default="min", choices=("min", "max"))

    def __post_init__(self) -> None:
        super().__post_init__()
        shares, counts, sizes = (0, 1), (1, math.inf), (0, math.inf)
        limits = {"factor": shares, "rtol": shares, "min_scale": shares, "atol": sizes}
        limits |= {"patience": counts, "accumulation_size": counts, "cooldown": sizes}
        for name, limit in limits.items():
            check_within(getattr(self, name), limit, f"reduce_on_plateau({name}=...)")

    def init_slots(self, params: PyTree) -> Plateau:
        starts = (1, self._sign * jnp.inf, 0, 0, 0, 0)
        return Plateau(*(scalar_slot(start, params) for start in starts))

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {name: getattr(slots, name) for name in ("scale", "best_value", "plateau_count")}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        value = cast(ctx.extra_args["value"], own_dtype(updates))
        count = slots.avg_count + 1
        mean = (slots.avg_count * slots.avg_value + value) / count
        full = count >= self.accumulation_size
        after = self._after(mean, slots)
        taken = slots._replace(avg_count=count, avg_value=mean)
        slots = jax.tree.map(lambda new, old: jnp.where(full, new, old), after, taken)
        return tree_scale(slots.scale, updates), slots

    def _after(self, value: jax.Array, slots: Plateau) -> Plateau:
        """The slots after one more value."""
        # Downhill in both directions; best - rtol * |best| in the rounding of both peers.
        signed, best = self._sign * value, self._sign * slots.best_value
        share = jnp.where(best < 0, 1 + self.rtol, 1 - self.rtol)
        limit = jnp.where(jnp.isinf(best), best, share * best - self.atol)
        improved = signed < limit

        cooling = slots.cooldown_count > 0
        bad = jnp.where(improved | cooling, 0, slots.plateau_count + 1)
        reduced = (bad > 0) & (bad >= self.patience)
        lower = jnp.maximum(self.factor * slots.scale, self.min_scale)
        rest = jnp.maximum(slots.cooldown_count - 1, 0)
        nothing = jnp.zeros_like(value)
        return Plateau(
            scale=jnp.where(reduced, jnp.minimum(lower, slots.scale), slots.scale),
            best_value=jnp.where(improved, value, slots.best_value),
            plateau_count=jnp.where(reduced, 0, bad),
            cooldown_count=jnp.where(reduced, self.cooldown, rest),
            avg_count=nothing,
            avg_value=nothing,
        )

    @property
    def _sign(self) -> int:
        return 1 if self.direction == "min" else -1
