"""The points of a space that a sweep tries: at random, evenly spread, or all."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.one_of import OneOf, coordinates, point_of
from optfn.sweep.space import Choice, Distribution, Fixed, as_space

Point = dict[str, Any]
TrialStatus = Literal["ok", "pruned", "diverged", "not_finite", "failed"]


class Session(Protocol):
    """A search under way.

    Attributes:
        trials: the most points there can be.
        learns: whether what was told changes the points to come; then no more are asked for than
            there are free places. A session may leave it out, as one that does not.

    One that has `constrain(index, violations)` hears, before it is told of a point, how far its
    scores are from keeping each constraint; above 0 breaks it.
    """

    trials: int

    @property
    def learns(self) -> bool: ...

    def ask(self, count: int) -> list[Point]:
        """The next points, at most `count`; none when the search is over.

        A point has a plain value for each name of the space that applies, in the same order.
        """
        ...

    def tell(
        self,
        index: int,
        score: float,
        status: TrialStatus,
        reports: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Reports the outcome of a point.

        Args:
            index: its number in the order of asking, from 0.
            score: lower is better; for a pruned trial, its last score.
            status: "ok", "pruned", "diverged", "not_finite", or "failed" with the score inf.
            reports: intermediate scores, as pairs (step, score).
        """
        ...

    def enqueue(self, points: Sequence[Point]) -> None:
        """Gives these points first. Call it before `restore` and the first `ask`."""
        ...

    def state(self) -> dict[str, Any]:
        """The state that `restore` takes, for `json.dumps`."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from the state of a session with the same search, space and seed.

        The number of trials may differ. Call it before the first `ask`.
        """
        ...

    def flush(self) -> None:
        """Writes the outcomes to shared storage, after a checkpoint and at the end."""
        ...


class Search(Protocol):
    """A way to search a space."""

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> Session:
        """A session over at most `trials` points, which draws by the seed."""
        ...


class _Listed:
    """Points given by their numbers, whatever the scores.

    Args:
        point: gives the point of a number.
        trials: the number of points.
        all: whether these are all points there are, so that enqueued ones are tried beside them.
    """

    learns = False

    def __init__(self, point: Callable[[int], Point], trials: int, *, all: bool = False):
        self.point = point
        self.trials = trials
        self.all = all
        self.first: Sequence[Point] = ()
        self.asked = 0

    def enqueue(self, points: Sequence[Point]) -> None:
        self.first = points
        self.trials += len(points) if self.all else 0

    def at(self, number: int) -> Point:
        """The point of this number, the enqueued ones first."""
        before = len(self.first)
        return dict(self.first[number]) if number < before else self.point(number - before)

    def ask(self, count: int) -> list[Point]:
        numbers = range(self.asked, min(self.asked + count, self.trials))
        self.asked += len(numbers)
        return [self.at(number) for number in numbers]

    def tell(
        self,
        index: int,
        score: float,
        status: TrialStatus,
        reports: Sequence[tuple[int, float]] = (),
    ) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.asked = state["asked"]

    def flush(self) -> None:
        pass


def listed(points: Sequence[Point]) -> Session:
    """A session over these points."""
    return _Listed(points.__getitem__, len(points))


@dataclass(frozen=True)
class random:
    """Points drawn independently of each other: the baseline, and best with many trials.

    A point depends on the seed, its own number and the distributions alone, so a sweep of more
    trials starts with the same points.

    Source: Bergstra and Bengio 2012.
    """

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> Session:
        space, trials = as_space(space), check_trials(trials, "random()")
        check_seed(seed)
        free = _free(space)

        def point(index: int) -> Point:
            return _point(space, free, np.random.default_rng([seed, index]).random(len(free)))

        return _Listed(point, trials)


@dataclass(frozen=True)
class sobol:
    """Points that fill the space evenly: Sobol's sequence, scrambled by the seed.

    Better than `random` for the same number of trials where few hyperparameters matter; best with a
    power of two trials. A sweep of more trials starts with the same points.

    Source: Sobol 1967, scrambled as in Matousek 1998, by SciPy.
    """

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> Session:
        from scipy.stats import qmc

        space, trials = as_space(space), check_trials(trials, "sobol()")
        check_seed(seed)
        free = _free(space)
        sequence = qmc.Sobol(max(len(free), 1), rng=np.random.default_rng(seed))
        rows = sequence.random_base2((trials - 1).bit_length())
        return _Listed(lambda index: _point(space, free, rows[index]), trials)


@dataclass(frozen=True)
class grid:
    """Every combination of the space's lists; the last list changes fastest.

    For few values, shown in a table or a heat map. To find the best of several hyperparameters,
    `random` and `sobol` try more values of each for the same cost.

    With fewer trials than combinations the first ones are tried; with `trials=None`, all.
    """

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> Session:
        space = as_space(space)
        size = _size(space)
        if trials is not None:
            check_count(trials, "trials")
            if trials > size:
                raise ValueError(
                    f"trials={trials} is more than the {size} combinations of the grid; leave it "
                    "out to try all."
                )
        count = size if trials is None else int(trials)
        return _Listed(lambda index: _combination(space, index), count, all=trials is None)


def _size(space: Mapping[str, Distribution]) -> int:
    """The number of combinations."""
    return math.prod(_options(name, distribution) for name, distribution in space.items())


def _options(name: str, distribution: Distribution) -> int:
    """The options of a name; of a choice with spaces, the combinations of all of them."""
    if isinstance(distribution, OneOf):
        return sum(_size(space) for _, space in distribution.branches.values())
    if isinstance(distribution, Choice):
        return len(distribution.options)
    if isinstance(distribution, Fixed):
        return 1
    raise ValueError(
        f"grid() needs a list of values for each name, but the space's {name!r} is "
        f"{distribution!r}."
    )


def _combination(space: Mapping[str, Distribution], index: int) -> Point:
    shape = [_options(name, distribution) for name, distribution in space.items()]
    places = map(int, np.unravel_index(index, shape) if shape else ())
    point = {}
    for (name, distribution), place in zip(space.items(), places, strict=True):
        if isinstance(distribution, OneOf):
            for option, (_, further) in distribution.branches.items():
                if place < _size(further):
                    point |= {distribution.name: option, **_combination(further, place)}
                    break
                place -= _size(further)
        else:
            point[name] = distribution.at((place + 0.5) / _options(name, distribution))
    return point


def completed(
    space: Mapping[str, Distribution], given: Mapping[str, Any], number: int, seed: int
) -> Point:
    """A point of the space with the values given; others are drawn at random.

    Args:
        space: the space.
        given: values by name, not all of them.
        number: the place of the point in `enqueue`, for messages and for drawing.
        seed: the seed of the sweep.

    Raises:
        TypeError: `given` is not a mapping.
        ValueError: a name does not apply, or its distribution does not have the value.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"enqueue[{number}] must be a dict from names to values, found {given!r:.60}."
        )
    draw = np.random.default_rng([seed, number, 1])

    def value_of(name: str, distribution: Distribution, key: str) -> Any:
        if name not in given:
            return distribution.at(draw.random())
        try:
            return _as_drawn(distribution, given[name])
        except ValueError as error:
            raise ValueError(f"enqueue[{number}], {name!r}: {error}") from None

    point = point_of(space, value_of)
    for name in given:
        if name not in point:
            raise ValueError(
                f"enqueue[{number}] names {name!r}, which does not apply there: the names are "
                f"{', '.join(point)}."
            )
    return point


def _as_drawn(distribution: Distribution, value: Any) -> Any:
    """A value of a distribution, of the type of those that it draws."""
    u = distribution.unit(value)
    if isinstance(distribution, (Choice, Fixed)):
        return distribution.at(u)
    kind = type(distribution.at(u))
    return kind(value) if kind in (int, float) else value


def check_trials(trials: int | None, search: str) -> int:
    if trials is None:
        raise ValueError(f"trials=None: {search} has no end, so a number of trials is needed.")
    check_count(trials, "trials")
    return int(trials)


def check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, found {seed!r}.")


def _free(space: Mapping[str, Distribution]) -> list[str]:
    """The keys of what a search moves, each with a coordinate of its own."""
    return [key for key, d in coordinates(space).items() if not isinstance(d, Fixed)]


def _point(space: Mapping[str, Distribution], free: list[str], u: np.ndarray) -> Point:
    place = dict(zip(free, u.tolist(), strict=False))
    return point_of(space, lambda name, distribution, key: distribution.at(place.get(key, 0)))
