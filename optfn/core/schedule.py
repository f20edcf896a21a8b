"""Schedules: pytrees that map a step count to a value."""

from typing import Any

import jax
import jax.numpy as jnp

from optfn.core.data import Data, as_number, child, show
from optfn.core.given_function import as_pytree, is_function, show_function
from optfn.core.paths import by_path


class Schedule(Data):
    """A function of the step count whose arguments are pytree leaves.

    To write one, list its arguments as fields and implement `at`:

        class halving(optfn.Schedule):
            init_value: float
            every: float

            def at(self, step):
                return self.init_value * 0.5 ** jnp.floor(step / self.every)

    `at` gets the step and the fields as float arrays. It must be defined for all of their values:
    `jnp.where` instead of `if`, and no division by an argument that may be zero.
    """

    def __call__(self, step: Any) -> jax.Array:
        """The value at `step`, 0 at the first update; any shape, and fractions are allowed."""
        dtype = jnp.result_type(float)
        step = jnp.asarray(step, dtype)
        return jnp.asarray(self._cast(dtype).at(step), dtype)

    def at(self, step: jax.Array) -> Any:
        """The value at a float step, of the shape of `step`."""
        raise NotImplementedError(f"{type(self).__name__} must define at(step).")

    def _cast(self, dtype: Any) -> "Schedule":
        changes = {
            name: jax.tree.map(lambda x: jnp.asarray(x, dtype), value)
            for name, value in self.fields("number", "numbers")
        }
        return self.rebuilt(**changes)

    def _as_child(self, value: Any, where: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(
                as_schedule(v, f"{where.where}, element {i},") for i, v in enumerate(value)
            )
        return as_schedule(value, where)

    def _repr_name(self) -> str:
        module = type(self).__module__
        return (
            f"schedules.{type(self).__name__}"
            if module.startswith("optfn.")
            else super()._repr_name()
        )


class custom(Schedule):
    """Any function `step -> value` as a schedule: an optax schedule, a lambda.

    Numbers inside the function are not leaves, and a new closure is a new treedef, which compiles
    again. In a `jax.tree_util.Partial`, an Equinox module or another callable pytree the arrays are
    leaves. The function gets the step as an int32 array.
    """

    function: Any = child()

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", as_pytree(self.function, "custom(function=...)"))

    def __call__(self, step: Any) -> jax.Array:
        step = jnp.asarray(step)
        if jnp.issubdtype(step.dtype, jnp.inexact):  # from join or per_epoch
            step = step.astype(jnp.int32)
        return jnp.asarray(self.function(step))

    def __repr__(self) -> str:
        return f"schedules.custom({show_function(self.function)})"


def as_schedule(value: Any, where: Any) -> Schedule:
    """`value` itself if it is a schedule; a callable becomes `custom`."""
    if isinstance(value, Schedule):
        return value
    if is_function(value, where):
        return custom(value)
    hint = f"; use schedules.constant({value})" if isinstance(value, (int, float)) else ""
    raise TypeError(
        f"{where} must be a schedule, found {type(value).__name__}: {show(value)}{hint}."
    )


def number_or_schedule(value: Any, where: Any) -> Any:
    """What users give for a hyperparameter: a number, or a schedule, whose numbers are leaves."""
    if isinstance(value, by_path):
        raise TypeError(
            f"{where} is one number for all leaves, found {value!r}: give leaves an optimizer of "
            "their own by partition, or let scale(by_path(...)) follow the optimizer."
        )
    return as_schedule(value, where) if callable(value) else as_number(value, where)


def is_schedule(value: Any) -> bool:
    return isinstance(value, Schedule)


def has_schedule(value: Any) -> bool:
    """Whether a number, or one of those in it, is a schedule."""
    if isinstance(value, float):
        return False
    return any(map(is_schedule, jax.tree.leaves(value, is_leaf=is_schedule)))
