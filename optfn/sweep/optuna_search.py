"""Points from Optuna's samplers, by ask and tell in batches."""

import copy
import math
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from optfn.sweep.one_of import coordinates, point_of
from optfn.sweep.optuna_library import CONSTRAINTS, optuna_library, quiet_optuna
from optfn.sweep.search import Point, Session, TrialStatus, check_seed, check_trials
from optfn.sweep.space import (
    BELOW_ONE,
    Choice,
    Distribution,
    Either,
    Fixed,
    IntUniform,
    LogUniform,
    Normal,
    OneMinusLogUniform,
    Uniform,
    as_space,
)

STATUSES = get_args(TrialStatus)


@dataclass(frozen=True)
class optuna_search:
    """Points from an Optuna sampler, which learns from earlier trials: TPE, GP, CMA-ES.

    For expensive trials, or many hyperparameters; `random` and `sobol` give points at no cost.

    The sampler works on a study in memory. A sweep asks it for no more points than there are free
    lanes, by default eight, since each point can use the results of those before it; it should take
    running trials into account, as TPE does with `constant_liar=True`. It gets the last score of a
    trial that the policy stops, of which TPE learns; GP and NSGA learn only of trials that ran to
    their end, as CMA-ES does without `consider_pruned_trials`, so a policy that leaves few of them
    is a warning. Before each
    point its random state is set from the seed and the trial's number. A sweep that was stopped
    continues with the same points: it replays all asks and tells, which takes the sampler as long
    as before.

    Finished trials are written in batches to the study or storage, where Optuna's dashboard shows
    them, and those of other programs are read from there. Machines that share it need different
    seeds. Running trials are not written, so a killed program leaves none behind. What waits in the
    study, by `study.enqueue_trial`, is tried first and gets its outcome there. Attributes that a
    sampler stores in a trial, some of them pickled, are neither written nor read.

    | here | in Optuna |
    |---|---|
    | `Uniform`, `LogUniform`, `IntUniform` | a float or int of the same name |
    | `OneMinusLogUniform` | a float of the same name; the sampler sees 1 - value, with `log` |
    | `Choice` | a categorical: the option, or its position where an option is not a plain value |
    | `Normal`, `Either`, a step | a float of the same name; the sampler sees `u` |
    | `OneOf` | a categorical, and what its option has, as "optimizer.adam.learning_rate" |
    | `Fixed` | nothing |

    Under `sweep.run(constraints=...)` a trial has them where Optuna stores its own, of which TPE,
    GP and NSGA learn. Those of Optuna 4 must be told to look there, by
    `constraints_func=lambda trial: trial.system_attrs["constraints"]`.

    The trial's user attributes have the values that were used, and its status. A study made here
    has the direction of the task and its scores; one that is given keeps its own, and gets -score
    where that is the other one. A trial that diverged or has no finite score is pruned without a
    value, which TPE treats as the worst.

    Args:
        study: an `optuna.Study` with one objective. The sampler knows its finished trials.
        sampler: an `optuna.samplers.BaseSampler`, which is copied. The default is the study's, or
            else TPE with `constant_liar=True`.
        storage: instead of a study: the path of a journal file, a URL such as "sqlite:///study.db",
            which is slower, or an `optuna.storages.BaseStorage`.
        study_name: the name of the study in the storage, created if it does not exist.
        direction: of a study that is created, "minimize" or "maximize"; None is that of the task.

    Raises:
        ImportError: Optuna is not installed.
        TypeError: an argument is of another kind.
        ValueError: both a study and a storage; a study with several objectives. Later: a study with
            trials of another space, a state from another sampler.

    Source: Akiba et al. 2019.
    """

    study: Any = None
    sampler: Any = None
    storage: Any = None
    study_name: str = "sweep"
    direction: str | None = None

    def __post_init__(self) -> None:
        library = optuna_library()
        kinds = {"study": library.Study, "sampler": library.samplers.BaseSampler}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(
                    f"optuna_search({name}=...) must be an optuna {kind.__name__}, found "
                    f"{type(value).__name__}."
                )
        check_place("optuna_search", self.storage, self.study_name, optional=True)
        if self.direction not in (None, "minimize", "maximize"):
            raise ValueError(
                "optuna_search(direction=...) must be minimize, maximize or None, found "
                f"{self.direction!r}."
            )
        if self.study is not None and self.storage is not None:
            raise ValueError(
                "optuna_search(...) takes a study or a storage: a study has its own storage."
            )
        if self.study is not None and len(self.study.directions) != 1:
            raise ValueError(
                f"optuna_search(study=...) must have one objective, found "
                f"{len(self.study.directions)}: the search goes by the task's one score. Make the "
                "study with one direction, let evaluate give the other scores, and choose by "
                "sweep.pareto(result, directions); what only has to be good enough goes to "
                "sweep.run(constraints=...)."
            )

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> Session:
        check_seed(seed)
        return _Session(
            space=as_space(space),
            trials=int(min(check_trials(trials, "optuna_search()"), _most_points(self._sampler()))),
            seed=int(seed),
            sampler=self._sampler(),
            shared=self._shared(),
            direction=self.direction,
        )

    def aimed(self, sign: int) -> "optuna_search":
        """The search for a task that minimizes its score, with sign 1, or maximizes it, with -1."""
        aim = "minimize" if sign > 0 else "maximize"
        there = self.study and self.study.direction.name.lower()
        if there and there != aim:
            warnings.warn(
                f"optuna_search(study=...) is a study that {there}s, but the task {aim}s its "
                f"score: the study gets -score. One with direction={aim!r} would get the score.",
                stacklevel=3,
            )
        return self if self.direction else replace(self, direction=aim)

    def _sampler(self) -> Any:
        if self.sampler is not None:
            return self.sampler
        if self.study is not None:
            return self.study.sampler
        library = optuna_library()
        with warnings.catch_warnings():  # before Optuna 5 the option was experimental
            warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
            return library.samplers.TPESampler(constant_liar=True)

    def _shared(self) -> Any:
        """The study shared with other programs, or None."""
        if self.storage is None:
            return self.study
        return opened(self.storage, self.study_name, self.direction)


def check_place(where: str, storage: Any, study_name: Any, *, optional: bool = False) -> None:
    """Raises unless a study can be at this place; `optional` allows none."""
    storages = (str, os.PathLike, optuna_library().storages.BaseStorage)
    if not isinstance(storage, storages) and not (optional and storage is None):
        raise TypeError(
            f"{where}(storage=...) must be a path, a URL or an optuna BaseStorage, found "
            f"{type(storage).__name__}."
        )
    if not isinstance(study_name, str):
        raise TypeError(
            f"{where}(study_name=...) must be a string, found {type(study_name).__name__}."
        )


def opened(storage: Any, study_name: str, direction: str | None) -> Any:
    """The study of this name in a storage, see `optuna_search`; created if it does not exist."""
    with quiet_optuna() as library:
        if isinstance(storage, os.PathLike) or (isinstance(storage, str) and "://" not in storage):
            file = library.storages.journal.JournalFileBackend(os.fspath(storage))
            storage = library.storages.JournalStorage(file)
        return library.create_study(
            storage=storage, study_name=study_name, direction=direction, load_if_exists=True
        )


class _Written:
    """How the points of a space are written to a study."""

    space: Mapping[str, Distribution]
    coordinates: dict[str, Distribution]

    def _params(self, point: Point) -> dict[str, Any]:
        """The params of a point, as the sampler sees them."""
        params = {}

        def note(name: str, distribution: Distribution, key: str) -> Any:
            if not isinstance(distribution, Fixed):
                params[key] = _param(distribution, point[name])
            return point[name]

        point_of(self.space, note)
        return params

    def params_of_study(self, trial: Any) -> dict[str, Any]:
        """The params of a trial of a shared study, or those it waits with, as the sampler's."""
        if not trial.params:
            return _waiting_params(trial, self.coordinates)
        kinds = self.coordinates
        return {
            key: _param(kinds[key], param) if _encodes(kinds[key]) else param
            for key, param in trial.params.items()
        }

    def point_with(self, given: Mapping[str, Any], draw: np.random.Generator) -> Point:
        """The point with these params, others drawn at random."""

        def value_of(name: str, distribution: Distribution, key: str) -> Any:
            if isinstance(distribution, Fixed):
                return distribution.value
            if key in given:
                return _value(distribution, given[key])
            return distribution.at(draw.random())

        return point_of(self.space, value_of)

    def written(self, point: Point) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What is written of a point: params, their distributions, and the values that are used."""
        params = {k: _written(self.coordinates[k], x) for k, x in self._params(point).items()}
        distributions = {key: _writing(self.coordinates[key]) for key in params}
        return params, distributions, _readable(point)


class _Session(_Written):
    """A study in memory, and the log of its events, from which it can be rebuilt."""

    def __init__(
        self,
        space: Mapping[str, Distribution],
        trials: int,
        seed: int,
        sampler: Any,
        shared: Any,
        direction: str | None = None,
    ):
        self.space = space
        self.trials = trials
        self.seed = seed
        self.sampler = sampler
        self.shared = shared
        self.direction = direction if shared is None else shared.direction
        self.first: list[Point] = []
        self.coordinates = coordinates(space)
        self.parameters = {
            key: _parameter(distribution)
            for key, distribution in self.coordinates.items()
            if not isinstance(distribution, Fixed)
        }
        self._begin(uuid.uuid4().hex)
        self._read()

    def _begin(self, run: str) -> None:
        self.run = run
        self.log: list[list] = []
        self.asked: list[Any] = []
        self.ended: dict[int, TrialStatus] = {}
        self.violations: dict[int, list[float]] = {}
        self.known: set[int] = set()
        self.taken: dict[int, int] = {}
        self.over = False
        with quiet_optuna() as library:
            self.study = library.create_study(
                storage=library.storages.InMemoryStorage(),
                sampler=copy.deepcopy(self.sampler),
                direction=self.direction,
            )
        self.sign = -1 if self.study.direction == library.study.StudyDirection.MAXIMIZE else 1

    @property
    def learns(self) -> bool:
        """Whether the points to come depend on the scores of those before."""
        return _learns(self.sampler)

    def advice(self, at_once: int, prunes: bool) -> str:
        """What keeps the sampler from learning, as a sentence, or nothing."""
        name = type(self.sampler).__name__
        if not self.learns:
            return ""
        if at_once >= self.trials:
            return (
                f"{name} is asked for all {self.trials} trials before there is a result, so it "
                "cannot learn: fewer lanes, or more trials, let it."
            )
        if prunes and not _learns_from_pruned(self.sampler):
            return (
                f"{name} learns only of trials that ran to their end, and the policy leaves few of "
                "them: run_all() lets all end, and TPESampler learns of the others too."
            )
        return ""

    def ask(self, count: int) -> list[Point]:
        end = len(self.asked) if self.over else min(len(self.asked) + count, self.trials)
        return [self._ask() for _ in range(len(self.asked), end)]

    def ask_for(self, number: int, given: Mapping[str, Any]) -> Point:
        """The point of this number in a shared study, with the params that are given."""
        if not given and number < len(self.first):
            given = self._params(self.first[number])
        if given:
            self.study.enqueue_trial(dict(given))
        return self._ask(number)

    def _ask(self, number: int | None = None) -> Point:
        if number is None:
            waiting = (optuna_library().trial.TrialState.WAITING,)
            trials = self.study.get_trials(deepcopy=False)
            number = len(trials) - len(self.study.get_trials(deepcopy=False, states=waiting))
        state = np.random.SeedSequence([self.seed, number]).generate_state(1)
        _reseed(self.study.sampler, int(state[0]))
        trial = self.study.ask()
        self._point(trial)
        self.asked.append(trial)
        self.log.append(["ask", dict(trial.params)])
        return self._point(trial)

    def _point(self, trial: Any) -> Point:
        """The point of a trial, whose sampler is asked for what it does not have yet."""

        def value_of(name: str, distribution: Distribution, key: str) -> Any:
            if isinstance(distribution, Fixed):
                return distribution.value
            have = trial.params
            param = have[key] if key in have else _suggested(trial, key, self.parameters[key])
            return _value(distribution, param)

        return point_of(self.space, value_of)

    def enqueue(self, points: Sequence[Point]) -> None:
        self.first = list(points)
        self._enqueue()

    def _enqueue(self) -> None:
        self.log.append(["enqueue"])
        for point in self.first:
            self.study.enqueue_trial(self._params(point))

    def learn(self, trials: Iterable[Any]) -> None:
        """Adds the trials of a shared study that are not known yet."""
        for trial in trials:
            if trial.number not in self.known:
                self.known.add(trial.number)
                self.study.add_trial(self._from(trial))

    def constrain(self, index: int, violations: Sequence[float]) -> None:
        """Takes how far a trial is from keeping its constraints, to be told with its outcome."""
        self.violations[index] = [float(x) for x in violations]

    def tell(
        self,
        index: int,
        score: float,
        status: TrialStatus,
        reports: Sequence[tuple[int, float]] = (),
    ) -> None:
        if not 0 <= index < len(self.asked) or index in self.ended:
            raise ValueError(f"tell(index=...) must be of a trial that runs, found {index!r}.")
        if status not in STATUSES:
            raise ValueError(
                f"tell(status=...) must be one of {', '.join(STATUSES)}, found {status!r}."
            )
        if status in ("ok", "pruned") and not math.isfinite(score):
            status = "not_finite"
        good = status in ("ok", "pruned")
        finite = {int(step): float(x) for step, x in reports if good and math.isfinite(x)}
        pairs = [list(pair) for pair in finite.items()]
        broken = self.violations.get(index, [])
        self._tell(int(index), float(score) if good else None, status, pairs, broken)

    def _tell(
        self,
        index: int,
        score: float | None,
        status: TrialStatus,
        reports: list[Any],
        violations: list[float],
    ) -> None:
        self.log.append(["tell", index, score, status, reports, violations])
        self.ended[index] = status
        trial, states = self.asked[index], optuna_library().trial.TrialState
        note_constraints(self.study, trial._trial_id, violations)
        for step, report in reports:
            trial.report(self.sign * report, step)
        if status == "ok" and score is not None:
            self._close(trial, self.sign * score)
            return
        if status == "failed":
            self._close(trial, state=states.FAIL)
            return
        if status == "pruned" and score is not None and not reports:
            trial.report(self.sign * score, 1)
        self._close(trial, state=states.PRUNED)

    def _close(self, trial: Any, *outcome: Any, **state: Any) -> None:
        try:
            self.study.tell(trial, *outcome, **state)
        except RuntimeError:  # a sampler without another point stops a study, which cannot be here
            if not self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                raise
            self.over = True

    def state(self) -> dict[str, Any]:
        return {"run": self.run, "log": list(self.log)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._begin(state["run"])
        for what, *event in state["log"]:
            if what == "ask":
                self._ask()
                found = dict(self.asked[-1].params)
                if found != event[0]:
                    raise ValueError(
                        f"the state of the search is from another sampler, space, seed or version "
                        f"of Optuna: its trial {len(self.asked) - 1} was {event[0]!r}, now it is "
                        f"{found!r}."
                    )
            elif what == "tell":
                self._tell(*event)
            elif what == "enqueue":
                self._enqueue()
            elif what == "take":
                self._take(*event)
            else:
                self._add(*event)

    def flush(self) -> None:
        if self.shared is None:
            return
        written = {
            trial.user_attrs["trial"]
            for trial in self.shared.get_trials(deepcopy=False)
            if trial.user_attrs.get("run") == self.run
        }
        trials = self.study.get_trials(deepcopy=False)
        new = sorted(self.ended.keys() - written)
        frozen = {index: self._frozen(index, trials) for index in new}
        self.shared.add_trials(
            trial for index, trial in frozen.items() if not self._fill_in(index, trial)
        )
        self._read()

    def _fill_in(self, index: int, outcome: Any) -> bool:
        """Gives a trial that waited in the study its outcome, unless another has taken it."""
        number = self.taken.get(self.asked[index].number)
        if number is None:
            return False
        there = self.shared.get_trials(deepcopy=False)[number]._trial_id
        return _filled_in(self.shared._storage, there, outcome)

    def _frozen(self, index: int, trials: list[Any]) -> Any:
        trial = copy.deepcopy(trials[self.asked[index].number])
        trial.system_attrs = _constraints_of(trial)
        trial.params = {k: _written(self.coordinates[k], x) for k, x in trial.params.items()}
        trial.distributions = {k: _writing(self.coordinates[k]) for k in trial.distributions}
        trial.user_attrs = {
            "run": self.run,
            "trial": index,
            "status": self.ended[index],
            "values": _readable(self._point(trial)),
        }
        return trial

    def _read(self) -> None:
        """Adds the trials that other programs have finished, and takes those that wait."""
        if self.shared is not None:
            numbers = [
                trial.number
                for trial in self.shared.get_trials(deepcopy=False)
                if trial.state.is_finished()
                and trial.number not in self.known
                and trial.user_attrs.get("run") != self.run
            ]
            if numbers:
                self._add(numbers)
            for trial in self.shared.get_trials(deepcopy=False):
                if trial.state.name == "WAITING" and trial.number not in self.known:
                    self._take(trial.number, _waiting_params(trial, self.coordinates))

    def _take(self, number: int, params: dict[str, Any]) -> None:
        self.log.append(["take", number, params])
        self.known.add(number)
        self.taken[len(self.study.get_trials(deepcopy=False))] = number
        self.study.enqueue_trial(params)

    def _add(self, numbers: list[int]) -> None:
        self.log.append(["add", numbers])
        self.known.update(numbers)
        others = self.shared.get_trials(deepcopy=False) if self.shared is not None else []
        if len(others) <= max(numbers):
            raise ValueError(
                f"the study has {len(others)} trials, and the state of the search knows of more: "
                "it is from another study."
            )
        for number in numbers:
            self.study.add_trial(self._from(others[number]))

    def _from(self, trial: Any) -> Any:
        """Another program's trial, without the attributes of its sampler."""
        library = optuna_library()
        for name in trial.distributions.keys() & self.parameters.keys():
            there, here = trial.distributions[name], _writing(self.coordinates[name])
            try:
                library.distributions.check_distribution_compatibility(there, here)
            except ValueError:
                raise ValueError(
                    f"trial {trial.number} of the study is of another space: {name!r} is {there} "
                    f"there, {here} here."
                ) from None
        params, distributions = dict(trial.params), dict(trial.distributions)
        for key in params.keys() & self.parameters.keys():
            if _encodes(distribution := self.coordinates[key]):
                try:
                    params[key] = _param(distribution, params[key])
                except ValueError as error:
                    raise ValueError(f"trial {trial.number} of the study: {error}") from None
                distributions[key] = self.parameters[key]
        return library.trial.create_trial(
            state=trial.state,
            values=trial.values,
            params=params,
            distributions=distributions,
            intermediate_values=trial.intermediate_values,
            system_attrs=_constraints_of(trial),
        )


def note_constraints(study: Any, trial: int, violations: Sequence[float]) -> None:
    """Writes how far a trial is from keeping its constraints, if it has any."""
    if violations:
        study._storage.set_trial_system_attr(trial, CONSTRAINTS, list(violations))


def _constraints_of(trial: Any) -> dict[str, Any]:
    """The attributes in which Optuna stores the constraints of a trial, alone."""
    parts = trial.system_attrs.items()
    return {k: x for k, x in parts if k == CONSTRAINTS or k.startswith(f"{CONSTRAINTS}:")}


def _readable(point: Point) -> dict[str, Any]:
    """The point for a storage: plain values, and the text of others."""
    return {name: value if _plain(value) else repr(value) for name, value in point.items()}


def _filled_in(storage: Any, trial: int, outcome: Any) -> bool:
    """Gives a trial that waits in a storage its outcome; False if another program has taken it."""
    states = optuna_library().trial.TrialState
    try:
        if not storage.set_trial_state_values(trial, state=states.RUNNING):
            return False
    except RuntimeError:  # it has ended
        return False
    for key, distribution in outcome.distributions.items():
        inner = distribution.to_internal_repr(outcome.params[key])
        storage.set_trial_param(trial, key, inner, distribution)
    for step, score in outcome.intermediate_values.items():
        storage.set_trial_intermediate_value(trial, step, score)
    for name, value in outcome.system_attrs.items():
        storage.set_trial_system_attr(trial, name, value)
    for name, value in outcome.user_attrs.items():
        storage.set_trial_user_attr(trial, name, value)
    storage.set_trial_state_values(trial, state=outcome.state, values=outcome.values)
    return True


def _waiting_params(trial: Any, space: Mapping[str, Distribution]) -> dict[str, Any]:
    """The params of a trial that waits, as the sampler sees them.

    Args:
        trial: the trial.
        space: the distributions by key, see `coordinates`.
    """
    params, where = {}, f"trial {trial.number} of the study, which is enqueued"
    for key, value in trial.system_attrs.get("fixed_params", {}).items():
        if key not in space:
            raise ValueError(f"{where}, has {key!r}; the space has {', '.join(space)}.")
        try:
            space[key].unit(value)
        except ValueError as error:
            raise ValueError(f"{where}, {key!r}: {error}") from None
        if not isinstance(space[key], Fixed):
            params[key] = _param(space[key], value)
    return params


def _parameter(distribution: Distribution) -> Any:
    """Optuna's distribution of the param that encodes the value."""
    kinds = optuna_library().distributions
    if _by_unit(distribution):
        return kinds.FloatDistribution(0.0, 1.0)
    match distribution:
        case Uniform(low, high):
            return kinds.FloatDistribution(low, high)
        case LogUniform(low, high) | OneMinusLogUniform(low, high):
            return kinds.FloatDistribution(low, high, log=True)
        case IntUniform(low, high, log, step):
            return kinds.IntDistribution(low, high - (high - low) % step, log=log, step=step)
        case Choice(options=options):
            return kinds.CategoricalDistribution(
                range(len(options)) if _by_position(options) else options
            )
    raise TypeError(f"Optuna has nothing for {distribution!r}.")


def _writing(distribution: Distribution) -> Any:
    """Optuna's distribution of what is written to a storage: of the value itself."""
    if _encodes(distribution):
        kinds = optuna_library().distributions
        return kinds.FloatDistribution(*_range(distribution))
    return _parameter(distribution)


def _range(distribution: Distribution) -> tuple[float, float]:
    """The least and the largest value."""
    parts = distribution.parts if isinstance(distribution, Either) else (distribution,)
    ends = [part.at(u) for part in parts for u in (0.0, BELOW_ONE)]
    return min(ends), max(ends)


def _written(distribution: Distribution, param: Any) -> Any:
    """What is written for a param of the sampler."""
    return _value(distribution, param) if _encodes(distribution) else param


def _by_position(options: tuple[Any, ...]) -> bool:
    """Whether Optuna cannot store these options, or cannot tell them apart."""
    if not all(map(_plain, options)):
        return True
    return any(options.index(option) != i for i, option in enumerate(options))


def _value(distribution: Distribution, param: Any) -> Any:
    """The value that Optuna's param encodes."""
    if isinstance(distribution, Choice):
        options = distribution.options
        return options[param] if _by_position(options) else param
    if isinstance(distribution, IntUniform):
        return param
    if _by_unit(distribution):
        return distribution.at(min(param, BELOW_ONE))
    return float(np.float32(1 - param if isinstance(distribution, OneMinusLogUniform) else param))


def _param(distribution: Distribution, value: Any) -> Any:
    """The inverse of `_value`."""
    if isinstance(distribution, Choice):
        index = distribution.index(value)
        return index if _by_position(distribution.options) else distribution.options[index]
    if _by_unit(distribution):
        return distribution.unit(value)
    return distribution.distance(value) if isinstance(distribution, OneMinusLogUniform) else value


def _by_unit(distribution: Distribution) -> bool:
    """Whether the sampler sees the `u` of the value, as Optuna has nothing like it."""
    stepped = isinstance(distribution, Uniform) and distribution.step is not None
    return stepped or isinstance(distribution, (Normal, Either))


def _encodes(distribution: Distribution) -> bool:
    """Whether the sampler sees another number than the value."""
    return isinstance(distribution, OneMinusLogUniform) or _by_unit(distribution)


def _suggested(trial: Any, key: str, parameter: Any) -> Any:
    """The sampler's param for a key of Optuna's trial."""
    kinds = optuna_library().distributions
    match parameter:
        case kinds.FloatDistribution():
            return trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log)
        case kinds.IntDistribution():
            options = {"log": parameter.log, "step": parameter.step}
            return trial.suggest_int(key, parameter.low, parameter.high, **options)
    return trial.suggest_categorical(key, parameter.choices)


def _learns(sampler: Any) -> bool:
    """Whether the points of a sampler depend on the scores."""
    samplers = optuna_library().samplers
    blind = ("RandomSampler", "QMCSampler", "GridSampler", "BruteForceSampler")
    if isinstance(sampler, samplers.PartialFixedSampler):
        return _learns(sampler._base_sampler)
    return not isinstance(sampler, tuple(getattr(samplers, name) for name in blind))


def _learns_from_pruned(sampler: Any) -> bool:
    """Whether a sampler learns of trials that did not run to their end; others may."""
    samplers = optuna_library().samplers
    if isinstance(sampler, samplers.PartialFixedSampler):
        return _learns_from_pruned(sampler._base_sampler)
    if isinstance(sampler, samplers.CmaEsSampler):
        return bool(getattr(sampler, "_consider_pruned_trials", False))
    of_ends = ("GPSampler", "NSGAIISampler", "NSGAIIISampler")
    return not isinstance(sampler, tuple(getattr(samplers, name) for name in of_ends))


def _most_points(sampler: Any) -> float:
    """How many points a sampler has."""
    if isinstance(sampler, optuna_library().samplers.GridSampler):
        return len(sampler._all_grids)
    return math.inf


def _reseed(sampler: Any, seed: int) -> None:
    """Sets the random state of a sampler and of the samplers inside it."""
    base = optuna_library().samplers.BaseSampler
    for part in vars(sampler).values():
        generator = getattr(part, "rng", part)
        if isinstance(part, base):
            _reseed(part, seed)
        elif isinstance(generator, np.random.RandomState):
            generator.seed(seed)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
