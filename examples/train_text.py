"""Trains a transformer on text with AdamW and with Muon.

The transformer learns to predict the next character of Python's own help texts. Its layers are
stacked by `nn.scan`, so a kernel is a stack of matrices; `VIEWS` says which axes are which. Muon
takes the matrices, and AdamW the embeddings, norms, biases and the head. The script prints who gets
what, trains once with each optimizer from the same params on the same batches, and draws both
losses, by the step and by the second. It takes one to two minutes on two cores.

    python examples/train_text.py

Look at `VIEWS` and `OPTIMIZERS` first.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from rich.progress import track

import optfn
from optfn import MatrixAxes, schedules

CONTEXT, WIDTH, HEADS = 64, 64, 4
BATCH_SIZE = 16

# Axes count from the end, as the layers are stacked in front.
VIEWS = optfn.matrices(
    {
        "params/layers/attention/out/kernel": MatrixAxes(rows=-1, columns=(-3, -2)),
        "params/layers/attention/*/kernel": MatrixAxes(rows=(-2, -1), columns=-3),
        "params/layers/**/kernel": MatrixAxes(rows=-1, columns=-2),
    }
)


def optimizers(steps: int) -> dict[str, optfn.Transform]:
    def rate(peak: float) -> optfn.Schedule:
        return schedules.warmup_cosine(peak, steps // 20, steps)

    adamw = optfn.adamw(rate(3e-3), b2=0.99, weight_decay=0.01)
    muon = optfn.muon(rate(0.02), weight_decay=0.01, views=VIEWS, rest=adamw)
    return {"AdamW": adamw, "Muon": muon}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention")
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    vocabulary: int
    layers: int

    @nn.compact
    def __call__(self, tokens):
        """Logits [..., length, vocabulary] of the next character, from tokens [..., length]."""
        x = nn.Embed(self.vocabulary, WIDTH, name="token_embedding")(tokens)
        places = jnp.arange(tokens.shape[-1])
        x = x + nn.Embed(CONTEXT, WIDTH, name="position_embedding")(places)[None]
        stacked = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.layers,
        )
        x, _ = stacked(name="layers")(x, nn.make_causal_mask(tokens))
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm()(x))


class Text(NamedTuple):
    train: jax.Array
    test: jax.Array
    vocabulary: int


def help_texts() -> Text:
    """Their characters as numbers; the last tenth is the test."""
    text = np.frombuffer("\n".join(topics.values()).encode("ascii", "replace"), np.uint8)
    characters, tokens = np.unique(text, return_inverse=True)
    train, test = jnp.split(jnp.asarray(tokens, jnp.int32), [len(tokens) * 9 // 10])
    return Text(train, test, len(characters))


def windows(tokens: jax.Array, starts: jax.Array) -> jax.Array:
    return tokens[starts[:, None] + jnp.arange(CONTEXT + 1)[None]]


class Run(NamedTuple):
    """The test loss in nats per character, after these steps and seconds of training."""

    steps: list[int]
    seconds: list[float]
    losses: list[float]


def loss_fn(params, model: Transformer, batch):
    logits: Any = model.apply(params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


# The text is an argument, since a closed-over array would be a constant of the program.
@partial(jax.jit, static_argnames="model")
def test_loss(params, model: Transformer, tokens):
    starts = jnp.linspace(0, len(tokens) - CONTEXT - 1, 64).astype(int)
    return loss_fn(params, model, windows(tokens, starts))


@partial(jax.jit, static_argnames=("model", "length"), donate_argnames=("params", "state"))
def segment(tx, params, state, model: Transformer, tokens, key, length):
    """Params and state after as many steps, each on windows from other places of the tokens."""

    def step(carry, key):
        params, state = carry
        starts = jax.random.randint(key, (BATCH_SIZE,), 0, len(tokens) - CONTEXT)
        grads = jax.grad(loss_fn)(params, model, windows(tokens, starts))
        return optfn.step(tx, params, grads, state), None

    return jax.lax.scan(step, (params, state), jax.random.split(key, length))[0]


def train(
    name: str, tx: optfn.Transform, model: Transformer, params, text: Text, steps: int
) -> Run:
    length = min(steps, max(steps // 20, 5))
    params = jax.tree.map(jnp.copy, params)  # a segment donates its own
    state = tx.init(params)
    key = jax.random.key(1)
    compiled = segment.lower(tx, params, state, model, text.train, key, length).compile()
    run = Run([0], [0.0], [float(test_loss(params, model, text.test))])
    for i in track(range(steps // length), description=f"{name:5}", transient=True):
        start = time.perf_counter()
        of_segment = jax.random.fold_in(key, i)
        params, state = jax.block_until_ready(compiled(tx, params, state, text.train, of_segment))
        run.seconds.append(run.seconds[-1] + time.perf_counter() - start)
        run.steps.append(run.steps[-1] + length)
        run.losses.append(float(test_loss(params, model, text.test)))
    return run


def draw(runs: dict[str, Run]) -> Figure:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_step, by_second = figure.subplots(1, 2, sharey=True)
    for name, run in runs.items():
        by_step.plot(run.steps, run.losses, label=name)
        by_second.plot(run.seconds, run.losses, label=name)
    # From the first segment on: before, all fall alike from that of a guess.
    by_step.set_ylim(top=max(run.losses[1] for run in runs.values()))
    by_step.set(xlabel="step", ylabel="test loss (nats per character)")
    by_second.set(xlabel="seconds of training")
    for axes in (by_step, by_second):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="two layers and 20 steps, to see that it works"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/train_text.png"
    )
    args = parser.parse_args()
    layers, steps = (2, 20) if args.quick else (3, 600)

    text = help_texts()
    model = Transformer(text.vocabulary, layers)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, CONTEXT), jnp.int32))
    print(optfn.summary(optimizers(steps)["Muon"], params))
    runs = {}
    for name, tx in optimizers(steps).items():
        runs[name] = run = train(name, tx, model, params, text, steps)
        print(f"{name:5}  loss {run.losses[-1]:.3f} after {steps} steps, {run.seconds[-1]:.1f} s")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(runs).savefig(args.output, dpi=150)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
