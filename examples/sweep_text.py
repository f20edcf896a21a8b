"""Finds a learning rate schedule for a small transformer by population-based training.

The transformer learns to predict the next character of Python's own help texts. Eight members of a
population train side by side; every tenth of the run the worst two copy the best two, with another
learning rate. Random search starts with the same eight rates and trains for as many steps. The
script prints both, and draws who copied whom and the schedule that was found.

    python examples/sweep_text.py

Look at `main` first: the two sweeps differ only in the policy.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

import optfn
from optfn import sweep
from optfn.sweep import plot

CONTEXT, WIDTH, HEADS = 64, 64, 4
BATCH_SIZE, MEMBERS = 8, 8
RATE = sweep.LogUniform(1e-4, 1e-1)


class Transformer(nn.Module):
    vocabulary: int
    layers: int

    @nn.compact
    def __call__(self, tokens):
        """Logits [..., length, vocabulary] of the next character, from tokens [..., length]."""
        x = nn.Embed(self.vocabulary, WIDTH)(tokens)
        x = x + nn.Embed(CONTEXT, WIDTH)(jnp.arange(tokens.shape[-1]))[None]
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def help_texts(layers: int) -> sweep.Task:
    """A transformer, scored by its loss on the last tenth of the text, in nats per character."""
    text = np.frombuffer("\n".join(topics.values()).encode("ascii", "replace"), np.uint8)
    characters, tokens = np.unique(text, return_inverse=True)
    model, window = Transformer(len(characters), layers), jnp.arange(CONTEXT + 1)
    train, test = jnp.split(jnp.asarray(tokens, jnp.int32), [len(tokens) * 9 // 10])

    def windows(starts, tokens):
        return tokens[starts[:, None] + window[None]]

    def draw(key, tokens):
        return windows(jax.random.randint(key, (BATCH_SIZE,), 0, len(tokens) - CONTEXT), tokens)

    def loss(params, batch):
        logits: Any = model.apply(params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    return sweep.Task(
        init=lambda key: model.init(key, jnp.zeros((1, CONTEXT), jnp.int32)),
        loss=loss,
        data=train,
        batch=draw,
        evaluate=lambda params, held_out: {"test_loss": loss(params, held_out)},
        held_out=windows(jnp.linspace(0, len(test) - CONTEXT - 1, 64).astype(int), test),
        minimize="test_loss",
    )


def draw(population: sweep.Result, searched: sweep.Result) -> Figure:
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplot_mosaic([["lines", "lines"], ["rates", "losses"]])
    plot.lineage(population, "learning_rate", axes["lines"])
    axes["lines"].set_title("Who copied whom; outlined: the ancestors of the best")

    rates, losses = axes["rates"], axes["losses"]
    plot.schedules(population, "learning_rate", rates, top=3)
    best = searched.best()
    rates.axhline(
        best.values["learning_rate"], color="black", linestyle="--", label="random search"
    )
    rates.set(title="The schedules of the best three members")
    lines = {
        "population": (population, plot.PALETTE[0], "-"),
        "random search": (searched, "black", "--"),
    }
    for label, (result, color, style) in lines.items():
        best_of_all = result.curves["test_loss"].min(axis=0)
        losses.plot(result.ages, best_of_all, style, color=color, label=label)
    losses.set(title="The best at each step", xlabel="step", ylabel="test loss (nats)")
    for ax in (rates, losses):
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one layer and 40 steps, to see that it works"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/sweep_text.png"
    )
    args = parser.parse_args()
    layers, steps = (1, 40) if args.quick else (2, 600)

    # On a CPU, batching matrices of this size gains nothing.
    mode = "map" if jax.default_backend() == "cpu" else "vmap"
    task, results = help_texts(layers), {}
    policies = {
        "population-based training": sweep.pbt(every=steps // 10),
        "random search": sweep.run_all(),
    }
    for name, policy in policies.items():
        results[name] = sweep.run(
            task,
            optfn.adam,
            {"learning_rate": RATE},
            trials=MEMBERS,
            steps=steps,
            segment=steps // 20,
            policy=policy,
            mode=mode,
        )
        print(f"{name}\n{results[name].table(MEMBERS)}\n")
    population, searched = results.values()
    line = population.hyperparameter_history[population.best().trial]
    found = ", ".join(f"{point['learning_rate']:.2g} from step {step}" for step, point in line)
    print(f"the schedule that was found: {found}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(population, searched).savefig(args.output, dpi=150)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
