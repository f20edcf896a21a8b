"""State in low precision: what it costs in time and memory, and what it does to training.

- steps: AdamW with its state and params in each storage, in turns with those in float32: time,
  bytes accessed, temporaries and state, on one leaf and on many.
- digits, mnist, text: a network with one hidden layer on the digits, a convolutional one on 5,000
  images of MNIST, and a transformer on text, trained with each storage of the slots of all kernels.
  The rate of each is tuned by one equal sweep; the best is trained from fresh seeds, which are the
  same for all.

With `--results FOLDER` measurements are kept there, and not made again. `--only` takes some parts.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import digits
import jax
import jax.numpy as jnp
import numpy as np
from harness import (
    TREES,
    Interval,
    Report,
    in_fresh_process,
    interleaved,
    kept,
    listed,
    on_fresh_seeds,
    parser,
    progress,
    ratio,
    shown,
    spread,
)
from scipy import stats

import optfn
from optfn import schedules, storage, sweep
from optfn.core.rounding import Rounding

PEER = "float32"
SAMPLE_SECONDS = 0.2
TIME_LIMITS = {"bf16": 1.1, "int8": 3.0}


class Storage(NamedTuple):
    """How an optimizer's numbers are stored.

    Attributes:
        around: puts an optimizer into the storage.
        params: the dtype of the params.
        rounding: of the params.
    """

    around: Callable[[optfn.Transform], optfn.Transform] = lambda tx: tx
    params: Any = jnp.float32
    rounding: Rounding = "nearest"


def is_kernel(path: str, leaf: Any) -> bool:
    return leaf.ndim > 1


def stored(codec: storage.Codec, **options: Any) -> Callable[[optfn.Transform], optfn.Transform]:
    return lambda tx: optfn.store(tx, codec, is_kernel, **options)


def full_params(tx: optfn.Transform) -> optfn.Transform:
    return optfn.master(stored(storage.int8())(tx))


STORAGES = {
    PEER: Storage(),
    "bf16": Storage(stored(storage.bf16())),
    "bf16, stochastic": Storage(stored(storage.bf16(), rounding="stochastic")),
    "int8": Storage(stored(storage.int8())),
    "fp8": Storage(stored(storage.fp8())),
    "int4": Storage(stored(storage.int4())),
    "int8, 24-bit params": Storage(full_params, jnp.bfloat16),
    "bfloat16 params, stochastic": Storage(params=jnp.bfloat16, rounding="stochastic"),
}
# Sweeps round params to nearest; a state in bfloat16 is trained as it should be, stochastically.
TRAINED = [PEER, "bf16, stochastic", "int8", "fp8", "int4", "int8, 24-bit params"]


class Settings(NamedTuple):
    """The settings of all measurements.

    Attributes:
        trees: of `TREES`, for steps.
        rounds: in which steps are timed.
        steps: of a run, by task.
        trials: of a sweep, by task.
        tuning_seeds: of each trial, by task; more where the best of one seed is an accident.
        seeds: fresh ones, of the best trial.
    """

    trees: tuple[str, ...]
    rounds: int
    steps: dict[str, int]
    trials: dict[str, int]
    tuning_seeds: dict[str, int]
    seeds: int = 5


FULL = Settings(
    ("24 of 256x256", "gpt2"),
    rounds=7,
    steps={"digits": 400, "mnist": 300, "text": 200},
    trials={"digits": 16, "mnist": 8, "text": 6},
    tuning_seeds={"digits": 4, "mnist": 1, "text": 1},
)
QUICK = Settings(
    ("tiny",),
    rounds=1,
    steps=dict.fromkeys(FULL.steps, 8),
    trials=dict.fromkeys(FULL.steps, 2),
    tuning_seeds=dict.fromkeys(FULL.steps, 1),
    seeds=2,
)


# Steps.


def measure_steps(tree: str, rounds: int) -> dict[str, Any]:
    return measured(STORAGES, TREES[tree](), rounds)


def measured(ways: Mapping[str, Storage], shapes: Any, rounds: int) -> dict[str, Any]:
    """The seconds of a step by storage and round, and what XLA says of its program."""
    found = {
        name: facts_and_timer(ways[PEER if name == "again" else name], shapes)
        for name in [*ways, "again"]
    }
    facts = {name: facts for name, (facts, _) in found.items()}
    return {"facts": facts, "seconds": interleaved({n: t for n, (_, t) in found.items()}, rounds)}


def facts_and_timer(how: Storage, shapes: Any) -> tuple[dict[str, float], Callable[[], float]]:
    """What XLA says of a step, in bytes a param, and a function that gives the seconds of one."""
    entries = sum(prod(x.shape) for x in jax.tree.leaves(shapes))
    program, carry, grads = compiled(how, shapes)
    facts = {
        "bytes accessed": program.cost_analysis()["bytes accessed"],
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "state": sum(x.nbytes for x in jax.tree.leaves(carry[1])),
    }
    return {what: size / entries for what, size in facts.items()}, timer(program, carry, grads)


def compiled(how: Storage, shapes: Any) -> tuple[Any, tuple, Any]:
    """A donated step, its params and state, and gradients."""
    draw = np.random.default_rng(0).standard_normal
    params, grads = (
        jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32), how.params), shapes)
        for _ in range(2)
    )
    tx = how.around(optfn.adamw(1e-3))
    step = jax.jit(partial(optfn.step, tx, rounding=how.rounding), donate_argnums=(0, 2))
    state = jax.jit(tx.init)(params)
    return step.lower(params, grads, state).compile(), (params, state), grads


def timer(program: Any, carry: tuple, grads: Any) -> Callable[[], float]:
    """A function that takes steps and returns the seconds of one."""

    def run(n: int) -> float:
        nonlocal carry
        began = time.perf_counter()
        for _ in range(n):
            carry = program(carry[0], grads, carry[1])
        jax.block_until_ready(carry)
        return (time.perf_counter() - began) / n

    run(2)
    n = max(1, round(SAMPLE_SECONDS / run(2)))
    return lambda: run(n)


def add_steps(report: Report, tree: str, found: Mapping[str, Any]) -> None:
    seconds, rows = found["seconds"], []
    for name in STORAGES:
        share, facts = ratio(seconds, name, PEER), found["facts"][name]
        limit = TIME_LIMITS.get(name)
        verdict = ""
        if limit is not None:
            verdict = report.judge(
                share <= limit, f"{name} on {tree}: a step takes {share:.2f} of float32's."
            )
        cells = (f"{facts[what]:.2f}" for what in ("state", "bytes accessed", "temporaries"))
        rows.append(shown([name, f"{share:.2f} {verdict}", *cells]))
    control = spread([ratio(seconds, "again", PEER)])
    report.add_table(
        f"Steps on {tree}",
        "A donated step of AdamW relative to float32's, in which equal programs differed by a "
        f"factor of {control:.3f}, and bytes a param. At most {TIME_LIMITS['bf16']} is wanted of "
        f"bf16 and {TIME_LIMITS['int8']} of int8.",
        ["storage", "time", "state", "accessed", "temporaries"],
        rows,
    )


# Training.


class Training(NamedTuple):
    """A task, and the optimizer that is tuned on it.

    Attributes:
        task: a sweep's, with params in float32.
        make: the optimizer of a rate.
        rate: the range of it.
        what: the task in words.
    """

    task: sweep.Task
    make: Callable[[Any], optfn.Transform]
    rate: sweep.LogUniform
    what: str


def of_digits(steps: int) -> Training:
    what = "A hidden layer of 128 on the digits, AdamW with a constant rate."
    task = digits.task(digits.images(), 128)
    return Training(task, optfn.adamw, sweep.LogUniform(1e-4, 1e-1), what)


def of_mnist(steps: int) -> Training:
    def make(rate: Any) -> optfn.Transform:
        return optfn.adamw(schedules.warmup_cosine(rate, steps // 10, steps), weight_decay=0.01)

    what = "The convolutional network of `examples/sweep_flax_mnist.py`, AdamW along a cosine."
    return Training(example("sweep_flax_mnist").mnist(), make, sweep.LogUniform(1e-3, 1e-1), what)


def of_text(steps: int) -> Training:
    def make(rate: Any) -> optfn.Transform:
        return optfn.adamw(schedules.warmup_cosine(rate, steps // 10, steps), b2=0.99)

    text = import_module("text")
    task = text.task(text.Settings(layers=1, batch_size=8, steps=steps))
    what = "The transformer of `examples/train_text.py`, one layer, AdamW along a cosine."
    return Training(task, make, sweep.LogUniform(1e-3, 3e-2), what)


TASKS = {"digits": of_digits, "mnist": of_mnist, "text": of_text}


@cache
def training(name: str, steps: int) -> Training:
    return TASKS[name](steps)


def example(name: str) -> Any:
    """A module of the examples."""
    folder = str(Path(__file__).parent.parent / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(name)


def measure_training(of: str, name: str, settings: Settings) -> dict[str, Any]:
    """The best rate for a storage on a task, and the final losses of fresh seeds."""
    how, steps = STORAGES[name], settings.steps[of]
    one = training(of, steps)
    began = time.perf_counter()
    tuning = sweep.run(
        narrowed(one.task, how),
        lambda learning_rate: how.around(one.make(learning_rate)),
        {"learning_rate": one.rate},
        trials=settings.trials[of],
        seeds=settings.tuning_seeds[of],
        steps=steps,
        segment=steps // 4,
        search=sweep.sobol(),
        policy=sweep.run_all(),
        mode="map" if jax.default_backend() == "cpu" else "vmap",
        progress=False,
    )
    best = tuning.best()
    again = on_fresh_seeds(tuning, settings.seeds)
    jax.clear_caches()
    return {
        "rate": best.values["learning_rate"],
        "losses": again.curves["test_loss"][:, -1].tolist(),
        "duration": time.perf_counter() - began,
    }


def narrowed(task: sweep.Task, how: Storage) -> sweep.Task:
    """A task whose params are stored so, while the loss is computed in float32."""
    init: Any = task.init
    evaluate: Any = task.evaluate
    return dataclasses.replace(
        task,
        init=lambda key: jax.tree.map(lambda p: p.astype(how.params), init(key)),
        loss=lambda params, batch: task.loss(wide(params), batch),
        evaluate=lambda params, held_out: evaluate(wide(params), held_out),
    )


def wide(params: Any) -> Any:
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


def add_training(report: Report, of: str, found: Mapping[str, Any], settings: Settings) -> None:
    peer = np.asarray(found[PEER]["losses"])
    error = float(stats.sem(peer))
    rows = []
    for name, one in found.items():
        losses = np.asarray(one["losses"])
        above = float(np.mean(losses - peer))
        verdict = ""
        if name != PEER:
            verdict = report.judge(
                above <= error,
                f"{of}, {name}: final loss {above:.4f} above float32's, error {error:.4f}.",
            )
        cells = [Interval.of(losses).shown(4), f"{above:+.4f} {verdict}"]
        rows.append(shown([name, f"{one['rate']:.2g}", *cells, f"{one['duration']:.0f}"]))
    low, high = (getattr(training(of, settings.steps[of]).rate, end) for end in ("low", "high"))
    report.add_table(
        f"Training: {of}",
        f"{training(of, settings.steps[of]).what} {settings.trials[of]} rates from {low:g} to "
        f"{high:g} by Sobol's sequence, each on {settings.tuning_seeds[of]} seeds, "
        f"{settings.steps[of]} steps. Final test losses of the best "
        f"rate over {len(peer)} fresh seeds, with 95 % intervals by Student's t, and how far they "
        "are above float32's of the same seeds; at most one standard error of float32's, "
        f"{error:.4f}, is wanted.",
        ["storage", "rate", "final loss", "above float32", "seconds"],
        rows,
    )


def main() -> None:
    parts = ["steps", *TASKS]
    options = parser(__doc__)
    options.add_argument("--only", type=listed(parts), default=parts, metavar="PARTS")
    options.add_argument("--results", type=Path, metavar="FOLDER", help="keeps what is measured")
    args = options.parse_args()
    settings = QUICK if args.quick else FULL
    report = Report("Storage in low precision")
    for tree in settings.trees if "steps" in args.only else ():
        progress(f"steps on {tree}")
        of_steps = {"rounds": settings.rounds, "storages": list(STORAGES)}
        run = partial(in_fresh_process, measure_steps, tree, settings.rounds)
        add_steps(report, tree, kept(args.results, f"steps {tree}", of_steps, run))
    for of in (part for part in args.only if part in TASKS):
        one = {
            "steps": settings.steps[of],
            "trials": settings.trials[of],
            "tuning seeds": settings.tuning_seeds[of],
            "seeds": settings.seeds,
        }
        outcomes = {}
        for name in TRAINED:
            progress(f"{of} with {name}")
            measure = partial(measure_training, of, name, settings)
            outcomes[name] = kept(args.results, f"{of} {name}", one, measure)
        add_training(report, of, outcomes, settings)
    report.publish(args.record)


if __name__ == "__main__":
    main()
