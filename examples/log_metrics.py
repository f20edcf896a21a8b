"""Trains a classifier of handwritten digits and logs what the optimizer does.

The optimizer is AdamW after a clip, with a learning rate that warms up and decays; `monitor` around
it measures the norms of gradients, updates and params, the clip and the rate. The script shows them
during training, prints a table at the end and writes every step to a CSV file.

    python examples/log_metrics.py

Look at `train_epoch` first: the steps are a `scan`, and each returns `optfn.metrics(tx, state)`;
the log stacks them.
"""

import argparse
import csv
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optfn
from optfn.schedules import warmup_cosine

BATCH_SIZE = 64
MAX_NORM = 1.0

# The columns of the table, by the short names of the metrics.
COLUMNS = {
    "learning_rate": "learning\nrate",
    "grad_norm": "gradient\nnorm",
    "clip_by_global_norm.factor": "clip\nfactor",
    "update_norm": "update\nnorm",
    "param_norm": "param\nnorm",
    "update_ratio": "update /\nparam",
}


class Data(NamedTuple):
    images: jax.Array
    labels: jax.Array


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(64)(images))
        return nn.Dense(10)(hidden)


def make_optimizer(steps: int):
    rate = warmup_cosine(peak_value=0.01, warmup_steps=steps // 10, total_steps=steps)
    return optfn.monitor(
        optfn.chain(optfn.clip_by_global_norm(MAX_NORM), optfn.adamw(rate, weight_decay=0.01))
    )


def load_data(seed: int) -> tuple[Data, Data]:
    """The images for training and for testing, 64 standardised pixels each."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, split)
    return Data(train_images, train_labels), Data(test_images, test_labels)


def loss_fn(params, data: Data):
    """The mean cross-entropy, in nats, and the share of images classified correctly."""
    logits: Any = Classifier().apply(params, data.images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()
    return loss, (logits.argmax(-1) == data.labels).mean()


evaluate = jax.jit(loss_fn)


@partial(jax.jit, donate_argnames=("params", "state"))
def train_epoch(optimizer, params, state, data: Data, key):
    """One pass over the data in shuffled mini-batches, and the log of its steps."""
    steps = len(data.images) // BATCH_SIZE
    order = jax.random.permutation(key, len(data.images))[: steps * BATCH_SIZE]

    def train_step(carry, batch):
        params, state = carry
        rows = Data(data.images[batch], data.labels[batch])
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
        params, state = optfn.step(optimizer, params, grads, state)
        return (params, state), (loss, optfn.metrics(optimizer, state))

    carry, log = jax.lax.scan(train_step, (params, state), order.reshape(steps, BATCH_SIZE))
    return *carry, log


def train(epochs: int, seed: int, progress: Progress):
    """The log, an array [steps] for each name, and the test accuracy."""
    train_data, test_data = load_data(seed)
    init_key, train_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(Classifier().init)(init_key, train_data.images)
    optimizer = make_optimizer(epochs * (len(train_data.images) // BATCH_SIZE))
    state = optimizer.init(params)

    bar = progress.add_task("training", total=epochs, loss=float("nan"), norm=float("nan"))
    logs = []
    for epoch in range(epochs):
        key = jax.random.fold_in(train_key, epoch)
        params, state, (losses, metrics) = train_epoch(optimizer, params, state, train_data, key)
        logs.append({"loss": np.asarray(losses)} | {k: np.asarray(v) for k, v in metrics.items()})
        loss, norm = float(losses.mean()), float(metrics["grad_norm"].mean())
        progress.update(bar, advance=1, loss=loss, norm=norm)
        if progress.disable:
            progress.console.print(
                f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}, gradient norm {norm:.4f}"
            )
    log = {name: np.concatenate([part[name] for part in logs]) for name in logs[0]}
    _, accuracy = evaluate(params, test_data)
    return optfn.Metrics(log), float(accuracy)


def progress_bar(console: Console) -> Progress:
    return Progress(
        "{task.description}",
        BarColumn(bar_width=20),
        "epoch {task.completed:.0f}/{task.total:.0f}",
        "loss {task.fields[loss]:.4f}",
        "gradient norm {task.fields[norm]:.4f}",
        console=console,
        disable=not console.is_terminal,
    )


def tabulate(log, accuracy: float) -> Table:
    """Ten steps of the log, from the first to the last."""
    steps = len(log["loss"])
    hits = log["clip_by_global_norm.hits"][-1]
    table = Table(
        title=f"{steps} steps of AdamW after a clip at {MAX_NORM:g}",
        caption=f"{hits} gradients clipped; test accuracy {100 * accuracy:.1f} %",
        box=SIMPLE_HEAD,
    )
    for header in ("step", "loss\n(nats)", *COLUMNS.values()):
        table.add_column(header, justify="right")
    for i in np.linspace(0, steps - 1, 10).astype(int):
        values = (f"{log[name][i]:.3g}" for name in COLUMNS)
        table.add_row(f"{i + 1}", f"{log['loss'][i]:.4f}", *values)
    return table


def write(log, path: Path) -> None:
    """Writes a row for each step, under the full names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *log])
        columns = (column.tolist() for column in log.values())
        writer.writerows([i, *row] for i, row in enumerate(zip(*columns, strict=True), 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "output" / "log_metrics.csv"
    parser.add_argument("--output", type=Path, default=default, help="the log's file")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the data")
    parser.add_argument(
        "--quick", dest="epochs", action="store_const", const=3, help="the same as --epochs 3"
    )
    parser.add_argument("--seed", type=int, default=0, help="the random seed")
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")

    console = Console()
    with progress_bar(console) as progress:
        log, accuracy = train(options.epochs, options.seed, progress)
    console.print(tabulate(log, accuracy))
    write(log, options.output)
    print(f"Log: {options.output}")


if __name__ == "__main__":
    main()
