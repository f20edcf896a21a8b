"""What passes between an optimizer and its caller, and between a stage and the optimizer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import jax
import numpy as np
from jax import lax

from optfn.core.optax_fields import OF_ANY, place_of, same_as
from optfn.core.tree import PyTree

ONE_STEP, MAX_STEP = np.int32(1), np.int32(2**31 - 1)


def count_up(count: jax.Array) -> jax.Array:
    """An int32 count plus one; it saturates at 2**31 - 1."""
    return lax.select(lax.lt(count, MAX_STEP), lax.add(count, ONE_STEP), MAX_STEP)


class OtherNameError(AttributeError, KeyError):
    """For a name of optax's; optax raises a KeyError where it cannot tell what is meant."""


class _Fields(NamedTuple):
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    slots: dict[str, Any]


class _FieldNames(tuple):
    """The names of the fields; a name that optax has for one of the slots counts as one too."""

    state: "State"

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name) or same_as(str(name), self.state):
            return True
        return place_of(str(name), self.state.slots) is not None


class _NamesOfFields:
    """`_fields` of a NamedTuple, which on an instance knows the slots."""

    def __get__(self, state: "State | None", owner: type[Any]) -> tuple[str, ...]:
        if state is None:
            return _Fields._fields
        names = _FieldNames(_Fields._fields)
        names.state = state
        return names


class State(_Fields):
    """The state of an optimizer: what the next update needs.

    `optax.tree.get(state, name)` finds what it finds in optax's state, by `count` and the names of
    the slots, or by optax's name of the same; what optax's state has and ours has not raises, and
    says where to look. The slots of stages, as `state.slots["scale_by_adam"].mu`, are attributes
    too where one stage alone has such a slot: `state.mu`.

    Attributes:
        count: int32 scalar, the number of updates made; it saturates at 2**31 - 1. Also `step`,
            since it is the step that the next update makes, from 0.
        slots: the state of every stateful stage, by stage name.
    """

    __slots__ = ()

    _fields = _NamesOfFields()  # pyright: ignore[reportAssignmentType]

    @property
    def step(self) -> jax.Array:
        return self.count

    def _replace(self, **changes: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        if "step" in changes:
            changes["count"] = changes.pop("step")
        return super()._replace(**changes)

    if not TYPE_CHECKING:  # type checkers would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            holders = [x for x in _stages(self.slots) if name in x._fields]
            if len(holders) == 1:
                return getattr(holders[0], name)
            if holders:
                raise AttributeError(
                    f"{len(holders)} stages have a slot '{name}': write state.slots[stage].{name}."
                )
            same = same_as(name, self)
            if len(same) == 1:
                return same[0]
            if same:
                raise OtherNameError(
                    f"{len(same)} stages have what optax calls '{name}': read it from state.slots."
                )
            place = place_of(name, self.slots) or OF_ANY.get(name)
            if place is None:
                raise AttributeError(f"the state has no '{name}'.")
            raise OtherNameError(
                f"the state has no '{name}': what optax calls so is here '{place}'."
            )


def _stages(slots: Any) -> list[Any]:
    """The slots of the stages, those inside of wrappers not counted."""
    stages = slots.values() if isinstance(slots, dict) else ()
    return [stage for stage in stages if hasattr(stage, "_fields")]


StoredAs = Literal["dtypes", "formats"]


class Context(NamedTuple):
    """What a stage may read besides the updates and its own slots.

    Attributes:
        params: the params in their stored dtype, or None if the caller gave none.
        step: int32 scalar, 0 at the first update.
        extra_args: the caller's keyword arguments: those that a stage declares, checked, and any
            others as they came, for optax's transformations.
        stored_as: how a wrapper stores the slots, which stages see in float32: by rounding them to
            narrower `"dtypes"`, or in `"formats"` that are computed; None if as they see them.
    """

    params: PyTree | None
    step: jax.Array
    extra_args: Mapping[str, Any]
    stored_as: StoredAs | None = None

    @property
    def next_step(self) -> jax.Array:
        """int32 scalar, 1 at the first update; it saturates at 2**31 - 1."""
        return count_up(self.step)
