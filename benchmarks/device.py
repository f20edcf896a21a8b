"""What an accelerator makes of it, in eight minutes: steps, Muon, stored state, sweeps.

    pip install "optfn[sweep]" scikit-learn
    python benchmarks/device.py --record device.md

On GPT-2 small and on one matrix of 67 million entries, all donated steps:

- steps against optax: seconds, and the same optax function jitted once more as the control;
- Muon's step against `optax.contrib.muon` on the same matrices;
- AdamW with its state and params in each storage, and with its state in the host's memory,
  against AdamW in float32: seconds, bytes accessed, temporaries and state a param;
- trials a minute of a sweep of the digits, side by side in one program and one after the other.

Each part runs in a fresh process, in which the variants take turns. A part for which no time is
left is named at the top of the record. `--quick` shows on any machine that all of it runs.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import digits
import jax
import optax
from harness import (
    TREES,
    Report,
    gpt2,
    in_fresh_process,
    interleaved,
    leaf,
    listed,
    parser,
    progress,
    ratio,
    shown,
    spread,
)
from matrix import labelled, two_axes
from step_time import Variant, optax_step, stepper, variants
from storage import PEER, STORAGES, Storage, measured, stored

import optfn
from optfn import storage, sweep

TREES.update({"gpt2 small": partial(gpt2, 768), "67m": lambda: {"kernel": leaf(8192, 8192)}})

WAYS = STORAGES | {
    "float32, in the host": Storage(optfn.offload),
    "int8, in the host": Storage(lambda tx: optfn.offload(stored(storage.int8())(tx))),
}
# Bytes that a step accesses for each param.
ACCESS_LIMITS = {PEER: 28.0, "bf16": 20.0, "int8": 18.0}
SAMPLE_SECONDS = 0.2


class Settings(NamedTuple):
    """The settings of all parts.

    Attributes:
        trees: of `TREES`, for steps and stored state; Muon has the first.
        algorithms: of `step_time.ALGORITHMS`.
        rounds: in which steps are timed.
        trials: of the sweep.
        steps: of a trial.
        width: of the digits' hidden layer.
    """

    trees: tuple[str, ...] = ("gpt2 small", "67m")
    algorithms: tuple[str, ...] = ("sgd_momentum", "adamw", "lion")
    rounds: int = 9
    trials: int = 256
    steps: int = 500
    width: int = 128


QUICK = Settings(("tiny",), ("adamw",), rounds=1, trials=4, steps=8, width=16)


def seconds_of(every: Mapping[str, Variant], tree: str, rounds: int) -> dict[str, list[float]]:
    """The seconds of a step by variant and round; equal programs are compiled once."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        steppers = {name: stepper(variant, tree) for name, variant in every.items()}
        n = max(1, round(SAMPLE_SECONDS / min(run(3) / 3 for run in steppers.values())))
        timers = {name: lambda run=run: run(n) / n for name, run in steppers.items()}
        return interleaved(timers, rounds)


# Steps.


def measure_steps(tree: str, algorithm: str, rounds: int) -> dict[str, list[float]]:
    return seconds_of(variants(algorithm, ("optfn", "optax", "optax again")), tree, rounds)


def measure_muon(tree: str, rounds: int) -> dict[str, list[float]]:
    ours = optfn.muon(1e-3, views=two_axes, rest=optfn.adamw(1e-3))
    theirs = optax.contrib.muon(1e-3)
    peer = labelled(tree) if "gpt2" in tree else Variant(theirs.init, partial(optax_step, theirs))
    every = {"optfn": Variant(ours.init, partial(optfn.step, ours)), "optax": peer}
    return seconds_of(every | {"optax again": peer}, tree, rounds)


def add_steps(report: Report, settings: Settings) -> None:
    rows = []
    for tree in settings.trees:
        for algorithm in settings.algorithms:
            progress(f"{algorithm} on {tree}")
            seconds = in_fresh_process(measure_steps, tree, algorithm, settings.rounds)
            rows.append(row_of(report, f"{algorithm} on {tree}", seconds))
    add_table_of_steps(report, "Steps against optax", "", rows)


def add_muon(report: Report, settings: Settings) -> None:
    tree = settings.trees[0]
    progress(f"muon on {tree}")
    rows = [
        row_of(report, f"muon on {tree}", in_fresh_process(measure_muon, tree, settings.rounds))
    ]
    note = " Both take the same kernels for matrices and make the same five polynomials of them."
    add_table_of_steps(report, "Muon against optax", note, rows)


def row_of(report: Report, what: str, seconds: Mapping[str, list[float]]) -> list[str]:
    share, noise = (
        ratio(seconds, "optfn", "optax"),
        spread([ratio(seconds, "optax again", "optax")]),
    )
    verdict = report.judge(
        share <= max(noise, 1.02), f"{what}: {share:.3f} of optax's time, control {noise:.3f}."
    )
    ms = [f"{statistics.median(seconds[who]) * 1e3:.3g}" for who in ("optfn", "optax")]
    return shown([what, *ms, f"{noise:.3f}", f"{share:.3f} {verdict}"])


def add_table_of_steps(report: Report, title: str, note: str, rows: list[list[str]]) -> None:
    report.add_table(
        title,
        "Milliseconds of a donated step, and the ratio to optax's; the control is the factor "
        f"between two equal programs. Wanted: a ratio of at most 1.02, or the control.{note}",
        ["step", "optfn ms", "optax ms", "control", "ratio"],
        rows,
    )


# Stored state.


def measure_storage(tree: str, rounds: int) -> dict[str, Any]:
    return measured(WAYS, TREES[tree](), rounds)


def add_storage(report: Report, settings: Settings) -> None:
    for tree in settings.trees:
        progress(f"stored state on {tree}")
        found = in_fresh_process(measure_storage, tree, settings.rounds)
        seconds, rows = found["seconds"], []
        for name in WAYS:
            facts, limit = found["facts"][name], ACCESS_LIMITS.get(name)
            accessed = f"{facts['bytes accessed']:.2f}"
            if limit is not None and tree != "tiny":
                holds = facts["bytes accessed"] <= limit * 1.01  # beside a few numbers
                what = f"{name} on {tree} accesses {accessed} bytes a param, not {limit:g}."
                accessed += f" {report.judge(holds, what)}"
            share = f"{ratio(seconds, name, PEER):.2f}"
            ms = f"{statistics.median(seconds[name]) * 1e3:.3g}"
            of_memory = (f"{facts[what]:.2f}" for what in ("temporaries", "state"))
            rows.append(shown([name, ms, share, accessed, *of_memory]))
        control = spread([ratio(seconds, "again", PEER)])
        report.add_table(
            f"Stored state on {tree}",
            "A donated step of AdamW relative to float32's, in which equal programs differed by a "
            f"factor of {control:.3f}, and bytes a param by XLA's count. Of float32 28 are "
            "accessed: the gradient, and the param and two moments, read and written.",
            ["storage", "ms", "ratio", "accessed", "temporaries", "state"],
            rows,
        )


# Sweeps.


def measure_sweep(mode: str, settings: Settings) -> list[float]:
    """The seconds of a sweep, and of the same with another seed and nothing left to compile."""
    task = digits.task(digits.images(), settings.width)
    seconds = []
    for seed in range(2):
        began = time.perf_counter()
        sweep.run(
            task,
            optfn.adam,
            digits.SPACE,
            trials=settings.trials,
            steps=settings.steps,
            segment=max(1, settings.steps // 10),
            policy=sweep.run_all(),
            mode=mode,
            seed=seed,
            progress=False,
        )
        seconds.append(time.perf_counter() - began)
    return seconds


def add_sweep(report: Report, settings: Settings) -> None:
    rows = []
    few = settings._replace(trials=max(2, settings.trials // 32))
    for mode, own in {"vmap": settings, "loop": few}.items():
        progress(f"a sweep, {mode}")
        cold, warm = in_fresh_process(measure_sweep, mode, own)
        rate = f"{60 * own.trials / warm:.0f}"
        rows.append(shown([mode, str(own.trials), f"{cold:.1f}", f"{warm:.1f}", rate]))
    report.add_table(
        "A sweep of the digits",
        f"Adam with {settings.steps} steps a trial and ten evaluations, on a hidden layer of "
        f"{settings.width}: all trials side by side, or a few one after the other. Seconds with "
        "compilation, and of another sweep with other points.",
        ["mode", "trials", "cold s", "warm s", "trials a minute"],
        rows,
    )


PARTS: dict[str, Callable[[Report, Settings], None]] = {
    "steps": add_steps,
    "muon": add_muon,
    "storage": add_storage,
    "sweep": add_sweep,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", type=listed(PARTS), default=list(PARTS), metavar="PARTS")
    options.add_argument("--minutes", type=float, default=8.0, help="no part starts after these")
    args = options.parse_args()
    settings = QUICK if args.quick else Settings()
    report = Report("On a device")
    began = time.perf_counter()
    for part in args.only:
        minutes = (time.perf_counter() - began) / 60
        if minutes > args.minutes:
            report.shortfalls.append(f"{part}: not measured, after {minutes:.1f} minutes.")
            continue
        PARTS[part](report, settings)
    progress(f"{(time.perf_counter() - began) / 60:.1f} minutes")
    report.publish(args.record)


if __name__ == "__main__":
    main()
