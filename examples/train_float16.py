"""Trains a deep classifier of handwritten digits in float16, with and without loss scaling.

The params are float32, and so is the loss; the layers between compute in float16. There are six,
without biases and with small initial weights, so the first gradients are around 1e-9. float16 has
no positive number below 6e-8: in the backward pass they become zero, and nothing is learned. With a
scaled loss they survive. The script prints a table and draws loss and scale by step.

    python examples/train_float16.py

Look at `train` first: the loss is multiplied by `current_loss_scale(state)`. `loss_scale`, around
the optimizer, divides the gradients again, skips the steps that overflow and moves the scale.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optfn

BATCH_SIZE = 128
ADAM = optfn.adam(4e-3)

# A constant scale of 1 is no scaling: the same program with other numbers. The other scale starts
# too high for the first large gradients, and doubles after 50 finite steps.
UNSCALED = optfn.loss_scale(ADAM, 1.0, growth_factor=1, backoff_factor=1, growth_interval=50)
SCALED = optfn.loss_scale(ADAM, 2.0**24, growth_interval=50)

RUNS = {
    "float32": (jnp.float32, UNSCALED),
    "float16": (jnp.float16, UNSCALED),
    "float16, loss scaled": (jnp.float16, SCALED),
}
COLORS = {"float32": "#000000", "float16": "#D55E00", "float16, loss scaled": "#0072B2"}


small = nn.initializers.normal(0.005)


class Data(NamedTuple):
    images: jax.Array
    labels: jax.Array


class Run(NamedTuple):
    """What the table and the figure show of one training run."""

    name: str
    losses: np.ndarray  # before each step
    zeros: np.ndarray  # the share of zeros in each gradient
    scales: np.ndarray  # before each step
    skipped: np.ndarray  # whether each step was skipped
    test_accuracy: float


class Classifier(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, images):
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype, kernel_init=small)
        hidden = images
        for _ in range(5):
            hidden = nn.tanh(dense(64)(hidden))
        return dense(10)(hidden).astype(jnp.float32)


def load_data(seed: int) -> tuple[Data, Data]:
    """The images for training and for testing, 64 standardised pixels each."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    split = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, split)
    return Data(train_images, train_labels), Data(test_images, test_labels)


def loss_fn(params, data: Data, dtype):
    """The mean cross-entropy, in nats, and the share of images classified correctly."""
    logits: Any = Classifier(dtype).apply(params, data.images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()
    return loss, (logits.argmax(-1) == data.labels).mean()


evaluate = jax.jit(loss_fn, static_argnames="dtype")


@partial(jax.jit, static_argnames=("steps", "dtype"))
def train(optimizer, params, data: Data, key, *, steps: int, dtype):
    """Returns the trained params and state, and the metrics of each step."""

    def train_step(carry, key):
        params, state = carry
        batch = jax.random.choice(key, len(data.images), (BATCH_SIZE,), replace=False)
        scale = optfn.current_loss_scale(state)

        def scaled_loss(params):
            loss, _ = loss_fn(params, Data(data.images[batch], data.labels[batch]), dtype)
            return scale * loss, loss

        grads, loss = jax.grad(scaled_loss, has_aux=True)(params)
        params, state = optfn.step(optimizer, params, grads, state)
        skipped = state.slots["loss_scale"].skips.skipped
        return (params, state), (loss, share_of_zeros(grads), scale, skipped)

    start = params, optimizer.init(params)
    (params, state), metrics = jax.lax.scan(train_step, start, jax.random.split(key, steps))
    return params, state, metrics


def share_of_zeros(tree):
    leaves = jax.tree.leaves(tree)
    return sum(jnp.sum(x == 0) for x in leaves) / sum(x.size for x in leaves)


def train_all(steps: int, seed: int) -> list[Run]:
    """The three runs, from the same params and on the same batches."""
    train_data, test_data = load_data(seed)
    init_key, train_key = jax.random.split(jax.random.key(seed))
    init_params = jax.jit(Classifier(jnp.float32).init)(init_key, train_data.images)
    runs = []
    for name, (dtype, optimizer) in RUNS.items():
        params, state, metrics = train(
            optimizer, init_params, train_data, train_key, steps=steps, dtype=dtype
        )
        optfn.raise_if_gave_up(state)
        _, accuracy = evaluate(params, test_data, dtype=dtype)
        losses, zeros, scales, skipped = map(np.asarray, metrics)
        runs.append(Run(name, losses, zeros, scales, skipped, float(accuracy)))
    return runs


def tabulate(runs: list[Run]) -> Table:
    table = Table(title=f"Six layers after {len(runs[0].losses)} steps", box=SIMPLE_HEAD)
    table.add_column("layers compute in")
    for header in (
        "zeros in the\nfirst gradient (%)",
        "train loss\n(nats)",
        "test accuracy\n(%)",
        "skipped\nsteps",
        "last\nscale",
    ):
        table.add_column(header, justify="right")
    for run in runs:
        first_taken = np.argmin(run.skipped)
        table.add_row(
            run.name,
            f"{100 * run.zeros[first_taken]:.0f}",
            f"{run.losses[-20:].mean():.4f}",
            f"{100 * run.test_accuracy:.1f}",
            f"{run.skipped.sum()}",
            f"2^{np.log2(run.scales[-1]):.0f}",
        )
    return table


def draw(runs: list[Run]) -> Figure:
    """The loss above the scale, with the skipped steps marked."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    losses, scales = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for run in runs:
        style = {"color": COLORS[run.name], "linewidth": 1.2}
        losses.plot(run.losses, label=run.name, **style)
        if run.name != "float32":
            scales.step(np.arange(len(run.scales)), run.scales, where="post", **style)
            skipped = np.nonzero(run.skipped)[0]
            scales.plot(skipped, run.scales[skipped], "x", color=style["color"])
    losses.set_yscale("log")
    losses.set_ylabel("training loss (nats)")
    losses.legend()
    scales.set_yscale("log", base=2)
    scales.set_ylabel("loss scale\n(x: step skipped)")
    scales.set_xlabel("step")
    for axis in (losses, scales):
        axis.grid(alpha=0.3)
    figure.suptitle("Handwritten digits, six layers in float16")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "output" / "train_float16.png"
    parser.add_argument("--output", type=Path, default=default, help="the figure's file")
    parser.add_argument("--steps", type=int, default=600, help="mini-batches per run")
    parser.add_argument(
        "--quick", dest="steps", action="store_const", const=100, help="the same as --steps 100"
    )
    parser.add_argument("--seed", type=int, default=0, help="the random seed")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")

    runs = train_all(options.steps, options.seed)
    Console().print(tabulate(runs))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(runs).savefig(options.output, dpi=150)
    print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()
