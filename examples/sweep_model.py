"""Searches a model and its optimizer together: width, dropout, batch size, optimizer and rate.

A task may be a function of hyperparameters that change shapes: each width and batch size has a
program of its own. Dropout is a number in all of them, and so are the optimizer's. ASHA ends poor
trials early, whatever their shapes. The script prints the best trials and draws the test accuracy
against what was searched.

    python examples/sweep_model.py

Look at `digits` first: its arguments are searched, and so is that of its `loss` behind the `*`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optfn
from optfn import sweep
from optfn.sweep import plot

RATE = sweep.LogUniform(1e-4, 1.0)
MODEL = {"width": [16, 64], "batch_size": [32, 128], "dropout": sweep.Uniform(0.0, 0.6)}
OPTIMIZER = sweep.OneOf(
    "optimizer",
    {
        "Momentum": (optfn.sgd, {"learning_rate": RATE, "momentum": sweep.Fixed(0.9)}),
        "AdamW": (
            optfn.adamw,
            {"learning_rate": RATE, "weight_decay": sweep.LogUniform(1e-3, 1.0)},
        ),
    },
)
WORST_SHOWN = 0.8

IMAGES, LABELS = load_digits(return_X_y=True)
TRAIN_X, TEST_X, TRAIN_Y, TEST_Y = (
    jnp.asarray(x)
    for x in train_test_split(
        (IMAGES - IMAGES.mean()) / IMAGES.std(), LABELS, stratify=LABELS, random_state=0
    )
)


def digits(width: int, batch_size: int) -> sweep.Task:
    """A network with a hidden layer, scored by its accuracy on images it has not seen."""

    def init(key):
        first, second = jax.random.split(key)
        scaled = jax.nn.initializers.he_normal()
        return {
            "hidden": {"w": scaled(first, (64, width)), "b": jnp.zeros(width)},
            "out": {"w": scaled(second, (width, 10)), "b": jnp.zeros(10)},
        }

    def logits(params, images, kept=1.0):
        hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
        return (hidden * kept) @ params["out"]["w"] + params["out"]["b"]

    def loss(params, batch, *, key, dropout):
        images, labels = batch
        kept = jax.random.bernoulli(key, 1 - dropout, (len(images), width)) / (1 - dropout)
        given = logits(params, images, kept)
        return optax.softmax_cross_entropy_with_integer_labels(given, labels).mean()

    def evaluate(params):
        return {"accuracy": (logits(params, TEST_X).argmax(-1) == TEST_Y).mean()}

    return sweep.Task(
        init,
        loss,
        data=(TRAIN_X, TRAIN_Y),
        batch_size=batch_size,
        evaluate=evaluate,
        maximize="accuracy",
    )


def table(result: sweep.Result, count: int) -> Table:
    names = ["width", "batch_size", "dropout", "optimizer", "learning_rate", "weight_decay"]
    shown = Table(box=SIMPLE_HEAD, title="The best trials")
    for name in ["accuracy", *names]:
        shown.add_column(name.replace("_", " "), justify="right")
    for trial in result.top(count):
        values = [trial.values.get(name, "") for name in names]
        texts = [f"{x:.2g}" if isinstance(x, float) else str(x) for x in values]
        shown.add_row(f"{trial.score:.4f}", *texts)
    return shown


def draw(result: sweep.Result) -> Figure:
    figure = Figure(figsize=(12, 7), layout="constrained")
    names = [*MODEL, "optimizer", "learning_rate"]
    axes = figure.subplots(2, 3, sharey=True).flatten()
    for name, ax in zip(names, axes, strict=False):
        plot.sensitivity(result, name, ax, cap=WORST_SHOWN)
    plot.curves(result, ax=axes[-1], cap=WORST_SHOWN)
    for i, ax in enumerate(axes):
        ax.grid(alpha=0.3)
        ax.set(ylabel="" if i % 3 else "test accuracy")
    figure.suptitle(
        "Discs ran to the end, rings were ended early, triangles are below", fontsize=10
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="24 short trials, to see that it works"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/sweep_model.png"
    )
    args = parser.parse_args()
    trials, steps = (24, 40) if args.quick else (128, 600)
    console = Console()

    columns = "{task.description}", BarColumn(), "{task.completed}/{task.total} trials"
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("searching", total=trials)

        def progress(so_far: sweep.Progress) -> None:
            ended = so_far.ok + so_far.pruned + so_far.diverged + so_far.failed
            bars.update(bar, completed=ended, description=f"best {so_far.best:.4f}")

        result = sweep.run(
            digits,
            OPTIMIZER,
            MODEL,
            trials=trials,
            steps=steps,
            search=sweep.sobol(),
            lanes=16,
            progress=progress,
        )
    console.print(table(result, 8))
    console.print(f"{result!r}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(result).savefig(args.output, dpi=150)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
