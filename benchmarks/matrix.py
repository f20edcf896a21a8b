"""Matrix optimizers: Muon's step and compilation against optax's, and what each optimizer keeps.

Steps are jitted and donated, all of a case run in one fresh process and take turns; a ratio is the
median over the rounds. Both Muons have the same coefficients; a second jit of optax's is the
control. The rate of matrix products is that of the largest product of the orthogonalization,
measured in the same process. Collectives are counted in the compiled program for eight devices.
"""

import math
import os
import statistics
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from harness import (
    TREES,
    Report,
    in_fresh_process,
    interleaved,
    parser,
    progress,
    ratio,
    shown,
    spread,
    timer,
)
from jax.sharding import NamedSharding, PartitionSpec
from step_time import SAMPLE_SECONDS, Variant, optax_step, stepper

import optfn
from optfn import linalg, testing

STEP_LIMITS = {"24 of 256x256": 0.6, "8 of 256x1024": 0.35, "gpt2": 0.5}
COMPILE_LIMIT, RATE_LIMIT, BYTES_LIMIT = 0.4, 0.9, 0.6e6
# Of AdamW's whole training step.
TRAINING_LIMITS = {"soap": 3.0, "kl_soap": 3.0, "shampoo": 3.0}


def optimizers(views: Any) -> dict[str, optfn.Transform]:
    """AdamW and every matrix optimizer, refreshed at every tenth step where it refreshes."""
    ways: dict[str, dict] = {
        "shampoo": {"precondition_frequency": 10, "grafting": optfn.scale_by_adam()},
        "dion": {"rank_fraction": 0.25},
        "galore": {"rank": 16},
        "apollo": {"rank": 16},
    }
    names = (
        *("muon", "normuon", "adamuon", "scion", "dion", "dion2", "soap", "kl_soap", "kl_shampoo"),
        *("shampoo", "splus", "kron", "psgd_pro", "galore", "apollo", "apollo_mini"),
    )
    of_matrices = {
        name: getattr(optfn, name)(1e-3, views=views, **ways.get(name, {})) for name in names
    }
    return {"adamw": optfn.adamw(1e-3), **of_matrices}


def variants() -> dict[str, Variant]:
    # optax has one rule for what is a matrix, two axes, so it orthogonalizes embeddings too.
    ours = optfn.muon(1e-3, views=two_axes, rest=optfn.adamw(1e-3))
    theirs = optax.contrib.muon(1e-3)
    return {
        "optfn": Variant(ours.init, partial(optfn.step, ours)),
        "optax": Variant(theirs.init, partial(optax_step, theirs)),
        "optax again": Variant(theirs.init, partial(optax_step, theirs)),
    }


def two_axes(path: str, leaf: Any) -> optfn.MatrixAxes:
    is_table = path.startswith("embeddings")
    return optfn.MatrixAxes(-1, -2) if leaf.ndim == 2 and not is_table else optfn.NO_MATRIX


def labelled(tree: str) -> Variant:
    """optax's, told that embeddings are no matrices, so that both orthogonalize the same."""

    def numbers(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                optax.contrib.MuonDimensionNumbers()
                if two_axes(jax.tree_util.keystr(path, simple=True, separator="/"), leaf).is_matrix
                else None
            ),
            params,
        )

    theirs = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=numbers)
    return Variant(theirs.init, partial(optax_step, theirs))


def measure_steps(tree: str, rounds: int) -> dict[str, list[float]]:
    every = variants()
    if tree == "gpt2":
        every["optax"] = every["optax again"] = labelled(tree)
    steppers = {who: stepper(variant, tree) for who, variant in every.items()}
    n = max(1, round(SAMPLE_SECONDS / min(run(1) for run in steppers.values())))
    return interleaved({w: lambda run=run: run(n) / n for w, run in steppers.items()}, rounds)


def measure_compilation(tree: str, who: str) -> float:
    variant = variants()[who]
    args = variant.abstract_args(TREES[tree]())
    start = time.perf_counter()
    variant.jit().lower(*args).compile()
    return time.perf_counter() - start


def measure_rate(shape: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds for each operation of the orthogonalization and of the products it is made of."""
    x = jax.random.normal(jax.random.key(0), shape)
    r, c = sorted(shape)
    is_oblong = c >= linalg.OBLONG * r
    plain = 5 * (4 * r * r * c + 2 * r**3)
    gram = 2 * 4 * r * r * c + (2 * 2 + 3 * 2) * r**3 * 2  # 5 polynomials, products and updates
    product = jax.jit(lambda a, b: a @ b)
    a, b = jnp.ones((r, r)), jnp.ones((r, c))
    orthogonalize = jax.jit(linalg.orthogonalize)

    def timer(function: Any, args: tuple, operations: float) -> Any:
        jax.block_until_ready(function(*args))

        def run() -> float:
            start = time.perf_counter()
            jax.block_until_ready([function(*args) for _ in range(20)])
            return (time.perf_counter() - start) / 20 / operations

        return run

    timers = {
        "orthogonalize": timer(orthogonalize, (x,), gram if is_oblong else plain),
        "product": timer(product, (a, b), 2 * r * r * c),
    }
    return interleaved(timers, rounds)


def measure_training(layers: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a whole training step of the example's transformer, with each optimizer."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    train_text = import_module("train_text")

    text = train_text.help_texts()
    model = train_text.Transformer(text.vocabulary, layers)
    params = model.init(jax.random.key(0), jnp.zeros((1, train_text.CONTEXT), jnp.int32))
    every = optimizers(train_text.VIEWS)

    def timer_of(tx: optfn.Transform) -> Any:
        key = jax.random.key(1)
        carry = jax.tree.map(jnp.copy, params), tx.init(params)
        compiled = train_text.segment.lower(tx, *carry, model, text.train, key, length).compile()

        return timer(lambda carry: compiled(tx, *carry, text.train, key), carry, length)

    return interleaved({name: timer_of(tx) for name, tx in every.items()}, rounds)


def collectives() -> tuple[int, int]:
    """The collectives of a step on eight devices and the bytes that each device receives."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # in a fresh process
    mesh = jax.make_mesh((8,), ("x",))
    tx = optfn.muon(0.02, views=optfn.MatrixAxes(rows=-1, columns=-2))
    with jax.set_mesh(mesh):
        lies = NamedSharding(mesh, PartitionSpec(None, None, "x"))
        params = {
            str(i): jax.ShapeDtypeStruct((8, 128, 256), jnp.float32, sharding=lies) for i in "ab"
        }
        state = jax.eval_shape(tx.init, params)
        found = testing.collectives(jax.jit(tx.update).lower(params, state, params).compile())
    return len(found), sum(each.bytes for each in found)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    args = options.parse_args()
    rounds = 2 if args.quick else args.rounds
    report = Report("Matrix optimizers")
    rows = []
    for tree, limit in {"tiny": 9.0}.items() if args.quick else STEP_LIMITS.items():
        progress(f"a step on {tree}")
        seconds = in_fresh_process(measure_steps, tree, rounds)
        share = ratio(seconds, "optfn", "optax")
        control = spread([ratio(seconds, "optax again", "optax")])
        verdict = report.judge(share <= limit, f"Muon's step on {tree}: {share:.3f}, not {limit}.")
        ms = [f"{statistics.median(seconds[who]) * 1e3:.3g}" for who in ("optfn", "optax")]
        rows.append(shown([tree, *ms, f"{control:.3f}", f"{share:.3f} {verdict}", str(limit)]))
    report.add_table(
        "Muon's whole step",
        "Ratios to `optax.contrib.muon` with the same five polynomials.",
        ["tree", "optfn ms", "optax ms", "control", "ratio", "target"],
        rows,
    )
    rows = []
    tree = "tiny" if args.quick else "48 layers"
    progress(f"compilation on {tree}")
    processes = 1 if args.quick else 3
    times = {
        who: [in_fresh_process(measure_compilation, tree, who) for _ in range(processes)]
        for who in ("optfn", "optax")
    }
    medians = {who: statistics.median(each) for who, each in times.items()}
    share = medians["optfn"] / medians["optax"]
    verdict = report.judge(
        args.quick or share <= COMPILE_LIMIT, f"Compilation: {share:.3f}, not {COMPILE_LIMIT}."
    )
    rows.append(shown([tree, *(f"{t:.2f}" for t in medians.values()), f"{share:.3f} {verdict}"]))
    report.add_table(
        "Tracing and compiling Muon's step",
        f"Seconds in fresh processes, medians. Target: {COMPILE_LIMIT} of optax's.",
        ["tree", "optfn", "optax", "ratio"],
        rows,
    )
    rows = []
    for shape in [(8, 8)] if args.quick else [(256, 256), (256, 1024), (1024, 1024)]:
        progress(f"orthogonalization of {shape}")
        seconds = in_fresh_process(measure_rate, shape, rounds)
        share = 1 / ratio(seconds, "orthogonalize", "product")
        verdict = report.judge(
            args.quick or share >= RATE_LIMIT,
            f"Orthogonalization of {shape}: {share:.2f} of the rate of products, not {RATE_LIMIT}.",
        )
        rate = 1e-9 / statistics.median(seconds["product"])
        rows.append(shown([f"{shape[0]}x{shape[1]}", f"{rate:.0f}", f"{share:.2f} {verdict}"]))
    report.add_table(
        "Orthogonalization",
        "Its rate of operations over that of one product (r x r)(r x c) in the same process.",
        ["matrix", "product, GFLOP/s", "share"],
        rows,
    )
    progress("training steps")
    layers, length = (1, 2) if args.quick else (3, 20)
    seconds = in_fresh_process(measure_training, layers, length, min(rounds, 5))
    tree = "tiny" if args.quick else "gpt2"
    kept = optimizers(two_axes)
    rows = []
    for name, each in seconds.items():
        share = ratio(seconds, name, "adamw")
        limit = 99.0 if args.quick else TRAINING_LIMITS.get(name, math.inf)
        verdict = report.judge(share <= limit, f"A step of {name}: {share:.2f}, not {limit}.")
        size = f"{optfn.summary(kept[name], TREES[tree]()).bytes_per_param:.2f}"
        rows.append(
            shown([name, f"{statistics.median(each) * 1e3:.3g}", f"{share:.2f} {verdict}", size])
        )
    report.add_table(
        "Training steps and states",
        "Whole training steps of `examples/train_text.py`, forward, backward and update, relative "
        f"to AdamW's, and the bytes of state for each param of `{tree}`. Bases and roots are made "
        "anew at every tenth step. Target of SOAP, KL-SOAP and Shampoo: 3.",
        ["optimizer", "step, ms", "ratio to AdamW", "bytes a param"],
        rows,
    )
    number, size = in_fresh_process(collectives)
    verdict = report.judge(size <= BYTES_LIMIT, f"Collectives: {size:,} bytes.")
    report.add_table(
        "Collectives",
        "Of one step for two kernels (8, 128, 256) split over eight devices along their last axis. "
        f"Target: {BYTES_LIMIT / 1e6} MB.",
        ["collectives", "bytes a device", ""],
        [shown([str(number), f"{size:,}", verdict])],
    )
    report.publish(args.record)


if __name__ == "__main__":
    main()
