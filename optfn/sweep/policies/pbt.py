"""Population-based training: which members copy which, and the lineage that results."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.plan import Plan, round_up
from optfn.sweep.policies.policy import (
    Copy,
    Judge,
    Policy,
    Scores,
    Verdict,
    check_run,
    check_standing,
    ranks,
    require_rungs,
)


class Copies(NamedTuple):
    """The copies of a population in one round; a member that is its own source does not copy.

    Attributes:
        source: int64 `[members]`, the member whose params, state and hyperparameters each copies.
            No source copies in the same round.
        resampled: bool `[members, parameters]`, whether a copied hyperparameter is drawn again from
            the space.
        factor: float64 `[members, parameters]`, the factor of a copied hyperparameter that is not
            resampled; 1 for others and for members that do not copy.
        all_diverged: whether no score is finite, so that no member copies.
    """

    source: np.ndarray
    resampled: np.ndarray
    factor: np.ndarray
    all_diverged: bool


@dataclasses.dataclass(frozen=True)
class pbt(Policy):
    """Population-based training: the worst members copy the best, and search on from there.

    All members train side by side to the end. Every `every` steps `exploit` lets each member among
    the worst `quantile`, and each that diverged, copy params, optimizer state and hyperparameters
    from a random one of the best `quantile`. Each copied hyperparameter is then drawn again from
    the space with probability `resample`, else multiplied by one of the `factors`. It finds a
    schedule (see `lineage`) for the cost of one run per member. The schedule is short-sighted:
    rates that pay at once win over those that pay later.

    Args:
        every: steps between two rounds, rounded up to whole segments.
        quantile: the share of members that copy, and that are copied; above 0, at most 1/2. It is
            at least one member.
        factors: numbers above 0, all equally likely.
        resample: the probability that a copied hyperparameter is resampled.

    Source: Jaderberg et al. 2017, "Population Based Training of Neural Networks", with truncation
    selection.
    """

    needs_all_trials = True
    depends_on_trial_count = True

    every: int
    quantile: float = 0.25
    factors: tuple[float, ...] = (0.8, 1.2)
    resample: float = 0.25

    def __post_init__(self) -> None:
        check_count(self.every, "pbt(every=...)")
        if not 0 < self.quantile <= 0.5:
            raise ValueError(
                f"pbt(quantile=...) must be above 0 and at most 0.5, found {self.quantile}."
            )
        if not 0 <= self.resample <= 1:
            raise ValueError(f"pbt(resample=...) must be from 0 to 1, found {self.resample}.")
        factors = np.asarray(self.factors)
        if factors.ndim != 1 or not factors.size or not np.all((factors > 0) & (factors < np.inf)):
            raise ValueError(
                f"pbt(factors=...) must be a sequence of finite numbers above 0, found "
                f"{self.factors!r}."
            )
        object.__setattr__(self, "factors", tuple(factors.tolist()))

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        check_run(steps, segment)
        every = round_up(self.every, segment)
        return require_rungs(range(every, steps, every), steps, segment, f"pbt(every={self.every})")

    def start(self, plan: Plan, trials: int) -> Judge:
        return _Population(self, plan.searched, plan.seed)

    def exploit(self, scores: np.ndarray, parameters: int, seed: int, round: int) -> Copies:
        """The copies of a round; the same for the same arguments.

        A member's draws depend on its number, the seed and the round, not on the scores.

        Args:
            scores: float `[members]`, lower is better, not finite where a member diverged.
            parameters: the number of hyperparameters to perturb.
            seed: at least 0.
            round: at least 0.

        Raises:
            ValueError: there are fewer than two members, or a number is below 0.
        """
        for name, value in {"parameters": parameters, "seed": seed, "round": round}.items():
            if value < 0:
                raise ValueError(f"exploit({name}=...) must be at least 0, found {value}.")
        scores = np.asarray(scores, float)
        if scores.ndim != 1 or len(scores) < 2:
            raise ValueError(
                "exploit(scores=...) must be a vector of two or more members, found shape "
                f"{scores.shape}."
            )
        members, finite = len(scores), np.isfinite(scores)
        few = max(1, int(self.quantile * members + 1e-9))  # .29 * 100 is 28.999...
        draws = np.random.default_rng([seed, round]).random((members, 1 + 2 * parameters))
        places = ranks(scores)
        best = np.flatnonzero(finite & (places < few))
        copies = ~finite | (places >= members - few)
        if not len(best):
            copies = np.zeros(members, bool)
        source = np.arange(members)
        source[copies] = best[_pick(draws[copies, 0], len(best))]
        resampled = copies[:, None] & (draws[:, 1 : 1 + parameters] < self.resample)
        factor = np.array(self.factors)[_pick(draws[:, 1 + parameters :], len(self.factors))]
        factor = np.where(copies[:, None] & ~resampled, factor, 1.0)
        return Copies(source, resampled, factor, all_diverged=not finite.any())


@dataclasses.dataclass(frozen=True)
class _Population:
    """Population-based training bound to one sweep, by its hyperparameters and its seed."""

    policy: pbt
    names: tuple[str, ...]
    seed: int

    def judge(
        self, scores: Scores, standing: Iterable[tuple[int, int]]
    ) -> Sequence[Verdict | Copy]:
        standing = check_standing(scores, standing)
        rounds = {
            rung: self.policy.exploit(scores.table[:, rung], len(self.names), self.seed, rung)
            for rung in {rung for _, rung in standing}
        }
        return [self._verdict(rounds[rung], trial) for trial, rung in standing]

    def _verdict(self, copies: Copies, member: int) -> Verdict | Copy:
        source = int(copies.source[member])
        if source == member:
            return Verdict.CONTINUE
        resampled = [
            n for n, anew in zip(self.names, copies.resampled[member], strict=True) if anew
        ]
        factor = dict(zip(self.names, copies.factor[member].tolist(), strict=True))
        return Copy(source, tuple(resampled), factor)


def _pick(draws: np.ndarray, count: int) -> np.ndarray:
    return (draws * count).astype(int)


def lineage(sources: np.ndarray, ages: Sequence[int], member: int) -> list[tuple[int, int]]:
    """A member's ancestry: pairs of a step and the member that its run was in from that step on.

    With `sources` [[0, 0], [1, 1]] at the steps 10 and 20, the run of member 0 started in 0, went
    to member 1 by a copy at 10, and back to 0 at 20: [(0, 0), (10, 1), (20, 0)]. The run's
    hyperparameters change at these steps only; they are the schedule that trained the member.

    Args:
        sources: int `[rounds, members]`, the `source` of each round.
        ages: the step of each round.
        member: a member of the last population.

    Raises:
        ValueError: there are not as many ages as rounds.
    """
    if len(sources) != len(ages):
        raise ValueError(
            f"lineage(ages=...) must have the step of each of the {len(sources)} rounds, found "
            f"{len(ages)}."
        )
    line = []
    for source, age in zip(reversed(sources), reversed(ages), strict=True):
        if source[member] != member:
            line.append((int(age), member))
            member = int(source[member])
    return [(0, member), *reversed(line)]
