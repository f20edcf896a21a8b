"""Which test problems each optimizer solves, at the best of a small sweep of learning rates.

A problem is solved once the noiseless value is at most its target, even for one step; the value is
taken at the averages where an optimizer averages. A rate solves a problem if it does so from every
seed. All rates and seeds of an optimizer on a problem run in one program, under `jax.vmap` over the
optimizer. All other arguments have their defaults. Learning-rate-free optimizers are swept over
factors of their rate.

Matrix optimizers are measured where there are matrices. Those that leave the rest to an optimizer
with a rate of its own leave it to AdamW with the rate of the matrices.

With `--results FOLDER` each optimizer's outcomes are kept there, and not measured again.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import Report, kept, listed, parser, progress, shown

import optfn
from optfn.testing.problems import ALL, Problem

RATES = np.geomspace(1e-4, 10, 16)
FACTORS = np.geomspace(0.1, 10, 5)

WITH_RATE = [
    "sgd",
    "momentum",
    "noisy_sgd",
    "qhm",
    "optimistic_gradient_descent",
    "sign_sgd",
    "signum",
    "rprop",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adam",
    "adamw",
    "amsgrad",
    "nadam",
    "nadamw",
    "adamax",
    "adamaxw",
    "adabelief",
    "adan",
    "radam",
    "yogi",
    "laprop",
    "lion",
    "grams",
    "optimistic_adam_v2",
    "acprop",
    "ademamix",
    "simplified_ademamix",
    "adopt",
    "madgrad",
    "qhadam",
    "lars",
    "lamb",
    "fromage",
    "novograd",
    "sm3",
    "adafactor",
    "stable_adamw",
    "adam_mini",
    "sophia",
    "polyak_sgd",
    "momo",
    "momo_adam",
    "schedule_free_sgd",
    "schedule_free_adamw",
]
FREE = ["dog", "dowg", "prodigy", "dadapt_adamw", "cocob"]
WITH_ADAMW = ["muon", "normuon", "adamuon", "dion", "dion2"]
OF_MATRICES = [
    *WITH_ADAMW,
    "scion",
    "soap",
    "kl_soap",
    "kl_shampoo",
    "shampoo",
    "splus",
    "kron",
    "psgd_pro",
    "galore",
    "apollo",
]
OPTIMIZERS = [*WITH_RATE, *FREE, *OF_MATRICES]

# The extra arguments of `update`, made from the loss as a function of the params.
EXTRA_ARGS: dict[str, Callable[[Callable, Any], dict[str, Any]]] = {
    "polyak_sgd": lambda loss, params: {"value": loss(params)},
    "momo": lambda loss, params: {"value": loss(params)},
    "momo_adam": lambda loss, params: {"value": loss(params)},
    "sophia": lambda loss, params: {"obj_fn": loss},
}


def sweep(name: str, count: int | None = None) -> np.ndarray:
    """The rates, or factors, to try an optimizer at; `count` of them, evenly picked."""
    values = FACTORS if name in FREE else RATES
    return values[np.linspace(0, len(values) - 1, count or len(values)).round().astype(int)]


def make(name: str, value: float) -> optfn.Transform:
    """The optimizer at a rate or factor."""
    rest = {"rest": optfn.adamw(value)} if name in WITH_ADAMW else {}
    return getattr(optfn, name)(value, **rest)


def has_matrices(problem: Problem) -> bool:
    """Whether a matrix optimizer takes a leaf of the params for a matrix."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    return any(row.view is not None for row in optfn.summary(optfn.muon(0.1), params).rows)


def first_hits(
    name: str, problem: Problem, values: Iterable[float], seeds: int, steps: int
) -> np.ndarray:
    """The step that first reached the target, by value and seed; 0 where none did."""
    tx = optfn.stack([make(name, float(value)) for value in values])

    def train(tx: Any, key: jax.Array) -> jax.Array:
        start_key, noise_key = jax.random.split(key)
        params = problem.init(start_key)

        def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
            params, state, hit = carry
            loss = partial(problem.loss, key=jax.random.fold_in(noise_key, count))
            extra = EXTRA_ARGS[name](loss, params) if name in EXTRA_ARGS else {}
            params, state = optfn.step(tx, params, jax.grad(loss)(params), state, **extra)
            reached = problem.value(optfn.evaluation_params(tx, state, params)) <= problem.target
            return (params, state, jnp.where((hit == 0) & reached, count, hit)), None

        start = params, tx.init(params), jnp.int32(0)
        (_, _, hit), _ = jax.lax.scan(step, start, jnp.arange(1, steps + 1, dtype=jnp.int32))
        return hit

    over_seeds = jax.vmap(train, in_axes=(None, 0))
    over_values = jax.vmap(over_seeds, in_axes=(optfn.in_axes(tx), None))
    return np.asarray(jax.jit(over_values)(tx, jax.random.split(jax.random.key(0), seeds)))


class Outcome(NamedTuple):
    """The outcome at the best value of the sweep.

    Attributes:
        seeds: how many seeds reached the target.
        solved: whether all did.
        steps: their median steps to the target; infinite if none reached it.
        value: the rate or factor.
        at_edge: whether it was the first or last of the sweep.
    """

    seeds: int
    solved: bool
    steps: float
    value: float
    at_edge: bool


def best(hits: np.ndarray, values: np.ndarray) -> Outcome:
    """The outcome at the value that serves most seeds; among equals, with the lowest median."""

    def outcome(i: int) -> Outcome:
        reached = hits[i][hits[i] > 0]
        steps = float(np.median(reached)) if len(reached) else float("inf")
        at_edge = i in (0, len(values) - 1)
        return Outcome(
            len(reached), len(reached) == hits.shape[1], steps, float(values[i]), at_edge
        )

    return min(map(outcome, range(len(values))), key=lambda found: (-found.seeds, found.steps))


Outcomes = dict[str, dict[str, Outcome]]


def measure(
    name: str, problems: Sequence[Problem], seeds: int, steps: int, count: int | None
) -> dict[str, Outcome]:
    """The outcomes of an optimizer by problem."""
    values, outcomes = sweep(name, count), {}
    for problem in problems:
        found = best(first_hits(name, problem, values, seeds, steps), values)
        outcomes[problem.name] = found
        shown([problem.name, *cells(found, seeds)])
    jax.clear_caches()  # no program is used twice
    return outcomes


def measure_all(
    names: Sequence[str],
    problems: Sequence[Problem],
    seeds: int,
    steps: int,
    count: int | None,
    folder: Path | None,
) -> Outcomes:
    """The outcomes by optimizer and problem."""
    with_matrices = [problem for problem in problems if has_matrices(problem)]
    outcomes: Outcomes = {}
    for i, name in enumerate(names, 1):
        progress(f"{i}/{len(names)}: {name}")
        own = with_matrices if name in OF_MATRICES else problems
        settings = {"problems": [problem.name for problem in own]}
        settings |= {"seeds": seeds, "steps": steps, "count": count}
        found = kept(folder, name, settings, measure, name, own, seeds, steps, count)
        outcomes[name] = {problem: Outcome(*outcome) for problem, outcome in found.items()}
    return outcomes


def cells(found: Outcome, seeds: int) -> list[str]:
    if not found.seeds:
        return [f"0/{seeds}", "", ""]
    edge = " (edge)" if found.at_edge else ""
    return [f"{found.seeds}/{seeds}", f"{found.steps:g}", f"{found.value:.2g}{edge}"]


def report_all(report: Report, outcomes: Outcomes, problems: Sequence[str], seeds: int) -> None:
    for problem in problems:
        measured = [found[problem] for found in outcomes.values() if problem in found]
        if measured and not any(outcome.solved for outcome in measured):
            report.judge(False, f"{problem}: solved by none.")
    for name, found in outcomes.items():
        missed = [problem for problem in found if not found[problem].solved]
        what = f"{name}: {len(missed)} of {len(found)} not solved: {', '.join(missed)}."
        report.judge(not missed, what)
    note = (
        "Problems solved at the best value of the sweep, and the geometric mean of their median "
        "steps. An optimizer that solves more averages over harder problems: compare means only "
        "between equal numbers solved."
    )
    with_matrices = next((list(outcomes[name]) for name in OF_MATRICES if name in outcomes), [])
    tables = {"Optimizers": problems, "Optimizers on problems with matrices": with_matrices}
    for title, chosen in tables.items():
        if rows := solved_rows(outcomes, chosen):
            which = "" if chosen is problems else f" The problems are {', '.join(chosen)}."
            header = ["optimizer", f"solved of {len(chosen)}", "steps"]
            report.add_table(title, note + which, header, rows)
    report.add_table(
        "Problems",
        "How many optimizers solve each, and which does in the fewest steps.",
        ["problem", "solvers", "fastest", "steps"],
        [of_problem(problem, outcomes) for problem in problems],
    )
    report.add_table(
        "Every problem",
        "At the best rate, or factor of the rate: the seeds that reached the target, and their "
        "median steps to it. A best value at the edge of the sweep is marked; a better one may be "
        "outside.",
        ["problem", "optimizer", "seeds", "median steps", "best rate"],
        [
            [problem, name, *cells(found[problem], seeds)]
            for problem in problems
            for name, found in outcomes.items()
            if problem in found
        ],
    )


def solved_rows(outcomes: Outcomes, problems: Sequence[str]) -> list[list[str]]:
    """A row for each optimizer that was measured on all problems, those that solve most first."""
    lines = []
    for name, found in outcomes.items():
        if not problems or not found.keys() >= set(problems):
            continue
        steps = [found[problem].steps for problem in problems if found[problem].solved]
        mean = statistics.geometric_mean(steps) if steps else float("inf")
        cell = f"{len(steps)} {'pass' if len(steps) == len(problems) else 'MISS'}"
        lines.append(((-len(steps), mean), [name, cell, f"{mean:.0f}" if steps else ""]))
    return [line for _, line in sorted(lines, key=lambda line: line[0])]


def of_problem(problem: str, outcomes: Outcomes) -> list[str]:
    measured = {name: found[problem] for name, found in outcomes.items() if problem in found}
    solvers = {name: outcome.steps for name, outcome in measured.items() if outcome.solved}
    count = f"{len(solvers)} of {len(measured)}"
    if not solvers:
        return [problem, count, "", ""]
    fastest = min(solvers, key=lambda name: solvers[name])
    return [problem, count, fastest, f"{solvers[fastest]:g}"]


def main() -> None:
    by_name = {problem.name: problem for problem in ALL}
    new = parser(__doc__)
    new.add_argument("--optimizers", type=listed(OPTIMIZERS), help="instead of all")
    new.add_argument("--problems", type=listed(by_name), help="instead of all")
    new.add_argument("--steps", type=int, help="instead of 1000")
    new.add_argument("--results", type=Path, metavar="FOLDER", help="keeps what is measured")
    args = new.parse_args()
    quick = args.quick
    names = args.optimizers or (["sgd", "adam", "prodigy"] if quick else OPTIMIZERS)
    problems = args.problems or (["quadratic", "sparse"] if quick else list(by_name))
    seeds, steps = (2, args.steps or 60) if quick else (5, args.steps or 1000)
    count = 4 if quick else None
    report = Report(f"{len(problems)} test problems: which optimizer solves what")
    chosen = [by_name[problem] for problem in problems]
    outcomes = measure_all(names, chosen, seeds, steps, count, args.results)
    swept = f"{len(sweep('sgd', count))} rates from 1e-4 to 10"
    factors = f"{len(sweep('dog', count))} factors from 0.1 to 10"
    report.tables.append(
        "## Conditions\n\n"
        f"A small sweep, equal for all: {swept}, log-spaced, all other arguments at their "
        f"defaults; {factors} for {', '.join(FREE)}, which find their own rate. The rate of "
        "polyak_sgd is the largest it may take. Matrix optimizers are measured where there are "
        "matrices; the rest is left to their default, and for "
        f"{', '.join(WITH_ADAMW)}, whose default has a rate of its own, to AdamW with the rate of "
        f"the matrices. Rates are constant, runs have {steps} steps and {seeds} seeds. It shows "
        "what works out of the box within these bounds, and not what an optimizer can reach with a "
        "schedule, with its other arguments tuned, or in a longer run.\n"
    )
    report_all(report, outcomes, problems, seeds)
    report.publish(args.record)


if __name__ == "__main__":
    main()
