"""State in low precision: what it costs in time and memory, and what it does to training.

- Steps of AdamW with its state and params in each storage, in turns with those in float32: time,
  bytes accessed, temporaries and state, on one leaf and on many.
- The digits, trained with each storage. The rate of each is tuned by one equal sweep; the best is
  trained from fresh seeds, which are the same for all.

With `--results FOLDER` measurements are kept there, and not made again.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import digits
import jax
import jax.numpy as jnp
import numpy as np
from harness import (
    TREES,
    Report,
    in_fresh_process,
    interleaved,
    kept,
    parser,
    progress,
    ratio,
    shown,
    spread,
)
from scipy import stats

import optfn
from optfn import storage, sweep
from optfn.core.rounding import Rounding

PEER = "float32"
FRESH_SEED = 100
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


def stored(codec: storage.Codec, **options: Any) -> Callable[[optfn.Transform], optfn.Transform]:
    return lambda tx: optfn.store(tx, codec, **options)


def full_params(tx: optfn.Transform) -> optfn.Transform:
    return optfn.master(optfn.store(tx, storage.int8()))


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
# Sweeps round params to nearest.
TRAINED = [name for name, how in STORAGES.items() if how.rounding == "nearest"]


class Settings(NamedTuple):
    """The settings of all measurements.

    Attributes:
        trees: of `TREES`, for steps.
        rounds: in which steps are timed.
        width: of the digits' hidden layer.
        steps: of a run.
        trials: of a sweep.
        seeds: fresh ones, of the best trial.
    """

    trees: tuple[str, ...] = ("one_16m", "24 of 256x256", "gpt2")
    rounds: int = 7
    width: int = 128
    steps: int = 400
    trials: int = 16
    seeds: int = 5


QUICK = Settings(("tiny",), rounds=1, width=64, steps=8, trials=2, seeds=2)


# Steps.


def measure_steps(tree: str, rounds: int) -> dict[str, Any]:
    """The seconds of a step by storage and round, and what XLA says of its program."""
    shapes = TREES[tree]()
    entries = sum(prod(x.shape) for x in jax.tree.leaves(shapes))
    facts, timers = {}, {}
    for name in [*STORAGES, "again"]:
        how = STORAGES[PEER if name == "again" else name]
        program, carry, grads = compiled(how, shapes)
        memory = program.memory_analysis()
        facts[name] = {
            "bytes accessed": program.cost_analysis()["bytes accessed"] / entries,
            "temporaries": memory.temp_size_in_bytes / entries,
            "state": sum(x.nbytes for x in jax.tree.leaves(carry[1])) / entries,
        }
        timers[name] = timer(program, carry, grads)
    return {"facts": facts, "seconds": interleaved(timers, rounds)}


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


def measure_training(name: str, settings: Settings) -> dict[str, Any]:
    """The best rate on the digits, and the final losses of fresh seeds."""
    how = STORAGES[name]
    of_digits = task(settings.width, how)
    rate = sweep.LogUniform(1e-4, 1e-1)
    tuning = sweep.run(
        of_digits,
        lambda learning_rate: how.around(optfn.adamw(learning_rate)),
        {"learning_rate": rate},
        trials=settings.trials,
        steps=settings.steps,
        segment=settings.steps // 8,
        search=sweep.sobol(),
        policy=sweep.run_all(),
        progress=False,
    )
    best = tuning.best()
    fresh = tuning.train_again([best.trial] * settings.seeds, lambda i: (FRESH_SEED + i,))
    while fresh.advance():
        pass
    again = sweep.Result.of(fresh, 0.0)
    jax.clear_caches()
    losses = again.curves["test_loss"][:, -1].tolist()
    return {"rate": best.values["learning_rate"], "losses": losses}


def task(width: int, how: Storage) -> sweep.Task:
    train, held_out = digits.images()
    return sweep.Task(
        lambda key: jax.tree.map(lambda p: p.astype(how.params), digits.init(width, key)),
        lambda params, batch: digits.loss(wide(params), batch),
        data=train,
        batch_size=digits.BATCH_SIZE,
        evaluate=lambda params, held_out: digits.evaluate(wide(params), held_out),
        held_out=held_out,
        minimize="test_loss",
    )


def wide(params: Any) -> Any:
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


def add_training(report: Report, found: Mapping[str, Mapping[str, Any]]) -> None:
    peer = np.asarray(found[PEER]["losses"])
    error = float(stats.sem(peer))
    rows = []
    for name, one in found.items():
        losses = np.asarray(one["losses"])
        half = stats.sem(losses) * stats.t.ppf(0.975, len(losses) - 1)
        above = float(np.mean(losses - peer))
        verdict = ""
        if name != PEER:
            verdict = report.judge(
                above <= error,
                f"{name}: final loss {above:.4f} above float32's, error {error:.4f}.",
            )
        cells = [f"{losses.mean():.4f} ± {half:.4f}", f"{above:+.4f} {verdict}"]
        rows.append(shown([name, f"{one['rate']:.2g}", *cells]))
    report.add_table(
        "The digits",
        "Final test losses of the best rate over fresh seeds, with 95 % intervals by Student's t, "
        "and how far they are above float32's of the same seeds; at most one standard error of "
        f"float32's, {error:.4f}, is wanted.",
        ["storage", "rate", "final loss", "above float32"],
        rows,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--results", type=Path, metavar="FOLDER", help="keeps what is measured")
    args = options.parse_args()
    settings = QUICK if args.quick else Settings()
    report = Report("Storage in low precision")
    for tree in settings.trees:
        progress(f"steps on {tree}")
        of_steps = {"rounds": settings.rounds, "storages": list(STORAGES)}
        run = partial(in_fresh_process, measure_steps, tree, settings.rounds)
        add_steps(report, tree, kept(args.results, f"steps {tree}", of_steps, run))
    outcomes = {}
    for name in TRAINED:
        progress(f"training with {name}")
        of_training = dict(zip(settings._fields[2:], settings[2:], strict=True))
        outcomes[name] = kept(args.results, name, of_training, measure_training, name, settings)
    add_training(report, outcomes)
    report.publish(args.record)


if __name__ == "__main__":
    main()
