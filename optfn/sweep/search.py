"""The points of a space that a sweep tries: at random, evenly spread, or all."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.space import Choice, Distribution, Fixed, as_space

Point = dict[str, Any]
TrialStatus = Literal["ok", "pruned", "diverged", "not_finite"]


class Session(Protocol):
    """A search under way.

    Attributes:
        trials: the most points there can be.
    """

    trials: int

    def ask(self, count: int) -> list[Point]:
        """The next points, at most `count`; none when the search is over.

        A point has a plain value for each name of the space, in the same order.
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
            status: "ok", "pruned", "diverged" or "not_finite".
            reports: intermediate scores, as pairs (step, score).
        """
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
    """Points given by their numbers, whatever the scores."""

    def __init__(self, point: Callable[[int], Point], trials: int):
        self.point = point
        self.trials = trials
        self.asked = 0

    def ask(self, count: int) -> list[Point]:
        numbers = range(self.asked, min(self.asked + count, self.trials))
        self.asked += len(numbers)
        return [self.point(number) for number in numbers]

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
        axes = [_options(name, distribution) for name, distribution in space.items()]
        size = math.prod(map(len, axes))
        if trials is not None:
            check_count(trials, "trials")
            if trials > size:
                raise ValueError(
                    f"trials={trials} is more than the {size} combinations of the grid; leave it "
                    "out to try all."
                )
        shape = [len(axis) for axis in axes]

        def point(index: int) -> Point:
            places = map(int, np.unravel_index(index, shape) if shape else ())
            values = [axis[place] for axis, place in zip(axes, places, strict=True)]
            return dict(zip(space, values, strict=True))

        return _Listed(point, size if trials is None else int(trials))


def check_trials(trials: int | None, search: str) -> int:
    if trials is None:
        raise ValueError(f"trials=None: {search} has no end, so a number of trials is needed.")
    check_count(trials, "trials")
    return int(trials)


def check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, found {seed!r}.")


def _options(name: str, distribution: Distribution) -> Sequence[Any]:
    if isinstance(distribution, Choice):
        return distribution.options
    if isinstance(distribution, Fixed):
        return (distribution.value,)
    raise ValueError(
        f"grid() needs a list of values for each name, but the space's {name!r} is "
        f"{distribution!r}."
    )


def _free(space: Mapping[str, Distribution]) -> list[str]:
    """The names that a search moves, each with a coordinate of its own."""
    return [name for name, distribution in space.items() if not isinstance(distribution, Fixed)]


def _point(space: Mapping[str, Distribution], free: list[str], u: np.ndarray) -> Point:
    place = dict(zip(free, u.tolist(), strict=False))
    return {name: distribution.at(place.get(name, 0)) for name, distribution in space.items()}
