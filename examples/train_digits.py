"""Trains a classifier of handwritten digits with gradient descent, momentum, RMSprop and Adam.

Each algorithm runs twice, with a constant learning rate and with one that decays from epoch to
epoch. The script prints a table and draws the training loss and the learning rate by epoch.

    python examples/train_digits.py

Look at `train_epoch` first. It takes the optimizer as an argument, as it takes the params, because
an optimizer is data. One function serves every algorithm, and optimizers that differ only in their
numbers, like the two runs of an algorithm, share one compiled program.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optfn
from optfn.schedules import inverse_time, per_epoch

BATCH_SIZE = 64

# Noise added to the training images, in standard deviations of their pixels. It keeps the network
# from overfitting, and so keeps the gradients of the mini-batches noisy to the end.
PIXEL_NOISE = 1.0

# Initial learning rates, tuned by hand for the decayed runs. Constant rates do best at about a
# third of these, where they come close.
ALGORITHMS = {
    "gradient descent": (optfn.sgd, 1.0),
    "momentum": (optfn.momentum, 1.0),
    "RMSprop": (optfn.rmsprop, 0.03),
    "Adam": (optfn.adam, 0.03),
}

# The learning rate is rate / (1 + decay_rate * epoch), with epochs counted from 0. A constant rate
# is one that decays by 0: the same program with another number in it.
DECAY_RATES = {"constant": 0.0, "decayed": 0.2}
COLORS = {"constant": "#D55E00", "decayed": "#0072B2"}


class Data(NamedTuple):
    images: jax.Array
    labels: jax.Array


class Run(NamedTuple):
    """What the table and the figure show of one training run."""

    algorithm: str
    kind: str
    losses: list[float]  # before the first epoch and after each
    rates: list[float]
    test_accuracy: float
    seconds: float


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(64)(images))
        return nn.Dense(10)(hidden)


def load_data(seed: int) -> tuple[Data, Data]:
    """The images for training and for testing, 64 standardised pixels each."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, split)
    mean, std = train_images.mean(), train_images.std()
    train = Data((train_images - mean) / std, train_labels)
    test = Data((test_images - mean) / std, test_labels)
    return train, test


def loss_fn(params, data: Data):
    """The mean cross-entropy, in nats, and the share of images classified correctly."""
    logits: Any = Classifier().apply(params, data.images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()
    return loss, (logits.argmax(-1) == data.labels).mean()


evaluate = jax.jit(loss_fn)


@partial(jax.jit, donate_argnames=("params", "state"))
def train_epoch(optimizer, params, state, data: Data, key):
    """One pass over the data in shuffled mini-batches."""
    steps = len(data.images) // BATCH_SIZE
    shuffle_key, noise_key = jax.random.split(key)
    order = jax.random.permutation(shuffle_key, len(data.images))[: steps * BATCH_SIZE]

    def train_step(carry, inputs):
        params, state = carry
        batch, key = inputs
        images = data.images[batch]
        noisy = images + PIXEL_NOISE * jax.random.normal(key, images.shape)
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, Data(noisy, data.labels[batch]))
        return optfn.step(optimizer, params, grads, state), None

    batches = order.reshape(steps, BATCH_SIZE), jax.random.split(noise_key, steps)
    (params, state), _ = jax.lax.scan(train_step, (params, state), batches)
    return params, state


def train(optimizer, params, data: Data, epochs: int, key, report):
    """Returns the trained params, with the losses and learning rates by epoch."""
    params = jax.tree.map(jnp.copy, params)  # an epoch donates them, and other runs start there too
    state = optimizer.init(params)
    losses, rates = [float(evaluate(params, data)[0])], []
    report(completed=0, loss=losses[0])
    for epoch in range(epochs):
        rates.append(float(optfn.hyperparameters(optimizer, state)["learning_rate"]))
        params, state = train_epoch(optimizer, params, state, data, jax.random.fold_in(key, epoch))
        losses.append(float(evaluate(params, data)[0]))
        report(completed=epoch + 1, loss=losses[-1])
    return params, losses, rates


def train_all(epochs: int, seed: int, progress: Progress) -> list[Run]:
    """Every algorithm with both learning rates, from the same params and on the same batches."""
    train_data, test_data = load_data(seed)
    steps_per_epoch = len(train_data.images) // BATCH_SIZE
    init_key, train_key = jax.random.split(jax.random.key(seed))
    init_params = Classifier().init(init_key, train_data.images)
    runs = []
    for algorithm, (make, rate) in ALGORITHMS.items():
        for kind, decay_rate in DECAY_RATES.items():
            optimizer = make(per_epoch(inverse_time(rate, decay_rate), steps_per_epoch))
            bar = progress.add_task(f"{algorithm}, {kind} rate", total=epochs, loss=float("nan"))
            report = partial(progress.update, bar)

            start = time.perf_counter()
            params, losses, rates = train(
                optimizer, init_params, train_data, epochs, train_key, report
            )
            seconds = time.perf_counter() - start

            _, test_accuracy = evaluate(params, test_data)
            runs.append(Run(algorithm, kind, losses, rates, float(test_accuracy), seconds))
            if progress.disable:
                progress.console.print(f"{algorithm}, {kind} rate: final loss {losses[-1]:.4f}")
    return runs


def progress_bars(console: Console) -> Progress:
    return Progress(
        "{task.description:31}",
        BarColumn(bar_width=20),
        "epoch {task.completed:.0f}/{task.total:.0f}",
        "loss {task.fields[loss]:.4f}",
        console=console,
        disable=not console.is_terminal,
    )


def tabulate(runs: list[Run]) -> Table:
    table = Table(
        title=f"Handwritten digits after {len(runs[0].rates)} epochs",
        caption=f"decayed: rate / (1 + {DECAY_RATES['decayed']} epoch)\n"
        "time: an algorithm's first run includes compiling the program for both",
        box=SIMPLE_HEAD,
    )
    table.add_column("algorithm")
    table.add_column("learning rate")
    for header in ("train loss\n(nats)", "test accuracy\n(%)", "time\n(s)"):
        table.add_column(header, justify="right")
    for run in runs:
        table.add_row(
            run.algorithm,
            f"{run.rates[0]:g}, {run.kind}",
            f"{run.losses[-1]:.4f}",
            f"{100 * run.test_accuracy:.1f}",
            f"{run.seconds:.1f}",
        )
    return table


def draw(runs: list[Run]) -> Figure:
    """The loss above the learning rate, a column for each algorithm."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    axes = figure.subplots(2, len(ALGORITHMS), sharex=True, sharey="row", height_ratios=(3, 2))
    columns = dict(zip(ALGORITHMS, axes.T, strict=True))
    for run in runs:
        loss_axis, rate_axis = columns[run.algorithm]
        epochs = np.arange(len(run.losses))
        style = {"color": COLORS[run.kind], "label": f"{run.kind} rate"}
        loss_axis.plot(epochs, run.losses, **style)
        rate_axis.stairs(run.rates, epochs, baseline=None, linewidth=1.5, **style)
        loss_axis.set_title(run.algorithm)
        rate_axis.set_xlabel("epoch")
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("training loss (nats)")
    axes[1, 0].set_ylabel("learning rate")
    axes[0, 0].legend()
    figure.suptitle(f"Handwritten digits in mini-batches of {BATCH_SIZE}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "output" / "train_digits.png"
    parser.add_argument("--output", type=Path, default=default, help="the figure's file")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data per run")
    parser.add_argument(
        "--quick", dest="epochs", action="store_const", const=5, help="the same as --epochs 5"
    )
    parser.add_argument("--seed", type=int, default=0, help="the random seed")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")

    console = Console()
    with progress_bars(console) as progress:
        runs = train_all(options.epochs, options.seed, progress)
    console.print(tabulate(runs))

    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(runs).savefig(options.output, dpi=150)
    print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()
