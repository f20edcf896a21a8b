"""Several optimizers, each tuned on the same task."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optfn.core.text_table import in_columns, number
from optfn.core.transform import Transform
from optfn.sweep.callbacks import Callback, check_callbacks
from optfn.sweep.result import Result
from optfn.sweep.run import run
from optfn.sweep.task import Training
from optfn.sweep.trials import TrialResult

NEAR = 0.1


class Comparison(Mapping[str, Result]):
    """The results of several sweeps by name."""

    def __init__(self, results: Mapping[str, Result]):
        self.results = dict(results)

    def __getitem__(self, name: str) -> Result:
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self)})"

    def order(self) -> list[str]:
        """The names from the best score to the worst; those that cannot win are last."""
        first = {name: int(result.order()[0]) for name, result in self.items()}
        return sorted(self, key=lambda x: (not self[x].can_win[first[x]], self[x].losses[first[x]]))

    def best(self) -> tuple[str, TrialResult]:
        """The name of the best optimizer and its best trial.

        Raises:
            ValueError: every trial of every optimizer diverged, or breaks a constraint.
        """
        name = self.order()[0]
        return name, self[name].best()

    def table(self) -> str:
        """A line for the best trial of each optimizer, the best first.

        "near" is the share of the optimizer's trials whose last score is within 10% of its best:
        how easy it is to tune in this space.
        """
        head = ["optimizer", self[next(iter(self))].task.objective, "near", "pruned", "diverged"]
        rows = [self._row(name) for name in self.order()]
        return in_columns([[*head, "seconds", "hyperparameters"], *rows], left=(0, 6))

    def _row(self, name: str) -> list[str]:
        result = self[name]
        best = result.trial(int(result.order()[0]))
        distance = np.abs(result.losses - result.task.sign * best.score)
        near = np.mean(distance <= NEAR * abs(best.score)) if np.isfinite(best.score) else 0.0
        lost = np.isin(result.status, ("diverged", "not_finite"))
        return [
            name,
            number(best.score)
            + ("" if np.isnan(best.spread) else f" ± {number(best.spread)}")
            + ("" if best.feasible else ", constraints broken"),
            f"{100 * near:.0f}%",
            str(int((result.status == "pruned").sum())),
            str(int(lost.sum())),
            f"{result.seconds:.1f}",
            ", ".join(f"{key} {number(value)}" for key, value in best.values.items()),
        ]


def compare(
    task: Training | Callable[..., Training],
    optimizers: Mapping[str, tuple[Callable[..., Transform], Mapping[str, Any]]],
    *,
    checkpoint: str | os.PathLike | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Comparison:
    """Tunes each of several optimizers, one after the other, with the same settings.

        compared = sweep.compare(task, {"sgd": (optfn.sgd, {"learning_rate": rates}),
                                        "adam": (optfn.adam, {"learning_rate": rates})},
                                 trials=64, steps=1000)
        print(compared.table())

    Each optimizer has its own sweep, whose policy compares only its own trials: an optimizer that
    is quicker at first does not end the trials of another.

    Args:
        task: the training run, or a function that makes it, as for `run`.
        optimizers: by name a pair of the function that makes the optimizer, and its space.
        checkpoint: a folder, which gets a subfolder for each name.
        callbacks: as for `run`, and each hears of a sweep by its `named(name)`: of one sweep after
            the other, in each of which trials are numbered from 0.
        **settings: other arguments of `run`. The first sweep decides the mode "auto" for all,
            since modes round differently.

    Raises:
        TypeError, ValueError: as `run`; ValueError without an optimizer.
    """
    if not optimizers:
        raise ValueError("sweep.compare(optimizers=...) has no optimizer to tune.")
    callbacks = check_callbacks(callbacks)
    results, mode = {}, settings.pop("mode", "auto")
    for name, (make, space) in optimizers.items():
        folder = None if checkpoint is None else Path(checkpoint) / name
        settings |= {"callbacks": [callback.named(name) for callback in callbacks]}
        results[name] = run(task, make, space, mode=mode, checkpoint=folder, **settings)
        mode = results[name].mode
    return Comparison(results)
