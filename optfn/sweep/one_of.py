"""Conditional spaces: a choice between functions, each with a space of its own."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optfn.core.signatures import names_taken
from optfn.sweep.space import Choice, Distribution, Fixed, are_equal, as_space

Space = Mapping[str, Distribution]


@dataclass(frozen=True, init=False, eq=False)
class OneOf(Choice):
    """A choice between functions, each with its own space: optimizers, schedules, wrappers.

        optimizer = sweep.OneOf("optimizer", {
            "sgd": (optfn.sgd, {"learning_rate": rates, "momentum": [None, 0.9]}),
            "adam": (optfn.adam, {"learning_rate": rates, "b1": [0.8, 0.9]}),
        })
        result = sweep.run(task, optimizer, {}, trials=64, steps=1000)

    A trial has the name of its option, and the hyperparameters of that option alone. A `OneOf`
    stands in the place of the optimizer, or in a space in the place of an argument, which is then
    what the option's function returns; so they nest:

        {"learning_rate": sweep.OneOf("schedule", {"constant": (schedules.constant, {...}), ...})}

    Args:
        name: the name under which a trial has its option.
        options: by name a pair of a function and its space, or another `OneOf`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there are no options.
    """

    name: str
    branches: Mapping[str, tuple[Callable[..., Any], Space]]

    def __init__(self, name: str, options: Mapping[str, Any]):
        if not isinstance(name, str):
            raise TypeError(f"OneOf(name=...) must be a string, found {name!r}.")
        if not isinstance(options, Mapping):
            raise TypeError(f"OneOf(options=...) must be a dict, found {type(options).__name__}.")
        super().__init__(*options)
        branches = {option: _branch(name, option, value) for option, value in options.items()}
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "branches", branches)

    def __repr__(self) -> str:
        return f"OneOf({self.name!r}, {', '.join(self.options)})"

    def __call__(self, **values: Any) -> Any:
        """What the function of the option returns for the hyperparameters of a trial."""
        make, space = self.branches[values[self.name]]
        return call(make, space, values)


def _branch(name: str, option: Any, value: Any) -> tuple[Callable[..., Any], Space]:
    if not isinstance(option, str):
        raise TypeError(f"OneOf({name!r}): the names of options are strings, found {option!r}.")
    if isinstance(value, OneOf):
        return value, {value.name: value}
    if not (isinstance(value, tuple) and len(value) == 2 and callable(value[0])):
        raise TypeError(
            f"OneOf({name!r}): the option {option!r} must be a pair of a function and its space, "
            f"or a OneOf, found {value!r:.60}."
        )
    return value[0], as_space(value[1])


def call(
    make: Callable[..., Any], space: Space, values: Mapping[str, Any], others: Collection[str] = ()
) -> Any:
    """Calls a function with the hyperparameters that it takes.

    Args:
        make: takes those that it names, and with `**` those of its space.
        space: the space of the function.
        values: the values of a trial.
        others: the names that a function with `**` leaves to others.
    """
    choices = {a: d for a, d in space.items() if isinstance(d, OneOf) and d is not make}
    values = {**values, **{argument: choice(**values) for argument, choice in choices.items()}}
    if isinstance(make, OneOf):
        return make(**values)
    taken, more = names_taken(make)
    own = {*taken, *(set(space) - set(others) if more else ())}
    return make(**{name: value for name, value in values.items() if name in own})


def point_of(space: Space, value_of: Callable[[str, Distribution, str], Any]) -> dict[str, Any]:
    """A value for each name that applies.

    Args:
        space: the space.
        value_of: a function of a name, its distribution, and its key, see `coordinates`.
    """
    return dict(_values(space, value_of, ""))


def _values(
    space: Space, value_of: Callable[[str, Distribution, str], Any], inside: str
) -> Iterator[tuple[str, Any]]:
    for argument, distribution in space.items():
        name = _name(argument, distribution)
        value = value_of(name, distribution, inside + name)
        yield name, value
        if isinstance(distribution, OneOf):
            _, further = distribution.branches[value]
            yield from _values(further, value_of, f"{inside}{name}.{value}.")


def applying(space: Space, point: Mapping[str, Any]) -> dict[str, Distribution]:
    """The distribution of each name of a point."""
    found = {}

    def note(name: str, distribution: Distribution, key: str) -> Any:
        found[name] = distribution
        return point[name] if isinstance(distribution, OneOf) else None

    point_of(space, note)
    return found


def shared(space: Space, points: Iterable[Mapping[str, Any]]) -> dict[str, Distribution]:
    """The distributions of the names that all the points have, with one range for all."""
    first, *others = [applying(space, point) for point in points] or [dict(space)]
    return {
        name: d
        for name, d in first.items()
        if all(are_equal(d, other.get(name)) for other in others)
    }


def coordinates(space: Space, inside: str = "") -> dict[str, Distribution]:
    """Every distribution, of all options, by keys such as "optimizer.adam.learning_rate"."""
    found = {}
    for argument, distribution in space.items():
        key = inside + _name(argument, distribution)
        found[key] = distribution
        if isinstance(distribution, OneOf):
            for option, (_, further) in distribution.branches.items():
                found |= coordinates(further, f"{key}.{option}.")
    return found


def names(space: Space, *, searched: bool = False) -> tuple[str, ...]:
    """The names that a trial may have, or those whose values may differ."""
    found: dict[str, None] = {}
    for argument, distribution in space.items():
        if not (searched and isinstance(distribution, Fixed)):
            found[_name(argument, distribution)] = None
        if isinstance(distribution, OneOf):
            for _, further in distribution.branches.values():
                found |= dict.fromkeys(names(further, searched=searched))
    return tuple(found)


def check_names(
    make: Callable[..., Any], space: Space, others: Mapping[str, Collection[str]]
) -> None:
    """Raises if two hyperparameters of a trial have one name, or if nobody takes a name.

    Args:
        make: makes the optimizer.
        space: the space of the sweep.
        others: by a function of the task, the names it takes.
    """
    _check_unique(space)
    _check_taken(make, space, others)


def _check_unique(space: Space) -> None:
    for argument, distribution in space.items():
        name, others = (
            _name(argument, distribution),
            {a: d for a, d in space.items() if a != argument},
        )
        branches = distribution.branches.values() if isinstance(distribution, OneOf) else ()
        inner = [name, *(n for _, further in branches for n in names(further))]
        twice = [n for n in inner if n in names(others)] + [n for n in inner[1:] if n == name]
        if twice:
            raise ValueError(
                f"the space has two hyperparameters {twice[0]!r} that a trial would have at once; "
                "give them two names."
            )
        for _, further in branches:
            _check_unique(further)


def _check_taken(
    make: Callable[..., Any], space: Space, others: Mapping[str, Collection[str]]
) -> None:
    takers = [(_label(f), *names_taken(f)) for f in _functions(make, space)]  # or two "<lambda>"
    takers += [(f"the task's {label}", given, False) for label, given in others.items() if given]
    for argument, distribution in space.items():
        by_task = [label for label, given in others.items() if argument in given]
        if by_task and isinstance(distribution, OneOf):
            raise TypeError(
                f"the space's {argument!r} is a OneOf, but the task's {by_task[0]} takes it, "
                "which takes numbers: make it a list."
            )
        if distribution is make or any(more or argument in own for _, own, more in takers):
            continue
        told = [f"{label} takes {', '.join(own) or 'none'}" for label, own, _ in takers]
        raise TypeError(f"the space's {argument!r} is taken by nobody: {'; '.join(told)}.")
    for distribution in space.values():
        if isinstance(distribution, OneOf):
            for inner, further in distribution.branches.values():
                _check_taken(inner, further, others)


def _functions(make: Callable[..., Any], space: Space) -> Iterator[Callable[..., Any]]:
    """The functions that may get a name of the space."""
    choices = [make] if isinstance(make, OneOf) else []
    if not isinstance(make, OneOf):
        yield make
    choices += [d for d in space.values() if isinstance(d, OneOf) and d is not make]
    for choice in choices:
        for inner, further in choice.branches.values():
            yield from _functions(inner, further)


def _label(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _name(argument: str, distribution: Distribution) -> str:
    """The name under which a trial has the value."""
    return distribution.name if isinstance(distribution, OneOf) else argument
