"""Several scores: the trials of which none is worse than another in all of them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from optfn.core.text_table import in_columns, number
from optfn.sweep.trials import TrialResult, Trials

SIGNS = {"minimize": 1, "maximize": -1}


@dataclass(frozen=True)
class Pareto:
    """The trials that no other beats: whoever is better in one score is worse in another.

    Attributes:
        result: the result of the sweep.
        directions: "minimize" or "maximize" by the name of each score.
        values: by the name of each score, float `[trials]`, its mean over the seeds, see
            `Result.at_score`; nan for trials that do not count.
        numbers: the numbers of the trials, from the best in the first score to the worst.
    """

    result: Trials = field(repr=False)
    directions: Mapping[str, str]
    values: Mapping[str, np.ndarray] = field(repr=False)
    numbers: tuple[int, ...]

    @property
    def trials(self) -> list[TrialResult]:
        """The trials, from the best in the first score to the worst."""
        return [self.result.trial(i) for i in self.numbers]

    def table(self) -> str:
        """A line for each of these trials: its scores, and its hyperparameters."""
        names = self.result.names
        head = ["trial", *self.values, *names]
        rows = [
            [
                str(i),
                *(number(float(column[i])) for column in self.values.values()),
                *(number(self.result.points[i].get(name, "")) for name in names),
            ]
            for i in self.numbers
        ]
        return in_columns([head, *rows])


def pareto(result: Trials, directions: Mapping[str, str]) -> Pareto:
    """The trials of a sweep that no other beats in all of several scores.

        front = sweep.pareto(result, {"accuracy": "maximize", "milliseconds": "minimize"})
        print(front.table())

    The scores are all those that `evaluate`, `host_evaluate` and the training give, at the moment
    whose score counts: the end of a run, its best under `score="best"`, and that of the fresh runs
    of a confirmed trial. Trials that break a constraint do not count. The sweep itself, its policy
    and its search, goes by the one that `minimize` or `maximize` names, and ends early what is poor
    in that; use `run_all()` where others may be good.

    Args:
        result: a result of `sweep.run`.
        directions: "minimize" or "maximize" by the name of a score.

    Raises:
        TypeError: the directions are no dict.
        ValueError: there is no such score or direction, or no trial ran to the end with all scores.
    """
    if not isinstance(directions, Mapping):
        raise TypeError(
            'sweep.pareto(directions=...) must be a dict such as {"loss": "minimize"}, found '
            f"{directions!r}."
        )
    for name, direction in directions.items():
        if direction not in SIGNS:
            raise ValueError(
                f"sweep.pareto(directions=...) must be minimize or maximize, found {direction!r} "
                f"for {name!r}."
            )
        if name not in result.at_score:
            raise ValueError(
                f"sweep.pareto(directions=...): {name!r} is none of the scores there are: "
                f"{', '.join(result.at_score)}."
            )
    ends = {name: result.at_score[name] for name in directions}
    ran = (result.status == "ok") & result.feasible
    counts = ran & np.all([np.isfinite(x) for x in ends.values()], axis=0)
    if not directions or not counts.any():
        raise ValueError(
            f"sweep.pareto(directions={dict(directions)!r}): no trial ran to the end with finite "
            f"scores{' and all constraints kept' if result.violations.size else ''}, "
            f"{result.counts()}."
        )
    if unknown := int(ran.sum() - counts.sum()):
        warnings.warn(
            f"sweep.pareto(...) leaves out {unknown} trials that ran to the end, but lack a finite "
            f"one of the scores {', '.join(directions)}; of the trials of other workers the score "
            f"{result.task.objective!r} alone is known.",
            stacklevel=2,
        )
    ends = {name: np.where(counts, x, np.nan) for name, x in ends.items()}
    losses = np.stack([SIGNS[directions[name]] * x for name, x in ends.items()], axis=1)
    front = [i for i in np.flatnonzero(counts) if not _is_beaten(losses[i], losses[counts])]
    front.sort(key=lambda i: (*losses[i], i))
    return Pareto(result, dict(directions), ends, tuple(map(int, front)))


def _is_beaten(losses: np.ndarray, others: np.ndarray) -> bool:
    """Whether one of the others `[others, scores]` is nowhere worse, and somewhere better."""
    return bool(((others <= losses).all(axis=1) & (others < losses).any(axis=1)).any())
