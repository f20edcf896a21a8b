"""`minimize_residuals` against SciPy's `least_squares`, and constraints against its SLSQP.

Problems of More, Garbow and Hillstrom, also in boxes, and of Hock and Schittkowski, all in double
precision: the values reached, by how much the conditions of a minimum are missed, the evaluations,
and the seconds of a run that is compiled already.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Report, listed, parser, progress, shown
from scipy import optimize

import optfn

SAME_VALUE = 1e-8
TOLERANCE = 1e-7
INF = np.inf

# Residuals of More, Garbow and Hillstrom, with their starts.


def powell_singular(x):
    return jnp.stack(
        [
            x[0] + 10 * x[1],
            5**0.5 * (x[2] - x[3]),
            (x[1] - 2 * x[2]) ** 2,
            10**0.5 * (x[0] - x[3]) ** 2,
        ]
    )


def helical_valley(x):
    angle = jnp.arctan2(x[1], x[0]) / (2 * jnp.pi)
    return jnp.stack([10 * (x[2] - 10 * angle), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]])


BARD = np.array([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34])
BARD = np.append(BARD, [2.10, 4.39])


def bard(x):
    u = jnp.arange(1.0, 16)
    v = 16 - u
    return BARD - (x[0] + u / (v * x[1] + jnp.minimum(u, v) * x[2]))


KOWALIK = np.array([0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323])
KOWALIK = np.append(KOWALIK, [0.0235, 0.0246])
KOWALIK_U = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])


def kowalik_osborne(x):
    u = KOWALIK_U
    return KOWALIK - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


MEYER = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820]
MEYER = np.array([*MEYER, 3307, 2872], float)


def meyer(x):
    t = 45 + 5 * jnp.arange(1.0, 17)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - MEYER


def brown_dennis(x):
    t = jnp.arange(1, 21) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def freudenstein_roth(x):
    return jnp.stack(
        [
            -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1],
            -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1],
        ]
    )


def powell_badly_scaled(x):
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.sum(jnp.exp(-x)) - 1.0001])


def brown_badly_scaled(x):
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x):
    powers = jnp.stack([x[1], x[1] ** 2, x[1] ** 3])
    return jnp.asarray([1.5, 2.25, 2.625]) - x[0] * (1 - powers)


def jennrich_sampson(x):
    i = jnp.arange(1.0, 11)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def box_3d(x):
    t = 0.1 * jnp.arange(1, 11)
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def biggs(x):
    t = 0.1 * jnp.arange(1, 14)
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    fit = x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4])
    return fit - y


def variably_dimensioned(x):
    weighted = jnp.sum(jnp.arange(1, len(x) + 1) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([weighted, weighted**2])])


def trigonometric(x):
    i = jnp.arange(1, len(x) + 1)
    return len(x) - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def broyden_tridiagonal(x):
    around = jnp.pad(x, 1)
    return (3 - 2 * x) * x - around[:-2] - 2 * around[2:] + 1


def linear_full_rank(x):
    rest = -2 / 20 * jnp.sum(x) - 1
    return jnp.concatenate([x + rest, jnp.full(20 - len(x), 1.0) * rest])


MGH = {
    "rosenbrock": (lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), [-1.2, 1]),
    "freudenstein_roth": (freudenstein_roth, [0.5, -2]),
    "powell_badly_scaled": (powell_badly_scaled, [0, 1]),
    "brown_badly_scaled": (brown_badly_scaled, [1, 1]),
    "beale": (beale, [1, 1]),
    "jennrich_sampson": (jennrich_sampson, [0.3, 0.4]),
    "helical_valley": (helical_valley, [-1, 0, 0]),
    "bard": (bard, [1, 1, 1]),
    "meyer": (meyer, [0.02, 4000, 250]),
    "box_3d": (box_3d, [0, 10, 20]),
    "powell_singular": (powell_singular, [3, -1, 0, 1]),
    "kowalik_osborne": (kowalik_osborne, [0.25, 0.39, 0.415, 0.39]),
    "brown_dennis": (brown_dennis, [25, 5, -5, -1]),
    "biggs": (biggs, [1, 2, 1, 1, 1, 1]),
    "variably_dimensioned": (variably_dimensioned, np.linspace(0.9, 0, 10)),
    "trigonometric": (trigonometric, np.full(10, 0.1)),
    "broyden_tridiagonal": (broyden_tridiagonal, np.full(10, -1.0)),
    "linear_full_rank": (linear_full_rank, np.ones(5)),
}
# Box by problem, after More, Garbow and Hillstrom's bounded set: so that some bound is met.
BOXES = {
    "rosenbrock": ([-2, -1], [0.5, 2]),
    "beale": ([0.6, 0.5], [10, 100]),
    "helical_valley": ([-100, -1, -1], [0.8, 1, 1]),
    "box_3d": ([0, 5, 0], [2, 9.5, 20]),
    "brown_dennis": ([-10, 0, -100, -20], [100, 15, 0, 0.2]),
    "variably_dimensioned": ([0] * 10, [0.9] * 10),
    "trigonometric": ([0.05] * 10, [1] * 10),
    "biggs": ([0] * 6, [2, 8, 1, 7, 5, 5]),
    "kowalik_osborne": ([0.05, 0, 0, 0.05], [0.2, 0.5, 0.5, 0.5]),
    "bard": ([0.05, 0, 0], [0.1, 2, 2]),
}


# Of Hock and Schittkowski: the function, the start, bounds, equations g = 0, inequalities h >= 0.
HS = {
    6: (
        lambda x: (1 - x[0]) ** 2,
        [-1.2, 1],
        None,
        lambda x: 10 * (x[1] - x[0] ** 2)[None],
        None,
    ),
    7: (
        lambda x: jnp.log(1 + x[0] ** 2) - x[1],
        [2, 2],
        None,
        lambda x: ((1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4)[None],
        None,
    ),
    12: (
        lambda x: x[0] ** 2 / 2 + x[1] ** 2 - x[0] * x[1] - 7 * x[0] - 7 * x[1],
        [0, 0],
        None,
        None,
        lambda x: (25 - 4 * x[0] ** 2 - x[1] ** 2)[None],
    ),
    21: (
        lambda x: 0.01 * x[0] ** 2 + x[1] ** 2 - 100,
        [2, -1],
        ([2, -50], [50, 50]),
        None,
        lambda x: (10 * x[0] - x[1] - 10)[None],
    ),
    28: (
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2,
        [-4, 1, 1],
        None,
        lambda x: (x[0] + 2 * x[1] + 3 * x[2] - 1)[None],
        None,
    ),
    35: (
        lambda x: (
            9
            - 8 * x[0]
            - 6 * x[1]
            - 4 * x[2]
            + 2 * x[0] ** 2
            + 2 * x[1] ** 2
            + x[2] ** 2
            + 2 * x[0] * x[1]
            + 2 * x[0] * x[2]
        ),
        [0.5, 0.5, 0.5],
        ([0, 0, 0], [INF] * 3),
        None,
        lambda x: (3 - x[0] - x[1] - 2 * x[2])[None],
    ),
    39: (
        lambda x: -x[0],
        [2, 2, 2, 2],
        None,
        lambda x: jnp.stack([x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2]),
        None,
    ),
    43: (
        lambda x: (
            jnp.sum(x[:2] ** 2)
            + 2 * x[2] ** 2
            + x[3] ** 2
            - 5 * x[0]
            - 5 * x[1]
            - 21 * x[2]
            + 7 * x[3]
        ),
        [0, 0, 0, 0],
        None,
        None,
        lambda x: jnp.stack(
            [
                8 - jnp.sum(x**2) - x[0] + x[1] - x[2] + x[3],
                10 - x[0] ** 2 - 2 * x[1] ** 2 - x[2] ** 2 - 2 * x[3] ** 2 + x[0] + x[3],
                5 - 2 * x[0] ** 2 - x[1] ** 2 - x[2] ** 2 - 2 * x[0] + x[1] + x[3],
            ]
        ),
    ),
    48: (
        lambda x: (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2,
        [3, 5, -3, 2, -2],
        None,
        lambda x: jnp.stack([jnp.sum(x) - 5, x[2] - 2 * (x[3] + x[4]) + 3]),
        None,
    ),
    65: (
        lambda x: (x[0] - x[1]) ** 2 + (x[0] + x[1] - 10) ** 2 / 9 + (x[2] - 5) ** 2,
        [-5, 5, 0],
        ([-4.5, -4.5, -5], [4.5, 4.5, 5]),
        None,
        lambda x: (48 - jnp.sum(x**2))[None],
    ),
    76: (
        lambda x: (
            x[0] ** 2
            + x[1] ** 2 / 2
            + x[2] ** 2
            + x[3] ** 2 / 2
            - x[0] * x[2]
            + x[2] * x[3]
            - x[0]
            - 3 * x[1]
            + x[2]
            - x[3]
        ),
        [0.5] * 4,
        ([0] * 4, [INF] * 4),
        None,
        lambda x: jnp.stack(
            [
                5 - x[0] - 2 * x[1] - x[2] - x[3],
                4 - 3 * x[0] - x[1] - 2 * x[2] + x[3],
                x[1] + 4 * x[2] - 1.5,
            ]
        ),
    ),
}


# Runs.


class End:
    """Where a run ended: x, the value, evaluations, seconds."""

    def __init__(self, run: Callable[[], tuple[Any, Any]], value: Callable):
        run()
        began = time.perf_counter()
        x, count = jax.block_until_ready(run())
        self.seconds = time.perf_counter() - began
        self.x, self.value, self.count = np.asarray(x), float(value(x)), int(count)


def fit(name: str) -> tuple[End, End]:
    """Ours and SciPy's."""
    residuals, start = MGH[name.removesuffix(" in a box")]
    start, bounds = np.asarray(start, float), None
    if name.endswith(" in a box"):
        lower, upper = map(np.asarray, BOXES[name.removesuffix(" in a box")])
        start, bounds = np.clip(start, lower, upper), (lower * 1.0, upper * 1.0)
    of, derivative = jax.jit(residuals), jax.jit(jax.jacfwd(residuals))

    def ours():
        end = optfn.minimize_residuals(residuals, start, bounds=bounds, tol=TOLERANCE)
        return end.x, end.evaluations.value

    def theirs():
        end = optimize.least_squares(
            lambda x: np.asarray(of(x)),
            start,
            lambda x: np.asarray(derivative(x)),  # pyright: ignore[reportArgumentType]
            bounds=bounds or (-INF, INF),
            **{"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-10, "max_nfev": 5000},
        )
        return end.x, end.nfev

    def value(x):
        return jnp.sum(of(x) ** 2) / 2

    return End(ours, value), End(theirs, value)


def constraints_of(number: int) -> dict[str, optfn.Constraint]:
    *_, equations, inequalities = HS[number]
    found = {}
    if equations is not None:
        found["eq"] = optfn.Constraint(equations, 0, 0)
    if inequalities is not None:
        found["ineq"] = optfn.Constraint(inequalities, 0)
    return found


def constrained(number: int) -> tuple[End, End, float]:
    """Ours and SciPy's, and how much ours misses the constraints."""
    f, start, bounds, *_ = HS[number]
    start, own = np.asarray(start, float), constraints_of(number)
    sides: Any = None if bounds is None else tuple(np.asarray(x, float) for x in bounds)
    value_and_grad, missed = jax.jit(jax.value_and_grad(f)), []

    def jitted(g: Callable) -> Callable:
        compiled = jax.jit(g)
        return lambda x: np.asarray(compiled(x))

    theirs_own = [
        {"type": kind, "fun": jitted(c.fun), "jac": jitted(jax.jacfwd(c.fun))}
        for kind, c in own.items()
    ]

    def ours():
        end = optfn.minimize(f, start, bounds=sides, constraints=own, tol=TOLERANCE, max_steps=5000)
        missed.append(float(np.asarray(end.violation)))
        return end.x, end.evaluations.value

    def theirs():
        end = optimize.minimize(
            lambda x: tuple(map(np.asarray, value_and_grad(x))),
            start,
            jac=True,
            method="SLSQP",
            bounds=None if sides is None else np.stack(sides, 1),
            constraints=theirs_own,
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        return end.x, end.nfev

    return End(ours, f), End(theirs, f), missed[-1]


def row_of(report: Report, name: str, ours: End, theirs: End) -> list[str]:
    higher = (ours.value - theirs.value) / max(abs(theirs.value), 1)
    text = f"{name}: optfn's value is higher by {higher:.1e}, relative."
    return [
        *(name, str(ours.count), str(theirs.count)),
        f"{higher:.0e} {report.judge(bool(higher <= SAME_VALUE), text)}",
        *(f"{ours.seconds * 1e3:.2f}", f"{theirs.seconds * 1e3:.2f}"),
    ]


HEADER = ["problem", "optfn", "SciPy", "value higher by", "optfn ms", "SciPy ms"]


def report_fits(report: Report, names: Sequence[str]) -> None:
    rows = []
    for name in names:
        progress(f"least squares: {name}")
        rows.append(shown(row_of(report, name, *fit(name))))
    report.add_table(
        "Least squares",
        "Evaluations of the residuals; by how much optfn's value is higher, relative to SciPy's or "
        "to 1; milliseconds of a run.",
        HEADER,
        rows,
    )


def report_constraints(report: Report, numbers: Sequence[int]) -> None:
    rows = []
    for number in numbers:
        progress(f"constraints: hs{number}")
        ours, theirs, missed = constrained(number)
        text = f"hs{number}: the constraints are missed by {missed:.1e}."
        judged = f"{missed:.0e} {report.judge(missed <= TOLERANCE, text)}"
        rows.append(shown([*row_of(report, f"hs{number}", ours, theirs), judged]))
    report.add_table(
        "Constraints",
        "Evaluations of the function, of SLSQP those of its own line search; by how much optfn's "
        "value is higher; milliseconds of a run; by how much optfn misses the constraints.",
        [*HEADER, "missed by"],
        rows,
    )


def main() -> None:
    options = parser(__doc__)
    fits = [*MGH, *(f"{name} in a box" for name in BOXES)]
    options.add_argument("--fits", type=listed(fits), help="instead of all")
    args = options.parse_args()
    jax.config.update("jax_enable_x64", True)
    report = Report("Least squares and constraints: optfn against SciPy")
    report_fits(report, args.fits or (["beale"] if args.quick else fits))
    report_constraints(report, [28] if args.quick else list(HS))
    report.publish(args.record)


if __name__ == "__main__":
    main()
