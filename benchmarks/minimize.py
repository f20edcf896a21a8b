"""`minimize` against SciPy's L-BFGS-B, in double precision, with bounds and without.

The problems of More, Garbow and Hillstrom, also in their bounded forms, of Hock and Schittkowski
and of CUTEst, and fits to real data, all with a memory of 10 and until no entry of the projected
gradient is larger than 1e-6: the evaluations of the function with its gradient, the values reached,
and by how much the end misses the conditions of Karush, Kuhn and Tucker. The first starting point
is the literature's, others are drawn around it. Where optimistix is installed, its BFGS stands
beside them on the problems without bounds.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
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

    @property
    def is_bounded(self) -> bool:
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

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


def freudenstein_roth(x):
    first = x[0] - 13 + ((5 - x[1]) * x[1] - 2) * x[1]
    second = x[0] - 29 + ((x[1] + 1) * x[1] - 14) * x[1]
    return first**2 + second**2


def brown_badly_scaled(x):
    return (x[0] - 1e6) ** 2 + (x[1] - 2e-6) ** 2 + (x[0] * x[1] - 2) ** 2


def jennrich_sampson(x):
    i = jnp.arange(1, 11)
    return jnp.sum((2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])) ** 2)


BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39)


def bard(x):
    u = jnp.arange(1, 16)
    v = 16 - u
    return jnp.sum((jnp.asarray(BARD) - x[0] - u / (v * x[1] + jnp.minimum(u, v) * x[2])) ** 2)


BELL = (0.0009, 0.0044, 0.0175, 0.054, 0.1295, 0.242, 0.3521)


def gaussian(x):
    t = (8 - jnp.arange(1, 16)) / 2
    y = jnp.asarray([*BELL, 0.3989, *BELL[::-1]])
    return jnp.sum((x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y) ** 2)


KOWALIK = (*(0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246),)
DOSES = (4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)


def kowalik_osborne(x):
    u = jnp.asarray(DOSES)
    fit = x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])
    return jnp.sum((jnp.asarray(KOWALIK) - fit) ** 2)


def penalty(x):
    return 1e-5 * jnp.sum((x - 1) ** 2) + (jnp.sum(x**2) - 0.25) ** 2


def brown_almost_linear(x):
    return jnp.sum((x[:-1] + jnp.sum(x) - len(x) - 1) ** 2) + (jnp.prod(x) - 1) ** 2


def discrete_boundary_value(x):
    h = 1 / (len(x) + 1)
    t = h * jnp.arange(1, len(x) + 1)
    around = jnp.pad(x, 1)
    return jnp.sum((2 * x - around[:-2] - around[2:] + h**2 * (x + t + 1) ** 3 / 2) ** 2)


def broyden_tridiagonal(x):
    around = jnp.pad(x, 1)
    return jnp.sum(((3 - 2 * x) * x - around[:-2] - 2 * around[2:] + 1) ** 2)


def arwhead(x):
    return jnp.sum((x[:-1] ** 2 + x[-1] ** 2) ** 2 - 4 * x[:-1] + 3)


def engval(x):
    return jnp.sum((x[:-1] ** 2 + x[1:] ** 2) ** 2 - 4 * x[:-1] + 3)


def tridia(x):
    i = jnp.arange(2, len(x) + 1)
    return (x[0] - 1) ** 2 + jnp.sum(i * (2 * x[1:] - x[:-1]) ** 2)


def edensch(x):
    a, b = x[:-1], x[1:]
    return 16 + jnp.sum((a - 2) ** 4 + (a * b - 2 * b) ** 2 + (b + 1) ** 2)


def mccormick(x):
    a, b = x[:-1], x[1:]
    return jnp.sum(-1.5 * a + 2.5 * b + 1 + (a - b) ** 2 + jnp.sin(a + b))


def nonscomp(x):
    return (x[0] - 1) ** 2 + 4 * jnp.sum((x[1:] - x[:-1] ** 2) ** 2)


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
    "rosenbrock": partial(Problem, rosenbrock, [-1.2, 1]),
    "freudenstein_roth": partial(Problem, freudenstein_roth, [0.5, -2]),
    "beale": partial(Problem, beale, [1, 1]),
    "jennrich_sampson": partial(Problem, jennrich_sampson, [0.3, 0.4]),
    "bard": partial(Problem, bard, [1, 1, 1]),
    "gaussian": partial(Problem, gaussian, [0.4, 1, 0]),
    "kowalik_osborne": partial(Problem, kowalik_osborne, [0.25, 0.39, 0.415, 0.39]),
    "penalty": partial(Problem, penalty, np.arange(1.0, 11)),
    "brown_almost_linear": partial(Problem, brown_almost_linear, np.full(10, 0.5)),
    "discrete_boundary_value": partial(
        Problem,
        discrete_boundary_value,
        np.linspace(0, 1, 22)[1:-1] * (np.linspace(0, 1, 22)[1:-1] - 1),
    ),
    "broyden_tridiagonal": partial(Problem, broyden_tridiagonal, -np.ones(50)),
    "arwhead": partial(Problem, arwhead, np.ones(100)),
    "engval": partial(Problem, engval, np.full(100, 2.0)),
    "tridia": partial(Problem, tridia, np.ones(50)),
    "edensch": partial(Problem, edensch, np.full(36, 8.0)),
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
    "beale_bounded": partial(Problem, beale, [1, 1], [0.6, 0.5], [10, 100]),
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
    "freudenstein_roth_bounded": partial(
        Problem, freudenstein_roth, [0.5, -2], [0, -30], [20, -0.9]
    ),
    "brown_badly_scaled": partial(Problem, brown_badly_scaled, [1, 1], [0, 3e-5], [1e6, 100]),
    "jennrich_sampson_bounded": partial(Problem, jennrich_sampson, [0.3, 0.4], [0.26, 0], [10, 20]),
    "bard_bounded": partial(Problem, bard, [1, 1, 1], [0.1, 0, 0], [50, 100, 50]),
    "gaussian_bounded": partial(Problem, gaussian, [0.4, 1, 0], [0.398, 1, -0.5], [4.2, 2, 0.1]),
    "kowalik_osborne_bounded": partial(
        Problem, kowalik_osborne, [0.25, 0.39, 0.415, 0.39], [0, -1, 0.13, 0.12], [10, 12, 13, 12]
    ),
    "penalty_bounded": partial(Problem, penalty, np.arange(1.0, 11), 0, [0.1, *[10] * 9]),
    "broyden_tridiagonal_bounded": partial(
        Problem, broyden_tridiagonal, -np.ones(50), -1, np.tile([1.0, -0.6], 25)
    ),
    "mccormick": partial(Problem, mccormick, np.zeros(50), -1.5, 3),
    "nonscomp": partial(Problem, nonscomp, np.full(25, 3.0), np.tile([-100.0, 1.0], 13)[:25], 100),
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


class End(NamedTuple):
    """Where a run ended.

    Attributes:
        evaluations: of the function with its gradient, NaN where the tolerance was missed.
        value: the value there.
        violation: by how much the conditions of a minimum do not hold.
    """

    evaluations: Any
    value: Any
    violation: Any


def violation(x: np.ndarray, slope: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """By how much a point misses the conditions of Karush, Kuhn and Tucker, at its worst entry.

    The multipliers of the bounds are the parts of the slope that point into the box. They are not
    negative by that; what is left is feasibility, and that each vanishes with the distance to its
    bound or is at most the distance.
    """
    outside = np.maximum(lower - x, x - upper).max(initial=0)
    of_lower, of_upper = np.maximum(slope, 0), np.maximum(-slope, 0)
    slack = np.maximum(np.minimum(of_lower, x - lower), np.minimum(of_upper, upper - x))
    return float(np.maximum(outside, slack.max(initial=0)))


def measure(name: str, starts: int) -> dict[str, list[End]]:
    """The ends by library and start."""
    jax.config.update("jax_enable_x64", True)
    problem = PROBLEMS[name]()
    points = problem.starts(starts)
    lower, upper = (np.broadcast_to(np.asarray(x, float), points[0].shape) for x in problem[2:])
    value_and_grad = jax.jit(jax.value_and_grad(problem.value))

    def ours(x0):
        bounds = (lower, upper) if problem.is_bounded else None
        end = optfn.minimize(problem.value, x0, bounds=bounds, tol=TOLERANCE, max_steps=MAX_STEPS)
        return end.evaluations.value, end.x

    def theirs(x0):
        options = {"maxcor": 10, "gtol": TOLERANCE, "ftol": 0, "maxiter": MAX_STEPS}
        end = optimize.minimize(
            lambda x: tuple(map(np.asarray, value_and_grad(x))),
            x0,
            jac=True,
            method="L-BFGS-B",
            bounds=np.stack([lower, upper], 1) if problem.is_bounded else None,
            options=options | {"maxfun": 2 * MAX_STEPS},
        )
        return end.nfev, end.x

    def judged(count, x):
        value, grad = value_and_grad(x)
        left = violation(np.asarray(x), np.asarray(grad), lower, upper)
        reached = left <= 1.001 * TOLERANCE
        return End(float(count) if reached else float("nan"), float(value), left)

    runs = {"optfn": ours, "scipy": theirs}
    if not problem.is_bounded and find_spec("optimistix"):
        runs["optimistix"] = jax.jit(partial(by_optimistix, problem.value))
    return {who: [judged(*run(x0)) for x0 in points] for who, run in runs.items()}


def by_optimistix(value: Callable, x0: jax.Array) -> tuple[Any, Any]:
    """Its BFGS, which ends by its own criterion: that neither x nor the value changes much."""
    import optimistix

    solver = optimistix.BFGS(rtol=1e-9, atol=1e-9)
    options = {"max_steps": 2 * MAX_STEPS, "throw": False}
    end = optimistix.minimise(lambda x, _: value(x), solver, x0, **options)
    return end.stats["num_steps"], end.value


def report_evaluations(report: Report, names: Sequence[str], starts: int) -> None:
    rows, shares = [], []
    for name in names:
        progress(f"evaluations: {name}")
        found = {who: End(*np.array(x).T) for who, x in measure(name, starts).items()}
        (ours, value, left), (theirs, other, _) = found["optfn"], found["scipy"]
        third = found.get("optimistix")
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
                    f"{left.max():.0e}",
                    "" if third is None else f"{np.isfinite(third.evaluations).sum()}/{starts}",
                    "" if third is None else f"{third.evaluations[0]:.0f}",
                ]
            )
        )
    mean = float(np.exp(np.mean(np.log(shares))))
    text = f"Evaluations: {mean:.3f} of SciPy's in the geometric mean, limit {LIMIT}."
    rows.append(
        shown(["all", *[""] * 4, f"{mean:.3f} {report.judge(mean <= LIMIT, text)}", *[""] * 4])
    )
    report.add_table(
        "Evaluations",
        f"Evaluations from the first start; how many of {starts} starts reached the tolerance; the "
        "geometric mean of the ratio over the starts from which both did; by how much optfn's "
        "value is higher there at most, relative to SciPy's or to 1; by how much the end of optfn "
        "misses the conditions of a minimum at most; from how many starts optimistix's BFGS "
        "reached the tolerance, and its evaluations from the first.",
        [
            *("problem", "optfn", "SciPy", "optfn reached", "SciPy reached"),
            *("optfn / SciPy", "value higher by", "KKT", "optimistix reached", "optimistix"),
        ],
        rows,
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=listed(PROBLEMS))
    options.add_argument("--starts", type=int)
    args = options.parse_args()
    names = args.problems or (["hs5", "beale"] if args.quick else list(PROBLEMS))
    report = Report("minimize: optfn against SciPy")
    report_evaluations(report, names, args.starts or (2 if args.quick else 8))
    report.publish(args.record)


if __name__ == "__main__":
    main()
