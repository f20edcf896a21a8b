"""L-BFGS of optfn against SciPy's L-BFGS-B and optax's lbfgs, in double precision.

Three comparisons, on functions of 2 to 1000 dimensions, all with a memory of 10 and until no entry
of the gradient is larger than 1e-8:

- evaluations: the exact number of evaluations of the function with its gradient. The first starting
  point is the literature's, others are drawn around it: a single path is a matter of chance.
- compile: the CPU seconds to trace, lower and compile the whole loop with nothing cached, also of a
  function of a hundred scalars against the same of one vector.
- run: the seconds of a run from the first starting point.

optax's loop is from its documentation. Each case runs in a fresh process, in which the variants
take turns, and its ratio is the median over the rounds.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Report, in_fresh_process, interleaved, listed, parser, progress, ratio, shown
from scipy import optimize
from sklearn.datasets import load_breast_cancer, load_digits

import optfn
from optfn.testing import problems

TOLERANCE = 1e-8
MAX_STEPS = 10_000
LIMITS = {"scipy": 1.1, "optax": 1.0, "compile": 0.8, "run": 0.8, "leaves": 1.2}
# Where a run takes microseconds, most of which is the overhead of an operation.
RUN_LIMITS = {"rosenbrock_2": 1.0, "beale": 1.0}


class Function(NamedTuple):
    """A function of a vector, and where to start."""

    value: Callable
    start: np.ndarray

    def starts(self, count: int) -> np.ndarray:
        noise = np.random.default_rng(0).normal(size=(count, self.start.size))
        noise[0] = 0
        return self.start + 0.3 * noise


def rosenbrock(n: int) -> Function:
    def value(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return Function(value, np.tile([-1.2, 1.0], n // 2))


def quadratic(n: int, condition: float) -> Function:
    """A quadratic of this condition along random axes, with its minimum below zero."""
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = jnp.asarray(axes @ np.diag(np.geomspace(1, condition, n)) @ axes.T)
    b = jnp.asarray(rng.normal(size=n))
    return Function(lambda x: x @ matrix @ x / 2 - b @ x, np.zeros(n))


def beale() -> Function:
    problem = problems.beale()
    return Function(problem.value, np.asarray(problem.init(jax.random.key(0)), float))


def breast_cancer() -> Function:
    """Logistic regression on 30 standardised measures, with a small penalty."""
    inputs, labels = map(np.asarray, load_breast_cancer(return_X_y=True))
    inputs = jnp.asarray((inputs - inputs.mean(0)) / inputs.std(0))
    signs = jnp.asarray(2.0 * labels - 1)

    def value(w):
        margins = signs * (inputs @ w[1:] + w[0])
        return jnp.mean(jnp.logaddexp(0, -margins)) + 1e-3 * jnp.sum(w[1:] ** 2) / 2

    return Function(value, np.zeros(31))


def digits() -> Function:
    """Logistic regression of ten classes on 64 pixels, with a small penalty."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16), jnp.asarray(labels)

    def value(w):
        logits = images @ w[10:].reshape(64, 10) + w[:10]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses) + 1e-3 * jnp.sum(w[10:] ** 2) / 2

    return Function(value, np.zeros(650))


FUNCTIONS: dict[str, Callable[[], Function]] = {
    "rosenbrock_2": partial(rosenbrock, 2),
    "rosenbrock_10": partial(rosenbrock, 10),
    "rosenbrock_100": partial(rosenbrock, 100),
    "rosenbrock_1000": partial(rosenbrock, 1000),
    "quadratic_10_1e3": partial(quadratic, 10, 1e3),
    "quadratic_50_1e4": partial(quadratic, 50, 1e4),
    "beale": beale,
    "breast_cancer": breast_cancer,
    "digits": digits,
}


# The three loops; each returns the evaluations and the largest entry of the gradient at the end.


def optfn_run(function: Function, x0: Any) -> tuple[Any, Any]:
    result = optfn.minimize(function.value, x0, tol=TOLERANCE, max_steps=MAX_STEPS)
    return result.evaluations.value, result.grad_norm


def optax_run(function: Function, x0: Any) -> tuple[Any, Any]:
    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(function.value)

    def step(carry):
        x, state, evaluations = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=function.value)
        tried = optax.tree.get(state, "num_linesearch_steps")
        return optax.apply_updates(x, updates), state, evaluations + tried

    def should_continue(carry):
        steps, grad = (optax.tree.get(carry[1], name) for name in ("count", "grad"))
        return (steps == 0) | ((steps < MAX_STEPS) & (jnp.max(jnp.abs(grad)) > TOLERANCE))

    _, state, evaluations = jax.lax.while_loop(should_continue, step, (x0, tx.init(x0), 1))
    return evaluations, jnp.max(jnp.abs(optax.tree.get(state, "grad")))


def scipy_run(value_and_grad: Callable, x0: np.ndarray) -> tuple[int, float]:
    result = optimize.minimize(
        lambda x: tuple(map(np.asarray, value_and_grad(x))),
        x0,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxcor": 10,
            "gtol": TOLERANCE,
            "ftol": 0,
            "maxiter": MAX_STEPS,
            "maxfun": 2 * MAX_STEPS,
        },
    )
    return result.nfev, float(np.abs(result.jac).max())


LOOPS = {"optfn": optfn_run, "optax": optax_run}


# Measures, each in a process of its own.


def measure_evaluations(name: str, starts: int) -> dict[str, list[float]]:
    """The evaluations by library and start; NaN where the gradient stayed above the tolerance."""
    jax.config.update("jax_enable_x64", True)
    function = FUNCTIONS[name]()
    runs: dict[str, Callable] = {
        who: jax.jit(partial(loop, function)) for who, loop in LOOPS.items()
    }
    runs["scipy"] = partial(scipy_run, jax.jit(jax.value_and_grad(function.value)))
    found = {}
    for who, run in runs.items():
        ends = [run(x0) for x0 in function.starts(starts)]
        found[who] = [float(n) if norm <= TOLERANCE else float("nan") for n, norm in ends]
    return found


def measure_seconds(name: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of each compilation, and seconds of each run, round by round."""
    jax.config.update("jax_enable_x64", True)
    function = FUNCTIONS[name]()
    x0 = jnp.asarray(function.start)

    def compiled(loop: Callable) -> float:
        jax.clear_caches()
        start = time.process_time()
        jax.jit(lambda x: loop(function, x)).lower(x0).compile()
        return time.process_time() - start

    timers = {who: partial(compiled, loop) for who, loop in LOOPS.items()}
    interleaved(timers, 1)  # Imports and setup at first use are not measured.
    compilations = interleaved(timers, max(1, rounds // 3))

    def timer(loop: Callable) -> Callable[[], float]:
        run = jax.jit(lambda x: loop(function, x)).lower(x0).compile()

        def seconds() -> float:
            start = time.perf_counter()
            jax.block_until_ready(run(x0))
            return time.perf_counter() - start

        repeats = max(1, round(0.02 / min(seconds() for _ in range(3))))
        return lambda: sum(seconds() for _ in range(repeats)) / repeats

    runs = interleaved({who: timer(loop) for who, loop in LOOPS.items()}, rounds)
    return {"compile": compilations, "run": runs}


def measure_leaves(count: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds to compile a run over so many scalars, and over their vector."""
    jax.config.update("jax_enable_x64", True)
    function = rosenbrock(count)
    vector = jnp.asarray(function.start)
    scalars = {f"x{i}": x for i, x in enumerate(vector)}

    def of_scalars(params: dict) -> Any:
        return function.value(jnp.stack(list(params.values())))

    def compiled(value: Callable, x0: Any) -> float:
        jax.clear_caches()
        start = time.process_time()
        run = jax.jit(lambda x: optfn.minimize(value, x, tol=TOLERANCE, max_steps=MAX_STEPS))
        run.lower(x0).compile()
        return time.process_time() - start

    timers = {
        "scalars": partial(compiled, of_scalars, scalars),
        "vector": partial(compiled, function.value, vector),
    }
    interleaved(timers, 1)
    return interleaved(timers, rounds)


# Reports.


def report_evaluations(report: Report, names: Sequence[str], starts: int) -> None:
    rows = []
    for name in names:
        progress(f"evaluations: {name}")
        found = {
            who: np.array(n)
            for who, n in in_fresh_process(measure_evaluations, name, starts).items()
        }
        reached = {who: int(np.isfinite(n).sum()) for who, n in found.items()}
        row = [name, *(f"{n[0]:.0f}" for n in found.values())]
        row += [f"{reached[who]}/{starts}" for who in found]
        everywhere = f"Evaluations: optfn on {name} failed from {starts - reached['optfn']} starts."
        row[len(found) + 1] += f" {report.judge(reached['optfn'] == starts, everywhere)}"
        for who in ("scipy", "optax"):
            both = np.isfinite(found["optfn"]) & np.isfinite(found[who])
            if not both.any():
                row.append("none to compare")
                continue
            share = float(np.exp(np.mean(np.log(found["optfn"][both] / found[who][both]))))
            what = f"Evaluations: optfn on {name}: {share:.3f} of {who}'s, limit {LIMITS[who]}."
            row.append(f"{share:.3f} {report.judge(share <= LIMITS[who], what)}")
        rows.append(shown(row))
    report.add_table(
        "Evaluations",
        f"Evaluations from the first start; how many of {starts} starts reached the tolerance; the "
        "geometric mean of the ratio over the starts from which both did. Targets: all starts, and "
        f"{LIMITS['scipy']} of SciPy's evaluations and {LIMITS['optax']} of optax's.",
        [
            *("function", "optfn", "optax", "SciPy"),
            *("optfn reached", "optax reached", "SciPy reached"),
            *("optfn / SciPy", "optfn / optax"),
        ],
        rows,
    )


def report_seconds(report: Report, names: Sequence[str], rounds: int) -> None:
    rows = []
    for name in names:
        progress(f"seconds: {name}")
        found = in_fresh_process(measure_seconds, name, rounds)
        row = [name]
        for what, unit in (("compile", 1.0), ("run", 1e3)):
            share = ratio(found[what], "optfn", "optax")
            limit = RUN_LIMITS.get(name, LIMITS[what]) if what == "run" else LIMITS[what]
            text = f"{what.capitalize()}: {name}: {share:.2f} of optax, limit {limit}."
            row.append(f"{statistics.median(found[what]['optax']) * unit:.3g}")
            row.append(f"{share:.2f} {report.judge(share <= limit, text)}")
        rows.append(shown(row))
    report.add_table(
        "Seconds",
        "optax's seconds, and optfn's relative to them. Compilation is in CPU time, a run in wall "
        f"time. Targets: {LIMITS['compile']}, and {LIMITS['run']}, for the two smallest "
        f"{RUN_LIMITS['beale']}.",
        ["function", "optax compiles, s", "compile", "optax runs, ms", "run"],
        rows,
    )


def report_leaves(report: Report, rounds: int, count: int) -> None:
    progress("leaves")
    found = in_fresh_process(measure_leaves, count, rounds)
    share, limit = ratio(found, "scalars", "vector"), LIMITS["leaves"]
    text = f"Leaves: {count} scalars take {share:.2f} of their vector to compile, limit {limit}."
    report.add_table(
        "Leaves",
        f"CPU seconds to trace, lower and compile a run over {count} scalars or their vector. "
        f"Target: {limit}.",
        ["scalars, s", "vector, s", "scalars / vector"],
        [
            [
                *(f"{statistics.median(found[what]):.3g}" for what in ("scalars", "vector")),
                f"{share:.2f} {report.judge(share <= limit, text)}",
            ]
        ],
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--functions", type=listed(FUNCTIONS))
    options.add_argument("--starts", type=int)
    options.add_argument("--rounds", type=int)
    args = options.parse_args()
    names = args.functions or (["beale"] if args.quick else list(FUNCTIONS))
    report = Report("L-BFGS: optfn against SciPy and optax")
    report_evaluations(report, names, args.starts or (2 if args.quick else 8))
    report_seconds(report, names, args.rounds or (2 if args.quick else 15))
    report_leaves(report, args.rounds or (1 if args.quick else 5), 10 if args.quick else 100)
    report.publish(args.record)


if __name__ == "__main__":
    main()
