"""Which trial is in which lanes: a queue, the lanes, a policy that ends the poor ones early."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optfn.core.transform import Transform, check_transform_type
from optfn.core.tree import PyTree
from optfn.sweep import engine
from optfn.sweep.lane import Lanes, Shared
from optfn.sweep.policies.policy import Policy, Scores, Verdict, run_all
from optfn.sweep.policies.population import pbt
from optfn.sweep.search import Session, Status
from optfn.sweep.space import Distribution, Fixed
from optfn.sweep.stopping import stops
from optfn.sweep.stream import Stream
from optfn.sweep.task import Training
from optfn.sweep.trial import Trial, stacked

# For every slot, trials of other structures, which have their turn later.
MOST_WAITING = 8
MOST_STRUCTURES = 32
LEFT_BY_PRUNING = 0.3  # the share of all steps that ASHA leaves, about
LOOP_STEP = 2e-4  # seconds of a step below which a loop on the host cannot be the fastest
LEAST_COMPILING = 1.0  # seconds, also where the programs were there before

# The fastest mode that was found, by task and shapes.
_FASTEST: WeakKeyDictionary[Training, dict[Any, str]] = WeakKeyDictionary()


@dataclass
class Scheduler:
    """A sweep under way.

    A trial takes a slot: a lane for each of its seeds. All that happens on the host depends on what
    the lanes tell alone, so that several processes come to the same decisions.

    Attributes:
        task: what is trained.
        make: the optimizer of a point.
        space: the distributions of the point.
        session: where points come from.
        policy: which trials end early.
        seeds_of: of a trial by its number; each has as many.
        steps: of a whole run.
        segment: steps between two looks at the scores.
        lanes: runs side by side.
        seed: of everything random.
        mode: of the engine, or "auto".
        max_loss: above it a run has diverged.
        keep: of how many of the best trials the params are kept.
        mesh: over which the lanes are spread.
    """

    task: Training
    make: Callable[..., Transform]
    space: Mapping[str, Distribution]
    session: Session
    policy: Policy
    seeds_of: Callable[[int], tuple[int, ...]]
    steps: int
    segment: int
    lanes: int
    seed: int
    mode: str
    max_loss: float
    keep: int
    mesh: Mesh | None = None

    trials: list[Trial] = field(default_factory=list)
    waiting: list[Trial] = field(default_factory=list)
    running: dict[int, Trial] = field(default_factory=dict)
    standing: dict[Trial, int] = field(default_factory=dict)
    kept: list[Trial] = field(default_factory=list)
    sources: list[np.ndarray] = field(default_factory=list)
    structures: dict[Any, int] = field(default_factory=dict)
    structure: int = -1
    in_lanes: int = -1
    state: Any = None
    exhausted: bool = False
    segments: int = 0
    lane_steps: int = 0
    compiling: float = 0.0

    def __post_init__(self):
        self.width = len(self.seeds_of(0))
        self.lanes_at_first = self.lanes
        self.seconds: list[float] = []
        rungs = self.policy.rungs(self.steps, self.segment)
        self.record = Scores.start(rungs, self.steps, self.session.trials)
        whole = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())
        self.shared = Shared(
            np.uint32(self.seed),
            jax.device_put(self.task.data, whole),
            jax.device_put(self.task.held_out, whole),
            jax.device_put(self.task.start, whole),
            np.int32(self.steps),
            np.asarray(self.max_loss, _float()),
        )
        self.stream = Stream(self.task.stream, self.segment)
        if isinstance(self.policy, pbt) and not 2 <= self.session.trials <= self.slots:
            raise ValueError(
                f"pbt trains all members side by side: trials={self.session.trials} must be at "
                f"least 2 and at most the {self.slots} that lanes={self.lanes} hold."
            )

    @property
    def slots(self) -> int:
        """How many trials have lanes at one time."""
        return self.lanes // self.width

    def advance(self) -> bool:
        """Trains a segment and judges; False if no trial is left."""
        if not self._prepare():
            return False
        self._compact()
        began = time.perf_counter()
        told = self._fastest() if self.mode == "auto" else self._train(self.mode)
        self.seconds.append(time.perf_counter() - began)
        for trial in self.running.values():
            trial.trained.append(self.segments)
        self.segments += 1
        self.lane_steps += self.lanes * self.segment
        self._record({name: self._by_slot(values) for name, values in told.items()})
        self._judge()
        return True

    def _prepare(self) -> bool:
        """Fills the free slots; of another structure once none of this one is left."""
        self._ask()
        if not self.running:
            if not self.waiting:
                return False
            if self.waiting[0].structure != self.structure:
                self.enter(self.waiting[0])
                self._ask()
        self._fill()
        return True

    def host_bytes(self) -> int:
        """The most that paused trials can take in the host's memory."""
        rungs, trials = len(self.record.ages) - 1, self.session.trials
        paused = self.policy.most_waiting(rungs, trials) * self.width
        return paused * sum(x.nbytes for x in jax.tree.leaves(self.state)) // self.lanes

    def _compact(self) -> None:
        """Leaves idle lanes behind, where what that saves is worth a compilation."""
        if self.mode != "vmap" or self.mesh is not None or len(self.seconds) < 2:
            return
        if not self.exhausted or self.waiting or self.standing or isinstance(self.policy, pbt):
            return
        used = len(self.running) * self.width
        few = max(engine.SAME_BITS, 1 << (used - 1).bit_length())
        few = -(-few // self.width) * self.width
        youngest = min(len(trial.curve) for trial in self.running.values())
        segments = -(-self.steps // self.segment) - youngest
        saved = segments * min(self.seconds) * (1 - few / self.lanes)
        compiling = max(self.compiling, LEAST_COMPILING)
        if few > self.lanes / 2 or saved < compiling:
            return
        slots = [*self.running, *[0] * (few // self.width - len(self.running))]
        source = np.array([np.arange(self.width) + slot * self.width for slot in slots])
        self.state = engine.compact(self.state, source.reshape(-1).astype(np.int32))
        self.running = dict(enumerate(self.running.values()))
        self.lanes = few

    def _ask(self) -> None:
        """New trials until all slots can be filled with those of the structure in training."""

        def fitting():
            known = self.structure >= 0
            return sum(trial.structure == self.structure or not known for trial in self.waiting)

        while (
            not self.exhausted
            and (free := self.slots - len(self.running) - fitting()) > 0
            and len(self.waiting) < MOST_WAITING * self.slots
        ):
            points = self.session.ask(free)
            self.exhausted = not points
            for point in points:
                self.waiting.append(self.add(point))

    def add(self, point: dict[str, Any]) -> Trial:
        """The next trial."""
        number = len(self.trials)
        try:
            tx = self.make(**point)
        except Exception as error:
            values = ", ".join(f"{name}={value!r}" for name, value in point.items())
            error.add_note(f"in the optimizer of trial {number}: {values}")
            raise
        check_transform_type(tx, f"the optimizer of trial {number}")
        trial = Trial(number, point, tx, self._structure_of(tx), self.seeds_of(number))
        trial.line.append((0, point))
        trial.past.append((0, point))
        if isinstance(self.policy, pbt) and not self.trials:
            for name, distribution in self.space.items():
                for option in getattr(distribution, "options", ()):
                    self._structure_of(self.make(**point | {name: option}))
        self.trials.append(trial)
        return trial

    def enter(self, trial: Trial) -> None:
        """Makes lanes for optimizers like that of the trial."""
        self.structure, self.in_lanes = trial.structure, trial.number
        self.state = self.blank(trial.tx)
        self.compiling = self._compile(self._modes[0])

    def _compile(self, mode: str) -> float:
        """Makes the programs of a mode; the seconds that took."""
        began = time.perf_counter()
        engine.prepare(
            self.state,
            self.placed(self._stacked([self.trials[self.in_lanes].tx] * self.slots)),
            self.placed(np.zeros(self.lanes, bool)),
            self.shared,
            self.stream.like(self.segments),
            task=self.task,
            length=self.segment,
            mode=mode,
            mesh=self.mesh,
        )
        return time.perf_counter() - began

    @property
    def _modes(self) -> Sequence[str]:
        """Those that may come to be the sweep's, in the order of trying."""
        if self.mode != "auto":
            return (self.mode,)
        if jax.default_backend() != "cpu":
            return "vmap", "map"
        return ("map", "vmap", "loop") if self.mesh is None else ("map", "vmap")

    def _structure_key(self, tx: Transform) -> Any:
        leaves, tree = jax.tree.flatten(tx)
        return tree, tuple((jnp.shape(x), getattr(x, "dtype", None)) for x in leaves)

    def _structure_of(self, tx: Transform) -> int:
        key = self._structure_key(tx)
        number = self.structures.setdefault(key, len(self.structures))
        if number and isinstance(self.policy, pbt):
            raise ValueError(
                f"pbt copies the state of one member to another, but the optimizer of trial "
                f"{len(self.trials)}, or one that its choices lead to, differs in structure from "
                "the first: sweep over them one by one, as compare does."
            )
        if number == MOST_STRUCTURES:
            raise ValueError(
                f"the optimizers of the first {len(self.trials) + 1} trials have {number + 1} "
                "different structures, and each would be compiled. Make the functions they hold "
                "outside of the one that makes the optimizer, as each new one counts as another."
            )
        return number

    def blank(self, tx: Transform) -> Lanes:
        """Lanes for such an optimizer."""
        many = self._stacked([tx] * self.slots)
        return engine.blank(self.task, many, self.lanes, self.shared, self.mesh)

    def program(self, tx: Transform) -> str:
        """The text of the program that trains such an optimizer."""
        return engine.text(*self._of_program(tx, self.lanes_at_first))

    def bytes_of(self, tx: Transform, lanes: int) -> int:
        """What the program takes that trains so many lanes of such an optimizer."""
        return engine.bytes_of(*self._of_program(tx, lanes))

    def _of_program(self, tx: Transform, lanes: int) -> tuple:
        many, batches = self._stacked([tx] * (lanes // self.width)), self.stream.like(self.segments)
        return self.task, many, lanes, self.shared, batches, self.segment

    def _fill(self) -> None:
        """Free slots take trials of the structure that is being trained, paused ones first."""
        free = [slot for slot in range(self.slots) if slot not in self.running]
        fitting = [trial for trial in self.waiting if trial.structure == self.structure]
        fitting.sort(key=lambda trial: trial.parked is None)
        entering = dict(zip(free, fitting, strict=False))
        self.waiting = [trial for trial in self.waiting if trial not in entering.values()]
        self.running |= entering
        begun = {slot: trial for slot, trial in entering.items() if trial.parked is None}
        if begun:
            some = next(iter(begun.values()))
            entrants = [begun.get(slot, some) for slot in range(self.slots)]
            self.state = engine.admit(
                self.state,
                self.placed(self._stacked([trial.tx for trial in entrants])),
                self.placed(np.array([trial.seeds for trial in entrants], np.int32).reshape(-1)),
                self.placed(self._of_lanes(begun)),
                self.shared,
                task=self.task,
                mesh=self.mesh,
            )
        for slot, trial in entering.items():
            if trial.parked is not None:
                place = np.full(self.lanes, -1, np.int32)
                place[slot * self.width : (slot + 1) * self.width] = np.arange(self.width)
                put = self.placed(place)
                self.state = engine.put(self.state, trial.parked, put, mesh=self.mesh)
                trial.parked = None

    def _train(self, mode: str) -> dict[str, np.ndarray]:
        occupied = self._of_lanes(self.running)
        self.state, told = engine.train(
            self.state,
            self.placed(occupied),
            self.shared,
            np.int32(self.segments * self.segment),
            self.stream.take(self.segments, self._needed()),
            task=self.task,
            length=self.segment,
            mode=mode,
            mesh=self.mesh,
        )
        self.stream.prefetch(self.segments + 1, self._needed(1))  # while the devices are at work
        return jax.tree.map(self.gathered, told)

    def _needed(self, ahead: int = 0) -> int:
        """The steps that a run takes at most in this segment, or in one ahead of it."""
        asked = len(self.trials) == self.session.trials
        if ahead and not (asked and not self.waiting and not self.standing):
            return self.segment
        youngest = min(len(trial.curve) for trial in self.running.values()) + ahead
        return min(max(self.steps - youngest * self.segment, 0), self.segment)

    def _fastest(self) -> dict[str, np.ndarray]:
        """Decides the mode by this segment, of which that of the fastest stays.

        Another mode is tried only where half of the work that may be left takes longer than its
        compilation. What was decided for a task goes for its later sweeps of the same shapes.
        """
        known = _FASTEST.setdefault(self.task, {})
        tx = self.trials[self.in_lanes].tx
        shapes = self._structure_key(tx), self.lanes, self.segment, self.mesh
        if shapes in known and jax.process_count() == 1:
            self.mode = known[shapes]
            return self._train(self.mode)
        start, ends, seconds = self.state, {}, {}
        work = self.session.trials * self.width * self.steps / (self.lanes * self.segment)
        work *= 1 if isinstance(self.policy, (run_all, pbt)) else LEFT_BY_PRUNING
        for mode in self._modes:
            fewest = min(seconds.values(), default=0.0)
            if mode == "loop" and stops(fewest < LOOP_STEP * self.lanes * self.segment):
                break
            if ends:
                self.compiling = self._compile(mode)
            self.state = engine.twin(start)
            jax.block_until_ready(self.state)
            began = time.perf_counter()
            ends[mode] = self._train(mode), self.state
            jax.block_until_ready(self.state)
            seconds[mode] = time.perf_counter() - began
            if stops(min(seconds.values()) * work / 2 < self.compiling):
                break
        fastest = np.argmin(list(seconds.values()))
        if jax.process_count() > 1:
            fastest = multihost_utils.broadcast_one_to_all(np.int32(fastest))
        self.mode = known[shapes] = list(ends)[int(fastest)]
        told, self.state = ends[self.mode]
        return told

    def _record(self, told: dict[str, np.ndarray]) -> None:
        """What became of each trial in this segment; those that are over leave their slots."""
        if self.task.objective not in told:
            raise ValueError(
                f"the task's score {self.task.objective!r} is none of those there are: "
                f"{', '.join(told)}."
            )
        age = self._by_slot(self.gathered(self.state.age))
        diverged = self._by_slot(self.gathered(self.state.diverged))
        for slot, trial in list(self.running.items()):
            trial.steps = int(age[slot].max())
            losses = self.task.sign * told[self.task.objective][slot].astype(float)
            losses = np.where(diverged[slot] | ~np.isfinite(losses), np.inf, losses)
            trial.scores = [self.task.sign * float(x) for x in losses]
            trial.loss = float(losses.mean())
            trial.curve.append({name: float(values[slot].mean()) for name, values in told.items()})
            finite = bool(np.isfinite(trial.loss))
            arrived = min(len(trial.curve) * self.segment, self.steps)
            broken = bool(diverged[slot].any())
            if self._waits_for_its_round(trial, arrived):
                continue
            rung = self.record.record(
                trial.number, arrived, trial.loss, self.segments, diverged=broken
            )
            if rung is not None:
                self.standing[trial] = rung
            elif broken and not self._waits_for_its_round(trial, arrived):
                self._end(slot, "diverged")
            elif arrived == self.steps:
                if finite:
                    self._keep(slot)
                self._end(slot, "ok" if finite else "not_finite")

    def _waits_for_its_round(self, trial: Trial, arrived: int) -> bool:
        """Whether it diverged, in a population where it will copy another in the next round."""
        ages, row = np.array(self.record.ages), self.record.table[trial.number]
        return isinstance(self.policy, pbt) and bool(
            (np.isposinf(row) & (ages >= arrived))[:-1].any()
        )

    def _judge(self) -> None:
        """Asks the policy about every trial that stands at a rung."""
        if isinstance(self.policy, pbt):
            return self._exploit(self.policy)
        at = [(trial.number, rung) for trial, rung in self.standing.items()]
        verdicts = self.policy.judge(self.record, at)
        slots = {trial: slot for slot, trial in self.running.items()}
        for trial, verdict in zip(list(self.standing), verdicts, strict=True):
            if verdict is not Verdict.WAIT:
                del self.standing[trial]
            if verdict is Verdict.STOP:
                trial.parked = None
                self.running.pop(slots.get(trial, -1), None)
                self._end_of(trial, "pruned" if np.isfinite(trial.loss) else "not_finite")
            elif verdict is Verdict.WAIT and trial in slots:
                trial.parked = self._taken(slots[trial])
                del self.running[slots[trial]]
            elif verdict is Verdict.GO and trial not in slots:
                self.waiting.append(trial)
        return None

    def _exploit(self, policy: pbt) -> None:
        """A round of population-based training, once all members have arrived at it."""
        members = sorted(self.running.values(), key=lambda trial: trial.number)
        if not self.standing:
            ages = [len(trial.curve) * self.segment for trial in members]
            if members and all(map(self._waits_for_its_round, members, ages)):
                for slot in list(self.running):
                    self._end(slot, "diverged")
            return
        rung = next(iter(self.standing.values()))
        self.standing.clear()
        searched = [name for name, d in self.space.items() if not isinstance(d, Fixed)]
        scores = self.record.table[:, rung]
        copies = policy.exploit(scores, len(searched), self.seed, rung)
        self.sources.append(copies.source)
        before = {trial.number: (trial.point, trial.line) for trial in members}
        for trial in members:
            source = int(copies.source[trial.number])
            if source == trial.number:
                continue
            point, line = before[source]
            draws = np.random.default_rng([self.seed, rung, trial.number]).random(len(searched))
            changed = {
                name: self.space[name].at(u) if anew else self.space[name].perturb(point[name], by)
                for name, u, anew, by in zip(
                    searched,
                    draws,
                    copies.resampled[trial.number],
                    copies.factor[trial.number].tolist(),
                    strict=True,
                )
            }
            trial.point = point | changed
            trial.tx = self.make(**trial.point)
            self._structure_of(trial.tx)
            trial.line = [*line, (self.record.ages[rung], trial.point)]
            trial.past.append((self.record.ages[rung], trial.point))
        lanes = np.arange(self.lanes, dtype=np.int32)
        source, chosen = lanes.copy(), np.zeros(self.lanes, bool)
        slots = {trial.number: slot for slot, trial in self.running.items()}
        for number, slot in slots.items():
            mine = slice(slot * self.width, (slot + 1) * self.width)
            first = slots[int(copies.source[number])] * self.width
            source[mine] = np.arange(first, first + self.width)
            chosen[mine] = copies.source[number] != number
        txs = [self.running.get(slot, members[0]).tx for slot in range(self.slots)]
        self.state = engine.copy(
            self.state,
            self.placed(source),
            self.placed(self._stacked(txs)),
            self.placed(chosen),
            mesh=self.mesh,
        )

    def _end(self, slot: int, status: Status) -> None:
        self._end_of(self.running.pop(slot), status)

    def _end_of(self, trial: Trial, status: Status) -> None:
        trial.status = status
        reports = [
            (min((i + 1) * self.segment, self.steps), self.task.sign * x[self.task.objective])
            for i, x in enumerate(trial.curve)
        ]
        if len(trial.past) > 1:  # from there on it was trained with others' numbers
            reports = [report for report in reports if report[0] <= trial.past[1][0]]
            score = reports[-1][1]
            ended = "pruned" if np.isfinite(score) else "diverged"
            self.session.tell(trial.number, score, ended, reports)
        else:
            self.session.tell(trial.number, trial.loss, status, reports)

    def _keep(self, slot: int) -> None:
        """The params of the best so far."""
        trial = self.running[slot]
        ranked = sorted([*self.kept, trial], key=lambda t: (t.loss, t.number))
        self.kept = ranked[: self.keep]
        if trial in self.kept:
            trial.params = engine.trained(self.state, slot * self.width, self.task, self.mesh)
        for other in ranked[self.keep :]:
            other.params = None

    def _taken(self, slot: int) -> Lanes:
        return engine.take(self.state, slot * self.width, self.width, self.mesh)

    def _stacked(self, txs: list[Transform]) -> Transform:
        return stacked(txs, self.width, _float())

    def _of_lanes(self, slots: Mapping[int, Any]) -> np.ndarray:
        """Which lanes belong to the slots."""
        return np.repeat([slot in slots for slot in range(self.slots)], self.width)

    def placed(self, tree: PyTree) -> PyTree:
        """Arrays of the host, with the lanes in front, where the lanes are."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda x: engine.placed(x, self.mesh), tree)

    def gathered(self, x: Any) -> np.ndarray:
        """The array on the host of every process."""
        if jax.process_count() > 1 and isinstance(x, jax.Array):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    def _by_slot(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.slots, self.width)


def _float() -> Any:
    return jnp.result_type(float)
