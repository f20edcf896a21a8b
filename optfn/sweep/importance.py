"""How much each hyperparameter matters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optfn.sweep.one_of import names, shared
from optfn.sweep.optuna_library import optuna_library, quiet_optuna
from optfn.sweep.space import Choice, Distribution, Fixed, are_equal
from optfn.sweep.trials import Trials

FEWEST = 8


def importances(
    result: Trials, *, where: Mapping[str, Any] | None = None, evaluator: Any = None, seed: int = 0
) -> dict[str, float]:
    """How much each hyperparameter decides about a trial, by Optuna's evaluators.

        sweep.importances(result)  # {"learning_rate": 0.81, "b1": 0.12, "weight_decay": 0.07}

    What is explained is a trial's place in `result.order()`, so that trials that were pruned or
    diverged count as well: they are what a wrong value does. It tells what mattered in this space,
    on these points; another range gives other numbers. Hyperparameters that only some of the trials
    have, in a conditional space, are left out.

    Args:
        result: a result of `sweep.run`.
        where: counts the trials that have these values, such as `{"optimizer": "adam"}`; None is
            all. At least eight of them must have run.
        evaluator: an `optuna.importance` evaluator; None is fANOVA, which needs scikit-learn.
        seed: of fANOVA's forest.

    Returns:
        A share for each hyperparameter that was searched, the largest first; they sum to 1.

    Raises:
        ImportError: Optuna or scikit-learn is not installed.
        ValueError: fewer than eight of these trials ran; nothing was searched.

    Source: Hutter, Hoos and Leyton-Brown 2014.
    """
    library = optuna_library("sweep.importances(...)")
    chosen = trials_that_ran(result, where, "importances")
    trials = [i for i in result.order() if i in chosen]
    if len(trials) < FEWEST:
        raise ValueError(
            f"importances(result) needs {FEWEST} trials that ran, found {len(trials)}."
        )
    space = differing(result, trials)
    if not space:
        raise ValueError(
            "importances(result): the trials share no hyperparameter that was searched."
        )
    kinds = library.distributions
    distributions = {
        name: kinds.CategoricalDistribution(range(len(d.options)))
        if isinstance(d, Choice)
        else kinds.FloatDistribution(0.0, 1.0)
        for name, d in space.items()
    }

    def encoded(point: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _encoded(d, point[name]) for name, d in space.items()}

    with quiet_optuna():
        study = library.create_study()
        study.add_trials(
            library.trial.create_trial(
                params=encoded(result.points[i]), distributions=distributions, value=float(place)
            )
            for place, i in enumerate(trials)
        )
        if evaluator is None:
            evaluator = library.importance.FanovaImportanceEvaluator(seed=seed)
        found = library.importance.get_param_importances(study, evaluator=evaluator)
    return {str(name): float(share) for name, share in found.items()}


def differing(result: Trials, trials: Sequence[int] | np.ndarray) -> dict[str, Distribution]:
    """The distributions of the hyperparameters that all these trials have, with several values."""
    points = [result.points[i] for i in trials]
    space = searched(result, trials)
    return {name: d for name, d in space.items() if len({_encoded(d, p[name]) for p in points}) > 1}


def searched(result: Trials, trials: Iterable[int]) -> dict[str, Distribution]:
    """The distributions of the searched hyperparameters that all these trials have."""
    space = shared(result.plan.space, [result.points[i] for i in trials])
    return {name: d for name, d in space.items() if not isinstance(d, Fixed)}


def _encoded(distribution: Distribution, value: Any) -> float:
    """The value as Optuna gets it."""
    return (
        distribution.index(value) if isinstance(distribution, Choice) else distribution.unit(value)
    )


def trials_where(result: Trials, where: Mapping[str, Any] | None, caller: str) -> np.ndarray:
    """The numbers of the trials that have some values.

    Raises:
        ValueError: there is no such hyperparameter, or no trial has these values.
    """
    wanted = dict(where or {})
    for name in wanted.keys() - names(result.plan.space):
        raise ValueError(
            f"{caller}(where=...) must name hyperparameters of the space, "
            f"{', '.join(names(result.plan.space))}, found {name!r}."
        )
    chosen = [
        i
        for i in range(len(result))
        if all(_has(result.points[i], name, value) for name, value in wanted.items())
    ]
    if not chosen:
        raise ValueError(f"{caller}(where={wanted!r}): no trial has these values.")
    return np.array(chosen)


def trials_that_ran(result: Trials, where: Mapping[str, Any] | None, caller: str) -> np.ndarray:
    """Of `trials_where` those that were trained, also if they diverged in their first step.

    Raises:
        ValueError: as `trials_where`; none of the trials ran.
    """
    trials = trials_where(result, where, caller)
    ran = trials[result.started_at[trials] >= 0]
    if not len(ran):
        raise ValueError(f"{caller}(where={dict(where or {})!r}): none of these trials ran.")
    return ran


def _has(point: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether the point has this value; an array is known by its identity."""
    return name in point and (point[name] is value or are_equal(point[name], value))
