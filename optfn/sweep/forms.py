"""Optimizers whose functions were made by the same code, as one structure."""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.transform import Transform
from optfn.sweep.candidate import Candidate
from optfn.sweep.held_numbers import taken_apart
from optfn.sweep.one_of import OneOf, Space, applying
from optfn.sweep.space import Choice, Fixed


class Forms:
    """The optimizers whose functions stand for those of all others that were made by the same code.

    A function that is made for each trial, such as `lambda step: rate / (1 + step)`, would be a
    structure for each. Here the first of a form gives the functions, and the numbers in them that
    follow the point, here `rate`, become leaves. Other numbers stay in the functions.
    """

    def __init__(self) -> None:
        self.places: dict[Hashable, Sequence[int]] = {}
        self.first: dict[Hashable, Transform] = {}

    def shared(
        self,
        candidate: Candidate,
        neighbours: Iterable[Callable[[], Transform]],
        can_train: Callable[[Candidate], bool],
    ) -> Candidate:
        """The candidate with the functions of the first of its form, and its own numbers in them.

        Args:
            candidate: as it was made.
            neighbours: make the optimizers of points that differ in one value; for a new form.
            can_train: whether a candidate's numbers can be traced; for a new form.
        """
        form, numbers = taken_apart(candidate.made)
        if len(form) == 1:  # without functions
            return candidate
        if form not in self.places:

            def traced(places: Sequence[int]) -> bool:
                return can_train(_with_held(candidate, numbers, places))

            follow = _following(form, numbers, neighbours)
            if follow and not traced(follow):
                follow = [place for place in follow if traced([place])]
            self.places[form] = follow
        places = self.places[form]
        constants = [_content(x) for i, x in enumerate(numbers) if i not in places]
        first = self.first.setdefault((form, *constants), candidate.made)
        made = jax.tree.structure(first).unflatten(jax.tree.leaves(candidate.made))
        return _with_held(candidate._replace(made=made), numbers, places)


def neighbours(space: Space, point: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Points that differ from this one in a single value."""
    for name, distribution in applying(space, point).items():
        if isinstance(distribution, (Fixed, OneOf)):
            continue
        if isinstance(distribution, Choice):
            others = distribution.options
        else:
            others = (distribution.at((distribution.unit(point[name]) + 0.5) % 1),)
        yield from ({**point, name: other} for other in others)


def _following(
    form: Hashable, numbers: Sequence[Any], others: Iterable[Callable[[], Transform]]
) -> list[int]:
    """The places of the numbers that differ in another optimizer of the form."""
    found: set[int] = set()
    for make in others:
        with contextlib.suppress(Exception):  # of a point that cannot be made
            other_form, other_numbers = taken_apart(make())
            if other_form == form:
                pairs = enumerate(zip(numbers, other_numbers, strict=True))
                found |= {i for i, (x, y) in pairs if _content(x) != _content(y)}
    return sorted(found)


def _with_held(candidate: Candidate, numbers: Sequence[Any], places: Sequence[int]) -> Candidate:
    held = {i: _as_leaf(numbers[i]) for i in places}
    return candidate._replace(held=held or ())


def _as_leaf(number: Any) -> Any:
    """A whole number as an array, since numbers without a dtype become floats in lanes."""
    return np.asarray(number, jnp.result_type(int)) if isinstance(number, int) else number


def _content(number: Any) -> bytes:
    return np.asarray(number).tobytes()
