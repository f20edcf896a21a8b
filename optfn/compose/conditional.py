"""Wrappers that run a transform at some steps only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optfn.compose.interop import KNOWN_KINDS
from optfn.core.control_flow import cond
from optfn.core.data import child, static
from optfn.core.signatures import needed_by
from optfn.core.slots import no_updates, zero_slot
from optfn.core.state import Context, State
from optfn.core.transform import ExtraKind, Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates, either, partly


class _Conditional(Transform):
    """A transform that runs only at the steps where a function of the step is True."""

    transform: Transform = child(also_called="inner", converter=as_transform)
    should_transform_fn: Callable[..., Any] = static()
    forward_extra_args: Any = static(default=())

    def __post_init__(self) -> None:
        where = type(self).__name__
        super().__post_init__()
        if not callable(self.should_transform_fn):
            raise TypeError(
                f"{where}(should_transform_fn=...) must be a function of the step, found "
                f"{self.should_transform_fn!r}."
            )
        names = self.forward_extra_args
        if isinstance(names, str) or not isinstance(names, (bool, tuple)):
            raise TypeError(
                f"{where}(forward_extra_args=...) must be a bool or a tuple of names, found "
                f"{names!r}."
            )
        object.__setattr__(self, "forward_extra_args", names or ())
        self.declared_extra_args()

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        declared = super().declared_extra_args()
        if self.forward_extra_args is True:
            for name in needed_by(self.should_transform_fn, behind=1):
                declared.setdefault(name, KNOWN_KINDS.get(name, "scalar"))
            return declared
        for name in self.forward_extra_args:
            if name in declared:
                continue
            if name not in KNOWN_KINDS:
                raise ValueError(
                    f"{self.name}(forward_extra_args=...): the kind of {name!r} is not known; the "
                    f"transform must declare it, or it must be one of {', '.join(KNOWN_KINDS)}."
                )
            declared[name] = KNOWN_KINDS[name]
        return declared

    def init_slots(self, params: PyTree) -> State:
        step = zero_slot(jnp.int32, params)
        return State(step, self.transform.init_named(params))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        def run():
            own = ctx._replace(step=slots.step)
            new_updates, new = self.transform.apply_named(updates, slots.slots, own)
            return new_updates, State(own.next_step, new)

        return cond(self._runs(ctx), run, lambda: (self._elsewhere(updates), slots))

    def _runs(self, ctx: Context) -> jax.Array:
        names = self.forward_extra_args
        names = self.declared_extra_args() if names is True else names
        runs = jnp.asarray(
            self.should_transform_fn(ctx.step, **{k: ctx.extra_args[k] for k in names})
        )
        if runs.shape or runs.dtype != bool:
            raise TypeError(
                f"{self.name}(should_transform_fn=...) must give one bool, found "
                f"{runs.dtype}{list(runs.shape)}."
            )
        return runs

    def _elsewhere(self, updates: PyTree) -> PyTree:
        raise NotImplementedError


class conditionally_transform(_Conditional):
    """Runs a stage at some steps only and passes the updates on unchanged at the others.

        chain(conditionally_transform(clip(1.0), lambda step: step < 1000), adam(1e-3))

    If the transform applies a learning rate, it is refused as a whole optimizer, because at the
    other steps raw gradients would become updates, as they do in optax; use `conditionally_mask`.
    The stage's state and step do not change where it does not run.

    Args:
        transform: the stage.
        should_transform_fn: a function `step -> bool`; the step is int32, 0 at the first update.
        forward_extra_args: the names of the extra arguments of `update` to pass to the function as
            keyword arguments, as in `("value",)`; True for all that the transform declares, and
            those that the function names, which are scalars if their kind is not known.

    Raises:
        TypeError: the function does not return one bool.
        ValueError: the kind of an extra argument is not known.
    """

    splittable = True

    def updates_kind(self, incoming: Updates) -> Updates:
        inner = super().updates_kind(incoming)
        kind = partly(inner, incoming)
        return kind if kind & (Updates.STEP | Updates.LAST) else either([inner, incoming])

    def _elsewhere(self, updates: PyTree) -> PyTree:
        return updates


class conditionally_mask(_Conditional):
    """Runs a transform at some steps only and gives zero updates at the others.

    An inner optimizer and its schedules count only the steps at which it runs.

    Args:
        transform: the transform, a stage or a whole optimizer.
        should_transform_fn: as in `conditionally_transform`.
        forward_extra_args: as in `conditionally_transform`.

    Raises:
        TypeError: as in `conditionally_transform`.
        ValueError: as in `conditionally_transform`.
    """

    splittable = True

    def _elsewhere(self, updates: PyTree) -> PyTree:
        return no_updates(updates)
