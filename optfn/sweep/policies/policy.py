"""What a policy is: scores at rungs in, verdicts out."""

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np

from optfn.core.data import check_count


class Verdict(enum.Enum):
    """What becomes of a trial that stands at a rung."""

    GO = "go"
    STOP = "stop"
    WAIT = "wait"


class Scores(NamedTuple):
    """The scores of all trials so far: all that a policy knows, and all its state.

    A score is the mean over the seeds of a trial, and lower is better; if one seed has diverged or
    its score is not finite, it is +inf. A checkpoint holds the two arrays.

    Attributes:
        ages: the rungs in steps, and behind them the steps of a whole run.
        table: float64, [trials, ages]. NaN where a trial has not arrived. Every trial of the sweep
            has a row from the start, those that have not begun too.
        segments: int64, [trials, ages]: the number of the segment at whose end the score was
            recorded, -1 where there is none.
    """

    ages: tuple[int, ...]
    table: np.ndarray
    segments: np.ndarray

    @classmethod
    def start(cls, rungs: Sequence[int], steps: int, trials: int) -> Self:
        """No scores yet.

        Args:
            rungs: those of the policy.
            steps: of a whole run.
            trials: of the whole sweep.
        """
        ages = (*rungs, steps)
        shape = trials, len(ages)
        return cls(ages, np.full(shape, np.nan), np.full(shape, -1))

    def record(
        self, trial: int, age: int, score: float, segment: int, *, diverged: bool = False
    ) -> int | None:
        """Writes down the score of a trial that has reached a rung or its end.

        Record all trials of a segment before any is judged. A trial that diverged arrives at once
        at its next rung, with +inf: nobody has to wait for it.

        Args:
            trial: its number.
            age: the steps it has taken.
            score: the mean over its seeds.
            segment: the number of the segment.
            diverged: whether it has ended for that.

        Returns:
            The number of the rung at which it stands and must be judged, or None.
        """
        column = int(np.sum(~np.isnan(self.table[trial])))
        if column == len(self.ages) or not (diverged or age >= self.ages[column]):
            return None
        self.table[trial, column] = score if np.isfinite(score) and not diverged else np.inf
        self.segments[trial, column] = segment
        return None if diverged or column == len(self.ages) - 1 else column


class Policy:
    """Decides which trials go on. It has no state: the scores are all it looks at.

    At the end of a segment the engine records the scores of all trials that arrived at a rung, then
    asks `judge` about each that stands at one: those that arrived, and those that were told to wait
    before, at the end of every segment. A trial that is told to go on after a wait takes the next
    free lane, before those that have not begun.
    """

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        """The ages at which a trial is judged.

        Args:
            steps: of a whole run.
            segment: the steps between two looks at the scores.

        Returns:
            Multiples of the segment, rising, all below `steps`.

        Raises:
            ValueError: there would be none.
        """
        raise NotImplementedError

    def judge(self, scores: Scores, standing: Iterable[tuple[int, int]]) -> list[Verdict]:
        """A verdict for each trial that stands at a rung.

        The order of `standing` does not matter. A trial whose score is +inf goes on under `pbt`
        alone, where it copies another.

        Args:
            scores: with this segment's.
            standing: number of the trial and of the rung it stands at.

        Raises:
            ValueError: there is no score of a trial at its rung.
        """
        raise NotImplementedError

    def most_waiting(self, rungs: int, trials: int) -> int:
        """An upper bound on the trials that are paused at one time, also those told to go on again.

        Args:
            rungs: how many there are.
            trials: of the whole sweep.
        """
        return 0


class run_all(Policy):
    """Every trial runs to its end.

    The dearest and the only one that misses nothing: where a slow starter may win, or the whole
    curves are wanted.
    """

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        return ()

    def judge(self, scores: Scores, standing: Iterable[tuple[int, int]]) -> list[Verdict]:
        return [Verdict.GO for _ in checked(scores, standing)]

    def __repr__(self) -> str:
        return "run_all()"


def checked(scores: Scores, standing: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that stand at a rung, refused where no score of theirs is there."""
    standing = [(int(trial), int(rung)) for trial, rung in standing]
    trials, ages = scores.table.shape
    for trial, rung in standing:
        if not (0 <= trial < trials and 0 <= rung < ages - 1):
            raise ValueError(
                f"judge(standing=...) names trial {trial} at rung {rung}, but the scores are of "
                f"{trials} trials at {ages - 1} rungs."
            )
        if np.isnan(scores.table[trial, rung]):
            raise ValueError(
                f"judge(standing=...) names trial {trial} at rung {rung}, but it has no score "
                "there: record it first."
            )
    return standing


def ranks(column: np.ndarray) -> np.ndarray:
    """The place of each score, 0 for the lowest, ties by index, those that are not finite last."""
    order = np.argsort(np.where(np.isfinite(column), column, np.inf), kind="stable")
    places = np.empty(len(column), int)
    places[order] = np.arange(len(column))
    return places


def check_eta(value: int, where: str) -> None:
    """Refuses what cannot be the ratio between rungs."""
    check_count(value, where)
    if value < 2:
        raise ValueError(f"{where} must be at least 2, found {value}.")


def whole_segments(age: int, segment: int) -> int:
    """The age, rounded up."""
    return -(-age // segment) * segment


def check_run(steps: int, segment: int) -> None:
    """Refuses the steps of no run."""
    check_count(steps, "rungs(steps=...)")
    check_count(segment, "rungs(segment=...)")


def geometric_rungs(first: int, eta: int, steps: int, segment: int, where: str) -> tuple[int, ...]:
    """first, first * eta, first * eta^2, ..., each rounded up to whole segments, below steps."""
    check_run(steps, segment)
    rungs = []
    while (age := whole_segments(first, segment)) < steps:
        if age not in rungs[-1:]:
            rungs.append(age)
        first *= eta
    return some(rungs, steps, segment, where)


def some(rungs: Sequence[int], steps: int, segment: int, where: str) -> tuple[int, ...]:
    """The rungs, refused if there are none: such a policy would do nothing."""
    if not rungs:
        raise ValueError(
            f"{where} leaves no rung below the {steps} steps of a run, in whole segments of "
            f"{segment}: make it or the segment smaller, or take run_all()."
        )
    return tuple(rungs)
