"""Tunes six optimizers on handwritten digits, 64 trials each, and draws how sensitive they are.

Every trial runs in a lane of one compiled program. ASHA ends poor trials early, and new ones take
their lanes. The script prints the best of each optimizer, with the share of its trials that came
within 10 % of it, and draws the test loss against the learning rate.

    python examples/sweep_digits.py

Look at `digits` and `main` first: a `Task` is one training run, and `sweep.compare` makes many.
"""

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optfn
from optfn import sweep
from optfn.sweep import plot

BATCH_SIZE = 64
RATE = sweep.LogUniform(1e-5, 10.0)
KEEPS = sweep.OneMinusLogUniform(0.01, 0.5)
DECAYS = sweep.LogUniform(1e-4, 1.0)

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (optfn.sgd, {"learning_rate": RATE}),
    "Momentum": (optfn.sgd, {"learning_rate": RATE, "momentum": KEEPS}),
    "RMSprop": (optfn.rmsprop, {"learning_rate": RATE, "decay": KEEPS}),
    "Adam": (optfn.adam, {"learning_rate": RATE, "b1": KEEPS}),
    "AdamW": (optfn.adamw, {"learning_rate": RATE, "b1": KEEPS, "weight_decay": DECAYS}),
    "Lion": (optfn.lion, {"learning_rate": RATE, "b1": KEEPS, "weight_decay": DECAYS}),
}


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(32)(images))
        return nn.Dense(10)(hidden)


def digits() -> sweep.Task:
    """A small network on 64 standardised pixels, scored by the loss on images it has not seen."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    train_x, test_x, train_y, test_y = (
        jnp.asarray(x) for x in train_test_split(images, labels, stratify=labels, random_state=0)
    )

    def loss(params, batch):
        x, y = batch
        logits: Any = Classifier().apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def evaluate(params):
        logits: Any = Classifier().apply(params, test_x)
        accuracy = (logits.argmax(-1) == test_y).mean()
        return {"test_loss": loss(params, (test_x, test_y)), "accuracy": accuracy}

    return sweep.Task(
        init=lambda key: Classifier().init(key, train_x[:1]),
        loss=loss,
        data=(train_x, train_y),
        batch_size=BATCH_SIZE,
        evaluate=evaluate,
        minimize="test_loss",
    )


def draw(results: sweep.Comparison) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for (name, result), ax in zip(results.items(), axes.flat, strict=True):
        plot.sensitivity(result, "learning_rate", ax)
        ax.set(title=name, yscale="log", ylim=(0.03, 10))
        ax.label_outer()
    figure.suptitle(
        "Test loss against the learning rate: discs ran to the end, rings were ended early, "
        "crosses diverged",
        fontsize=10,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="8 short trials each, to see that it works"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/sweep_digits.png"
    )
    args = parser.parse_args()
    trials, steps = (8, 60) if args.quick else (64, 1000)

    compared = sweep.compare(digits(), OPTIMIZERS, trials=trials, steps=steps)
    print(compared.table())
    name, best = compared.best()
    values = ", ".join(f"{key}={value:.3g}" for key, value in best.values.items())
    print(
        f"\nThe best is {name} with {values}: test loss {best.score:.4f} after {best.steps} steps."
    )

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(compared).savefig(args.output, dpi=150)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
