"""Tunes the penalties of a ridge regression by the derivative of its answer.

The progress of diabetes in 442 patients is fitted by ten measures, their squares and products. The
linear terms and the others have a penalty each, which are to make the error on held-out patients
small. That error is a function of the penalties through the minimum of another function, and its
gradient goes through `minimize`. The script prints a table and draws the path of the penalties.

    python examples/tune_by_gradient.py

Look at `held_out` first. A search on a grid, which the figure shows too, fits hundreds of times.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes

import optfn

LOWEST, HIGHEST = -8.0, 4.0  # of the logarithms of the penalties
START = np.array([2.0, -6.0])
BLUE, VERMILLION = "#0072B2", "#D55E00"


class Patients(NamedTuple):
    features: jax.Array
    progress: jax.Array


class Data(NamedTuple):
    """Standardised, in three parts."""

    fitted: Patients
    held_out: Patients
    test: Patients


def load_data() -> Data:
    measures, progress = map(np.asarray, load_diabetes(return_X_y=True))
    rows, columns = np.triu_indices(measures.shape[1])
    features = np.concatenate([measures, measures[:, rows] * measures[:, columns]], axis=1)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    progress = (progress - progress.mean()) / progress.std()
    parts = np.split(np.random.default_rng(0).permutation(len(progress)), [150, 300])
    return Data(*(Patients(jnp.asarray(features[p]), jnp.asarray(progress[p])) for p in parts))


def error(weights, patients: Patients):
    """The mean squared error; 1 for a guess of the mean."""
    return jnp.mean((patients.features @ weights - patients.progress) ** 2)


def ridge(weights, log_penalties, patients: Patients):
    """The error with a penalty on the weights of the ten measures and another on the others."""
    linear, others = jnp.exp(log_penalties)
    penalty = linear * jnp.sum(weights[:10] ** 2) + others * jnp.sum(weights[10:] ** 2)
    return error(weights, patients) + penalty


def fit(log_penalties, patients: Patients):
    start = jnp.zeros(patients.features.shape[1])
    return optfn.minimize(ridge, start, args=(log_penalties, patients), tol=1e-9).x


def held_out(log_penalties, data: Data):
    return error(fit(log_penalties, data.fitted), data.held_out)


def tune(data: Data, **options) -> optfn.Minimum:
    limits = (LOWEST, HIGHEST)
    return optfn.minimize(held_out, START, bounds=limits, args=(data,), tol=1e-6, **options)


def path_to(steps: int, data: Data) -> np.ndarray:
    """The penalties after each step: runs of other lengths are the same program."""
    return np.array([tune(data, max_steps=count).x for count in range(steps + 1)])


def on_grid(side: int, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms, and the held-out error of all pairs of them: a row for each of the first."""
    axis = np.linspace(LOWEST, HIGHEST, side)
    pairs = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    errors = jax.jit(jax.vmap(held_out, (0, None)))(pairs, data)
    return axis, np.asarray(errors).reshape(side, side)


def tabulate(tuned: optfn.Minimum, axis: np.ndarray, errors: np.ndarray, data: Data) -> Table:
    best = np.unravel_index(errors.argmin(), errors.shape)
    shared = np.diagonal(errors).argmin()
    ways = {
        "hardly any": (np.full(2, LOWEST), 1),
        "one, on the grid": (np.full(2, axis[shared]), len(axis)),
        "two, on the grid": (axis[list(best)], errors.size),
        "two, by gradients": (np.asarray(tuned.x), int(tuned.evaluations.value)),
    }
    table = Table(title="Progress of diabetes, by ridge regression", box=SIMPLE_HEAD)
    table.add_column("penalties")
    for header in ("fits", "penalty of\nmeasures", "penalty of\nothers", "held-out\nerror"):
        table.add_column(header, justify="right")
    table.add_column("test\nerror", justify="right")
    for name, (log_penalties, fits) in ways.items():
        weights = fit(log_penalties, data.fitted)
        linear, others = np.exp(log_penalties)
        ends = [f"{error(weights, part):.4f}" for part in (data.held_out, data.test)]
        table.add_row(name, str(fits), f"{linear:.4f}", f"{others:.4f}", *ends)
    return table


def draw(tuned: optfn.Minimum, path: np.ndarray, axis: np.ndarray, errors: np.ndarray) -> Figure:
    """The path over the held-out error, beside the error and its gradient by step."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    over, beside = figure.subplots(1, 2)
    contours = over.contourf(axis, axis, errors.T, levels=20, cmap="Greys")
    figure.colorbar(contours, ax=over, label="held-out error")
    over.plot(*path.T, "o-", color=VERMILLION, markersize=4, label="by gradients", clip_on=False)
    first, second = np.unravel_index(errors.argmin(), errors.shape)
    best = axis[first], axis[second]
    over.plot(*best, "x", color=BLUE, markersize=10, label="best of the grid", clip_on=False)
    over.set(xlabel="log of the penalty of measures", ylabel="log of the penalty of others")
    over.legend()
    trace = tuned.trace
    assert trace is not None
    beside.plot(
        trace.value - np.nanmin(trace.value), color=BLUE, label="held-out error above its least"
    )
    beside.plot(trace.grad_norm, color=VERMILLION, label="projected gradient")
    beside.set(xlabel="step", yscale="log", xlim=(0, len(path) - 1))
    beside.grid(alpha=0.3)
    beside.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "output" / "tune_by_gradient.png"
    parser.add_argument("--output", type=Path, default=default, help="the figure's file")
    parser.add_argument("--quick", action="store_true", help="a coarser grid")
    options = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    data = load_data()
    tuned = tune(data, trace=True, max_steps=50)
    print(tuned)
    axis, errors = on_grid(7 if options.quick else 25, data)
    Console().print(tabulate(tuned, axis, errors, data))

    options.output.parent.mkdir(parents=True, exist_ok=True)
    path = path_to(int(tuned.steps), data)
    draw(tuned, path, axis, errors).savefig(options.output, dpi=150)
    print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()
