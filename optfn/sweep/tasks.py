"""Tasks that differ in shape from trial to trial: a width, a batch size, an activation."""

from collections.abc import Callable, Mapping
from typing import Any

from optfn.core.signatures import names_taken
from optfn.sweep.one_of import Space, names, point_of
from optfn.sweep.task import Training

TRIED = (0.5, 0.0, 0.25, 0.75, 0.99)  # places in a space


class Tasks:
    """The tasks of a function, one for each combination of the values that it takes.

    Args:
        make: a function of hyperparameters that returns a task.
        space: the space of the sweep.

    Attributes:
        names: the names of the space that the function takes.

    Raises:
        TypeError: the function needs what the space does not have.
    """

    def __init__(self, make: Callable[..., Training], space: Space):
        self.make = make
        taken, _ = names_taken(make)
        missing = [name for name, needed in taken.items() if needed and name not in names(space)]
        if missing:
            raise TypeError(
                "sweep.run(task=...) must be a Task or a TrainingLoop, found function "
                f"{getattr(make, '__qualname__', make)!s}, which needs {missing[0]!r}: a function "
                "that makes a task takes names of the space."
            )
        self.names = tuple(name for name in taken if name in names(space))
        self.made: list[tuple[dict[str, Any], Training]] = []

    def __call__(self, point: Mapping[str, Any]) -> Training:
        """The task of a point."""
        values = {name: point[name] for name in self.names if name in point}
        for others, task in self.made:
            if others.keys() == values.keys() and all(map(_same, others.values(), values.values())):
                return task
        task = self.make(**values)
        if not isinstance(task, Training):
            raise TypeError(
                "sweep.run(task=...) is a function that must return a Task or a TrainingLoop, "
                f"found {type(task).__name__}."
            )
        if self.made:
            first = self.made[0][1]
            if (task.objective, task.sign) != (first.objective, first.sign):
                raise ValueError(
                    "sweep.run(task=...) must make tasks that all have the same score, found "
                    f"{first.objective!r} and {task.objective!r}."
                )
        self.made.append((values, task))
        return task

    def example(self, space: Space) -> Training:
        """One of the tasks, for what all have in common."""
        errors = []
        for u in TRIED:
            try:
                return self(
                    point_of(space, lambda name, distribution, key, u=u: distribution.at(u))
                )
            except Exception as error:  # such a point will be a failed trial
                errors.append(error)
        raise errors[0]


def _same(value: Any, other: Any) -> bool:
    plain = isinstance(value, (bool, int, float, str)) and type(value) is type(other)
    return value is other or (plain and value == other)
