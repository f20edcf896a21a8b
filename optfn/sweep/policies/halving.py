"""Halving of whole brackets of trials: successive halving and Hyperband."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.plan import ceil_div, round_up
from optfn.sweep.policies.policy import (
    Policy,
    Scores,
    Verdict,
    check_eta,
    check_run,
    check_standing,
    geometric_rungs,
    ranks,
    require_rungs,
)


def brackets(R: int, eta: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Hyperband's table: for each bracket the pairs (trials, resource) of its stages.

    For s from s_max, the largest with eta^s <= R, down to 0, and i from 0 to s:

        n = ceil((s_max + 1) * eta^s / (s + 1)) trials start
        n // eta^i of them reach the resource R // eta^(s - i)

    So `brackets(9, 3)` is `(((9, 1), (3, 3), (1, 9)), ((5, 3), (1, 9)), ((3, 9),))`.

    Args:
        R: the resource of a whole run, in units of the smallest.
        eta: the reduction factor, one of `eta` trials continues.

    Source: Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter
    Optimization", with whole-number arithmetic instead of logarithms.
    """
    check_count(R, "brackets(R=...)")
    check_eta(eta, "brackets(eta=...)")
    top = 0
    while eta ** (top + 1) <= R:
        top += 1

    def stages(s):
        n = ceil_div((top + 1) * eta**s, s + 1)
        return tuple((n // eta**i, R // eta ** (s - i)) for i in range(s + 1))

    return tuple(stages(s) for s in range(top, -1, -1))


@dataclasses.dataclass(frozen=True)
class _Bracket:
    """Trials that are halved together.

    Attributes:
        trials: their numbers.
        first_rung: the number of the first rung at which they are judged.
        eta: the reduction factor.
        least: the trials that continue from each rung at the least.
    """

    trials: range
    first_rung: int
    eta: int
    least: int = 1

    def kept(self, rung: int) -> int:
        """The number of trials that continue from a rung."""
        return max(self.least, len(self.trials) // self.eta ** (rung - self.first_rung + 1))

    def verdict(self, table: np.ndarray, trial: int, rung: int) -> Verdict:
        """The verdict that the whole bracket would give, once it is certain; `PAUSE` until then."""
        if rung < self.first_rung:
            return Verdict.CONTINUE if np.isfinite(table[trial, rung]) else Verdict.STOP
        rows = table[self.trials.start : self.trials.stop]
        members = np.sum(~np.isposinf(rows[:, : self.first_rung]).any(axis=1))
        for before in range(self.first_rung, rung):
            missing = members - np.sum(~np.isnan(rows[:, before]))
            members = min(self.kept(before), missing + np.sum(np.isfinite(rows[:, before])))
        column = rows[:, rung]
        missing = members - np.sum(~np.isnan(column))  # trials that can still arrive
        place = ranks(column)[trial - self.trials.start]
        if not np.isfinite(table[trial, rung]) or place >= self.kept(rung):
            return Verdict.STOP
        return Verdict.CONTINUE if place + missing < self.kept(rung) else Verdict.PAUSE


class _Halving(Policy):
    """Judges each trial in its bracket."""

    depends_on_trial_count = True
    least: int = 1

    eta: int

    def sizes(self, rungs: int, trials: int) -> tuple[tuple[int, int], ...]:
        """For each bracket of a round its number of trials and the number of its first rung."""
        raise NotImplementedError

    def judge(self, scores: Scores, standing: Iterable[tuple[int, int]]) -> list[Verdict]:
        trials, ages = scores.table.shape
        split = self._split(ages - 1, trials)
        of = {trial: bracket for bracket in split for trial in bracket.trials}
        return [
            of[trial].verdict(scores.table, trial, rung)
            for trial, rung in check_standing(scores, standing)
        ]

    def most_paused(self, rungs: int, trials: int) -> int:
        return sum(
            min(len(bracket.trials) - 1, bracket.kept(bracket.first_rung))
            for bracket in self._split(rungs, trials)
            if bracket.first_rung < rungs
        )

    def _split(self, rungs: int, trials: int) -> list[_Bracket]:
        split, begin = [], 0
        while begin < trials:
            for size, first_rung in self.sizes(rungs, trials):
                numbers = range(begin, min(begin + size, trials))
                split.append(_Bracket(numbers, first_rung, self.eta, self.least))
                begin = numbers.stop
                if begin == trials:
                    break
        return split


@dataclasses.dataclass(frozen=True)
class successive_halving(_Halving):
    """Synchronous successive halving: of a bracket of n trials, n // eta^i reach rung i.

    Rungs are at the ages first, first * eta, first * eta^2, ..., none but the first in the last
    third of a run, as in `asha`. While a verdict depends on trials that have not arrived, the trial
    pauses, and the host keeps its state. It stops as soon as enough others are better, and
    continues as soon as too few can be: the verdicts are those of a barrier, but at most n // eta
    states of a bracket are kept. At least one trial continues. It is exact where `asha` guesses;
    meanwhile lanes take trials of the next bracket, and stay empty if there is none.

    Args:
        first: the age at the first rung, in steps. All rungs are rounded up to whole segments.
        eta: the reduction factor, one of `eta` trials continues; a whole number, at least 2.
        bracket: the number of trials halved together, by their numbers; None is the whole sweep.
        least: the trials of a bracket that continue from each rung at the least. `Confirm(top)`
            makes it its `top` where the whole sweep is one bracket.

    Source: Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization".
    """

    first: int
    eta: int = 3
    bracket: int | None = None
    least: int = 1

    def __post_init__(self) -> None:
        check_count(self.first, "successive_halving(first=...)")
        check_eta(self.eta, "successive_halving(eta=...)")
        if self.bracket is not None:
            check_count(self.bracket, "successive_halving(bracket=...)")
        check_count(self.least, "successive_halving(least=...)")

    def letting_finish(self, trials: int) -> "successive_halving":
        several = self.bracket is not None
        return self if several else dataclasses.replace(self, least=max(self.least, trials))

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        where = f"successive_halving(first={self.first})"
        return geometric_rungs(self.first, self.eta, steps, segment, where)

    def sizes(self, rungs: int, trials: int) -> tuple[tuple[int, int], ...]:
        return ((self.bracket or trials, 0),)


@dataclasses.dataclass(frozen=True)
class hyperband(_Halving):
    """Hyperband: brackets of successive halving, from many short trials to few whole runs.

    A hedge between `asha(first)` and `run_all()`, where it is not known how early a score is
    informative. Trials fill the brackets of `brackets(steps // first, eta)` by their numbers, then
    those of the next round; the last bracket may be short. One round for 81 units and eta = 3 is
    143 trials. Trials of a bracket wait for each other as in `successive_halving`.

    Args:
        first: the unit, and the age at the first rung, in steps; it is rounded up to whole
            segments.
        eta: the reduction factor, one of `eta` trials continues; a whole number, at least 2.

    Source: Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter
    Optimization".
    """

    first: int
    eta: int = 3

    def __post_init__(self) -> None:
        check_count(self.first, "hyperband(first=...)")
        check_eta(self.eta, "hyperband(eta=...)")

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        check_run(steps, segment)
        unit = round_up(self.first, segment)
        longest = brackets(max(1, steps // unit), self.eta)[0]
        rungs = [unit * resource for _, resource in longest[:-1]]
        return require_rungs(
            rungs, steps, segment, f"hyperband(first={self.first}, eta={self.eta})"
        )

    def sizes(self, rungs: int, trials: int) -> tuple[tuple[int, int], ...]:
        table = brackets(self.eta**rungs, self.eta)
        return tuple((stages[0][0], i) for i, stages in enumerate(table))
