"""Asynchronous successive halving, in its stopping form."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.policies.policy import (
    Policy,
    Scores,
    Verdict,
    check_eta,
    check_standing,
    geometric_rungs,
    ranks,
)


@dataclasses.dataclass(frozen=True)
class asha(Policy):
    """Asynchronous successive halving (ASHA), which stops trials and never pauses one.

    Rungs are at the ages first, first * eta, first * eta^2, ..., none but the first in the last
    third of a run, where stopping saves little and would leave few to choose from. A trial
    continues from a rung if

        rank < max(least, n // eta)

    among the n scores recorded there so far, this segment's included; else it stops. Ties go to the
    trial of the lower number. For most sweeps: it keeps every lane busy and needs no memory. The
    first trials to arrive are judged among few, so it trains more of them than
    `successive_halving`. Both drop trials that start slowly.

    Args:
        first: the age at the first rung, in steps. All rungs are rounded up to whole segments.
        eta: the reduction factor, one of `eta` trials continues; a whole number, at least 2.
        least: the trials that continue from each rung at the least. `Confirm(top)` makes it its
            `top`, so that as many come to the end.

    Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", whose promotion
    is replaced by the stopping rule, as in Optuna and Ray Tune.
    """

    first: int
    eta: int = 3
    least: int = 1

    def __post_init__(self) -> None:
        check_count(self.first, "asha(first=...)")
        check_eta(self.eta, "asha(eta=...)")
        check_count(self.least, "asha(least=...)")

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        return geometric_rungs(self.first, self.eta, steps, segment, f"asha(first={self.first})")

    def letting_finish(self, trials: int) -> "asha":
        return dataclasses.replace(self, least=max(self.least, trials))

    def judge(self, scores: Scores, standing: Iterable[tuple[int, int]]) -> list[Verdict]:
        return [self._verdict(scores, at, rung) for at, rung in check_standing(scores, standing)]

    def _verdict(self, scores: Scores, trial: int, rung: int) -> Verdict:
        column, trained = scores.table[:, rung], scores.segments[:, rung] >= 0  # others have failed
        kept = max(self.least, int(trained.sum()) // self.eta)
        stays = np.isfinite(column[trial]) and ranks(column)[trial] < kept
        return Verdict.CONTINUE if stays else Verdict.STOP
