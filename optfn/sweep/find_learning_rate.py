"""The range test: which learning rates train, in one short sweep."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from optfn.core.data import check_count
from optfn.core.text_table import number
from optfn.core.transform import Transform
from optfn.sweep.policies.policy import run_all
from optfn.sweep.result import Result
from optfn.sweep.run import run
from optfn.sweep.search import grid
from optfn.sweep.task import Training


@dataclass(frozen=True, repr=False)
class LearningRates:
    """What every learning rate led to. `optfn.sweep.plot.learning_rates` draws it.

    Attributes:
        rates: float `[n]`, the rates, ascending.
        scores: float `[n]`, the score of each at the end, in the units of the task; the worst
            infinity where it diverged.
        start: the score of rate 0, on the same batches: that of the initial params.
        tolerance: the share of the best improvement that a good rate may miss.
        result: the sweep, with the curve of every rate; its trial 0 is rate 0.
    """

    rates: np.ndarray
    scores: np.ndarray
    start: float
    tolerance: float
    result: Result = field(repr=False)

    @property
    def improvements(self) -> np.ndarray:
        """float `[n]`, by how much each rate improved the score; -inf where it diverged."""
        return self.result.task.sign * (self.start - self.scores)

    @cached_property
    def good(self) -> tuple[float, float]:
        """The lowest and the highest of the good rates."""
        gains = self.improvements
        first = last = int(np.argmax(gains))
        good = gains >= (1 - self.tolerance) * gains[first]
        while first > 0 and good[first - 1]:
            first -= 1
        while last < len(gains) - 1 and good[last + 1]:
            last += 1
        return float(self.rates[first]), float(self.rates[last])

    @property
    def suggestion(self) -> float:
        """The middle of the good rates on a logarithmic axis."""
        return math.sqrt(math.prod(self.good))

    def __repr__(self) -> str:
        low, high = map(number, self.good)
        return (
            f"LearningRates(suggestion={number(self.suggestion)}, good=({low}, {high}), "
            f"tried=({number(self.rates[0])}, {number(self.rates[-1])}))"
        )


def find_learning_rate(
    task: Training,
    optimizer: Callable[..., Transform],
    *,
    low: float = 1e-6,
    high: float = 10.0,
    rates: int = 43,
    steps: int = 100,
    seeds: int = 1,
    tolerance: float = 0.05,
    seed: int = 0,
    mode: str = "vmap",
) -> LearningRates:
    """Trains with every learning rate of a range for a few steps, side by side, and suggests one.

        found = sweep.find_learning_rate(task, optfn.adamw)
        tx = optfn.adamw(found.suggestion)
        optfn.sweep.plot.learning_rates(found)

    The range test of Smith raises the rate along one run, where a rate starts from what the rates
    before it have made of the params, and the loss lags behind. Here each rate has a run of its
    own, from the same params on the same batches, all in one `vmap`. One more run has the rate 0,
    so that what a rate improved is known.

    The rule of the suggestion: a rate is good if it improved the score by at least 1 - tolerance of
    what the best rate did, and so did all rates between it and the best. Suggested is the middle of
    the good rates on a logarithmic axis. The best rate itself is often the last before the run
    diverges; the middle is as far from that as the range allows. The suggestion is for a run with a
    warm-up and a decay from this peak; a much longer run likes a somewhat lower rate.

    Args:
        task: the training run, a `Task` or a `TrainingLoop`. Its score judges: by default the mean
            training loss of the last tenth of the steps.
        optimizer: a function with the argument `learning_rate` that returns an optimizer, such as
            `optfn.adamw` or `lambda learning_rate: optfn.muon(learning_rate, views=views)`.
        low, high: the lowest and the highest rate.
        rates: how many to try, evenly on a logarithmic axis: six to a factor of ten by default.
        steps: the updates of each run.
        seeds: the runs of each rate, whose mean score counts.
        tolerance: the share of the best improvement that a good rate may miss, from 0 to 1.
        seed: the seed of the sweep.
        mode: how lanes are trained; see `sweep.run`. On a CPU "map" is faster for large matrices.

    Returns:
        `LearningRates`: the suggestion, the good range, the score of every rate, and the sweep.

    Raises:
        TypeError: `optimizer` is not a function of `learning_rate`.
        ValueError: a number is out of its range; or no rate improved the score.

    Warns:
        UserWarning: the good rates reach the end of the range.
    """
    where = "find_learning_rate"
    if isinstance(optimizer, Transform) or not callable(optimizer):
        raise TypeError(
            f"{where}(optimizer=...) must be a function of learning_rate that returns an "
            f"optimizer, such as optfn.adamw, found {optimizer!r:.60}."
        )
    check_count(rates, f"{where}(rates=...)")
    check_count(steps, f"{where}(steps=...)")
    if rates < 2 or not 0 < low < high < math.inf:
        raise ValueError(
            f"{where}(...) needs two or more rates from a low above 0 to a high above it, found "
            f"{rates} from {low!r} to {high!r}."
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"{where}(tolerance=...) must be from 0 to below 1, found {tolerance!r}.")
    tried = np.geomspace(low, high, rates)
    result = run(
        task,
        optimizer,
        {"learning_rate": [0.0, *tried.tolist()]},
        steps=steps,
        search=grid(),
        policy=run_all(),
        seeds=seeds,
        lanes=max(8, (rates + 1) * seeds),
        seed=seed,
        mode=mode,
        catch=(),
    )
    start, *scores = (task.sign * result.losses).tolist()
    found = LearningRates(tried, np.asarray(scores), start, tolerance, result)
    _check(found, steps)
    return found


def _check(found: LearningRates, steps: int) -> None:
    """Refuses a range without a good rate, and warns of one that may go on beyond its ends."""
    objective, tried = found.result.task.objective, f"{found.rates[0]:.3g} to {found.rates[-1]:.3g}"
    if not math.isfinite(found.start):
        raise ValueError(
            f"find_learning_rate(...): {objective!r} of the initial params is not finite, so what "
            "a rate improves is not known."
        )
    if not found.improvements.max() > 0:
        raise ValueError(
            f"find_learning_rate(...): no rate from {tried} improves {objective!r} within {steps} "
            f"steps, {found.start:.4g} before them: take more steps, or another range."
        )
    low, high = found.good
    ends = {"low": low == found.rates[0], "high": high == found.rates[-1]}
    reached = [name for name, is_end in ends.items() if is_end]
    if reached:
        warnings.warn(
            f"the good rates, {low:.3g} to {high:.3g}, reach the end of those tried, {tried}: "
            f"give another {' and '.join(reached)}.",
            stacklevel=3,
        )
