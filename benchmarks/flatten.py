"""What `flatten` saves on many small arrays, and what it costs on large ones.

The same optimizer with and without it, closed over, on trees of a few kinds:

- step: CPU seconds of a compiled, donated step. The plain one jitted a second time is the control.
- trace: the seconds of this thread to trace and lower it with nothing cached.
- compile: the CPU seconds of XLA's compilation after that.

Each case runs in a fresh process, in which the variants take turns; a ratio is the median over the
rounds (the compilation has one). Below 1 is a gain.
"""

import gc
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
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
from step_time import ALGORITHMS, SAMPLE_SECONDS, Variant, lowering_seconds, stepper

import optfn

# Trees on which it is meant to pay.
SMALL = ("equal_16", "many_16")

# One round: with thousands of arrays, each takes a minute.
COMPILATIONS = 1

Seconds = dict[str, list[float]]


class Measured(NamedTuple):
    """The seconds of each variant, round by round."""

    step: Seconds
    trace: Seconds
    compile: Seconds


def variants(algorithm: str) -> dict[str, Variant]:
    function, kwargs = ALGORITHMS[algorithm]
    plain = getattr(optfn, function)(**kwargs)
    forms = {"plain": plain, "plain again": plain, "flatten": optfn.flatten(plain)}
    return {name: Variant(tx.init, partial(optfn.step, tx)) for name, tx in forms.items()}


def measure(algorithm: str, tree: str, rounds: int) -> Measured:
    every, shapes = variants(algorithm), TREES[tree]()
    pair = {name: every[name] for name in ("plain", "flatten")}
    trace = {
        name: partial(lowering_seconds, v, v.abstract_args(shapes)) for name, v in pair.items()
    }
    interleaved(trace, 1)  # Imports and setup at first use are not measured.
    traced = interleaved(trace, rounds)
    compiled = interleaved(
        {name: partial(compile_seconds, v, shapes) for name, v in pair.items()}, COMPILATIONS
    )
    steppers = {name: stepper(v, tree, time.process_time) for name, v in every.items()}
    n = max(1, round(SAMPLE_SECONDS / min(run(1) for run in steppers.values())))
    step = interleaved({name: lambda run=run: run(n) / n for name, run in steppers.items()}, rounds)
    return Measured(step, traced, compiled)


def compile_seconds(variant: Variant, shapes: object) -> float:
    jax.clear_caches()
    lowered = variant.jit().lower(*variant.abstract_args(shapes))
    gc.collect()
    start = time.process_time()
    lowered.compile()
    return time.process_time() - start


def report_on(report: Report, algorithms: Sequence[str], trees: Sequence[str], rounds: int) -> None:
    rows = []
    for tree in trees:
        for algorithm in algorithms:
            progress(f"{algorithm} on {tree}")
            measured = in_fresh_process(measure, algorithm, tree, rounds)
            noise = spread([ratio(measured.step, "plain again", "plain")])
            row = [tree, algorithm]
            for what, seconds in measured._asdict().items():
                found = ratio(seconds, "flatten", "plain")
                bound = {"step": noise, "trace": 1}.get(what)
                verdict = ""
                if tree in SMALL and bound:
                    text = f"{what}: {algorithm} on {tree}: {found:.3f} of plain."
                    verdict = f" {report.judge(found <= bound, text)}"
                plain = statistics.median(seconds["plain"])
                row += [f"{plain * 1e3:.3g}", f"{found:.3f}{verdict}"]
            rows.append(shown([*row, f"{noise:.3f}"]))
    report.add_table(
        "Flattened against plain",
        "Milliseconds of the plain optimizer, and the flattened one's time relative to it. "
        "Target, for arrays of 16 numbers: a shorter trace, and a step not above the control, the "
        "factor by which two equal programs differed. The compilation has none: XLA makes a "
        "program for every leaf that is cut out of the result.",
        [
            *("tree", "algorithm"),
            *(f"{what}{kind}" for what in Measured._fields for kind in (" ms", "")),
            "control",
        ],
        rows,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--trees", type=listed(TREES))
    options.add_argument("--algorithms", type=listed(ALGORITHMS))
    options.add_argument("--rounds", type=int)
    args = options.parse_args()
    every = ["sgd_momentum", "adam"], ["equal_16", "many_16", "equal_64x64", "one_16m"], 9
    algorithms, trees, rounds = (["adam"], ["tiny"], 2) if args.quick else every
    report = Report("Many arrays flattened into one")
    report_on(report, args.algorithms or algorithms, args.trees or trees, args.rounds or rounds)
    report.publish(args.record)


if __name__ == "__main__":
    main()
