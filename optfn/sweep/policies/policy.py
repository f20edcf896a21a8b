"""The protocol of policies: scores at rungs in, verdicts out."""

import dataclasses
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.plan import Plan, round_up


class Verdict(enum.Enum):
    """What happens to a trial that stands at a rung.

    `CONTINUE` trains it further, `STOP` ends it, and `PAUSE` keeps its state on the host until a
    later verdict, while another trial takes its lanes.
    """

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


@dataclasses.dataclass(frozen=True)
class Copy:
    """The verdict on a trial that copies another, or itself, and searches on from there.

    It copies params, optimizer state and hyperparameters as they are before the round, whatever
    the verdict on its source. Hyperparameters without a factor that are not resampled are copied
    unchanged.

    Args:
        source: the number of the trial it copies.
        resampled: the names of the hyperparameters that are drawn again from the space.
        factor: for other names, the factor of their distribution's `perturb`.
    """

    source: int
    resampled: Collection[str] = ()
    factor: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not hasattr(self.source, "__index__") or self.source < 0:
            raise TypeError(
                f"Copy(source=...) must be the number of a trial, found {self.source!r}."
            )
        if isinstance(self.resampled, str):
            raise TypeError(
                f"Copy(resampled=...) must be a collection of names, found {self.resampled!r}."
            )
        if not isinstance(self.factor, Mapping):
            raise TypeError(
                f"Copy(factor=...) must be a dict from names to numbers, found {self.factor!r}."
            )

    def perturbed(
        self, point: Mapping[str, Any], plan: Plan, rng: np.random.Generator
    ) -> dict[str, Any]:
        """The source's point, resampled and multiplied as this copy says."""
        draws = dict(zip(plan.searched, rng.random(len(plan.searched)).tolist(), strict=True))
        anew = {name: plan.space[name].at(draws[name]) for name in self.resampled}
        moved = {
            name: plan.space[name].perturb(point[name], float(by))
            for name, by in self.factor.items()
            if name not in anew
        }
        return {**point, **moved, **anew}


class Scores(NamedTuple):
    """The scores of all trials so far: the only information a policy has, and its only state.

    A score is the mean over the seeds of a trial, and lower is better; it is +inf if a seed has
    diverged, its score is not finite, or the trial breaks a constraint. A checkpoint holds
    the two arrays.

    Attributes:
        ages: the rungs in steps, followed by the steps of a whole run.
        table: float64 `[trials, ages]`, NaN where a trial has not arrived. Every trial of the sweep
            has a row, even before it starts.
        segments: int64 `[trials, ages]`, the number of the segment at whose end the score was
            recorded, -1 where there is none and where a trial failed.
        sign: -1 if the task maximizes its score, so that `sign * table` is what the user sees; a
            policy that compares scores with each other does not need it.
    """

    ages: tuple[int, ...]
    table: np.ndarray
    segments: np.ndarray
    sign: int = 1

    @classmethod
    def start(cls, rungs: Sequence[int], steps: int, trials: int, sign: int = 1) -> Self:
        """A table without scores.

        Args:
            rungs: the policy's rungs.
            steps: the steps of a whole run.
            trials: the trials of the whole sweep.
            sign: -1 if the task maximizes its score.
        """
        ages = (*rungs, steps)
        shape = trials, len(ages)
        return cls(ages, np.full(shape, np.nan), np.full(shape, -1), sign)

    def record(
        self, trial: int, age: int, score: float, segment: int, *, diverged: bool = False
    ) -> int | None:
        """Records the score of a trial that has reached a rung or its end.

        Record all trials of a segment before any is judged. A trial that diverged stands at its
        next rung at once, with +inf, so that no other waits for it.

        Args:
            trial: its number.
            age: the steps it has taken.
            score: the mean over its seeds.
            segment: the number of the segment.
            diverged: whether the trial has diverged.

        Returns:
            The number of the rung at which it stands and must be judged, or None.
        """
        column = int(np.sum(~np.isnan(self.table[trial])))
        if column == len(self.ages) or not (diverged or age >= self.ages[column]):
            return None
        self.table[trial, column] = score if np.isfinite(score) and not diverged else np.inf
        self.segments[trial, column] = segment
        return None if column == len(self.ages) - 1 else column

    def finish(self, trial: int, score: float, segment: int) -> None:
        """Records the score of a trial that ends by itself before its last step.

        It is its score at all rungs that it has not reached, so that no other waits for it.

        Args:
            trial: its number.
            score: the mean over its seeds.
            segment: the number of the segment.
        """
        ahead = np.isnan(self.table[trial])
        self.table[trial, ahead] = score if np.isfinite(score) else np.inf
        self.segments[trial, ahead] = segment


class Judge(Protocol):
    """A policy bound to a sweep."""

    def judge(
        self, scores: Scores, standing: Iterable[tuple[int, int]]
    ) -> Sequence[Verdict | Copy]:
        """A verdict for each trial that stands at a rung, see `Policy.judge`."""
        ...


class Policy:
    """Decides which trials continue. It has no state, and sees only the scores.

    A custom policy defines `rungs` and `judge`. After every segment the sweep records the scores of
    the trials that have arrived at a rung, then asks `judge` about these trials and all paused
    ones. A trial that diverged stands at its next rung with the score +inf, and cannot be trained
    further. A trial that continues after a pause takes the next free lanes, before new trials.

    Class attributes a policy may set:
        needs_all_trials: whether it judges a population: all trials train side by side, `judge` is
            called once all of them stand at a rung, and a verdict may be a `Copy` but not `PAUSE`.
        depends_on_trial_count: whether a verdict depends on the number of trials of the sweep, so
            that a checkpoint cannot continue with more of them.
    """

    needs_all_trials: ClassVar[bool] = False
    depends_on_trial_count: ClassVar[bool] = False

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        """The ages at which a trial is judged.

        Args:
            steps: the steps of a whole run.
            segment: the steps between two looks at the scores.

        Returns:
            Multiples of the segment, rising, all below `steps`.

        Raises:
            ValueError: there would be no rungs.
        """
        raise NotImplementedError(f"{type(self).__name__} must define rungs(steps, segment).")

    def start(self, plan: Plan, trials: int) -> Judge:
        """Binds the policy to a sweep; a policy that needs only the scores is its own judge.

        Args:
            plan: the sweep's settings: its space, steps and seed among them.
            trials: the number of trials of the whole sweep.
        """
        return self

    def judge(
        self, scores: Scores, standing: Iterable[tuple[int, int]]
    ) -> Sequence[Verdict | Copy]:
        """A verdict for each trial that stands at a rung.

        The order of `standing` does not matter.

        Args:
            scores: all scores so far, this segment's included.
            standing: pairs of the number of a trial and the number of the rung it stands at.

        Raises:
            ValueError: a trial has no score at its rung.
        """
        raise NotImplementedError(f"{type(self).__name__} must define judge(scores, standing).")

    def letting_finish(self, trials: int) -> "Policy":
        """This policy, or one like it that lets at least so many trials reach the end.

        `run` asks for it with `confirm`, which trains the best of those again.
        """
        return self

    def most_paused(self, rungs: int, trials: int) -> int:
        """An upper bound on the trials paused at one time, or waiting for lanes after a pause.

        Args:
            rungs: the number of rungs.
            trials: the number of trials of the whole sweep.
        """
        return 0

    def check_trials(self, trials: int, places: int, plan: Plan) -> None:
        """Refuses a population that is alone, or has not a place for each member."""
        if self.needs_all_trials and not 2 <= trials <= places:
            raise ValueError(
                f"{type(self).__name__} trains all members side by side: trials={trials} must be "
                f"at least 2 and at most the {places} that lanes={plan.lanes} hold."
            )

    def check_rungs(self, rungs: Sequence[int], plan: Plan) -> None:
        """Refuses ages at which no trial would be judged."""
        wanted = range(plan.segment, plan.steps, plan.segment)
        if list(rungs) != sorted({*rungs}) or not all(age in wanted for age in rungs):
            raise ValueError(
                f"{type(self).__name__}.rungs(...) must give rising multiples of the segment, "
                f"{plan.segment}, below the steps of a run, {plan.steps}; found {rungs}."
            )

    def check_verdicts(
        self, verdicts: Sequence[Any], standing: Sequence[Any], names: Collection[str]
    ) -> None:
        """Raises on verdicts that the policy may not give.

        Args:
            verdicts: the result of `judge`.
            standing: the pairs it was called with.
            names: the hyperparameters that are searched.
        """
        name = type(self).__name__
        if not isinstance(verdicts, Sequence) or len(verdicts) != len(standing):
            raise ValueError(
                f"{name}.judge(...) must give a list with a verdict for each of the "
                f"{len(standing)} trials, in order, found {verdicts!r:.80}."
            )
        for verdict in verdicts:
            if not isinstance(verdict, (Verdict, Copy)):
                raise TypeError(
                    f"{name}.judge(...) must give a Verdict or a Copy for each trial, found "
                    f"{verdict!r}."
                )
            if self.needs_all_trials and verdict is Verdict.PAUSE:
                raise ValueError(
                    f"{name}.judge(...) gave PAUSE, but it declares needs_all_trials: its trials "
                    "stay in their lanes."
                )
            if isinstance(verdict, Copy) and not self.needs_all_trials:
                raise ValueError(
                    f"{name}.judge(...) gave a Copy, so the class must declare "
                    "needs_all_trials = True: only trials that train side by side can copy."
                )
            changed = {*verdict.resampled, *verdict.factor} if isinstance(verdict, Copy) else set()
            if unknown := sorted(changed - set(names)):
                raise ValueError(
                    f"{name}.judge(...) gave a Copy that names {unknown[0]!r}, which is not "
                    f"searched; there are: {', '.join(names) or 'none'}."
                )


class run_all(Policy):
    """Every trial runs to its end.

    The most expensive policy, and the only one that misses nothing: use it where a slow starter may
    win, or where you want whole curves.
    """

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        return ()

    def judge(self, scores: Scores, standing: Iterable[tuple[int, int]]) -> list[Verdict]:
        return [Verdict.CONTINUE for _ in check_standing(scores, standing)]

    def __repr__(self) -> str:
        return "run_all()"


def check_standing(scores: Scores, standing: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of trial and rung; raises if a trial has no score at its rung."""
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
    """The rank of each score, 0 for the lowest; ties by index, scores that are not finite last."""
    order = np.argsort(np.where(np.isfinite(column), column, np.inf), kind="stable")
    places = np.empty(len(column), int)
    places[order] = np.arange(len(column))
    return places


def check_eta(value: int, where: str) -> None:
    """Raises unless the value can be the ratio between rungs."""
    check_count(value, where)
    if value < 2:
        raise ValueError(f"{where} must be at least 2, found {value}.")


def check_run(steps: int, segment: int) -> None:
    """Raises unless steps and segment are counts."""
    check_count(steps, "rungs(steps=...)")
    check_count(segment, "rungs(segment=...)")


def geometric_rungs(first: int, eta: int, steps: int, segment: int, where: str) -> tuple[int, ...]:
    """first, first * eta, first * eta^2, ..., each rounded up to whole segments, below steps.

    None but the first is in the last third of a run, where stopping saves little and would leave
    few to choose from.
    """
    check_run(steps, segment)
    rungs = []
    while (age := round_up(first, segment)) < steps:
        if age not in rungs[-1:]:
            rungs.append(age)
        first *= eta
    rungs = rungs[:1] + [age for age in rungs[1:] if 3 * age <= 2 * steps]
    return require_rungs(rungs, steps, segment, where)


def require_rungs(rungs: Sequence[int], steps: int, segment: int, where: str) -> tuple[int, ...]:
    """The rungs; raises if there are none, since the policy would do nothing."""
    if not rungs:
        raise ValueError(
            f"{where} leaves no rung below the {steps} steps of a run, in whole segments of "
            f"{segment}: make it or the segment smaller, or take run_all()."
        )
    return tuple(rungs)
