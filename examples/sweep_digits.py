"""Tunes six optimizers on handwritten digits in one sweep, and draws how sensitive they are.

The space is conditional: a trial is of one optimizer, and has the hyperparameters of that one. Each
runs in a lane of a compiled program; ASHA ends poor trials early, and new ones take their lanes.
The script prints the best trials and the best of each optimizer, draws the test loss against the
learning rate, and writes a page for the browser with all trials and pictures.

    python examples/sweep_digits.py

Look at `OPTIMIZERS` and `main` first: a `Task` is one training run, and `sweep.run` makes many.
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

OPTIMIZERS = sweep.OneOf(
    "optimizer",
    {
        "SGD": (optfn.sgd, {"learning_rate": RATE}),
        "Momentum": (optfn.sgd, {"learning_rate": RATE, "momentum": KEEPS}),
        "RMSprop": (optfn.rmsprop, {"learning_rate": RATE, "decay": KEEPS}),
        "Adam": (optfn.adam, {"learning_rate": RATE, "b1": KEEPS}),
        "AdamW": (optfn.adamw, {"learning_rate": RATE, "b1": KEEPS, "weight_decay": DECAYS}),
        "Lion": (optfn.lion, {"learning_rate": RATE, "b1": KEEPS, "weight_decay": DECAYS}),
    },
)


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


def best_of_each(result: sweep.Result) -> list[sweep.TrialResult]:
    """The best trial of each optimizer, the best first."""
    best: dict[str, sweep.TrialResult] = {}
    for trial in result.top(len(result)):
        best.setdefault(trial.values["optimizer"], trial)
    return list(best.values())


def draw(result: sweep.Result) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for name, ax in zip(OPTIMIZERS.options, axes.flat, strict=True):
        plot.sensitivity(result, "learning_rate", ax, where={"optimizer": name})
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
        "--quick", action="store_true", help="48 short trials, to see that it works"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/sweep_digits.png"
    )
    args = parser.parse_args()
    trials, steps = (48, 60) if args.quick else (384, 1000)

    result = sweep.run(
        digits(), OPTIMIZERS, {}, trials=trials, steps=steps, search=sweep.sobol(), lanes=32
    )
    print(result.table(8))
    print("\nThe best of each optimizer:")
    for trial in best_of_each(result):
        values = ", ".join(
            f"{k}={v:.3g}" for k, v in trial.values.items() if not isinstance(v, str)
        )
        print(f"  {trial.values['optimizer']:<10} test loss {trial.score:.4f} with {values}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(result).savefig(args.output, dpi=150)
    page = result.report(args.output.with_suffix(".html"), title="Six optimizers on the digits")
    print(f"\nwrote {args.output} and {page}")


if __name__ == "__main__":
    main()
