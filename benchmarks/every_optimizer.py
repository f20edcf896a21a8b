"""The step and the trace of every optimizer that optfn and optax share, against optax's.

Both optimizers are closed over. A step is jitted and donated, and the same optax function jitted a
second time is the control; a trace includes lowering, in thread time with nothing cached. Each case
runs in a fresh process, in which the variants take turns, and its ratio is the median over the
rounds. The report adds the geometric means over all cases, and what XLA says of the programs whose
step takes longer than optax's.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from step_time import (
    SAMPLE_SECONDS,
    Facts,
    Variant,
    facts_of,
    lowering_seconds,
    optax_step,
    stepper,
)

import optfn

WITH_RATE = [
    "sgd",
    "rmsprop",
    "adagrad",
    "adam",
    "adamw",
    "amsgrad",
    "lion",
    "nadam",
    "nadamw",
    "adabelief",
    "adamax",
    "adamaxw",
    "adan",
    "radam",
    "yogi",
    "adadelta",
    "rprop",
    "sign_sgd",
    "signum",
    "optimistic_gradient_descent",
    "optimistic_adam_v2",
    "lars",
    "lamb",
    "fromage",
    "novograd",
    "sm3",
    "adafactor",
    "acprop",
    "ademamix",
    "simplified_ademamix",
    "adopt",
    "madgrad",
]
FREE = [
    "dog",
    "dowg",
    "prodigy",
    "dadapt_adamw",
    "cocob",
    "schedule_free_sgd",
    "schedule_free_adamw",
]
# These need the loss beside the gradients.
WITH_LOSS = ["polyak_sgd", "momo", "momo_adam"]
OPTIMIZERS = [*WITH_RATE, *FREE, *WITH_LOSS]
DEFAULT_TREES = ("one_16m", "equal_64x64", "gpt2")

LIMITS = {"time": 1.05, "trace": 0.5}
MEAN_LIMITS = {"time": 0.95, "trace": 0.5}


def variant(library: Any, name: str) -> Variant:
    function: Callable = getattr(library, name, None) or getattr(optax.contrib, name)
    tx = function(**({"learning_rate": 1e-3} if name in WITH_RATE else {}))
    step = optfn.step if library is optfn else optax_step
    return Variant(tx.init, partial(step, tx, **({"value": 1.0} if name in WITH_LOSS else {})))


def measure(name: str, tree: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of steps and of traces of each variant, round by round."""
    variants = {who: variant(lib, name) for who, lib in (("optfn", optfn), ("optax", optax))}
    shapes = TREES[tree]()
    timers = {
        who: partial(lowering_seconds, v, v.abstract_args(shapes)) for who, v in variants.items()
    }
    interleaved(timers, 1)
    traces = interleaved(timers, 3)
    variants["optax again"] = variant(optax, name)
    steppers = {who: stepper(v, tree) for who, v in variants.items()}
    n = max(1, round(SAMPLE_SECONDS / min(run(1) for run in steppers.values())))
    steps = interleaved({w: lambda run=run: run(n) / n for w, run in steppers.items()}, rounds)
    return {"time": steps, "trace": traces}


def measure_facts(name: str, tree: str) -> dict[str, Facts]:
    shapes = TREES[tree]()
    return {lib.__name__: facts_of(variant(lib, name), shapes) for lib in (optfn, optax)}


def report_every(
    report: Report, names: Sequence[str], trees: Sequence[str], rounds: int, limits: dict
) -> None:
    cases = [(tree, name) for tree in trees for name in names]
    rows, ratios = [], {what: {tree: [] for tree in trees} for what in LIMITS}
    slower = []
    for i, (tree, name) in enumerate(cases, 1):
        progress(f"{i}/{len(cases)}: {name} on {tree}")
        found = in_fresh_process(measure, name, tree, rounds)
        steps = found["time"]
        control = spread([ratio(steps, "optax again", "optax")])
        row = [tree, name, f"{statistics.median(steps['optax']) * 1e3:.3g}", f"{control:.3f}"]
        for what, limit in limits.items():
            share = ratio(found[what], "optfn", "optax")
            ratios[what][tree].append(share)
            ratio_text = f"{what.capitalize()}: {name} on {tree}: {share:.3f} of optax"
            row.append(f"{share:.3f} {report.judge(share <= limit, f'{ratio_text}.')}")
            if what == "time" and share > limit:
                slower.append((tree, name))
        rows.append(shown(row))
    means = []
    for what in limits:
        every = [share for of_tree in ratios[what].values() for share in of_tree]
        mean = statistics.geometric_mean(every)
        cells = [f"{statistics.geometric_mean(ratios[what][tree]):.3f}" for tree in trees]
        target = MEAN_LIMITS[what]
        what_fell = f"{what.capitalize()}, geometric mean over all: {mean:.3f}, target {target}."
        means.append([what, *cells, f"{mean:.3f} {report.judge(mean <= target, what_fell)}"])
    report.add_table(
        "Geometric means",
        "Means over the optimizers of the ratios to optax.",
        ["", *trees, "all"],
        means,
    )
    report.add_table(
        "Every optimizer",
        "Ratios to optax. The control is the factor by which two equal programs differed. Targets: "
        + ", ".join(f"{what} {limit}" for what, limit in limits.items())
        + ".",
        ["tree", "optimizer", "optax ms", "control", *limits],
        rows,
    )
    if slower:
        report_slower(report, slower)


def report_slower(report: Report, cases: Sequence[tuple[str, str]]) -> None:
    rows = []
    for tree, name in cases:
        ours, theirs = in_fresh_process(measure_facts, name, tree).values()
        cells = [f"{a:,} of {b:,}" for a, b in zip(ours, theirs, strict=True)]
        rows.append(shown([tree, name, *cells]))
    report.add_table(
        "The programs of the slower steps",
        "What XLA reports for the compiled, donated step, optfn's of optax's.",
        ["tree", "optimizer", "bytes accessed", "fusions", "bytes of temporaries"],
        rows,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--trees", type=listed(TREES))
    options.add_argument("--optimizers", type=listed(OPTIMIZERS), default=OPTIMIZERS)
    options.add_argument("--rounds", type=int, default=11)
    args = options.parse_args()
    trees = args.trees or (["tiny"] if args.quick else DEFAULT_TREES)
    names = ["adam", "polyak_sgd"] if args.quick else args.optimizers
    rounds = 2 if args.quick else args.rounds
    report = Report("Every optimizer: optfn against optax")
    report_every(report, names, trees, rounds, LIMITS)
    report.publish(args.record)


if __name__ == "__main__":
    main()
