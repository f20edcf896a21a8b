"""The executor of runs: lanes on devices, the mode that trains them, and their memory."""

import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from optfn.core.tree import PyTree
from optfn.sweep import engine
from optfn.sweep.candidate import Candidate, stack_candidates
from optfn.sweep.lane import Lanes, Shared
from optfn.sweep.one_of import point_of
from optfn.sweep.plan import Plan, lanes_multiple, round_up
from optfn.sweep.stream import Stream
from optfn.sweep.task import Model, Training

LEAST_COMPILING = 1.0  # seconds, also where the programs were compiled before


class Measured(NamedTuple):
    """The measurements of a segment.

    Attributes:
        metrics: float `[places, runs]` by name, from the training and its evaluation.
        age: int32 `[places, runs]`, the steps each run has taken.
        diverged: bool `[places, runs]`, whether the run ended because its params or loss were not
            finite, or its loss was above `max_loss`.
        best: float `[places, runs]`, the best score of each run so far, as a loss; None where it is
            not kept.
        errors: by place, what the evaluation on the host has raised.
    """

    metrics: dict[str, np.ndarray]
    age: np.ndarray
    diverged: np.ndarray
    best: np.ndarray | None = None
    errors: Mapping[int, Exception] = MappingProxyType({})


class Executor:
    """Lanes in which runs are loaded, trained, parked, resumed and copied.

    A place is the lanes of one trial, one for each of its runs: place i has the lanes from i * runs
    to below (i + 1) * runs. All lanes hold candidates of one structure.

    Attributes:
        lanes: the number of lanes; it shrinks when few trials are left.
        state: `Lanes` with arrays `[lanes, ...]` on the devices; None before `enter`.
        shared: the arrays that all lanes read, on every device.
        mode: how lanes are trained: "vmap", "map" or "loop", or "auto" before `enter`.
        task: the training run without its arrays, which the compiled programs hold.
        segments: the number of segments trained.
        lane_steps: the steps of all lanes so far, idle ones included.

    Args:
        plan: the settings of the sweep.
        runs: the runs of a trial.
        mode: as above.
    """

    def __init__(self, plan: Plan, runs: int, mode: str):
        self.plan, self.runs, self.mode = plan, runs, mode
        self.lanes = plan.lanes
        self.state: Any = None
        self.segments = 0
        self.lane_steps = 0
        self._seconds: list[float] = []
        self._compiling = 0.0
        self._training: Training | None = None
        self._use(plan.task)

    def use(self, task: Training) -> None:
        """Trains this task from now on; the first batch of a stream is read.

        Raises:
            Exception: any error that the stream raises.
        """
        self._use(task)
        self._stream.like(self.segments)

    def _use(self, task: Training) -> None:
        plan = self.plan
        if self._training is task:
            return
        self._training = task
        self.task = task.keeping_best if plan.score == "best" else task.without_arrays
        everywhere = None if plan.mesh is None else NamedSharding(plan.mesh, PartitionSpec())
        self.shared = Shared(
            np.uint32(plan.seed),
            jax.device_put(task.data, everywhere),
            jax.device_put(task.held_out, everywhere),
            jax.device_put(task.initial_params, everywhere),
            np.int32(plan.steps),
            np.asarray(plan.max_loss, jnp.result_type(float)),
        )
        self._stream = Stream(task.stream, plan.segment)

    @property
    def places(self) -> int:
        """The number of trials that train side by side."""
        return self.lanes // self.runs

    # Runs in and out of lanes.

    def enter(self, candidate: Candidate, task: Training) -> None:
        """Makes lanes for candidates like this one, trained on this task, and their programs."""
        self._use(task)
        state = self.empty_lanes(candidate)
        mode = self.mode
        if mode == "auto":
            batches = self._stream.like(self.segments)
            mode = engine.usual_mode(state, self.shared, batches, **self._options)
        self._compiling = self._compile(mode, candidate, state)
        self.mode, self.state = mode, state  # only if they can be made

    def empty_lanes(self, candidate: Candidate) -> Lanes:
        """Lanes without a run, for candidates like this one."""
        many = self._in_places([candidate] * self.places)
        return engine.empty_lanes(self.task, many, self.lanes, self.shared, self.plan.mesh)

    def load(self, entrants: Mapping[int, tuple[Candidate, tuple[int, ...]]]) -> None:
        """Starts runs: for each place its candidate, and a seed for each of its `runs` runs."""
        if not entrants:
            return
        anyone = next(iter(entrants.values()))
        candidates, seeds = zip(
            *(entrants.get(place, anyone) for place in range(self.places)), strict=True
        )
        self.state = engine.admit(
            self.state,
            self.to_devices(self._in_places(candidates)),
            self.to_devices(np.array(seeds, np.int32).reshape(-1)),
            self.to_devices(self._lanes_of(entrants)),
            self.shared,
            task=self.task,
            mesh=self.plan.mesh,
        )

    def park(self, place: int) -> Lanes:
        """The lanes of a place, `[runs, ...]` on the host."""
        return engine.take(self.state, place * self.runs, self.runs, self.plan.mesh)

    def resume(self, place: int, parked: Lanes) -> None:
        """Puts parked lanes `[runs, ...]` into a place."""
        source = np.full(self.lanes, -1, np.int32)
        source[place * self.runs : (place + 1) * self.runs] = np.arange(self.runs)
        self.state = engine.put(self.state, parked, self.to_devices(source), mesh=self.plan.mesh)

    def copy(self, copies: Mapping[int, tuple[int, Candidate]]) -> None:
        """Places continue the runs of other places, all copied at once.

        Args:
            copies: for each place that copies, its source and the candidate it continues with.
        """
        if not copies:
            return
        source = np.arange(self.lanes, dtype=np.int32).reshape(self.places, self.runs)
        anyone = next(iter(copies.values()))
        candidates = [copies.get(place, anyone)[1] for place in range(self.places)]
        lanes = source.copy()
        for place, (other, _) in copies.items():
            lanes[place] = source[other]
        self.state = engine.copy(
            self.state,
            self.to_devices(lanes.reshape(-1)),
            self.to_devices(self._in_places(candidates)),
            self.to_devices(self._lanes_of(copies)),
            mesh=self.plan.mesh,
        )

    def fetch_models(self, place: int) -> tuple[Model, ...]:
        """What each run of a place has to show, arrays `[...]` on the host."""
        first, count = place * self.runs, self.runs
        return engine.fetch_models(self.state, first, count, self.task, self.plan.mesh)

    def shrink(self, places: Sequence[int], segments_left: int) -> bool:
        """Drops idle lanes where that saves more time than a compilation takes.

        Args:
            places: the places in use; if it returns True, they become 0, 1, 2, ... in this order.
            segments_left: the segments of the trial that has the most left.
        """
        mesh = self.plan.mesh
        if self.mode != "vmap" or mesh or engine.by_threads(mesh) or len(self._seconds) < 2:
            return False
        used = len(places) * self.runs
        few = max(engine.SAME_BITS, 1 << (used - 1).bit_length())
        few = round_up(few, self.runs)
        saved = segments_left * min(self._seconds) * (1 - few / self.lanes)
        if few > self.lanes / 2 or saved < max(self._compiling, LEAST_COMPILING):
            return False
        kept = [*places, *[0] * (few // self.runs - len(places))]
        source = np.add.outer(np.array(kept) * self.runs, np.arange(self.runs))
        self.state = engine.compact(self.state, source.reshape(-1).astype(np.int32))
        self.lanes = few
        return True

    # Training.

    def train(self, places: Collection[int], steps: int, next_steps: int) -> Measured:
        """Trains the runs of these places for a segment.

        Args:
            places: the places with a run.
            steps: the steps of the segment that at least one run takes.
            next_steps: the same for the next segment, as far as it is known.
        """
        began = time.perf_counter()
        occupied = self._lanes_of(places)
        metrics = self._train(occupied, steps, next_steps)
        self._seconds.append(time.perf_counter() - began)
        self.segments += 1
        trained = engine.lanes_trained(occupied, self.mode, self.plan.mesh)
        self.lane_steps += trained * self.plan.segment
        metrics = {name: self._by_place(x) for name, x in metrics.items()}
        age, diverged = (self._by_place(gathered(x)) for x in (self.state.age, self.state.diverged))
        errors = self._score_on_host(places, diverged, metrics)
        best = self._by_place(gathered(self.state.best.loss)) if self.task.keeps_best else None
        return Measured(metrics, age, diverged, best, errors)

    def _train(self, occupied: np.ndarray, steps: int, next_steps: int) -> dict[str, np.ndarray]:
        self.state, metrics = engine.train(
            self.state,
            self.to_devices(occupied),
            self.shared,
            np.int32(self.segments * self.plan.segment),
            self._stream.take(self.segments, steps),
            mode=self.mode,
            **self._options,
        )
        self._stream.prefetch(self.segments + 1, next_steps)  # while the devices are at work
        return jax.tree.map(gathered, metrics)

    def _score_on_host(
        self, places: Collection[int], diverged: np.ndarray, metrics: dict[str, np.ndarray]
    ) -> dict[int, Exception]:
        """Adds the scores of `host_evaluate` to the metrics; returns its errors by place."""
        task, known, errors = self._training, tuple(metrics), {}
        if task is None or task.host_evaluate is None:
            return errors
        values = jax.tree.map(gathered, self.state.candidate.task)
        for place in places:
            first, last = place * self.runs, task.without_arrays
            models = engine.fetch_models(self.state, first, self.runs, last, self.plan.mesh)
            for run in np.flatnonzero(~diverged[place]):
                own = {name: x[first + run] for name, x in values.items()}
                try:
                    found = task.score_on_host(own, models[run], known)
                except Exception as error:  # the trial's
                    errors[place] = error
                    break
                for name, score in found.items():
                    blank = np.full(diverged.shape, np.nan)
                    metrics.setdefault(name, blank)[place, run] = score
        if task.objective not in metrics:  # all have diverged
            metrics[task.objective] = np.full(diverged.shape, np.nan)
        if self.task.keeps_best and task.objective in metrics.keys() - set(known):
            scores = self.to_devices(metrics[task.objective].reshape(-1))
            options = {"task": self.task, "mesh": self.plan.mesh}
            self.state = engine.keep_best(self.state, scores, **options)
        return errors

    def _compile(self, mode: str, candidate: Candidate, state: Lanes) -> float:
        """Compiles the programs of a mode; returns the seconds it took."""
        began = time.perf_counter()
        engine.prepare(
            state,
            self.to_devices(self._in_places([candidate] * self.places)),
            self.shared,
            self._stream.like(self.segments),
            mode=mode,
            **self._options,
        )
        return time.perf_counter() - began

    # Programs and memory.

    def program(self, candidate: Candidate) -> str:
        """The text of the program that trains candidates like this one."""
        return engine.lowered(*self._of_program(candidate, self.plan.lanes)).as_text()

    def can_train(self, candidate: Candidate) -> bool:
        """Whether there is a program that trains candidates like this one."""
        try:
            engine.lowered(*self._of_program(candidate, self.runs))
        except Exception:  # any error of the user's functions
            return False
        return True

    def init_program(self, candidate: Candidate) -> str:
        """The text of the program that starts candidates like this one."""
        lanes = self.plan.lanes
        many = self._in_places([candidate] * (lanes // self.runs))
        return engine.lowered_start(self.task, many, lanes, self.shared).as_text()

    @property
    def stream_source(self) -> Any:
        """The stream of the task, as the user gave it."""
        return self._stream.source

    def last_batch(self) -> tuple[int, PyTree] | None:
        """The first step of the last segment, and its batch; None without a stream."""
        segment = self.segments - 1
        batch = self._stream.first_of(segment)
        return None if batch is None else (segment * self.plan.segment, batch)

    def program_bytes(self, candidate: Candidate, lanes: int) -> int:
        """The bytes of the program that trains so many lanes of candidates like this one."""
        return engine.bytes_of(*self._of_program(candidate, lanes))

    def parked_bytes(self, trials: int) -> int:
        """The bytes that this many parked trials take in the host's memory."""
        every = sum(x.nbytes for x in jax.tree.leaves(self.state))
        return trials * self.runs * every // self.lanes

    @property
    def _options(self) -> dict[str, Any]:
        return {"task": self.task, "length": self.plan.segment, "mesh": self.plan.mesh}

    def _of_program(self, candidate: Candidate, lanes: int) -> tuple[Any, ...]:
        many = self._in_places([candidate] * (lanes // self.runs))
        batches = self._stream.like(self.segments)
        return self.task, many, lanes, self.shared, batches, self.plan.segment

    def _in_places(self, candidates: Sequence[Candidate]) -> Candidate:
        return stack_candidates(candidates, self.runs)

    def _lanes_of(self, places: Collection[int]) -> np.ndarray:
        """Which lanes belong to the places: bool `[lanes]`."""
        return np.repeat([place in places for place in range(self.places)], self.runs)

    def _by_place(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.places, self.runs)

    def to_devices(self, tree: PyTree) -> PyTree:
        """Arrays `[lanes, ...]` of the host, on the devices of the lanes."""
        if self.plan.mesh is None:
            return tree
        return jax.tree.map(lambda x: engine.to_devices(x, self.plan.mesh), tree)


def gathered(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array, `[lanes, ...]` or other, on the host of every process."""
    if jax.process_count() > 1 and isinstance(x, jax.Array):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def most_lanes(plan: Plan, runs: int, max_bytes: int) -> int:
    """The most lanes that fit, by the bytes of a program with few lanes and one with twice them."""
    point = point_of(plan.space, lambda name, d, key: d.at(0.5))
    candidate = plan.candidate(point)
    multiple = lanes_multiple(runs, plan.mesh)
    width = round_up(engine.LEAST_LANES, multiple)
    executor = Executor(plan.of(point), 1, "vmap")
    few, twice = (executor.program_bytes(candidate, k * width) for k in (1, 2))
    each, fixed = (twice - few) / width, 2 * few - twice
    fit = int((max_bytes - fixed) / each) // multiple * multiple
    if fit < width:
        raise ValueError(
            f"sweep.run(max_bytes=...) must be at least {few}, which {width} lanes take, found "
            f"{max_bytes}."
        )
    return min(fit, plan.lanes)
