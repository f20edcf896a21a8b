"""Numbers that differ from leaf to leaf, chosen by the leaf's path."""

from collections.abc import Mapping
from typing import Any

from optfn.core.data import Data, per_leaf, show
from optfn.core.paths import by_path
from optfn.core.schedule import number_or_schedule
from optfn.core.tree import PerLeaf

REST = "**"  # the label of the leaves that no pattern matches


class times(Data):
    """A multiple of the default, as a number in a `by_path` of numbers or in `param_groups`.

        adamw(by_path({"head/**": times(10)}, default=schedules.cosine(1e-3, 1000)))

    It is times what the default is at the step, and stays so if that is replaced.

    Args:
        factor: a number or a schedule.
    """

    factor: Any

    def _as_number(self, value: Any, where: Any) -> Any:
        return number_or_schedule(value, where)


class NumberByPath(Data):
    """What a `by_path` of numbers is in an optimizer: every number in it is a leaf.

    Attributes:
        default: of the leaves that no pattern matches; None if each of them must match one.
        numbers: by pattern a number, a schedule, or a multiple of the default.
        labels: per leaf, the pattern that decides.
    """

    default: Any
    numbers: Mapping[str, Any]
    labels: Any = per_leaf()

    def __post_init__(self) -> None:
        """`of` checks and converts."""

    @classmethod
    def of(cls, given: by_path, where: Any) -> "NumberByPath":
        """From what users give; `where` names the argument in errors."""
        where, default = str(where), given.default
        if default is not None:
            default = number_or_schedule(default, where)
        numbers = {}
        for pattern, value in given.patterns:
            place = f"{where} at {pattern!r}"
            if pattern == "default" and default is not None:
                raise ValueError(
                    f"{place}: among hyperparameters this is the name of the default; write "
                    "'**/default' for a leaf of that name."
                )
            if not isinstance(value, times):
                value = number_or_schedule(value, place)
            elif default is None:
                raise TypeError(f"{place} is {value!r}, and by_path has no default to multiply.")
            numbers[pattern] = value
        labels = by_path({x: x for x in numbers}, None if default is None else REST)
        return cls(default, numbers, PerLeaf.of(labels, where))

    @property
    def patterns(self) -> tuple[tuple[str, Any], ...]:
        """The patterns with their numbers, in the order in which they decide."""
        return tuple((pattern, self.numbers[pattern]) for pattern, _ in self._paths.patterns)

    def at(self, label: str) -> Any:
        """The number of the leaves with this label; its schedules must be resolved."""
        number = self.numbers.get(label, self.default)
        return number.factor * self.default if isinstance(number, times) else number

    def at_path(self, path: str) -> Any:
        """The number of the leaf at this path, likewise."""
        return self.at(self._paths(path))

    def each(self) -> list[Any]:
        """Every number that a leaf may have, but for the multiples of what is not known yet."""
        found = [] if self.default is None else [self.default]
        for label, number in self.numbers.items():
            if not isinstance(number, times):
                found.append(number)
            elif isinstance(number.factor, float) and isinstance(self.default, float):
                found.append(self.at(label))
        return found

    @property
    def _paths(self) -> by_path:
        return self.labels.function

    def __repr__(self) -> str:
        default = "" if self.default is None else f", default={show(self.default)}"
        return f"by_path({show(dict(self.patterns))}{default})"
