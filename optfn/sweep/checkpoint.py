"""A sweep on disk: whole after `kill -9`, refused if it is damaged or of another sweep."""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
import numpy as np

from optfn.core.randomness import is_key
from optfn.core.tree import PyTree
from optfn.sweep.candidate import Candidate
from optfn.sweep.executor import Executor, gathered
from optfn.sweep.interrupt import any_process
from optfn.sweep.lane import Lanes
from optfn.sweep.one_of import OneOf
from optfn.sweep.policies.policy import Policy
from optfn.sweep.recorded import record
from optfn.sweep.scheduler import Scheduler
from optfn.sweep.search import Search
from optfn.sweep.space import Choice, Distribution, Fixed
from optfn.sweep.task import Model, Training
from optfn.sweep.trial import PLAIN, Trial, decoded, encoded

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None

KEPT = 2
MOST_OF_THE_TIME = 0.02  # the share that saving may take


class Store:
    """Checkpoints of one sweep in a folder, the last two of them, written by Orbax.

    A checkpoint is arrays (lanes, paused trials, kept params) and a record of the host (trials,
    queue, scores, the search), with a sha256 of each array and of the record.

    Args:
        folder: created if it does not exist.
        search: the search of the sweep.
        policy: its policy, as it was given.
        enqueue: the points that it tries first.
        functions: those of its task that are in no program, as they are before they are called,
            since that may change what they hold.

    Raises:
        ImportError: Orbax is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        search: Search | None,
        policy: Policy | None = None,
        enqueue: Sequence[Mapping[str, Any]] = (),
        functions: Any = None,
    ):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.items = ocp.args
        self.search = _plain([_outline(search), *enqueue]) if enqueue else _outline(search)
        self.policy = _sha_of_json(_plain(policy))
        self.functions = _sha_of_json(_plain(functions))
        self.fingerprint: dict[str, str] = {}
        self.first: dict[str, Any] = {}
        self.damaged: list[int] = []
        self.state: Any = None
        self.seconds = 0.0
        self.saved = time.perf_counter()
        self.found = self._newest()
        before = 0.0 if self.found is None else self.found[0]["recorded"]["seconds"]
        self.began = self.saved - before

    @property
    def lanes(self) -> int | None:
        """The lanes of the sweep in the folder; None without one."""
        return None if self.found is None else int(self.found[0]["fingerprint"]["lanes"])

    def is_due(self, segments: int, every: int | None) -> bool:
        """Whether the next checkpoint is due.

        Args:
            segments: the segments so far.
            every: the segments between two checkpoints; None is as many as keep the time of saving
                to a fiftieth of all, and none before the first.
        """
        if every is not None:
            return not segments % every
        return time.perf_counter() - self.saved >= self.seconds / MOST_OF_THE_TIME

    def save(self, scheduler: Scheduler) -> None:
        """Writes the scheduler's state; the checkpoint before stays until this one is whole.

        A sweep outlives its disk: what goes wrong in writing is a warning.
        """
        with self._warned():
            for step in self.damaged:  # their replacement is written
                self.manager.delete(step)
        self.damaged = []
        state = _state_of(scheduler.executor.segments, scheduler.trials)
        if state == self.state:
            return
        if not self.fingerprint:
            trained = next((trial for trial in scheduler.trials if trial.segments), None)
            if trained is None:  # other workers have them all
                return
            self.first = trained.own_history[0][1]
            self.fingerprint = self._fingerprint(scheduler, self.first)
        began = time.perf_counter()
        arrays = _arrays(scheduler)
        host = _host(scheduler, arrays)
        seconds = time.perf_counter() - self.began
        host["recorded"] = json.loads(json.dumps(record(scheduler, seconds)))
        host |= {
            "fingerprint": self.fingerprint,
            "first": encoded(scheduler.plan.space, self.first),
        }
        saved = self.items.Composite(
            arrays=self.items.StandardSave(arrays),
            host=self.items.JsonSave({"record": host, "sha256": _sha_of_json(host)}),
        )
        with self._warned():  # trials may fail after the last segment
            step = max(scheduler.executor.segments, (self.manager.latest_step() or 0) + 1)
            self.manager.save(step, args=saved, force=True)
            self.state = state
        self.saved = time.perf_counter()
        self.seconds = self.saved - began

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Makes an error in writing, or Ctrl-C, a warning, and removes what is unfinished."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as problem:  # any error of Orbax and its writers
            reason = str(problem).split("\n")[0][:200]
            warnings.warn(
                f"checkpoint={str(self.folder)!r}: a checkpoint could not be written "
                f"({type(problem).__name__}: {reason}); the last whole one is kept.",
                stacklevel=4,
            )
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)
            self.manager.reload()
            self.state = None

    def restore(self, scheduler: Scheduler) -> bool:
        """Sets a new scheduler to the state of the last whole checkpoint; False without one.

        Raises:
            ValueError: the checkpoint is of another sweep, or has more trials.
        """
        if self.found is None:
            return False
        host, arrays = self.found
        found, mode = host["fingerprint"], scheduler.executor.mode
        wanted = {"its space": _sha_of_space(scheduler.plan.space)}
        _check_fingerprint(found, wanted, self.folder)
        wanted = self._fingerprint(scheduler, decoded(scheduler.plan.space, host["first"]))
        if mode != "auto":
            found, wanted = found | {"mode": host["mode"]}, wanted | {"mode": mode}
        _check_fingerprint(found, wanted, self.folder)
        if len(host["trials"]) > scheduler.session.trials:
            raise ValueError(
                f"checkpoint={str(self.folder)!r} has {len(host['trials'])} trials, more than "
                f"trials={scheduler.session.trials}: give as many, or another folder."
            )
        _restore(scheduler, host, arrays)
        stream = scheduler.executor.stream_source
        if callable(stream) and host["batch"] is not None:
            step, sha = host["batch"]
            _check_fingerprint(
                {"its data": sha}, {"its data": _sha_of_batch(stream(step))}, self.folder
            )
        wanted = {"its optimizer": [_sha_of_numbers(trial.candidate) for trial in scheduler.trials]}
        _check_fingerprint({"its optimizer": host["optimizers"]}, wanted, self.folder)
        self.state = _state_of(host["segments"], scheduler.trials)
        self.found = None
        return True

    def _fingerprint(self, scheduler: Scheduler, first: Mapping[str, Any]) -> dict[str, str]:
        own = {"its policy": self.policy, "its task": self.functions}
        return fingerprint(scheduler, self.search, first) | own

    def _newest(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The last whole checkpoint; None if the folder has no checkpoints.

        Raises:
            ValueError: every checkpoint is damaged.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(step)
            except _DamagedError as problem:
                self.manager.reload()
                if max(self.manager.all_steps(), default=0) > steps[0]:
                    return self._newest()  # a sweep that is under way has written, and removed this
                self.damaged.append(step)
                warnings.warn(f"checkpoint {self.folder / str(step)}: {problem}", stacklevel=5)
        if self.damaged:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged; remove the folder to start again."
            )
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        with self._warned():
            self.manager.wait_until_finished()
        with suppress(Exception):  # it raises what was warned of
            self.manager.close()

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        try:
            wanted = self.items.Composite(host=self.items.JsonRestore())
            host = self.manager.restore(step, args=wanted)["host"]
            record = host["record"]
            if _sha_of_json(record) != host["sha256"]:
                raise _DamagedError("its record is not what was written.")
            blank = {name: np.zeros(s, d) for name, (s, d) in record["arrays"].items()}
            wanted = self.items.Composite(arrays=self.items.StandardRestore(blank))
            arrays = self.manager.restore(step, args=wanted)["arrays"]
        except _DamagedError:
            raise
        except Exception as problem:  # any error of Orbax and its readers
            reason = str(problem).split("\n")[0][:200]
            raise _DamagedError(
                f"it cannot be read ({type(problem).__name__}: {reason})."
            ) from problem
        arrays = {name: np.asarray(x) for name, x in arrays.items()}
        for name, x in arrays.items():
            if _sha(x) != record["sha256"][name]:
                raise _DamagedError(f"its array {name} is not what was written.")
        return record, arrays


def newest(folder: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of the last whole checkpoint in a folder.

    Raises:
        ValueError: there is none.
    """
    found = None
    if Path(folder).is_dir():
        store = Store(folder, None)
        found = store.found
        store.close()
    if found is None:
        raise ValueError(f"{str(folder)!r} has no checkpoint of a sweep.")
    return found


@contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Holds a folder for this process until it ends, so that no two sweeps write there.

    Raises:
        ValueError: another sweep holds it.
    """
    if fcntl is None:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    holder, refused = os.open(folder, os.O_RDONLY), False
    try:
        if jax.process_index() == 0:
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused = True
            except OSError:  # a file system without locks
                pass
        if any_process(refused):
            raise ValueError(
                f"checkpoint={str(folder)!r} is in use: another sweep is writing there. Wait until "
                "it has ended, or give another folder; one that was killed holds it no longer."
            )
        yield
    finally:
        os.close(holder)


@contextmanager
def stored(
    folder: str | os.PathLike | None,
    search: Search | None,
    policy: Policy,
    enqueue: Sequence[Mapping[str, Any]],
    functions: Any = None,
) -> Iterator[Store | None]:
    """The store of a folder, whole when the context ends; None without a folder."""
    if folder is None:
        yield None
        return
    with owned(folder):
        store = Store(folder, search, policy, enqueue, functions)
        try:
            yield store
        finally:
            store.close()


class _DamagedError(Exception):
    """A checkpoint that differs from the one written."""


def fingerprint(scheduler: Scheduler, search: Any, first: Mapping[str, Any]) -> dict[str, str]:
    """The identity of a sweep, by name; equal for the same call in another process.

    Args:
        scheduler: the scheduler of the sweep.
        search: the outline of the search, as JSON.
        first: the point of its first trial that has trained.
    """
    plan, policy, executor = scheduler.plan, scheduler.policy, _executor_of(scheduler, first)
    candidate, task = plan.candidate(first), plan.training(first)
    # An iterable may be shuffled each time; a function is known by its first batch, and by the last
    # one that was trained on.
    stream: Any = task.stream
    streamed = stream(0) if callable(stream) else stream if type(stream) in (list, tuple) else ()
    streamed = jax.tree.leaves(streamed)
    numbers = {name: getattr(plan, name) for name in ("lanes", "steps", "segment", "seed")}
    numbers |= {"seeds": scheduler.runs, "max_loss": plan.max_loss}
    numbers |= {"score of a run": plan.score, "patience": plan.patience}
    if policy.depends_on_trial_count:
        numbers["trials"] = scheduler.session.trials
    return {
        "its space": _sha_of_space(plan.space),
        "its search": _sha_of_json(search),
        "its data": _sha_of(*map(_bytes, [*jax.tree.leaves(executor.shared[:4]), *streamed])),
        "its optimizer": _sha_of_numbers(candidate),
        "its program": _sha_of(executor.program(candidate).encode()),
        "its init": _sha_of(executor.init_program(candidate).encode()),
        "its constraints": _sha_of_json(_plain(plan.constraints)),
        "score": ("maximize " if task.sign < 0 else "minimize ") + task.objective,
        **{name: str(value) for name, value in numbers.items()},
    }


def _state_of(segments: int, trials: Sequence[Trial]) -> tuple[int, list[str]]:
    """What changes from one checkpoint to the next: the segments so far, and how trials ended."""
    return segments, [trial.status for trial in trials]


def _check_fingerprint(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    if differ:
        parts = [
            n if n.startswith("its") else f"{n} {found.get(n)}, now {wanted[n]}" for n in differ
        ]
        raise ValueError(
            f"checkpoint={str(folder)!r} is of another sweep: it differs in {'; '.join(parts)}. "
            "Give another folder, or the arguments it was made with."
        )


def _arrays(scheduler: Scheduler) -> dict[str, np.ndarray]:
    trees = {"lanes": scheduler.executor.state}
    trees |= {f"parked {t.number}": t.parked for t in scheduler.trials if t.parked is not None}
    trees |= {f"params {t.number}": t.models for t in scheduler.kept}
    return {
        f"{name} {i}": gathered(_raw(x))
        for name, tree in trees.items()
        for i, x in enumerate(jax.tree.leaves(tree))
    }


def _host(scheduler: Scheduler, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    space, executor = scheduler.plan.space, scheduler.executor
    return json.loads(
        json.dumps(
            {
                "arrays": {name: (x.shape, str(x.dtype)) for name, x in arrays.items()},
                "sha256": {name: _sha(x) for name, x in arrays.items()},
                "trials": [
                    {name: getattr(trial, name) for name in PLAIN}
                    | {
                        "point": encoded(space, trial.point),
                        **{
                            name: [(age, encoded(space, p)) for age, p in getattr(trial, name)]
                            for name in HISTORIES
                        },
                        "curve": trial.curve,
                    }
                    for trial in scheduler.trials
                ],
                "optimizers": [_sha_of_numbers(trial.candidate) for trial in scheduler.trials],
                "parked": [t.number for t in scheduler.trials if t.parked is not None],
                "queue": [trial.number for trial in scheduler.queue],
                "running": {place: trial.number for place, trial in scheduler.running.items()},
                "standing": [(t.number, rung) for t, rung in scheduler.standing.items()],
                "kept": [trial.number for trial in scheduler.kept],
                "entered": scheduler.entered,
                "copied_from": [source.tolist() for source in scheduler.copied_from],
                "scores": scheduler.scores.table.tolist(),
                "segments_of_scores": scheduler.scores.segments.tolist(),
                "session": scheduler.session.state(),
                "exhausted": scheduler.exhausted,
                "batch": _last_batch(scheduler),
                **{name: getattr(executor, name) for name in OF_EXECUTOR},
            }
        )
    )


OF_EXECUTOR = ("segments", "lane_steps", "mode", "lanes")
HISTORIES = ("history", "own_history")


def _restore(scheduler: Scheduler, host: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    space, executor = scheduler.plan.space, scheduler.executor
    for name in OF_EXECUTOR:
        setattr(executor, name, host[name])
    for plain in host["trials"]:
        trial = scheduler.add(decoded(space, plain["point"]))
        for name in PLAIN:
            setattr(trial, name, plain[name])
        trial.seeds = tuple(plain["seeds"])
        trial.curve = plain["curve"]
        for name in HISTORIES:
            setattr(trial, name, [(age, decoded(space, point)) for age, point in plain[name]])
    trials = scheduler.trials
    scheduler.queue = [trials[i] for i in host["queue"]]
    scheduler.running = {int(place): trials[i] for place, i in host["running"].items()}
    scheduler.standing = {trials[i]: rung for i, rung in host["standing"]}
    scheduler.kept = [trials[i] for i in host["kept"]]
    scheduler.copied_from = [np.array(source) for source in host["copied_from"]]
    scheduler.session.restore(host["session"])
    more = scheduler.session.trials - len(host["scores"])
    scheduler.exhausted = host["exhausted"] and more <= 0
    table = np.array(host["scores"], float).reshape(-1, len(scheduler.scores.ages))
    segments = np.array(host["segments_of_scores"], int).reshape(table.shape)
    scheduler.scores = scheduler.scores._replace(
        table=np.pad(table, ((0, max(more, 0)), (0, 0)), constant_values=np.nan),
        segments=np.pad(segments, ((0, max(more, 0)), (0, 0)), constant_values=-1),
    )
    scheduler.enter(trials[host["entered"]])
    executor.state = executor.to_devices(_filled(executor.state, arrays, "lanes"))
    for i in host["parked"]:
        like = _executor_of(scheduler, trials[i].point).empty_lanes(trials[i].candidate)
        trials[i].parked = _filled(like, arrays, f"parked {i}")
    for trial in scheduler.kept:
        like = _executor_of(scheduler, trial.point).empty_lanes(trial.candidate)
        task = scheduler.plan.training(trial.point)
        shapes = jax.eval_shape(jax.vmap(partial(_scored_model, task)), like)
        trial.models = _filled((shapes,) * scheduler.runs, arrays, f"params {trial.number}")


def _scored_model(task: Training, lane: Lanes) -> Model:
    return task.scored_model(lane.candidate.tx, lane.carry)


def _executor_of(scheduler: Scheduler, point: Mapping[str, Any]) -> Executor:
    """An executor of the task of a point, which need not be the task that is trained now."""
    if scheduler.plan.make_task is None:
        return scheduler.executor
    return Executor(scheduler.plan.of(point), scheduler.runs, "vmap")


def _filled(like: PyTree, arrays: Mapping[str, np.ndarray], name: str) -> PyTree:
    leaves, tree = jax.tree.flatten(like)
    return tree.unflatten([_keyed(arrays[f"{name} {i}"], leaf) for i, leaf in enumerate(leaves)])


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if is_key(x) else x


def _keyed(x: np.ndarray, like: Any) -> Any:
    """The inverse of `_raw`: a random key if `like` is one."""
    if not is_key(like):
        return x
    impl = jax.random.key_impl(jax.numpy.zeros((), like.dtype))
    return jax.random.wrap_key_data(jax.numpy.asarray(x), impl=impl)


def _bytes(x: Any) -> bytes:
    x = np.asarray(_raw(x) if hasattr(x, "dtype") else x)
    return f"{x.dtype}{x.shape}".encode() + x.tobytes()


def _sha(x: np.ndarray) -> str:
    return _sha_of(_bytes(x))


def _sha_of(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _last_batch(scheduler: Scheduler) -> tuple[int, str] | None:
    """The first step of the last segment, and what the stream gave then."""
    found = scheduler.executor.last_batch()
    return None if found is None else (found[0], _sha_of_batch(found[1]))


def _sha_of_batch(batch: PyTree) -> str:
    return _sha_of(*map(_bytes, jax.tree.leaves(batch)))


def _sha_of_numbers(candidate: Candidate | None) -> str:
    return _sha_of(*map(_bytes, jax.tree.leaves(candidate)))


def _sha_of_json(tree: Any) -> str:
    return _sha_of(json.dumps(tree, sort_keys=True).encode())


def _sha_of_space(space: Mapping[str, Distribution]) -> str:
    return _sha_of_json({name: _plain(distribution) for name, distribution in space.items()})


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """The value as JSON, the same in every process: functions by their code, objects by fields."""
    if id(value) in above:  # it holds itself
        return ["above", above[::-1].index(id(value))]

    def plain(part: Any) -> Any:
        return _plain(part, (*above, id(value)))

    if isinstance(value, OneOf):
        return ["OneOf", value.name, [[o, *map(plain, b)] for o, b in value.branches.items()]]
    if isinstance(value, Choice):
        return ["Choice", [plain(option) for option in value.options]]
    if isinstance(value, Fixed):
        return plain(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        name = type(value).__qualname__
        parts = {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
        return [name, plain(parts)]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if isinstance(value, Mapping):
        return [[plain(k), plain(x)] for k, x in value.items()]
    if isinstance(value, partial):
        return ["partial", plain(value.func), plain(value.args), plain(value.keywords)]
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [value.__defaults__, *filter(None, [value.__kwdefaults__])]
        return [value.__qualname__, _code(value.__code__), plain([held, *defaults])]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _sha_of(_bytes(value))
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return [type(value).__qualname__, plain(vars(value))]


def _code(code: CodeType) -> Any:
    return [code.co_code.hex(), code.co_names, [_constant(x) for x in code.co_consts]]


def _constant(x: Any) -> Any:
    if isinstance(x, CodeType):
        return _code(x)
    # The order of a set of strings is another one in each process.
    return sorted(map(repr, x)) if isinstance(x, frozenset) else repr(x)


def _outline(search: Search | None) -> Any:
    """The search by its plain fields and the types of others: a study or a sampler changes."""
    parts = vars(search) if hasattr(search, "__dict__") else {}
    plain = {k: v for k, v in parts.items() if isinstance(v, (str, int, float, bool))}
    kinds = {k: type(v).__qualname__ for k, v in parts.items() if k not in plain}
    return [type(search).__qualname__, plain, kinds]
