"""The training step of optfn against optax's: what is compiled, and what it costs.

Four comparisons, for every algorithm that both libraries have:

- facts: what XLA reports for the compiled, donated step: bytes accessed, fusions, temporaries.
- time: the seconds of a step. The same optax function jitted a second time is the control.
- trace: the seconds of this thread to trace and lower the step with nothing cached.
- dispatch: the seconds of a step on a tiny tree, which are the cost of the call.

Hyperparameters are closed over in both libraries, or are data in both: the optimizer as an argument
here, `inject_hyperparams` there. Each case runs in a fresh process, in which the variants take
turns, and its ratio is the median over the rounds.
"""

import gc
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import (
    TREES,
    Report,
    in_fresh_process,
    interleaved,
    listed,
    parser,
    progress,
    ratio,
    shown,
    spread,
)

import optfn

# The function's name and its arguments are the same in both libraries.
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"learning_rate": 0.1}),
    "sgd_momentum": ("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
    "sgd_nesterov": ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    "rmsprop": ("rmsprop", {"learning_rate": 1e-3}),
    "adagrad": ("adagrad", {"learning_rate": 0.1}),
    "adam": ("adam", {"learning_rate": 1e-3}),
    "adam_nesterov": ("adam", {"learning_rate": 1e-3, "nesterov": True}),
    "adamw": ("adamw", {"learning_rate": 1e-3}),
    "amsgrad": ("amsgrad", {"learning_rate": 1e-3}),
    "lion": ("lion", {"learning_rate": 1e-3}),
}
ADAM_FAMILY = ("adam", "adam_nesterov", "adamw", "amsgrad")
ONE_OPERATION = ("sgd",)

# optfn's variant and its peer.
PEERS = {"closed over": ("optfn", "optax"), "as data": ("optfn data", "optax data")}

# A timed sample takes about this long, so that neither the clock nor an interrupt matters.
SAMPLE_SECONDS = 0.02


class Settings(NamedTuple):
    algorithms: Sequence[str]
    trees: Sequence[str]
    processes: int
    rounds: int

    def cases(self, comparison: str) -> Iterator[tuple[str, str]]:
        cases = [(tree, algorithm) for tree in self.trees for algorithm in self.algorithms]
        for i, (tree, algorithm) in enumerate(cases, 1):
            progress(f"{comparison} {i}/{len(cases)}: {algorithm} on {tree}")
            yield tree, algorithm


class Variant(NamedTuple):
    """One way to make a step: `step(*data, params, grads, state) -> (params, state)`."""

    init: Callable
    step: Callable
    data: tuple = ()

    def jit(self) -> Any:
        """The step jitted, with params and state donated; a new function, which no cache knows."""
        first = len(self.data)
        return jax.jit(lambda *args: self.step(*args), donate_argnums=(first, first + 2))

    def abstract_args(self, shapes: Any) -> tuple:
        return *self.data, shapes, shapes, jax.eval_shape(self.init, shapes)


def variants(algorithm: str, names: Sequence[str]) -> dict[str, Variant]:
    function, kwargs = ALGORITHMS[algorithm]
    ours = getattr(optfn, function)(**kwargs)
    theirs = getattr(optax, function)(**kwargs)
    injected = optax.inject_hyperparams(getattr(optax, function))(**kwargs)
    every = {
        "optfn": Variant(ours.init, partial(optfn.step, ours)),
        "optfn data": Variant(ours.init, optfn.step, (ours,)),
        "optfn arrays": Variant(ours.init, optfn.step, (optfn.as_arrays(ours),)),
        "optax": Variant(theirs.init, partial(optax_step, theirs)),
        "optax again": Variant(theirs.init, partial(optax_step, theirs)),
        "optax data": Variant(injected.init, partial(optax_step, injected)),
        "optax data again": Variant(injected.init, partial(optax_step, injected)),
    }
    return {name: every[name] for name in names}


def optax_step(tx: Any, params: Any, grads: Any, state: Any, **extra_args: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state


# Compiled facts.


class Facts(NamedTuple):
    """What XLA reports for a compiled program."""

    bytes_accessed: int
    fusions: int
    temporaries: int


def facts_of(variant: Variant, shapes: Any) -> Facts:
    compiled = variant.jit().lower(*variant.abstract_args(shapes)).compile()
    return Facts(
        int(compiled.cost_analysis()["bytes accessed"]),
        len(re.findall(r" fusion\(", compiled.as_text())),
        compiled.memory_analysis().temp_size_in_bytes,
    )


def measure_facts(algorithm: str, tree: str) -> dict[str, list[Facts]]:
    """For each pair of peers: ours, theirs, and those of a step counter if only ours has one."""
    shapes = TREES[tree]()
    facts = {}
    for how, names in PEERS.items():
        ours, theirs = variants(algorithm, names).values()
        state = jax.tree.leaves(jax.eval_shape(theirs.init, shapes))
        counts = any(leaf.dtype == jnp.int32 for leaf in state)
        counting = Facts(0, 0, 0) if counts else facts_of_counting(shapes)
        facts[how] = [facts_of(ours, shapes), facts_of(theirs, shapes), counting]
    return facts


def facts_of_counting(shapes: Any) -> Facts:
    """The facts of a step that only counts, less those of one that does nothing."""
    scalars = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), shapes)
    counting, idle = optfn.chain(), optax.identity()
    with_counter = facts_of(Variant(counting.init, partial(optfn.step, counting)), scalars)
    without = facts_of(Variant(idle.init, partial(optax_step, idle)), scalars)
    return Facts(*(a - b for a, b in zip(with_counter, without, strict=True)))


def excess(ours: Facts, theirs: Facts, allowed: Sequence[int] = (0, 0, 0)) -> list[str]:
    """The facts that are higher in ours, by more than the last digit of XLA's float32 sums."""
    return [
        f"{name} {a - b:+,}"
        for name, a, b, more in zip(Facts._fields, ours, theirs, allowed, strict=True)
        if a - b > more + np.spacing(np.float32(b))
    ]


def report_facts(report: Report, settings: Settings) -> None:
    rows: dict[str, list[list[str]]] = {how: [] for how in PEERS}
    for tree, algorithm in settings.cases("facts"):
        for how, facts in in_fresh_process(measure_facts, algorithm, tree).items():
            ours, theirs, counting = facts
            more, beyond = excess(ours, theirs), excess(ours, theirs, counting)
            verdict = report.judge(
                not beyond, f"Facts, {how}: {algorithm} on {tree}: {', '.join(beyond)}."
            )
            cells = [f"{b:,} {a - b:+,}" for a, b in zip(ours, theirs, strict=True)]
            verdict = "counter" if more and not beyond else verdict
            rows[how].append(shown([tree, algorithm, *cells, verdict]))
    for how, table in rows.items():
        counter = sum(row[-1] == "counter" for row in table)
        if counter:
            report.shortfalls.append(
                f"Facts, {how}: in {counter} of {len(table)} cases optax counts no steps, and the "
                "step counter is the only excess."
            )
        report.add_table(
            f"Compiled facts, hyperparameters {how}",
            "The facts of optax, and optfn's excess. Target: none beyond the last digit of the "
            "float32 number that XLA counts bytes in.",
            ["tree", "algorithm", "bytes accessed", "fusions", "temporary bytes", "verdict"],
            table,
        )


# Seconds of a step.


def stepper(
    variant: Variant, tree: str, clock: Callable[[], float] = time.perf_counter
) -> Callable[[int], float]:
    """A compiled and warm function that takes n steps and returns the seconds."""
    step, shapes = variant.jit(), TREES[tree]()
    # NumPy and one program for all: 400 shapes would compile every small operation 400 times.
    grads = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, 0.01, x.dtype)), shapes)
    params = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), shapes)
    state = jax.jit(variant.init)(params)

    def run(n: int) -> float:
        nonlocal params, state
        start = clock()
        for _ in range(n):
            params, state = step(*variant.data, params, grads, state)
        jax.block_until_ready((params, state))
        return clock() - start

    run(3)
    return run


def measure_steps(
    algorithm: str, tree: str, names: Sequence[str], rounds: int, compilations: str
) -> dict[str, list[float]]:
    """The seconds of a step of each variant, round by round.

    Processes share their compiled programs in the folder `compilations`.
    """
    jax.config.update("jax_compilation_cache_dir", compilations)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    steppers = {name: stepper(v, tree) for name, v in variants(algorithm, names).items()}
    n = max(1, round(SAMPLE_SECONDS / min(run(1) for run in steppers.values())))
    return interleaved({name: lambda run=run: run(n) / n for name, run in steppers.items()}, rounds)


class Steps(NamedTuple):
    """The seconds of a step of each variant in several processes."""

    runs: list[dict[str, list[float]]]

    @classmethod
    def of(cls, algorithm: str, tree: str, names: Sequence[str], settings: Settings) -> "Steps":
        with tempfile.TemporaryDirectory() as folder:
            args = algorithm, tree, names, settings.rounds, folder
            return cls([in_fresh_process(measure_steps, *args) for _ in range(settings.processes)])

    def seconds(self, name: str) -> float:
        return statistics.median(second for run in self.runs for second in run[name])

    def ratio(self, name: str, peer: str) -> float:
        return statistics.median(ratio(run, name, peer) for run in self.runs)

    def noise(self, name: str) -> float:
        """The largest factor between a variant and the same again in any process."""
        return spread(ratio(run, f"{name} again", name) for run in self.runs)


def report_time(report: Report, settings: Settings) -> None:
    rows = []
    for tree, algorithm in settings.cases("time"):
        names = ("optfn", "optax", "optax again", "optfn data", "optax data")
        steps = Steps.of(algorithm, tree, names, settings)
        noise = steps.noise("optax")
        row = [tree, algorithm, f"{steps.seconds('optax') * 1e3:.3g}", f"{noise:.3f}"]
        for how, peers in PEERS.items():
            found = steps.ratio(*peers)
            what = f"Time, {how}: {algorithm} on {tree}: {found:.3f} of optax, control {noise:.3f}."
            row.append(f"{found:.3f} {report.judge(found <= noise, what)}")
        rows.append(shown(row))
    report.add_table(
        "Step time",
        f"Ratios to optax, medians over {settings.processes} processes. The control is the factor "
        "by which two equal programs differed at most. Target: no ratio above it.",
        ["tree", "algorithm", "optax ms", "control", *PEERS],
        rows,
    )


def report_dispatch(report: Report, settings: Settings) -> None:
    rows = []
    held = {"floats": "optfn data", "arrays": "optfn arrays"}
    for algorithm in settings.algorithms:
        progress(f"dispatch: {algorithm}")
        names = ("optfn", "optax", "optax data", "optax data again", *held.values())
        steps = Steps.of(algorithm, "one_8", names, settings)
        row = [algorithm, f"{steps.seconds('optax') * 1e6:.1f}"]
        row += [f"{steps.ratio(name, 'optax'):.2f}" for name in ("optfn", *held.values())]
        noise = steps.noise("optax data")
        row += [f"{steps.seconds('optax data') * 1e6:.1f}", f"{noise:.3f}"]
        for how, name in held.items():
            found = steps.ratio(name, "optax data")
            what = f"Dispatch, {how}: {algorithm}: {found:.3f} of inject, control {noise:.3f}."
            row.append(f"{found:.3f} {report.judge(found <= noise, what)}")
        rows.append(shown(row))
    report.add_table(
        "Dispatch",
        "A step on eight numbers. optfn closed over, or as an argument whose leaves are floats or "
        "arrays; optax closed over, or `inject_hyperparams`, which is its own control. Target: as "
        "an argument, a ratio to `inject_hyperparams` not above the control.",
        [
            *("algorithm", "optax µs", "closed over / optax"),
            *(f"{how} / optax" for how in held),
            *("inject µs", "control"),
            *(f"{how} / inject" for how in held),
        ],
        rows,
    )


# Tracing and lowering.


def measure_trace(algorithm: str, tree: str, rounds: int) -> dict[str, list[float]]:
    """The thread's seconds to trace and lower each variant, round by round."""
    shapes = TREES[tree]()
    names = [name for peers in PEERS.values() for name in peers]
    timers = {
        name: partial(lowering_seconds, variant, variant.abstract_args(shapes))
        for name, variant in variants(algorithm, names).items()
    }
    interleaved(timers, 1)  # Imports and setup at first use are not measured.
    return interleaved(timers, rounds)


def lowering_seconds(variant: Variant, args: tuple) -> float:
    """With the garbage collector off, as in `timeit`: a collection may hit any variant."""
    jax.clear_caches()
    gc.collect()
    gc.disable()
    try:
        step = variant.jit()
        start = time.thread_time()
        step.lower(*args)
        return time.thread_time() - start
    finally:
        gc.enable()


def trace_target(algorithm: str, tree: str) -> float | None:
    """The largest ratio that passes, if one was set."""
    if tree == "distinct":
        return 1.5
    if algorithm in ONE_OPERATION:
        return 1.3
    if algorithm in ADAM_FAMILY:
        return {"equal_64x64": 0.5, "equal_16": 0.5, "gpt2": 0.7}.get(tree)
    return None


def report_trace(report: Report, settings: Settings) -> None:
    rows = []
    for tree, algorithm in settings.cases("trace"):
        seconds = in_fresh_process(measure_trace, algorithm, tree, settings.rounds)
        target = trace_target(algorithm, tree)
        row = [
            tree,
            algorithm,
            f"{statistics.median(seconds['optax']) * 1e3:.1f}",
            str(target or "none"),
        ]
        for how, peers in PEERS.items():
            found = ratio(seconds, *peers)
            what = f"Trace, {how}: {algorithm} on {tree}: {found:.2f} of optax, target {target}."
            row.append(f"{found:.2f} {report.judge(found <= target, what) if target else ''}")
        rows.append(shown(row))
    report.add_table(
        "Trace and lowering",
        "Thread time with nothing cached, ratios to optax.",
        ["tree", "algorithm", "optax ms", "target", *PEERS],
        rows,
    )


REPORTS = {
    "facts": report_facts,
    "time": report_time,
    "trace": report_trace,
    "dispatch": report_dispatch,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", type=listed(REPORTS), default=list(REPORTS))
    options.add_argument("--trees", type=listed(TREES))
    options.add_argument("--algorithms", type=listed(ALGORITHMS))
    options.add_argument("--processes", type=int)
    options.add_argument("--rounds", type=int)
    args = options.parse_args()
    every = (
        list(ALGORITHMS),
        [tree for tree in TREES if tree not in ("tiny", "one_8", "many_16")],
        5,
        15,
    )
    quick = ["sgd", "adam"], ["tiny"], 1, 2
    defaults = Settings(*(quick if args.quick else every))
    given = {k: v for k, v in vars(args).items() if k in Settings._fields and v is not None}
    settings = defaults._replace(**given)
    report = Report("A training step: optfn against optax")
    for name in args.only:
        REPORTS[name](report, settings)
    report.publish(args.record)


if __name__ == "__main__":
    main()
