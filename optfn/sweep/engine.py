"""Many runs side by side in one compiled program.

A lane is one run. `train` trains all lanes for some steps, `admit` puts new runs into some of them.
Their shapes never change, so each is compiled once, and a lane whose run has ended takes the next
at once.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optfn.core.randomness import is_key
from optfn.core.tree import PyTree
from optfn.sweep.candidate import Candidate
from optfn.sweep.lane import (
    Best,
    Lanes,
    Shared,
    StepMetrics,
    draws,
    for_seed,
    init_lane,
    kept_model,
    scored,
    segment,
    select,
    step_lane,
    with_best,
)
from optfn.sweep.task import Model, Training

MODES = ("vmap", "map", "loop")
LEAST_LANES = 8
SIDE_BY_SIDE = 8  # lanes that a core trains at a time
SAME_BITS = 16  # with fewer lanes side by side, XLA's arithmetic may differ
LARGEST_SIDE_BY_SIDE = 2**19  # bytes of a lane; more of them leave the cache of a core


# Less optimized programs of a CPU: with 2 in the place of 3 they compile in two thirds of the time
# and are as fast, and the start of a small lane takes longer to compile than to run.
LESS_OPTIMIZED, UNOPTIMIZED = ({"xla_backend_optimization_level": level} for level in (2, 0))

_begin = jax.jit(init_lane, static_argnums=0)
_begin_small = jax.jit(init_lane, static_argnums=0, compiler_options=UNOPTIMIZED)


def admit(
    lanes: Lanes,
    candidates: Candidate,
    seeds: jax.Array | np.ndarray,
    chosen: jax.Array | np.ndarray,
    shared: Shared,
    *,
    task: Training,
    mesh: Mesh | None = None,
) -> Lanes:
    """Starts new runs in the chosen lanes, and leaves the others as they are.

    Args:
        lanes: arrays `[lanes, ...]`; they are donated.
        candidates: numbers `[lanes, ...]`.
        seeds: int32 `[lanes]`, the seeds of the new runs.
        chosen: bool `[lanes]`.
        shared: the arrays that all lanes read, see `Shared`.
        task: the training run.
        mesh: the devices over which the lanes are spread.
    """
    if not by_threads(mesh):
        return _admit_together(lanes, candidates, seeds, chosen, shared, task=task, mesh=mesh)
    places = np.flatnonzero(chosen)
    begin = _beginning(lanes)
    begun = [begin(task, *_rows((candidates, seeds), place), shared) for place in places]
    return _put_rows(lanes, places, begun)


def _beginning(lanes: Lanes) -> Any:
    """The function that starts a run in one of such lanes."""
    return _begin_small if _lane_bytes(lanes) <= LARGEST_SIDE_BY_SIDE else _begin


def _lane_bytes(lanes: Lanes) -> int:
    """The bytes that one lane trains."""
    carried = jax.tree.leaves(lanes.carry)
    return sum(x.size * x.dtype.itemsize for x in carried) // len(lanes.seed)


@partial(jax.jit, static_argnames=("task", "mesh"), donate_argnames="lanes")
def _admit_together(
    lanes: Lanes,
    candidates: Candidate,
    seeds: jax.Array,
    chosen: jax.Array,
    shared: Shared,
    *,
    task: Training,
    mesh: Mesh | None,
) -> Lanes:
    def one(chosen, candidate, seed, old, shared):
        return lax.cond(chosen, lambda: init_lane(task, candidate, seed, shared), lambda: old)

    # One lane after the other: this compiles in half the time and leaves the other lanes alone.
    return _side_by_side(one, mesh, 1, one_by_one=True)(chosen, candidates, seeds, lanes, shared)


def train(
    lanes: Lanes,
    occupied: jax.Array | np.ndarray,
    shared: Shared,
    first: np.int32,
    batches: PyTree = None,
    *,
    task: Training,
    length: int,
    mode: str,
    mesh: Mesh | None = None,
) -> tuple[Lanes, dict[str, jax.Array]]:
    """Trains every occupied lane for `length` steps, up to the age `shared.steps`, and scores it.

    On a CPU each core trains some of the occupied lanes at a time.

    Args:
        lanes: arrays `[lanes, ...]`; they are donated.
        occupied: bool `[lanes]`, which lanes still have a run.
        shared: the arrays that all lanes read, see `Shared`.
        first: int32 scalar, the sweep's step at the start.
        batches: pytree `[length, ...]`, the batches of a stream; None without one.
        task: the training run.
        length: the number of steps.
        mode: "vmap", "map", or "loop" for a loop on the host, lane by lane and step by step.
        mesh: the devices over which the lanes are spread.

    Returns:
        The lanes, and the metrics by name, each `[lanes]`, of the occupied lanes.
    """
    options = {"task": task, "length": length, "mode": mode}
    parts = parts_of(occupied, mode, mesh)
    if parts is None:
        return _train_together(lanes, occupied, shared, first, batches, **options, mesh=mesh)
    # The threads only call programs compiled here, on arrays made here, so they need none of this
    # thread's jax settings.
    same = jax.device_put((shared, first, batches))
    program = _program(_like(lanes, len(parts[0])), *same, **options)

    def further(part: Lanes) -> tuple[Lanes, dict[str, jax.Array]]:
        return jax.block_until_ready(program(part, *same))

    with ThreadPoolExecutor(_cores()) as pool:
        begun = (jax.device_put(_rows(lanes, places)) for places in parts)
        ended, metrics = zip(*pool.map(further, begun), strict=True)
    none = {name: np.full(len(occupied), np.nan, x.dtype) for name, x in metrics[0].items()}
    return _put_rows(lanes, parts, ended), _put_rows(none, parts, metrics)


def by_threads(mesh: Mesh | None) -> bool:
    """Whether threads of the host train the lanes, each with a program of its own.

    On a CPU few operations are large enough to keep more than one core busy.
    """
    return mesh is None and jax.default_backend() == "cpu"


def parts_of(
    occupied: jax.Array | np.ndarray, mode: str, mesh: Mesh | None = None
) -> list[np.ndarray] | None:
    """The lanes that a thread trains at a time; None where one program trains all.

    The parts are of one size, whatever the number of lanes and cores, so that these do not change
    the bits of a run. The last part is filled up with lanes of the first.

    Args:
        occupied: bool `[lanes]`, which lanes have a run.
        mode: how they are trained.
        mesh: the devices over which they are spread.
    """
    if mode != "loop" and not by_threads(mesh):
        return None
    each = SIDE_BY_SIDE if mode == "vmap" else 1
    places = np.flatnonzero(occupied)
    count = -(-len(places) // each)
    return np.split(np.resize(places, count * each), count)


def lanes_trained(occupied: np.ndarray, mode: str, mesh: Mesh | None = None) -> int:
    """How many lanes take a step when these are occupied, idle ones in the programs included."""
    parts = parts_of(occupied, mode, mesh)
    return len(occupied) if parts is None else sum(map(len, parts))


def usual_mode(
    lanes: Lanes,
    shared: Shared,
    batches: PyTree = None,
    *,
    task: Training,
    length: int,
    mesh: Mesh | None = None,
) -> str:
    """The mode that suits such lanes, by a rule: a clock would choose another one each time.

    On a GPU or TPU all lanes run side by side. On a CPU a loop inside of a program is slow where
    there are convolutions, and lanes side by side are faster only as long as they are small. Few
    lanes run one after the other: every core has one, and on a mesh their number would change their
    bits.

    Args:
        lanes: arrays `[lanes, ...]`.
        shared: the arrays that all lanes read, see `Shared`.
        batches: pytree `[length, ...]`, the batches of a stream; None without one.
        task: the training run.
        length: the number of steps.
        mesh: the devices over which the lanes are spread.
    """
    if jax.default_backend() != "cpu":
        return "vmap"
    each = len(lanes.seed) // (1 if mesh is None else mesh.size)
    small = _lane_bytes(lanes) <= LARGEST_SIDE_BY_SIDE
    mode = "vmap" if each >= SAME_BITS and small else "map"
    # The program that will be compiled, so it is traced once.
    args = _like(lanes, SIDE_BY_SIDE if mode == "vmap" else 1), shared, np.int32(0), batches
    traced = _train_part.trace(*args, task=task, length=length, mode=mode)
    if "conv_general_dilated" in str(traced.jaxpr):
        return "loop" if mesh is None else "map"
    return mode


def prepare(
    lanes: Lanes,
    candidates: Candidate,
    shared: Shared,
    batches: PyTree = None,
    *,
    task: Training,
    length: int,
    mode: str,
    mesh: Mesh | None = None,
) -> None:
    """Compiles the programs that `admit` and `train` call with such arguments, in parallel.

    Args:
        lanes: arrays `[lanes, ...]`.
        candidates: numbers `[lanes, ...]`.
        shared: the arrays that all lanes read, see `Shared`.
        batches: pytree `[length, ...]`, the batches of a stream; None without one.
        task, length, mode, mesh: as in `train`.
    """
    options, same = {"task": task, "length": length, "mode": mode}, (shared, np.int32(0), batches)
    chosen = to_devices(np.zeros(len(lanes.seed), bool), mesh)
    parts = parts_of(np.ones(len(chosen), bool), mode, mesh)
    if by_threads(mesh):
        start = _beginning(lanes).lower(task, *_rows((candidates, lanes.seed), 0), shared)
    else:
        args = lanes, candidates, lanes.seed, chosen, shared
        start = _admit_together.lower(*args, task=task, mesh=mesh)
    if parts is None:
        training = _train_together.lower(lanes, chosen, *same, **options, mesh=mesh).compile
    else:
        training = partial(_program, _like(lanes, len(parts[0])), *same, **options)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start.compile)
        training()
        started.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@partial(jax.jit, static_argnames=("task", "length", "mode", "mesh"), donate_argnames="lanes")
def _train_together(
    lanes: Lanes,
    occupied: jax.Array,
    shared: Shared,
    first: jax.Array,
    batches: PyTree,
    *,
    task: Training,
    length: int,
    mode: str,
    mesh: Mesh | None,
) -> tuple[Lanes, dict[str, jax.Array]]:
    one = partial(segment, task=task, length=length, mode=mode)
    over = _side_by_side(one, mesh, 3, one_by_one=mode == "map")
    return over(lanes._replace(running=lanes.running & occupied), shared, first, batches)


@partial(
    jax.jit,
    static_argnames=("task", "length", "mode"),
    donate_argnames="lanes",
    compiler_options=LESS_OPTIMIZED,
)
def _train_part(
    lanes: Lanes,
    shared: Shared,
    first: jax.Array,
    batches: PyTree,
    *,
    task: Training,
    length: int,
    mode: str,
) -> tuple[Lanes, dict[str, jax.Array]]:
    """Trains the lanes of a part, arrays `[each, ...]`."""
    one = partial(segment, task=task, length=length, mode=mode)
    if len(lanes.seed) == 1:
        return _alone(one, (lanes,), shared, first, batches)
    return _side_by_side(one, None, 3)(lanes, shared, first, batches)


def _alone(function: Callable[..., Any], part: tuple[Any, ...], *same: Any) -> Any:
    """Calls a function of one lane on a part `[1, ...]`."""
    end = function(*jax.tree.map(lambda x: x[0], part), *same)
    return jax.tree.map(lambda x: x[None], end)


def _like(lanes: Lanes, count: int) -> Lanes:
    """The shapes of so many of the lanes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), lanes)


def _like_one(tree: PyTree) -> PyTree:
    """The shapes of one lane of arrays `[lanes, ...]`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def _rows(tree: PyTree, places: Any) -> PyTree:
    """Some rows of arrays `[lanes, ...]`, on the host."""
    return jax.tree.map(lambda x: x[places] if is_key(x) else np.asarray(x)[places], tree)


def _put_rows(tree: PyTree, places: Sequence[Any] | np.ndarray, parts: Sequence[PyTree]) -> PyTree:
    """Arrays `[lanes, ...]` with these parts in these places."""

    def put(old: Any, *new: jax.Array) -> jax.Array:
        if is_key(old):
            for at, x in zip(places, new, strict=True):
                old = old.at[at].set(x)
            return old
        whole = np.array(old)
        for at, x in zip(places, new, strict=True):
            whole[at] = x
        return jax.device_put(whole)  # compiles nothing

    return jax.tree.map(put, tree, *parts)


def _program(
    lanes: Lanes, *same: Any, task: Training, length: int, mode: str
) -> Callable[..., Any]:
    """The compiled function that trains a part of such lanes, arrays `[each, ...]`."""
    if mode == "loop":
        return _host_loop(lanes, *same, task=task, length=length)
    return _train_part.lower(lanes, *same, task=task, length=length, mode=mode).compile()


def _host_loop(
    lane: Lanes,
    shared: Shared,
    first: jax.Array,
    batches: PyTree,
    *,
    task: Training,
    length: int,
) -> Callable[..., Any]:
    """A function that trains one lane, by one program for a step and one for the scores."""
    at, same = np.int32(0), (shared, first, batches)
    metrics = jax.eval_shape(partial(_step_of, task=task), lane, at, *same)[1]
    step = _one_step.lower(lane, metrics, at, *same, task=task).compile()
    score = _scored.lower(lane, metrics, shared, task=task).compile()
    ends = jax.eval_shape(partial(_scored, task=task), lane, metrics, shared)[1]
    zeros = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), metrics))
    nothing = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), ends)

    def program(lane, *same):
        sums = zeros
        if not lane.running[0]:
            return lane, nothing
        for at in range(length):
            lane, sums = step(lane, sums, np.int32(at), *same)
        best, metrics = score(lane, sums, same[0])
        return lane._replace(best=best), metrics

    return program


def _step_of(
    lane: Lanes, at: jax.Array, shared: Shared, first: jax.Array, batches: PyTree, *, task: Training
) -> tuple[Lanes, StepMetrics]:
    batch = jax.tree.map(lambda x: x[at], batches)

    def one(lane: Lanes) -> tuple[Lanes, StepMetrics]:
        drawn = draws(task, shared, lane, jnp.reshape(first + at, 1))
        return step_lane(task, shared, lane, jax.tree.map(lambda x: x[0], drawn), batch)

    lane, metrics = one(jax.tree.map(lambda x: x[0], lane))
    return jax.tree.map(lambda x: x[None], lane), metrics


@partial(jax.jit, static_argnames="task", donate_argnames="lane")
def _one_step(
    lane: Lanes,
    sums: StepMetrics,
    at: jax.Array,
    shared: Shared,
    first: jax.Array,
    batches: PyTree,
    *,
    task: Training,
) -> tuple[Lanes, StepMetrics]:
    lane, metrics = _step_of(lane, at, shared, first, batches, task=task)
    return lane, jax.tree.map(jnp.add, sums, metrics)


@partial(jax.jit, static_argnames="task")
def _scored(
    lane: Lanes, sums: StepMetrics, shared: Shared, *, task: Training
) -> tuple[Best | tuple[()], dict[str, jax.Array]]:
    """The best moment of a lane `[1, ...]` so far, and its scores."""

    def one(lane: Lanes) -> tuple[Best | tuple[()], dict[str, jax.Array]]:
        lane, metrics = scored(task, lane, sums, shared)
        return lane.best, metrics

    return _alone(one, (lane,))


def empty_lanes(
    task: Training, candidates: Candidate, lanes: int, shared: Shared, mesh: Mesh | None = None
) -> Lanes:
    """Lanes without a run.

    Args:
        task: the training run.
        candidates: numbers `[lanes, ...]`.
        lanes: the number of lanes.
        shared: the arrays that all lanes read, see `Shared`.
        mesh: the devices over which the lanes are spread.
    """
    # Made on the host: on a device each shape would need a compilation of its own.
    return jax.tree.map(
        lambda x: to_devices(_zeros(x), mesh), shapes(task, candidates, lanes, shared)
    )


def shapes(task: Training, candidates: Candidate, lanes: int, shared: Shared) -> Lanes:
    """The shapes `[lanes, ...]` of such lanes."""
    one = _like_one(candidates), jax.ShapeDtypeStruct((), jnp.int32)
    lane = jax.eval_shape(partial(_begin, task), *one, shared)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype), lane)


def bytes_of(
    task: Training,
    candidates: Candidate,
    lanes: int,
    shared: Shared,
    batches: PyTree,
    length: int,
) -> int:
    """The bytes of the program that trains the lanes for a segment, by the compiler's analysis.

    On a CPU its peak leaves temporaries out, so this adds the parts up; lanes that threads train in
    parts exist twice.

    Args:
        task: the training run.
        candidates: numbers `[lanes, ...]`.
        lanes: the number of lanes.
        shared: the arrays that all lanes read, see `Shared`.
        batches: pytree `[length, ...]`, the batches of a stream; None without one.
        length: the steps of the segment.

    Raises:
        ValueError: the compiler has no analysis of memory on this backend.
    """
    memory = lowered(task, candidates, lanes, shared, batches, length).compile().memory_analysis()
    if memory is None:
        raise ValueError("max_bytes: the compiler gives no account of the program's memory here.")
    both = shapes(task, candidates, lanes, shared) if by_threads(None) else ()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
        + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(both))
    )


def lowered(
    task: Training,
    candidates: Candidate,
    lanes: int,
    shared: Shared,
    batches: PyTree,
    length: int,
) -> jax.stages.Lowered:
    """The program of a segment, before it is compiled; arguments as in `bytes_of`."""
    empty, occupied = shapes(task, candidates, lanes, shared), jax.ShapeDtypeStruct((lanes,), bool)
    options = {"task": task, "length": length, "mode": "vmap", "mesh": None}
    return _train_together.lower(empty, occupied, shared, np.int32(0), batches, **options)


def lowered_start(
    task: Training, candidates: Candidate, lanes: int, shared: Shared
) -> jax.stages.Lowered:
    """The program that starts a run in each lane, before it is compiled; see `shapes`."""
    begin = jax.vmap(partial(init_lane, task), in_axes=(0, 0, None))
    return jax.jit(begin).lower(candidates, jax.ShapeDtypeStruct((lanes,), jnp.int32), shared)


def _slice_lanes(lanes: Lanes, first: jax.Array, count: int) -> Lanes:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, count), lanes)


@partial(jax.jit, static_argnames=("count", "mesh"))
def _taken(lanes: Lanes, first: jax.Array, *, count: int, mesh: Mesh | None) -> Lanes:
    return _slice_lanes(_on_every_device(lanes, mesh), first, count)


def take(lanes: Lanes, first: int, count: int, mesh: Mesh | None = None) -> Lanes:
    """A copy `[count, ...]` of the lanes from `first` on, on the host."""
    if by_threads(mesh):
        return _rows(lanes, np.arange(first, first + count))
    return jax.tree.map(to_host, _taken(lanes, first, count=count, mesh=mesh))


@jax.jit
def compact(lanes: Lanes, source: jax.Array) -> Lanes:
    """Fewer lanes `[few, ...]`: new lane i is lane `source[i]`, with `source` int32 `[few]`."""
    return jax.tree.map(lambda x: x[source], lanes)


@partial(jax.jit, static_argnames=("count", "task", "mesh"))
def _fetch_models(
    lanes: Lanes, first: jax.Array, *, count: int, task: Training, mesh: Mesh | None
) -> tuple[Model, ...]:
    part = _slice_lanes(_on_every_device(lanes, mesh), first, count)
    each = [jax.tree.map(lambda x, i=i: x[i], part) for i in range(count)]
    return tuple(kept_model(task, lane) for lane in each)


def fetch_models(
    lanes: Lanes, first: int, count: int, task: Training, mesh: Mesh | None = None
) -> tuple[Model, ...]:
    """What each of the lanes from `first` on has to show, arrays `[...]` on the host."""
    options = {"count": count, "task": task, "mesh": mesh}
    if by_threads(mesh):
        lanes, first = take(lanes, first, count), 0
    return jax.tree.map(to_host, _fetch_models(lanes, np.int32(first), **options))


@partial(jax.jit, static_argnames="mesh", donate_argnames="lanes")
def copy(
    lanes: Lanes,
    source: jax.Array,
    candidates: Candidate,
    chosen: jax.Array,
    *,
    mesh: Mesh | None = None,
) -> Lanes:
    """The chosen lanes continue the runs of their sources, with candidates and seeds of their own.

    Args:
        lanes: arrays `[lanes, ...]`; they are donated.
        source: int32 `[lanes]`, the lane that each chosen lane copies.
        candidates: numbers `[lanes, ...]`.
        chosen: bool `[lanes]`.
        mesh: the devices over which the lanes are spread.
    """

    def one(chosen, source, candidate, lane, every):
        new = jax.tree.map(lambda x: x[source], every)
        new = new._replace(candidate=for_seed(candidate, lane.seed), seed=lane.seed)
        return select(chosen, new, lane)

    return _side_by_side(one, mesh, 1)(
        chosen, source, candidates, lanes, _on_every_device(lanes, mesh)
    )


@partial(jax.jit, static_argnames="mesh", donate_argnames="lanes")
def put(lanes: Lanes, parked: Lanes, place: jax.Array, *, mesh: Mesh | None = None) -> Lanes:
    """Puts parked lanes back: lane i becomes parked[place[i]] where place[i] is not -1.

    Args:
        lanes: arrays `[lanes, ...]`; they are donated.
        parked: arrays `[parked, ...]`.
        place: int32 `[lanes]`.
        mesh: the devices over which the lanes are spread.
    """

    def one(place, lane, parked):
        return select(place >= 0, jax.tree.map(lambda x: x[place], parked), lane)

    return _side_by_side(one, mesh, 1)(place, lanes, parked)


@partial(jax.jit, static_argnames=("task", "mesh"), donate_argnames="lanes")
def keep_best(
    lanes: Lanes, scores: jax.Array, *, task: Training, mesh: Mesh | None = None
) -> Lanes:
    """The lanes with their best moments so far, where the host gives the scores.

    Args:
        lanes: arrays `[lanes, ...]`; they are donated.
        scores: float `[lanes]`, the scores now; nan where there is none.
        task: the training run.
        mesh: the devices over which the lanes are spread.
    """

    def one(lane, score, _):
        return with_best(task, lane, score)

    return _side_by_side(one, mesh, 1)(lanes, scores, ())


def to_devices(x: jax.Array | np.ndarray, mesh: Mesh | None) -> jax.Array:
    """An array `[lanes, ...]` of the host, with its lanes spread over the mesh."""
    if mesh is None:
        return jax.device_put(x)
    sharding = NamedSharding(mesh, _over(mesh))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def to_host(x: jax.Array) -> jax.Array | np.ndarray:
    """The array as a NumPy array; random keys stay as they are."""
    return x if is_key(x) else np.asarray(x)


def _side_by_side(
    one: Callable[..., Any], mesh: Mesh | None, shared: int, one_by_one: bool = False
) -> Callable[..., Any]:
    """Maps a function of one lane over all lanes, on the devices that hold them.

    The first arguments are `[lanes, ...]`; the last `shared` of them have no `lanes` axis.
    """

    def together(*args: Any) -> Any:
        own, same = args[:-shared], args[-shared:]
        if one_by_one:
            return lax.map(lambda own: one(*own, *same), own)
        return jax.vmap(lambda *own: one(*own, *same))(*own)

    if mesh is None:
        return together

    def spread(*args: Any) -> Any:
        count = len(args) - shared
        specs = (_over(mesh),) * count + (PartitionSpec(),) * shared
        split = jax.shard_map(
            together, mesh=mesh, in_specs=specs, out_specs=_over(mesh), check_vma=False
        )
        return split(*args)

    return spread


def _on_every_device(lanes: Lanes, mesh: Mesh | None) -> Lanes:
    """The lanes `[lanes, ...]`, replicated on every device."""
    if mesh is None:
        return lanes
    spec = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.sharding.reshard(x, spec), lanes)


def _over(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(mesh.axis_names)


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array | np.ndarray:
    return jnp.zeros(x.shape, x.dtype) if is_key(x) else np.zeros(x.shape, x.dtype)
