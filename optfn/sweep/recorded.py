"""What a checkpoint says of a sweep to one who does not have its code."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from optfn.core.text_table import text
from optfn.core.tree import PyTree
from optfn.sweep import space as distributions
from optfn.sweep.one_of import OneOf, Space
from optfn.sweep.plan import Plan
from optfn.sweep.policies.policy import Scores
from optfn.sweep.scheduler import Scheduler
from optfn.sweep.space import Choice, Distribution, Either, Fixed
from optfn.sweep.task import Model, Training
from optfn.sweep.trial import PLAIN, Trial

COUNTS = ("steps", "segment", "lanes", "seed")


def readable(value: Any) -> Any:
    """A value for JSON: itself if it is plain, else its text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, (bool, int, float, str)) else text(value)


def readable_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point for JSON."""
    return {name: readable(value) for name, value in point.items()}


def record(scheduler: Scheduler, seconds: float) -> dict[str, Any]:
    """All that `scheduler_of` needs beside the arrays, for JSON.

    Args:
        scheduler: the scheduler of the sweep.
        seconds: the duration so far.
    """
    plan = scheduler.plan
    return {
        "score": [plan.task.objective, plan.task.sign],
        "plan": {
            **{name: int(getattr(plan, name)) for name in COUNTS},
            "max_loss": float(plan.max_loss),
            "score": plan.score,
            "patience": plan.patience,
        },
        "space": _described(plan.space),
        "ages": [int(age) for age in scheduler.scores.ages],
        "points": [readable_point(trial.point) for trial in scheduler.trials],
        "histories": {
            trial.number: [
                [[age, readable_point(point)] for age, point in history]
                for history in (trial.history, trial.own_history)
            ]
            for trial in scheduler.trials
            if len(trial.own_history) > 1
        },
        "params": {trial.number: outline(trial.models) for trial in scheduler.kept},
        "seconds": seconds,
    }


def scheduler_of(host: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    """What a `Result` reads of a scheduler, from a checkpoint.

    Args:
        host: the record of the host.
        arrays: its arrays.
    """
    found = host["recorded"]
    objective, sign = found["score"]
    task = Training(minimize=objective) if sign > 0 else Training(maximize=objective)
    settings = dict(found["plan"])
    if isinstance(settings["score"], list):
        settings["score"] = tuple(settings["score"])
    plan = Plan(task, None, _space(found["space"]), **settings)
    trials = []
    for plain, point in zip(host["trials"], found["points"], strict=True):
        trial = Trial(plain["number"], point, None, -1, tuple(plain["seeds"]))
        for name in PLAIN:
            setattr(trial, name, plain[name])
        trial.curve = plain["curve"]
        if histories := found["histories"].get(str(trial.number)):
            trial.history, trial.own_history = histories
        trials.append(trial)
    for number, tree in found["params"].items():
        name = f"params {number} "
        leaves = [arrays[name + str(i)] for i in range(sum(key.startswith(name) for key in arrays))]
        trials[int(number)].models = tuple(Model(**each) for each in rebuilt(tree, iter(leaves)))
    return SimpleNamespace(
        plan=plan,
        trials=trials,
        kept=[trials[i] for i in host["kept"]],
        scores=Scores.start(found["ages"][:-1], found["ages"][-1], len(trials), sign),
        copied_from=host["copied_from"],
        executor=SimpleNamespace(lane_steps=host["lane_steps"], mode=host["mode"]),
    )


def outline(tree: PyTree) -> Any:
    """The containers of a tree, for JSON: dicts, lists, tuples, and others as dicts."""
    if tree is None:
        return None
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0]
    if len(children) == 1 and not children[0][0]:
        return "leaf"
    kind = type(tree).__name__ if type(tree) in (list, tuple) else "dict"
    keys = [getattr(path[0], "key", getattr(path[0], "name", None)) for path, _ in children]
    keys = [key if isinstance(key, (int, str)) else str(key) for key in keys]
    return [kind, keys, [outline(child) for _, child in children]]


def rebuilt(outlined: Any, leaves: Any) -> Any:
    """The inverse of `outline`, with an iterator of the leaves."""
    if outlined is None:
        return None
    if outlined == "leaf":
        return next(leaves)
    kind, keys, parts = outlined
    parts = [rebuilt(part, leaves) for part in parts]
    if kind == "dict":
        return dict(zip(keys, parts, strict=True))
    return parts if kind == "list" else tuple(parts)


def _described(space: Space) -> dict[str, Any]:
    """The distributions by argument, for JSON."""
    return {argument: _description(distribution) for argument, distribution in space.items()}


def _space(described: Mapping[str, Any]) -> dict[str, Distribution]:
    """The inverse of `_described`."""
    return {argument: _distribution(kind) for argument, kind in described.items()}


def _description(distribution: Distribution) -> list[Any]:
    """A distribution for JSON; a fixed value and options as `readable`."""
    if isinstance(distribution, Fixed):
        return ["Fixed", readable(distribution.value)]
    if isinstance(distribution, OneOf):
        branches = distribution.branches.items()
        return ["OneOf", [distribution.name, {o: _described(space) for o, (_, space) in branches}]]
    if isinstance(distribution, Choice):
        return ["Choice", [readable(option) for option in distribution.options]]
    if isinstance(distribution, Either):
        return ["Either", [_description(part) for part in distribution.parts]]
    kind: Any = type(distribution)
    if getattr(distributions, kind.__name__, None) is not kind:  # of the user's own kind
        return ["Fixed", None]
    return [kind.__name__, {f.name: readable(getattr(distribution, f.name)) for f in fields(kind)}]


def _distribution(described: Sequence[Any]) -> Distribution:
    """The inverse of `_description`."""
    kind, made = described
    if kind == "Fixed":
        return Fixed(made)
    if kind == "OneOf":
        name, branches = made
        return OneOf(name, {option: (_gone, _space(space)) for option, space in branches.items()})
    if kind == "Choice":
        return Choice(*made)
    if kind == "Either":
        parts = map(_distribution, made)
        return Either(*(part.value if isinstance(part, Fixed) else part for part in parts))
    return getattr(distributions, kind)(**made)


def _gone(**values: Any) -> Any:
    """In the place of the function of an option."""
    raise ValueError(
        "the space of a result that was loaded has no code: write it again, or call sweep.run with "
        "the same checkpoint."
    )
