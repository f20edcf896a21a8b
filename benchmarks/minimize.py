"""`minimize` between bounds against SciPy's L-BFGS-B, in double precision.

Bounded forms of the problems of More, Garbow and Hillstrom and of Hock and Schittkowski, and fits
to real data, all with a memory of 10 and until no entry of the projected gradient is larger than
1e-6: the evaluations of the function with its gradient, and the values reached. The first starting
point is the literature's, others are drawn around it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import Report, listed, parser, progress, shown
from scipy import optimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import optfn

TOLERANCE = 1e-6
SAME_VALUE = 1e-8
MAX_STEPS = 5000
LIMIT = 1.1
FREE = np.inf


class Problem(NamedTuple):
    """A function of a vector, where to start, and bounds, numbers or one for each entry."""

    value: Callable
    start: Any
    lower: Any = -FREE
    upper: Any = FREE

    def starts(self, count: int) -> np.ndarray:
        """Starts in the box, as those outside are moved by each library in its own way."""
        start = np.asarray(self.start, float)
        noise = np.random.default_rng(0).normal(size=(count, start.size))
        noise[0] = 0
        return np.clip(start + 0.1 * noise, self.lower, self.upper)


# Textbook functions.


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x):
    powers = jnp.stack([x[1], x[1] ** 2, x[1] ** 3])
    return jnp.sum((jnp.asarray([1.5, 2.25, 2.625]) - x[0] * (1 - powers)) ** 2)


def powell_badly_scaled(x):
    return (1e4 * x[0] * x[1] - 1) ** 2 + (jnp.sum(jnp.exp(-x)) - 1.0001) ** 2


def box_3d(x):
    t = 0.1 * jnp.arange(1, 11)
    fit = jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))
    return jnp.sum(fit**2)


def helical_valley(x):
    angle = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    return 100 * ((x[2] - 10 * angle) ** 2 + (jnp.hypot(x[0], x[1]) - 1) ** 2) + x[2] ** 2


def brown_dennis(x):
    t = jnp.arange(1, 21) / 5
    first = x[0] + t * x[1] - jnp.exp(t)
    second = x[2] + x[3] * jnp.sin(t) - jnp.cos(t)
    return jnp.sum((first**2 + second**2) ** 2)


def wood(x):
    a, b, c, d = x
    valleys = 100 * (b - a**2) ** 2 + (1 - a) ** 2 + 90 * (d - c**2) ** 2 + (1 - c) ** 2
    return valleys + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2) + 19.8 * (b - 1) * (d - 1)


def variably_dimensioned(x):
    weighted = jnp.sum(jnp.arange(1, len(x) + 1) * (x - 1))
    return jnp.sum((x - 1) ** 2) + weighted**2 + weighted**4


def trigonometric(x):
    i = jnp.arange(1, len(x) + 1)
    return jnp.sum((len(x) - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)) ** 2)


def extended_powell(x):
    a, b, c, d = x.reshape(-1, 4).T
    parts = (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4
    return jnp.sum(parts)


def biggs(x):
    t = 0.1 * jnp.arange(1, 14)
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    fit = x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4])
    return jnp.sum((fit - y) ** 2)


def hs3(x):
    return x[1] + 1e-5 * (x[1] - x[0]) ** 2


def hs4(x):
    return (x[0] + 1) ** 3 / 3 + x[1]


def hs5(x):
    return jnp.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1


def hs45(x):
    return 2 - jnp.prod(x) / 120


def hs110(x):
    return jnp.sum(jnp.log(x - 2) ** 2 + jnp.log(10 - x) ** 2) - jnp.prod(x) ** 0.2


def obstacle() -> Problem:
    """A membrane on 12 x 12 points under a load, above a bump."""
    side = np.linspace(0, 1, 14)[1:-1]
    bump = np.outer(np.sin(3 * np.pi * side), np.sin(2 * np.pi * side)) / 5

    def value(x):
        u = jnp.pad(x.reshape(12, 12), 1)
        slopes = jnp.sum(jnp.diff(u, axis=0) ** 2) + jnp.sum(jnp.diff(u, axis=1) ** 2)
        return slopes / 2 + jnp.sum(x) / 13**2

    return Problem(value, np.zeros(144), bump.ravel(), 0.5)


def quadratic(n: int, condition: float) -> Problem:
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix, b = axes @ np.diag(np.geomspace(1, condition, n)) @ axes.T, 10 * rng.normal(size=n)
    width = rng.uniform(size=(2, n))
    return Problem(lambda x: x @ matrix @ x / 2 - b @ x, np.zeros(n), -width[0], width[1])


# Fits.


def nonnegative_least_squares() -> Problem:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 30)), rng.normal(size=60)
    return Problem(lambda x: jnp.sum((a @ x - b) ** 2) / 2, np.ones(30), 0)


def logistic(bound: float, lower: float) -> Problem:
    inputs, labels = map(np.asarray, load_breast_cancer(return_X_y=True))
    inputs, signs = (inputs - inputs.mean(0)) / inputs.std(0), 2.0 * labels - 1

    def value(w):
        return jnp.mean(jnp.logaddexp(0, -signs * (inputs @ w[1:] + w[0])))

    return Problem(value, np.zeros(31), lower, bound)


def softmax() -> Problem:
    images, labels = load_digits(return_X_y=True)
    images, one_hot = images[:400] / 16, np.eye(10)[labels[:400]]

    def value(w):
        logits = images @ w.reshape(64, 10)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.sum(logits * one_hot, axis=1))

    return Problem(value, np.zeros(640), -0.5, 0.5)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = map(np.asarray, load_diabetes(return_X_y=True))
    return inputs / inputs.std(0), targets


def poisson() -> Problem:
    inputs, counts = diabetes()

    def value(w):
        log_rate = inputs @ w[1:] + w[0]
        return jnp.mean(jnp.exp(log_rate) - counts * log_rate) / 100

    return Problem(
        value, np.r_[4.0, np.zeros(10)], np.r_[-FREE, np.zeros(10)], 0.5 + 9 * np.eye(11)[0]
    )


def gaussian_process() -> Problem:
    """The marginal likelihood of 60 points: a length for each input, a variance, the noise."""
    inputs, targets = diabetes()
    x, y = inputs[:60], (targets[:60] - targets[:60].mean()) / targets[:60].std()

    def value(p):
        scaled = x * jnp.exp(-p[:10])[None, :]
        distance = jnp.sum((scaled[:, None] - scaled[None, :]) ** 2, axis=-1)
        covariance = jnp.exp(p[10] - distance / 2) + jnp.exp(p[11]) * jnp.eye(60)
        factor = jnp.linalg.cholesky(covariance)
        white = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return (white @ white / 2 + jnp.sum(jnp.log(jnp.diagonal(factor)))) / 60

    return Problem(value, np.r_[np.full(10, 1.0), 0.0, -1.0], -3, 3)


def decay_curves() -> Problem:
    t = np.linspace(0, 4, 40)
    y = 2 * np.exp(-t / 2) + np.exp(-3 * t) + 0.05 * np.random.default_rng(0).normal(size=40)

    def value(p):
        return jnp.sum((p[0] * jnp.exp(-p[1] * t) + p[2] * jnp.exp(-p[3] * t) - y) ** 2)

    return Problem(value, [1.0, 1.0, 1.0, 2.0], 0, [5.0, 5.0, 5.0, 2.5])


VALLEY = np.tile([-1.2, 1.0], 25)
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "hs1": partial(Problem, rosenbrock, [-2, 1], [-FREE, -1.5]),
    "hs2": partial(Problem, rosenbrock, [-2, 1], [-FREE, 1.5]),
    "hs3": partial(Problem, hs3, [10, 1], [-FREE, 0]),
    "hs4": partial(Problem, hs4, [1.125, 0.125], [1, 0]),
    "hs5": partial(Problem, hs5, [0, 0], [-1.5, -3], [4, 3]),
    "hs38": partial(Problem, wood, [-3, -1, -3, -1], -10, 10),
    "hs45": partial(Problem, hs45, [2, 2, 2, 2, 2], 0, [1, 2, 3, 4, 5]),
    "hs110": partial(Problem, hs110, np.full(10, 9.0), 2.001, 9.999),
    "rosenbrock_10": partial(Problem, rosenbrock, VALLEY[:10], -1.5, 0.8),
    "rosenbrock_50": partial(Problem, rosenbrock, VALLEY, np.tile([-2, 0.5], 25), 2),
    "beale": partial(Problem, beale, [1, 1], [0.6, 0.5], [10, 100]),
    "powell_badly_scaled": partial(Problem, powell_badly_scaled, [0, 1], [0, 1], [1, 9]),
    "box_3d": partial(Problem, box_3d, [0, 10, 20], [0, 5, 0], [2, 9.5, 20]),
    "helical_valley": partial(Problem, helical_valley, [-1, 0, 0], [-100, -1, -1], [0.8, 1, 1]),
    "brown_dennis": partial(
        Problem, brown_dennis, [25, 5, -5, -1], [-10, 0, -100, -20], [100, 15, 0, 0.2]
    ),
    "wood": partial(Problem, wood, [-3, -1, -3, -1], -100, [0, 10, 100, 100]),
    "variably_dimensioned": partial(Problem, variably_dimensioned, np.linspace(0.9, 0, 10), 0, 0.9),
    "trigonometric": partial(Problem, trigonometric, np.full(10, 0.1), 0.05, 1),
    "extended_powell": partial(
        Problem, extended_powell, np.tile([3, -1, 0, 1], 10), -1, [0.1] * 40
    ),
    "biggs": partial(Problem, biggs, [1, 2, 1, 1, 1, 1], 0, [2, 8, 1, 7, 5, 5]),
    "obstacle": obstacle,
    "quadratic_50_1e3": partial(quadratic, 50, 1e3),
    "quadratic_200_1e4": partial(quadratic, 200, 1e4),
    "nonnegative_least_squares": nonnegative_least_squares,
    "logistic_box": partial(logistic, 1.0, -1.0),
    "logistic_signs": partial(logistic, 0.0, -FREE),
    "softmax_box": softmax,
    "poisson_nonnegative": poisson,
    "gaussian_process": gaussian_process,
    "decay_curves": decay_curves,
}


def measure(name: str, starts: int) -> dict[str, list[tuple[float, float]]]:
    """The evaluations, NaN where the tolerance was missed, and the value, by library and start."""
    jax.config.update("jax_enable_x64", True)
    problem = PROBLEMS[name]()
    points = problem.starts(starts)
    lower, upper = (np.broadcast_to(np.asarray(x, float), points[0].shape) for x in problem[2:])
    value_and_grad = jax.jit(jax.value_and_grad(problem.value))

    def ours(x0):
        bounds = (lower, upper)
        end = optfn.minimize(problem.value, x0, bounds=bounds, tol=TOLERANCE, max_steps=MAX_STEPS)
        return end.evaluations.value, end.x

    def theirs(x0):
        options = {"maxcor": 10, "gtol": TOLERANCE, "ftol": 0, "maxiter": MAX_STEPS}
        end = optimize.minimize(
            lambda x: tuple(map(np.asarray, value_and_grad(x))),
            x0,
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([lower, upper], 1),
            options=options | {"maxfun": 2 * MAX_STEPS},
        )
        return end.nfev, end.x

    def judged(count, x):
        value, grad = value_and_grad(x)
        left = np.abs(np.clip(x - grad, lower, upper) - x).max()
        return (float(count) if left <= 1.001 * TOLERANCE else float("nan")), float(value)

    runs = {"optfn": ours, "scipy": theirs}
    return {who: [judged(*run(x0)) for x0 in points] for who, run in runs.items()}


def report_evaluations(report: Report, names: Sequence[str], starts: int) -> None:
    rows, shares = [], []
    for name in names:
        progress(f"evaluations: {name}")
        found = {who: np.array(x) for who, x in measure(name, starts).items()}
        (ours, value), (theirs, other) = (found[who].T for who in ("optfn", "scipy"))
        reached = np.isfinite(ours)
        both = reached & np.isfinite(theirs)
        missed = f"{name}: optfn missed the tolerance from {starts - reached.sum()} starts."
        worst = np.max(((value - other) / np.maximum(abs(other), 1))[both], initial=-np.inf)
        higher = f"{name}: optfn's value is higher by {worst:.1e}, relative, from one start."
        share = float(np.exp(np.mean(np.log(ours[both] / theirs[both])))) if both.any() else np.nan
        shares += [share] if both.any() else []
        rows.append(
            shown(
                [
                    *(name, f"{ours[0]:.0f}", f"{theirs[0]:.0f}"),
                    f"{reached.sum()}/{starts} {report.judge(bool(reached.all()), missed)}",
                    f"{np.isfinite(theirs).sum()}/{starts}",
                    f"{share:.3f}",
                    f"{worst:.0e} {report.judge(bool(worst <= SAME_VALUE), higher)}",
                ]
            )
        )
    mean = float(np.exp(np.mean(np.log(shares))))
    text = f"Evaluations: {mean:.3f} of SciPy's in the geometric mean, limit {LIMIT}."
    rows.append(
        shown(["all", "", "", "", "", f"{mean:.3f} {report.judge(mean <= LIMIT, text)}", ""])
    )
    report.add_table(
        "Evaluations",
        f"Evaluations from the first start; how many of {starts} starts reached the tolerance; the "
        "geometric mean of the ratio over the starts from which both did; by how much optfn's "
        "value is higher there at most, relative to SciPy's or to 1.",
        [
            *("problem", "optfn", "SciPy", "optfn reached", "SciPy reached"),
            *("optfn / SciPy", "value higher by"),
        ],
        rows,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=listed(PROBLEMS))
    options.add_argument("--starts", type=int)
    args = options.parse_args()
    names = args.problems or (["hs5"] if args.quick else list(PROBLEMS))
    report = Report("minimize between bounds: optfn against SciPy")
    report_evaluations(report, names, args.starts or (2 if args.quick else 8))
    report.publish(args.record)


if __name__ == "__main__":
    main()
