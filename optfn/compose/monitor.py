"""A wrapper that measures the updates of an optimizer without changing them."""

from collections.abc import Mapping
from functools import reduce
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optfn.compose.chain import chain
from optfn.core.data import child, static
from optfn.core.hyperparameters import hyperparameters_at, tags
from optfn.core.inputs import is_inexact
from optfn.core.mapped import everywhere
from optfn.core.numerics import global_norm, ratio
from optfn.core.slots import scalar_slot, zero_slot
from optfn.core.state import Context, count_up
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree, describe, is_leaf
from optfn.transforms.clip import (
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    clip_by_norm,
)

NORMS = ("grad_norm", "update_norm", "param_norm", "update_ratio")
CLIPS = (adaptive_grad_clip, clip, clip_by_block_rms, clip_by_global_norm, clip_by_norm)


class Monitored(NamedTuple):
    """The metrics of the last update, and the inner slots.

    Attributes:
        values: scalars by name; the names are fixed at `init`.
        inner: the slots of the inner transform.
    """

    values: dict[str, jax.Array]
    inner: dict[str, Any]


def _not_of_metrics(value: optax.GradientTransformation, where: str = "monitor") -> Transform:
    """An inner transform, but not optax's only argument."""
    if isinstance(value, Mapping):
        raise TypeError(
            f"{where} must be an optfn transform, found a dict: write optfn.monitor(optfn.chain(), "
            "metrics), with functions of gradients, updates and params, or optax.monitor(measures) "
            "as a stage."
        )
    return as_transform(value, where)


class monitor(Transform):
    """Measures each update of a transform without changing it by a bit.

        tx = monitor(chain(clip_by_global_norm(1.0), adamw(1e-3)))
        ...
        optfn.metrics(tx, state)["update_ratio"]

    Its metrics of the last update; norms are over all leaves together, in any range:

        grad_norm       the norm of the incoming updates
        update_norm     the norm of the outgoing updates
        param_norm      the norm of the params before the update
        update_ratio    update_norm / param_norm, 0 where the params are zero
        <stage>.factor  for each clip in the chain: the norm after it / the norm before it
        <stage>.hits    the number of updates with a finite norm that this clip changed
        <stage>.learning_rate    every hyperparameter of that name inside, at the step used; of
                                 numbers by path the default

    and those in the argument `metrics`. Wrappers that skip, such as `skip_nonfinite`, count the
    skipped steps themselves, and `optfn.metrics` reports these counts too.

    It measures at its position. A whole optimizer is measured as a whole; inside `accumulate` or
    `skip_nonfinite` only the steps taken are measured. The clips must be stages of the chain it
    wraps, not of a chain inside another wrapper or with a name. For norms by group put a monitor
    around each transform of a `partition`. Around no transform, `monitor(chain())` is a stage that
    measures at its position in a chain; several in one chain need names, as all stateful stages do:

        chain(scale_by_adam(), monitor(chain()).named("direction"), scale_by_learning_rate(1e-3))

    Its slots are a `Monitored`, which holds the inner slots under their own names. So a run can
    continue from a state that was saved without a monitor:

        new = tx.init(params).slots["monitor"]._replace(inner=old.slots)
        state = State(old.step, {"monitor": new})

    Each of the three norms reads the arrays once, and each clip needs two more norms. No derivative
    flows through the metrics.

    Args:
        transform: an optimizer or a stage.
        metrics: a dict from names to functions `(grads, updates, params) -> scalar`; gradients and
            updates are in the compute dtype, params in their own, and None where `update` is given
            none. The functions are part of the program: new ones compile again.
        norms: whether to measure norms and clips; if False, no array is read for them, and `update`
            may go without the params.

    Raises:
        TypeError: a metric is not a function, or does not return a real scalar.
        ValueError: a metric's name is taken or has a '.' or '/'; `update` was not given the params,
            which norms need; or the state was made with other metrics.
    """

    splittable = True

    transform: Transform = child(converter=_not_of_metrics)
    metrics: Any = static(default=())
    norms: bool = static(default=True, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", _checked(self.metrics))
        super().__post_init__()

    @property
    def needs_params(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.norms

    def init_slots(self, params: PyTree) -> Monitored:
        inner = self.transform.init_named(params)
        names = [*self._learning_rates(inner, 0), *(name for name, _ in self.metrics)]
        clips = [name for name, stage in self._stages() if self._watches(stage)]
        names += [*(NORMS if self.norms else ()), *(f"{name}.factor" for name in clips)]
        values = {name: scalar_slot(0, params) for name in names}
        for name in clips:
            values[f"{name}.hits"] = zero_slot(jnp.int32, params)
        return Monitored(values, inner)

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return slots.values

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        values = self._learning_rates(slots.inner, ctx.step)
        steps, inner = updates, {}
        for watched, run in groupby(self._stages(), lambda item: self._watches(item[1])):
            if not watched:
                stages = chain(*(stage for _, stage in run))
                steps, new = stages.apply_named(steps, slots.inner, ctx)
                inner |= new
                continue
            for name, stage in run:
                before, (steps, _) = steps, stage.apply_named(steps, {}, ctx)
                values |= _clipping(name, before, steps, slots.values)
        if self.norms:
            norms = [_norm(tree) for tree in (updates, steps, ctx.params)]
            values |= zip(NORMS, (*norms, ratio(*norms[1:])), strict=True)
        for name, function in self.metrics:
            values[name] = _scalar(name, function(updates, steps, ctx.params))
        return steps, Monitored(_in_form_of(slots.values, values, self.name), inner)

    def _learning_rates(self, slots: Any, step: Any) -> dict[str, Any]:
        numbers = hyperparameters_at(self.transform, slots, step).items()
        # Of numbers by path the default, by the name that it has without groups.
        plain = ((name.removesuffix(".default"), x) for name, x in numbers)
        return {name: x for name, x in plain if f".{name}".endswith(".learning_rate")}

    def _stages(self) -> list[tuple[str, Transform]]:
        """The stages of the chain, or the single stage, with unique names."""
        stages = chain(self.transform).stages
        return [(f"{x.name}{tag}", x) for x, tag in zip(stages, tags(stages), strict=True)]

    def _watches(self, stage: Transform) -> bool:
        return self.norms and isinstance(stage, CLIPS)


def _norm(tree: PyTree) -> jax.Array:
    return global_norm([x for x in jax.tree.leaves(tree) if is_inexact(x)])


def _clipping(name: str, before: PyTree, after: PyTree, old: Mapping[str, Any]) -> dict[str, Any]:
    # The norms alone may differ by rounding where nothing was clipped.
    differ = jax.tree.leaves(jax.tree.map(lambda x, y: ~everywhere(x == y), before, after))
    changed = reduce(jnp.logical_or, differ, jnp.asarray(False))
    norm, hits = _norm(before), old[f"{name}.hits"]
    return {
        f"{name}.factor": jnp.where(changed, ratio(_norm(after), norm), 1),
        f"{name}.hits": jnp.where(changed & jnp.isfinite(norm), count_up(hits), hits),
    }


def _in_form_of(old: Mapping[str, Any], new: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The new values in the dtypes of the old ones, and in fresh buffers."""
    if old.keys() != new.keys():
        raise ValueError(
            f"{name}: the state has the metrics {sorted(old)}, this monitor's are {sorted(new)}: "
            "was the state made by another?"
        )
    return {k: jnp.array(lax.stop_gradient(new[k]), x.dtype) for k, x in old.items()}


def _scalar(name: str, value: Any) -> jax.Array:
    where = f"monitor(metrics=...): '{name}'"
    if not is_leaf(value):
        raise TypeError(f"{where} must give a scalar, found {describe(value)}.")
    value = jnp.asarray(value)
    if value.shape or jnp.iscomplexobj(value):
        raise TypeError(f"{where} must give a real scalar, found {value.dtype}{list(value.shape)}.")
    return value


def _checked(metrics: Any) -> tuple[Any, ...]:
    """The metrics as pairs of name and function, in the order of their names."""
    try:
        metrics = dict(metrics)
    except (TypeError, ValueError):
        raise TypeError(
            f"monitor(metrics=...) must be a dict {{name: function}}, found {metrics!r}."
        ) from None
    for name, function in metrics.items():
        if not isinstance(name, str) or not name or "." in name or "/" in name or name in NORMS:
            raise ValueError(
                "monitor(metrics=...): a name must be a string without '.' and '/', and none of "
                f"{', '.join(NORMS)}; found {name!r}."
            )
        if not callable(function):
            raise TypeError(
                f"monitor(metrics=...): '{name}' must be a function (grads, updates, params) -> "
                f"scalar, found {function!r}."
            )
    return tuple(sorted(metrics.items()))
