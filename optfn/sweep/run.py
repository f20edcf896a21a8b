"""The one call: a task, an optimizer and a space in, all trials out."""

import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from optfn.core.data import check_count
from optfn.core.transform import Transform
from optfn.sweep import engine
from optfn.sweep.callbacks import Callback, Watch, check_callbacks, watched
from optfn.sweep.checkpoint import Store, stored
from optfn.sweep.confirm import Confirm
from optfn.sweep.constraints import as_constraints
from optfn.sweep.executor import most_lanes
from optfn.sweep.interrupt import any_process, interruptible
from optfn.sweep.one_of import OneOf, check_names, names
from optfn.sweep.optuna_search import optuna_search
from optfn.sweep.plan import Plan, ceil_div
from optfn.sweep.policies.asha import asha
from optfn.sweep.policies.policy import Policy, run_all
from optfn.sweep.progress import Progress, shown
from optfn.sweep.result import Result
from optfn.sweep.scheduler import Scheduler, raise_if_all_failed
from optfn.sweep.search import Search, Session, check_seed, completed, random
from optfn.sweep.shared_search import SharedSession, shared_search
from optfn.sweep.space import as_space
from optfn.sweep.task import Model, Training
from optfn.sweep.tasks import Tasks

CONFIRMED = "confirm"  # a folder in that of the checkpoints


def run(
    task: Training | Callable[..., Training],
    optimizer: Callable[..., Transform],
    space: Mapping[str, Any],
    *,
    trials: int | None = None,
    steps: int,
    search: Search | None = None,
    policy: Policy | None = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
    catch: type[Exception] | tuple[type[Exception], ...] = Exception,
    seeds: int = 1,
    lanes: int | None = None,
    segment: int | None = None,
    seed: int = 0,
    mode: str = "auto",
    mesh: Mesh | None = None,
    max_loss: float = math.inf,
    max_bytes: int | None = None,
    max_seconds: float = math.inf,
    keep_best: int = 1,
    score: str | tuple[str, int] = "last",
    patience: int | None = None,
    constraints: Any = (),
    confirm: Confirm | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool | Callable[[Progress], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Trains many trials of an optimizer's hyperparameters in one compiled program.

        result = sweep.run(task, optfn.adamw, {"learning_rate": sweep.LogUniform(1e-5, 1e-1),
                                               "weight_decay": [0.0, 0.01, 0.1]},
                           trials=64, steps=1000)
        print(result.table(5))
        tuned = result.best().optimizer

    Each lane trains one run. When a trial ends, diverges or is pruned, the next takes its lane, and
    nothing is recompiled. The same seed gives every trial the same initial params and the same
    batches, so hyperparameters are compared and not the luck of the draw.

    Args:
        task: the training run, a `Task` or a `TrainingLoop`. Or a function of hyperparameters that
            makes one, for those that change shapes, as a width or a batch size do: each combination
            is compiled, and one is trained after the other.
        optimizer: a function of the hyperparameters that returns an optimizer, such as
            `optfn.adamw` or your own; it is called once for each trial, with plain numbers, and a
            few times more where it makes functions, whose numbers become arguments of the one
            program. Or a `OneOf`, several of them, each with its own space.
        space: distributions, lists of options or plain values by name. Each goes to whoever takes
            it: as an argument of `optimizer`, or a keyword-only argument of the task's functions.
        trials: the number of trials; may be None where the search has an end, as `grid()` has.
        steps: the updates of a whole run.
        search: chooses the points: `random()` by default, `sobol()`, `grid()` or
            `optuna_search(...)`.
        policy: ends trials early: `asha(first=segment)` by default; `run_all()` ends none, and is
            the default where a run is one segment. With `confirm` it lets as many trials reach
            the end as are to be confirmed, if it is `asha` or `successive_halving`.
        enqueue: points to try first, a list of dicts. Names they leave out are drawn at random.
        catch: the errors that make a trial failed, instead of ending the sweep: of its optimizer,
            of the program that trains it, or of `host_evaluate`. If every trial fails, the first
            error is raised.
        seeds: the runs of every trial, each in its own lane; the mean of their scores counts.
        lanes: the runs side by side, at least 8, rounded up to a multiple of `seeds` and of the
            devices; None is as many as there are runs, at most about 32, and for a search that
            learns at most those of eight trials.
        segment: the updates between two looks at the scores; None is a tenth of `steps`.
        seed: the sweep's seed, from 0 to below 2^32.
        mode: "vmap" runs lanes side by side, "map" one after the other, "loop" step by step from
            the host, which suits convolutions on a CPU. "auto" chooses by a rule: side by side on a
            GPU or TPU, and on a CPU with 16 or more small lanes; by a loop where a CPU has to
            convolve; else one after the other. The result says which.
            Results have the same bits in the same mode only: on a CPU with any number of lanes and
            cores, elsewhere and on a mesh with any number of lanes from 16 up.
        mesh: the devices over which the lanes are spread, along all its axes.
        max_loss: a run with a larger loss counts as diverged, as does one whose loss is not finite.
        max_bytes: bounds the lanes so that the program with all its arrays takes no more, by the
            compiler's own analysis; on a mesh, on all devices together. It costs two compilations,
            of one program: where trials differ in shape, those that are larger may take more.
        max_seconds: the sweep ends after this time with the results so far, as after Ctrl-C.
        keep_best: the number of best trials whose params are kept.
        score: which score of a run counts: its "last"; its "best" on the way, with the params of
            that moment; or ("mean", k), the mean of its last k, with the last params.
        patience: a run ends once its score has not become better for so many segments, and may
            win; None lets it go on. Of several seeds the mean must not have.
        constraints: what a trial must keep to win: the name of a score that must be at most 0, a
            dict from names to bounds such as `{"size": (0, 10)}`, a function of the dict of all
            scores, or a list of names and functions. A function gives True or False, or a number
            that is above 0 where the scores are not allowed, the more the worse. The scores are
            means over the seeds, at the moment whose score counts. A policy takes a trial that
            breaks one for one of the worst; `run_all()` is for those that are kept only late.
        confirm: trains the best trials again on fresh seeds, see `Confirm`; None does not.
        checkpoint: a folder. The same call continues a sweep that was killed, within `confirm` too,
            with the same results; with more `trials` it continues a finished sweep.
        checkpoint_every: the segments between two checkpoints; None is one after the first segment,
            then as many as take a fiftieth of the time.
        progress: True shows progress, on a line of the terminal, or as lines where there is none;
            False shows none, and None only on a terminal. A function of `Progress` is called after
            every segment.
        callbacks: hear of every report and every end of a trial, see `Callback`: `CsvLog`,
            `TensorBoardLog`, `MlflowLog`, `WandbLog`, and a user's own.

    Returns:
        The trials, as arrays. Those left unfinished by Ctrl-C or `max_seconds` are "stopped"; the
        params of the best so far are kept.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is out of its range.
    """
    if not (isinstance(task, Training) or (callable(task) and not isinstance(task, type))):
        raise TypeError(
            f"sweep.run(task=...) must be a Task or a TrainingLoop, found {type(task).__name__}."
        )
    if isinstance(optimizer, Transform) or not callable(optimizer):
        raise TypeError(
            "sweep.run(optimizer=...) must be a function that returns an optimizer, such as "
            f"optfn.adam, found {_kind(optimizer)}."
        )
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(
            "sweep.run(policy=...) must be a policy such as asha(first=100), found "
            f"{_kind(policy)}."
        )
    if search is not None and (isinstance(search, type) or not hasattr(search, "start")):
        raise TypeError(
            f"sweep.run(search=...) must be a search such as sobol(), found {_kind(search)}."
        )
    if confirm is not None and not isinstance(confirm, Confirm):
        raise TypeError(
            f"sweep.run(confirm=...) must be a Confirm(top, seeds) or None, found {_kind(confirm)}."
        )
    counts = {"steps": steps, "seeds": seeds, "keep_best": keep_best}
    if checkpoint_every is not None:
        counts["checkpoint_every"] = checkpoint_every
    for name, value in counts.items():
        check_count(value, f"sweep.run({name}=...)")
    segment = ceil_div(steps, 10) if segment is None else segment
    check_count(segment, "sweep.run(segment=...)")
    score = checked_score(score)
    constraints = as_constraints(constraints)
    if patience is not None:
        check_count(patience, "sweep.run(patience=...)")
        if policy is not None and policy.needs_all_trials:
            raise ValueError(
                "sweep.run(patience=...) ends runs on their own, but a population trains all its "
                "members to the end: leave it out."
            )
    if mode not in ("auto", *engine.MODES):
        raise ValueError(f"sweep.run(mode=...) must be auto, vmap, map or loop, found {mode!r}.")
    if mode == "loop" and mesh is not None:
        raise ValueError('sweep.run(mode="loop") trains on one device; leave the mesh out.')
    check_seed(seed)
    if seed >= 2**32:
        raise ValueError(f"sweep.run(seed=...) must be below 2**32, found {seed}.")
    for name, value in {"max_loss": max_loss, "max_seconds": max_seconds}.items():
        if not isinstance(value, Real):
            raise TypeError(f"sweep.run({name}=...) must be a number, found {value!r}.")
        if math.isnan(value):
            raise ValueError(f"sweep.run({name}=...) must be a number, found nan.")
    began = time.perf_counter()
    catch = catch if isinstance(catch, tuple) else (catch,)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in catch):
        raise TypeError(
            f"sweep.run(catch=...) must be a class of errors or a tuple of them, found {catch!r}."
        )
    space, search = as_space(space), random() if search is None else search
    if isinstance(optimizer, OneOf):
        space = {optimizer.name: optimizer, **space}
    make_task = None
    if not isinstance(task, Training):
        make_task = Tasks(task, space)
        task = make_task.example(space)
    takers: dict[str, Collection[str]] = {**task.names_by_function}
    takers["function"] = make_task.names if make_task else ()
    check_names(optimizer, space, takers)
    task.check_needed(names(space))
    if isinstance(search, (optuna_search, shared_search)):
        search = search.aimed(task.sign)
    session = search.start(space, trials, seed)
    if isinstance(enqueue, Mapping):
        raise TypeError(
            "sweep.run(enqueue=...) must be a list of points, found a dict: put it in a list."
        )
    enqueue = [completed(space, point, number, seed) for number, point in enumerate(enqueue)]
    if enqueue:
        session.enqueue(enqueue)
    if len(enqueue) > session.trials:
        raise ValueError(
            f"sweep.run(enqueue=...) has {len(enqueue)} points, more than trials={session.trials}."
        )
    if confirm is not None and policy is not None and policy.needs_all_trials:
        changed = [name for name in task.hyperparameters if name in names(space, searched=True)]
        if changed:
            raise ValueError(
                f"sweep.run(confirm=...) trains a trial again as it was trained, which it cannot "
                f"where a population changes the task's {changed[0]!r} on the way: leave it out."
            )
    if policy is None:
        policy = asha(first=segment) if segment < steps else run_all()
    given = policy
    functions: Any = make_task and make_task.make  # the programs have all others
    functions = functions if task.host_evaluate is None else [functions, task.host_evaluate]
    if confirm is not None:
        policy = policy.letting_finish(min(confirm.top, session.trials))
    with (
        shown(progress) as show,
        interruptible() as interrupted,
        stored(checkpoint, search, given, enqueue, functions) as store,
        watched(check_callbacks(callbacks)) as watch,
        ExitStack() as leave,
    ):
        if lanes is None:
            learns = getattr(session, "learns", False)
            few = engine.LEAST_LANES * seeds if learns else 32
            few = max(engine.LEAST_LANES, min(session.trials * seeds, few))
            lanes = (store and store.lanes) or few
        check_count(lanes, "sweep.run(lanes=...)")
        if lanes < engine.LEAST_LANES:
            raise ValueError(
                f"sweep.run(lanes=...) must be at least {engine.LEAST_LANES}, found {lanes}."
            )
        plan = Plan(
            task, optimizer, space, steps, segment, lanes, seed, max_loss, mesh, score, patience
        )
        plan = replace(plan, make_task=make_task, constraints=constraints).for_runs(seeds)
        if max_bytes is not None:
            plan = replace(plan, lanes=most_lanes(plan, seeds, max_bytes))
        if isinstance(session, SharedSession):
            session.join(plan, policy, seeds)
            leave.callback(session.close)
        scheduler = Scheduler(
            plan,
            session=session,
            policy=policy,
            seeds_of=lambda number: tuple(range(seeds)),
            mode=mode,
            keep_best=keep_best if confirm is None else max(keep_best, confirm.top),
            catch=catch,
        )
        prunes = bool(scheduler.scores.ages[:-1]) and not policy.needs_all_trials
        at_once = scheduler.executor.places if plan.lanes > engine.LEAST_LANES * seeds else 0
        advise: Any = getattr(session, "advice", lambda at_once, prunes: "")
        if advice := advise(at_once, prunes):
            warnings.warn(f"sweep.run(search=...): {advice}", stacklevel=2)
        restored = store is not None and store.restore(scheduler)
        watch.skip(scheduler)

        def train(
            scheduler: Scheduler, store: Store | None = None, watch: Watch | None = None
        ) -> bool:
            """Trains all trials; False if it was interrupted."""
            while scheduler.advance():
                seconds = time.perf_counter() - began
                show(Progress.of(scheduler, seconds))
                if watch:
                    watch.tell(scheduler)
                if store and any_process(
                    store.is_due(scheduler.executor.segments, checkpoint_every)
                ):
                    store.save(scheduler)
                    _flush(session)
                if any_process(interrupted() or seconds > max_seconds):
                    return False
            return True

        def train_again(scheduler: Scheduler, name: str) -> None:
            """Trains the trials to confirm, with checkpoints of their own."""
            inside = checkpoint and Path(checkpoint) / CONFIRMED / sha256(name.encode()).hexdigest()
            with stored(inside, None, run_all(), ()) as own:
                if own:
                    own.restore(scheduler)
                train(scheduler, own)
                if own:
                    own.save(scheduler)

        ended = train(scheduler, store, watch)
        watch.tell(scheduler)  # those that failed since
        if store:
            store.save(scheduler)
        _flush(session)
        if not ended:
            scheduler.keep_unfinished()
        if isinstance(session, SharedSession):
            session.gather(scheduler)
            raise_if_all_failed(scheduler)
        result = Result.of(scheduler, time.perf_counter() - began)
        if ended and confirm is not None:
            result = confirm.of(result, train_again, catch)
        if ended and restored and not policy.needs_all_trials:
            result = _with_params(result, keep_best)  # more may be kept than were
        kept = {int(i): result.kept[int(i)] for i in result.order() if i in result.kept}
        kept = dict(list(kept.items())[:keep_best])
        return replace(result, kept=kept, seconds=time.perf_counter() - began)


def checked_score(score: Any) -> str | tuple[str, int]:
    """Which score of a run counts; raises if it is none of those."""
    if isinstance(score, str) and score in ("last", "best"):
        return score
    mean = isinstance(score, (tuple, list)) and len(score) == 2 and score[0] == "mean"
    if not mean:
        raise ValueError(
            'sweep.run(score=...) must be "last", "best" or ("mean", k), the mean of the last k, '
            f"found {score!r}."
        )
    check_count(score[1], 'sweep.run(score=("mean", k))')
    return "mean", int(score[1])


def _with_params(result: Result, count: int) -> Result:
    """With the params of so many of the best; finished trials whose params are gone are rerun."""
    kept = dict(result.kept)
    for i in map(int, result.order()[:count]):
        if i not in kept and result.status[i] == "ok":
            kept[i] = tuple(Model(run.params, run.model_state) for run in result.rerun(i).runs)
    return replace(result, kept=kept)


def _flush(session: Session) -> None:
    """Writes the outcomes to shared storage; a sweep outlives that as it does its disk."""
    try:
        session.flush()
    except Exception as problem:  # any error of a storage
        reason = str(problem).split("\n")[0][:200]
        warnings.warn(
            "the outcomes could not be written to the shared storage of the search "
            f"({type(problem).__name__}: {reason}); the sweep goes on.",
            stacklevel=3,
        )


def _kind(value: Any) -> str:
    """What was given, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r:.60}"
