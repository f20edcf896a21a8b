"""Trains on batches that do not fit into memory: gradient accumulation and micro-batches.

A classifier of handwritten digits takes the same steps in three ways: with the gradient of a whole
batch; with `optfn.accumulate`, which takes the gradient of one micro-batch at a time and steps the
optimizer after the last; and with `optfn.microbatch`, which loops over the micro-batches within one
call. A fourth run takes each step with one micro-batch alone. The script prints a table and draws
the losses and the memory that a call needs.

    python examples/accumulate_gradients.py

Look at `WAYS` first: each takes a step, or a part of one, with the next images.
"""

import argparse
from collections.abc import Callable
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

import optfn

BATCH_SIZE = 512
MICROBATCH_SIZE = 32
OPTIMIZER = optfn.sgd(0.05, momentum=0.9)


class Data(NamedTuple):
    images: jax.Array
    labels: jax.Array


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images):
        for _ in range(3):
            images = nn.relu(nn.Dense(128)(images))
        return nn.Dense(10)(images)


def loss_fn(params, data: Data):
    """The mean cross-entropy, in nats."""
    logits: Any = Classifier().apply(params, data.images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()


value_and_grad = jax.value_and_grad(loss_fn)
value_and_grad_in_parts = optfn.microbatch(value_and_grad, 1, MICROBATCH_SIZE)


class Way(NamedTuple):
    """How to take steps: an optimizer, a gradient and the number of images per call."""

    optimizer: optfn.Transform
    value_and_grad: Callable
    images_per_call: int
    calls_per_step: int

    def call(self, params, data: Data, state):
        loss, grads = self.value_and_grad(params, data)
        params, state = optfn.step(self.optimizer, params, grads, state)
        return params, state, loss


CALLS = BATCH_SIZE // MICROBATCH_SIZE
WAYS = {
    "whole batch": Way(OPTIMIZER, value_and_grad, BATCH_SIZE, 1),
    "accumulate": Way(optfn.accumulate(OPTIMIZER, CALLS), value_and_grad, MICROBATCH_SIZE, CALLS),
    "microbatch": Way(OPTIMIZER, value_and_grad_in_parts, BATCH_SIZE, 1),
    "one micro-batch": Way(OPTIMIZER, value_and_grad, MICROBATCH_SIZE, 1),
}
COLORS = {
    "whole batch": "#000000",
    "accumulate": "#D55E00",
    "microbatch": "#0072B2",
    "one micro-batch": "#BBBBBB",
}


class Run(NamedTuple):
    """What the table and the figure show of one run."""

    losses: np.ndarray  # loss of each batch, before its step
    memory: int  # bytes of temporaries in a call


def load_data() -> Data:
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    return Data(jnp.asarray(images, jnp.float32), jnp.asarray(labels))


def draw_batches(data: Data, steps: int, key) -> Data:
    """Random batches, [steps, BATCH_SIZE, ...]."""
    rows = jax.random.randint(key, (steps, BATCH_SIZE), 0, len(data.images))
    return Data(data.images[rows], data.labels[rows])


def train(way: Way, params, batches: Data) -> Run:
    """Takes a step with each batch, or with the part of it that the way uses."""

    def split(x):
        taken = np.asarray(x)[:, : way.images_per_call * way.calls_per_step]
        return taken.reshape(-1, way.images_per_call, *x.shape[2:])

    parts = list(map(Data, *map(split, batches)))
    # A call donates its params and state, so the run needs a copy.
    params = jax.tree.map(jnp.copy, params)
    state = way.optimizer.init(params)
    call = jax.jit(way.call, donate_argnums=(0, 2)).lower(params, parts[0], state).compile()
    losses = []
    for part in parts:
        params, state, loss = call(params, part, state)
        losses.append(loss)
    by_step = np.reshape(losses, (-1, way.calls_per_step)).mean(1)
    memory: Any = call.memory_analysis()
    return Run(by_step, memory.temp_size_in_bytes)


def train_in_all_ways(steps: int, seed: int) -> dict[str, Run]:
    data = load_data()
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    params = Classifier().init(init_key, data.images[:1])
    batches = draw_batches(data, steps, batch_key)
    return {name: train(way, params, batches) for name, way in WAYS.items()}


def tabulate(runs: dict[str, Run]) -> Table:
    whole = runs["whole batch"].losses
    table = Table(
        title=f"{len(whole)} steps, {BATCH_SIZE} images a batch, {MICROBATCH_SIZE} a micro-batch",
        caption="memory: temporaries of a call; accumulate keeps its sum in its state\n"
        "difference: from the whole batch's loss, the largest of all steps",
        box=SIMPLE_HEAD,
    )
    table.add_column("gradient of")
    for header in (
        "images\na call",
        "calls\na step",
        "memory\n(KiB)",
        "last loss\n(nats)",
        "difference",
    ):
        table.add_column(header, justify="right")
    for name, run in runs.items():
        table.add_row(
            name,
            str(WAYS[name].images_per_call),
            str(WAYS[name].calls_per_step),
            f"{run.memory / 1024:.0f}",
            f"{run.losses[-1]:.4f}",
            f"{np.abs(run.losses - whole).max():.1e}",
        )
    return table


def draw(runs: dict[str, Run]) -> Figure:
    """The losses by step, beside the memory of a call."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axis, memory_axis = figure.subplots(1, 2, width_ratios=(3, 2))
    steps = len(runs["whole batch"].losses)
    every = max(steps // 12, 2)
    style: dict[str, dict[str, Any]] = {
        "whole batch": {"linewidth": 2.5},
        "accumulate": {"linestyle": "", "marker": "o", "markevery": (0, every)},
        "microbatch": {"linestyle": "", "marker": "D", "markevery": (every // 2, every)},
        "one micro-batch": {"linewidth": 1, "zorder": 0},
    }
    for name, run in runs.items():
        loss_axis.plot(run.losses, color=COLORS[name], label=name, **style[name])
    loss_axis.set(xlabel="step", ylabel="loss of the batch (nats)", yscale="log")
    loss_axis.grid(alpha=0.3)
    loss_axis.legend()
    names = list(runs)[::-1]
    memory_axis.barh(
        names, [runs[n].memory / 1024 for n in names], color=[COLORS[n] for n in names]
    )
    memory_axis.set(xlabel="temporary memory of a call (KiB)")
    memory_axis.set_axisbelow(True)
    memory_axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"Batches of {BATCH_SIZE} digits in micro-batches of {MICROBATCH_SIZE}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "output" / "accumulate_gradients.png"
    parser.add_argument("--output", type=Path, default=default, help="the figure's file")
    parser.add_argument("--steps", type=int, default=100, help="steps of the optimizer per run")
    parser.add_argument(
        "--quick", dest="steps", action="store_const", const=20, help="the same as --steps 20"
    )
    parser.add_argument("--seed", type=int, default=0, help="the random seed")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")

    runs = train_in_all_ways(options.steps, options.seed)
    Console().print(tabulate(runs))

    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(runs).savefig(options.output, dpi=150)
    print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()
