"""Wrappers that take gradients at one point and evaluate at another, an average of the iterates.

Three sequences are kept: z, which the inner optimizer moves; x, an average of z, at which
`evaluation_params` evaluates; and y between them, the params, at which gradients are taken.
"""

from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from optfn.core.data import child, static, storage_dtype
from optfn.core.dtypes import cast, compute_dtype, read
from optfn.core.each_leaf import each_leaf
from optfn.core.numerics import ratio
from optfn.core.slots import copy_params_wide, scalar_slot, zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates, check_side_known, check_steps, makes_steps


class Averages(NamedTuple):
    """The iterate of the inner optimizer, and the average of its iterates.

    Attributes:
        z: the params that the inner optimizer moves.
        x: their average, or None where it is not kept but computed from y and z.
        share: the share of x in y, at the last step.
        inner: the slots of the inner optimizer.
    """

    z: PyTree
    x: PyTree
    share: jax.Array
    inner: Any


class WeightedAverages(NamedTuple):
    """`Averages`, and the terms of the weights.

    Attributes:
        largest_rate: the largest learning rate so far.
        weight: the sum of the weights.
    """

    z: PyTree
    x: PyTree
    share: jax.Array
    inner: Any
    largest_rate: jax.Array
    weight: jax.Array


class schedule_free(Transform):
    """Schedule-Free: an average of the iterates replaces a falling learning rate schedule.

        z <- z + step                       the inner optimizer's, from the gradient at y
        w = t^r * max(learning_rate so far)^weight_lr_power
        x <- (1 - c) * x + c * z            c = w / sum of all w
        y <- b1 * x + (1 - b1) * z          the params

    Evaluate at x: `evaluation_params(tx, state, params)`. It is the last stage. The inner optimizer
    must have no momentum. A direction alone, such as `scale_by_rms(...)`, takes steps at
    `learning_rate`; a whole optimizer takes its own, and `learning_rate` only weights the average.

    Args:
        base_optimizer: the direction, or an optimizer.
        learning_rate: a number, or a warm-up schedule. The first weight uses its value at step 0.
        b1: the share of x, a number or a schedule; with 0 this is Polyak's averaging.
        weight_lr_power: a number or a schedule.
        state_dtype: the dtype in which z is stored; None is float32, or wider for wider params.
            What it cannot hold of a step is lost: bfloat16 is for steps above a 256th of an entry.
        r: a number or a schedule; above 0, early steps are forgotten.
        keep_average: whether to keep x in the state, as one more copy of the params. Otherwise x is
            computed from y and z, and b1 must not be 0. For params narrower than float32 x is
            always kept, since their rounding errors would add up in it.

    Raises:
        ValueError: it is unknown whether `base_optimizer` applies a learning rate, as it ends with
            a `scale` or an optax transformation without `scale_by_learning_rate` or `negate` after
            it; or `b1` is 0 and the average is not kept.

    Source: Defazio et al. 2024.
    """

    elementwise = True
    needs_params = True

    base_optimizer: Transform = child(converter=as_transform)
    learning_rate: Any
    b1: Any = 0.9
    weight_lr_power: Any = 2.0
    state_dtype: Any = storage_dtype("z", default=None)
    r: Any = field(default=0.0, kw_only=True)
    keep_average: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "schedule_free(base_optimizer=...)"
        check_side_known(self.base_optimizer, where, "applies a learning rate")
        _check_share(self.b1, self.keep_average, "schedule_free(b1=...)")

    def init_slots(self, params: PyTree) -> WeightedAverages:
        inner = self.base_optimizer.init_named(params)
        share, keep = self.resolve(0).b1, self.keep_average
        first = _first_averages(params, share, inner, keep=keep, dtype=self.state_dtype)
        return WeightedAverages(*first, scalar_slot(0, params), scalar_slot(0, params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        steps, inner = self.base_optimizer.apply_named(updates, slots.inner, ctx)
        largest = jnp.maximum(slots.largest_rate, self.learning_rate)
        weight = ctx.next_step.astype(largest.dtype) ** self.r * largest**self.weight_lr_power
        total = slots.weight + weight
        rate = 1.0 if makes_steps(self.base_optimizer) else -self.learning_rate
        if self.state_dtype is not None:
            steps, rate = _steps_of_stored(slots.z, steps, rate), 1.0
        steps, z, x = _averaged(ctx, steps, slots, rate, ratio(weight, total), self.b1)
        return steps, WeightedAverages(z, x, self.b1, inner, largest, total)

    def updates_kind(self, incoming: Updates) -> Updates:
        inside = super().updates_kind(incoming)
        return inside if makes_steps(self.base_optimizer) else inside.turned()

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        return _evaluated(params, slots)


class primal_averaging(Transform):
    """Generalized primal averaging (GPA): Schedule-Free with an average that forgets.

        z <- z + step                       the inner optimizer's, from the gradient at y
        x <- mu_x * x + (1 - mu_x) * z
        y <- mu_y * x + (1 - mu_y) * z      the params

    Evaluate at x: `evaluation_params(tx, state, params)`. Put it around any whole optimizer, with
    its schedule, as the last stage. In a single run it replaces DiLoCo's outer loop.

    Args:
        optimizer: the optimizer.
        mu_x: the decay of the average, a number or a schedule.
        mu_y: the share of x in y, a number or a schedule.
        keep_average: as in `schedule_free`.

    Source: Defazio et al. 2025.
    """

    elementwise = True
    needs_params = True

    optimizer: Transform = child(converter=as_transform)
    mu_x: Any
    mu_y: Any
    keep_average: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.optimizer, "primal_averaging(optimizer=...)")
        _check_share(self.mu_y, self.keep_average, "primal_averaging(mu_y=...)")

    def init_slots(self, params: PyTree) -> Averages:
        inner = self.optimizer.init_named(params)
        return _first_averages(params, self.resolve(0).mu_y, inner, keep=self.keep_average)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        steps, inner = self.optimizer.apply_named(updates, slots.inner, ctx)
        steps, z, x = _averaged(ctx, steps, slots, 1.0, 1 - self.mu_x, self.mu_y)
        return steps, Averages(z, x, self.mu_y, inner)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        return _evaluated(params, slots)


def _check_share(share: Any, keep_average: bool, where: str) -> None:
    if isinstance(share, float) and share == 0 and not keep_average:
        raise ValueError(
            f"{where} is 0: the average has no share in the params and must be kept, with "
            "keep_average=True."
        )


def _first_averages(
    params: PyTree, share: Any, inner: Any, *, keep: bool, dtype: DTypeLike | None = None
) -> Averages:
    def average(p):
        return copy_params_wide(p) if keep or p.dtype != compute_dtype(p.dtype) else None

    x = jax.tree.map(average, params)
    return Averages(copy_params_wide(params, dtype), x, scalar_slot(share, params), inner)


def _steps_of_stored(z: PyTree, steps: PyTree, rate: Any) -> PyTree:
    """The steps of z as it is stored: x, which is computed from y and z, drifts after any other."""
    (moved,) = each_leaf(_moved, steps, z, numbers=(rate,))
    moved = jax.tree.map(_rounded_like, moved, z)
    return each_leaf(_difference, moved, z)[0]


def _moved(step, z, rate):
    return (z + rate * step,)


def _difference(x, z):
    return (x - z,)


def _rounded_like(x: jax.Array, z: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return x
    # The compiler may drop a cast to a narrow dtype and back.
    to = jnp.finfo(z.dtype)
    return lax.reduce_precision(x, to.nexp, to.nmant)


def _averaged(
    ctx: Context, steps: PyTree, slots: Any, rate: Any, c: Any, share: Any
) -> tuple[PyTree, PyTree, PyTree]:
    """The updates of y, and the next z and x.

    If x is not kept, it is the solution of y = b * x + (1 - b) * z. Where b does not change, the
    next y needs no division by b: it is y + (1 - b) * (1 - c) * step + c * (z - y) with the next z.
    (With the old z, y and z would each need the other's old value, and one donated buffer a copy.)
    """
    change = ratio(share - slots.share, slots.share)
    pull = c - (1 - c) * change
    numbers = rate, c, share, (1 - c) * (1 - share + change), pull
    trees = steps, ctx.params, slots.z
    return each_leaf(_averaged_leaf, *trees, optional=(slots.x,), numbers=numbers)


def _averaged_leaf(step, y, z, x, rate, c, share, along, pull):
    step = rate * step
    z = z + step
    if x is None:
        return along * step + pull * (z - y), z, None
    x = x + c * (z - x)
    return z + share * (x - z) - y, z, x


def _evaluated(params: PyTree, slots: Any) -> PyTree:
    def evaluated(y, z, x):
        if x is None:
            z = read(z, compute_dtype(y.dtype))
            wide = cast(y, z.dtype)
            b = slots.share.astype(z.real.dtype)
            x = wide + (1 - ratio(jnp.ones_like(b), b)) * (z - wide)
        return cast(x, y.dtype)

    return jax.tree.map(evaluated, params, slots.z, slots.x)


class Drift(NamedTuple):
    """The average step, the look-ahead at the last step, and the inner slots."""

    drift: PyTree
    lookahead: jax.Array
    inner: Any


class ema_nesterov(Transform):
    """EMA-Nesterov: gradients are taken ahead, along the moving average of the last steps.

        q <- y + step                       the inner optimizer's, from the gradient at y
        m <- decay * m + (1 - decay) * (q - q_before)
        y <- q + lookahead * m              the params

    Evaluate at q: `evaluation_params(tx, state, params)`. Nesterov's look-ahead follows the last
    step and its noise; this one follows the average step. Put it around any whole optimizer, as the
    last stage.

    Args:
        optimizer: the optimizer.
        decay: the decay of the average, a number or a schedule.
        lookahead: the factor on m, a number or a schedule; 0 while the rate warms up or falls.

    Source: Yau et al. 2026.
    """

    elementwise = True

    optimizer: Transform = child(converter=as_transform)
    decay: Any
    lookahead: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.optimizer, "ema_nesterov(optimizer=...)")

    def init_slots(self, params: PyTree) -> Drift:
        inner = self.optimizer.init_named(params)
        return Drift(zeros_of(params), scalar_slot(0, params), inner)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        steps, inner = self.optimizer.apply_named(updates, slots.inner, ctx)
        numbers = self.decay, slots.lookahead, self.lookahead
        steps, drift = each_leaf(_ahead, steps, slots.drift, numbers=numbers)
        return steps, Drift(drift, self.lookahead, inner)

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        def behind(y, m):
            return cast(cast(y, m.dtype) - slots.lookahead.astype(m.real.dtype) * m, y.dtype)

        return jax.tree.map(behind, params, slots.drift)


def _ahead(step, drift, decay, old, new):
    m = decay * drift + (1 - decay) * (step + old * drift)
    return step + new * m, m
