"""Finds the best learning rate of a transformer at four widths, with and without width transfer.

The transformer learns to predict the next character of Python's own help texts. At each width a
sweep trains it with every learning rate. In the standard parametrization the best rate falls as the
width grows. With `optfn.width_transfer` from the narrowest model, one rate is the best for all. The
coordinate check says why: in the first steps the activations grow with the width, or do not. It
takes about four minutes on two cores.

    python examples/width_transfer.py

Look at `model_of` first: the two ways differ in its last lines.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

import optfn
from optfn import schedules, sweep
from optfn.sweep.plot import PALETTE
from optfn.testing import CoordinateCheck, coordinate_check

CONTEXT, HEAD_SIZE, BATCH_SIZE = 32, 16, 16
WAYS = ("standard", "transferred")
RATES = [2.0**i for i in range(-11, -2)]


class Transformer(nn.Module):
    vocabulary: int
    width: int
    layers: int

    @nn.compact
    def __call__(self, tokens):
        """Logits [..., length, vocabulary] of the next character, from tokens [..., length]."""
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = x + nn.Embed(CONTEXT, self.width)(jnp.arange(tokens.shape[-1]))[None]
        mask = nn.make_causal_mask(tokens)
        for i in range(self.layers):
            # A wider model has more heads, not larger ones.
            attention = nn.MultiHeadDotProductAttention(self.width // HEAD_SIZE)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
            self.sow("intermediates", f"layer {i + 1}", x)
        logits = nn.Dense(self.vocabulary)(nn.LayerNorm()(x))
        self.sow("intermediates", "logits", logits)
        return logits


@cache
def help_texts() -> tuple[jax.Array, int]:
    """Their characters as numbers, and how many different ones there are."""
    text = np.frombuffer("\n".join(topics.values()).encode("ascii", "replace"), np.uint8)
    characters, tokens = np.unique(text, return_inverse=True)
    return jnp.asarray(tokens, jnp.int32), len(characters)


def windows(tokens: jax.Array, starts: jax.Array) -> jax.Array:
    return tokens[starts[:, None] + jnp.arange(CONTEXT + 1)[None]]


class Model(NamedTuple):
    """What a sweep and the coordinate check train."""

    init: Callable[[jax.Array], Any]
    optimizer: Callable[[optfn.Transform], optfn.Transform]
    apply: Callable[..., Any]


def model_of(width: int, base: int, layers: int, way: str) -> Model:
    """The transformer of this width, as it is or with a transfer from the base."""
    _, vocabulary = help_texts()
    wide, narrow = (Transformer(vocabulary, w, layers) for w in (width, base))

    def init(model: nn.Module, key: jax.Array) -> Any:
        return {"params": model.init(key, jnp.zeros((1, CONTEXT), jnp.int32))["params"]}

    initial, key = partial(init, wide), jax.random.key(0)
    if way == "standard":
        return Model(initial, lambda tx: tx, wide.apply)
    transfer = optfn.width_transfer(
        jax.eval_shape(initial, key), jax.jit(partial(init, narrow))(key)
    )
    return Model(lambda key: transfer.init(initial(key)), transfer.optimizer, wide.apply)


def loss_of(logits: jax.Array, batch: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def adamw(learning_rate: float, steps: int) -> optfn.Transform:
    rate = schedules.warmup_linear(learning_rate, steps // 10, steps)
    return optfn.adamw(rate, b2=0.98, weight_decay=0.01)


def swept(model: Model, steps: int) -> sweep.Result:
    """Trains with every rate; the score is the loss on the last tenth of the text."""
    tokens, _ = help_texts()
    train, test = jnp.split(tokens, [len(tokens) * 9 // 10])

    def draw(key, tokens):
        return windows(tokens, jax.random.randint(key, (BATCH_SIZE,), 0, len(tokens) - CONTEXT))

    def loss(params, batch):
        return loss_of(model.apply(params, batch[:, :-1]), batch)

    task = sweep.Task(
        init=model.init,
        loss=loss,
        data=train,
        batch=draw,
        evaluate=lambda params, held_out: {"test_loss": loss(params, held_out)},
        held_out=windows(test, jnp.linspace(0, len(test) - CONTEXT - 1, 128).astype(int)),
        minimize="test_loss",
    )
    return sweep.run(
        task,
        lambda learning_rate: model.optimizer(adamw(learning_rate, steps)),
        {"learning_rate": RATES},
        steps=steps,
        segment=steps,
        search=sweep.grid(),
        # On a CPU, batching matrices of this size gains nothing.
        mode="map" if jax.default_backend() == "cpu" else "vmap",
    )


def checked(widths: Sequence[int], layers: int, way: str) -> CoordinateCheck:
    """The activations of the first steps at a rate of 2^-6."""
    tokens, _ = help_texts()
    batch = windows(tokens, jnp.arange(BATCH_SIZE) * 97)

    def make_model(width: int) -> tuple[optfn.Transform, Any, Callable]:
        model = model_of(width, widths[0], layers, way)

        def loss(params, batch):
            logits, seen = model.apply(params, batch[:, :-1], mutable=["intermediates"])
            activations = {name: x for name, (x,) in seen["intermediates"].items()}
            return loss_of(logits, batch), activations

        return model.optimizer(optfn.adamw(2.0**-6)), jax.jit(model.init)(jax.random.key(1)), loss

    return coordinate_check(make_model, widths, batch)


def draw(results: dict[str, dict[int, sweep.Result]], checks: dict[str, CoordinateCheck]) -> Figure:
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    *sides, last = figure.subplots(1, 3)
    lowest = min(r.losses.min() for way in results.values() for r in way.values())
    for ax, (way, by_width) in zip(sides, results.items(), strict=True):
        for color, (width, result) in zip(PALETTE, by_width.items(), strict=False):
            rates = [point["learning_rate"] for point in result.points]
            ax.plot(rates, result.losses, ".-", color=color, label=f"width {width}")
            best = result.best()
            ax.plot(best.values["learning_rate"], best.score, "o", color=color, markersize=9)
        ax.set(title=f"{way} parametrization" if way == "standard" else "with width transfer")
        ax.set(xlabel="learning rate", ylabel="test loss (nats per character)")
        ax.set(xscale="log", ylim=(lowest - 0.05, lowest + 1.2))
        ax.legend()
    for color, (way, check) in zip(PALETTE, checks.items(), strict=False):
        for style, name in zip(("-", "--", ":"), reversed(check.changes), strict=False):
            label = f"{name}, {way}"
            last.loglog(
                check.widths, check.changes[name][-1], style + "o", color=color, label=label
            )
    last.set(title="Change of activations in eight steps", xlabel="width")
    last.set(ylabel="root mean square")
    widths = next(iter(checks.values())).widths
    last.set_xticks(widths, list(map(str, widths)))
    last.minorticks_off()
    last.legend(fontsize="small")
    for ax in (*sides, last):
        ax.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="two widths and 20 steps, to see that it works"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "output/width_transfer.png"
    )
    args = parser.parse_args()
    widths, layers, steps = ((32, 64), 1, 20) if args.quick else ((32, 64, 128, 256), 2, 150)

    results: dict[str, dict[int, sweep.Result]] = {way: {} for way in WAYS}
    for way in WAYS:
        for width in widths:
            result = swept(model_of(width, widths[0], layers, way), steps)
            results[way][width] = result
            best = result.best()
            rate = best.values["learning_rate"]
            print(f"{way:11}  width {width:3}  best rate {rate:.5f}  test loss {best.score:.3f}")
    checks = {way: checked(widths, layers, way) for way in WAYS}
    for way, check in checks.items():
        print(f"\nactivations by width, {way}\n{check}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(results, checks).savefig(args.output, dpi=150)
    print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
