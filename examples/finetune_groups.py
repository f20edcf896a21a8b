"""Fine-tunes a classifier of handwritten digits with a frozen backbone and with groups.

A network learns the digits 0 to 4. Then it gets a new head and learns all ten digits from a few
images of each: from scratch, with every layer at one rate, with the backbone frozen, with rates
that fall from layer to layer, and with groups that each have an optimizer. The script prints a
table.

    python examples/finetune_groups.py

Look at `WAYS` first. Each is an optimizer made of parts of the same library, and path patterns such
as "**/bias" choose the leaves of a part. `train` takes any of them.
"""

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import optfn
from optfn import by_path, schedules

LAYERS = 3
IMAGES_PER_DIGIT = 2
RATE = schedules.linear(0.01, 0.0, 200)


class Data(NamedTuple):
    images: jax.Array
    labels: jax.Array


class Run(NamedTuple):
    """What the table shows of one way."""

    trained: int  # numbers in leaves that changed
    state: int  # numbers that the optimizer holds
    loss: float
    accuracy: float


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, images):
        for i in range(LAYERS):
            images = nn.relu(nn.Dense(64, name=f"layers_{i}")(images))
        return nn.Dense(10, name="head")(images)


# The number of layers above a leaf's: none above the head, all above the first layer.
LAYERS_ABOVE = by_path(
    {"params/head/*": 0} | {f"params/layers_{i}/*": LAYERS - i for i in range(LAYERS)}
)

# The first two layers are frozen, the last moves slowly; kernels decay, biases do not.
GROUPS = {
    "frozen": optfn.set_to_zero(),
    "slow": optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adamw(0.001, weight_decay=0.01)),
    "head": optfn.adamw(RATE, weight_decay=0.01),
    "bias": optfn.adam(0.001),
}
LABELS = by_path(
    {
        "params/layers_[01]/*": "frozen",
        "params/head/kernel": "head",
        "params/layers_2/kernel": "slow",
        "**/bias": "bias",
    }
)

WAYS = {
    "from scratch": optfn.adam(RATE),
    "one rate": optfn.adam(RATE),
    "frozen backbone": optfn.freeze(
        optfn.adam(RATE), by_path({"params/layers_*/*": True}, default=False)
    ),
    "falling rates": optfn.chain(optfn.adam(RATE), optfn.scale_by_layer_decay(0.3, LAYERS_ABOVE)),
    "groups": optfn.partition(GROUPS, LABELS),
}


def load_data(seed: int) -> tuple[Data, Data, Data]:
    """Images of the digits 0 to 4, a few of every digit, and others of every digit to test on."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    rank = np.zeros(len(labels), int)  # among the images of its digit
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    few, test = rank < IMAGES_PER_DIGIT, rank >= 100

    def those(rows):
        return Data(jnp.asarray(images[rows], jnp.float32), jnp.asarray(labels[rows]))

    return those(~few & ~test & (labels < 5)), those(few), those(test)


def loss_fn(params, data: Data):
    """The mean cross-entropy, in nats, and the share of images classified correctly."""
    logits: Any = Classifier().apply(params, data.images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()
    return loss, (logits.argmax(-1) == data.labels).mean()


evaluate = jax.jit(loss_fn)


@jax.jit
def train(optimizer, params, data: Data, steps):
    """Takes full-batch steps; the state holds nothing for frozen leaves."""

    def step(_, carry):
        params, state = carry
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, data)
        return optfn.step(optimizer, params, grads, state)

    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))


def with_new_head(params, scratch):
    """The backbone of `params` and the head of `scratch`."""
    return {"params": params["params"] | {"head": scratch["params"]["head"]}}


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def changed(before, after) -> int:
    """How many numbers are in leaves that differ in any bit."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return sum(x.size for x, y in pairs if np.asarray(x).tobytes() != np.asarray(y).tobytes())


def run_all(steps: int, seed: int) -> dict[str, Run]:
    old, few, test = load_data(seed)
    init = jax.jit(Classifier().init)
    first, scratch = (init(key, few.images) for key in jax.random.split(jax.random.key(seed)))
    pretrained, _ = train(optfn.adam(0.001), first, old, steps)
    runs = {}
    for way, optimizer in WAYS.items():
        start = scratch if way == "from scratch" else with_new_head(pretrained, scratch)
        params, state = train(optimizer, start, few, steps)
        loss, accuracy = evaluate(params, test)
        runs[way] = Run(changed(start, params), count(state.slots), float(loss), float(accuracy))
    return runs


def tabulate(runs: dict[str, Run]) -> Table:
    table = Table(
        title=f"Ten digits from {IMAGES_PER_DIGIT} images of each",
        caption="trained: numbers in leaves that changed in any bit",
        box=SIMPLE_HEAD,
    )
    table.add_column("way")
    for header in ("trained", "state\n(numbers)", "test loss\n(nats)", "test accuracy\n(%)"):
        table.add_column(header, justify="right")
    for way, run in runs.items():
        table.add_row(
            way,
            f"{run.trained}",
            f"{run.state}",
            f"{run.loss:.4f}",
            f"{100 * run.accuracy:.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument(
        "--quick", dest="steps", action="store_const", const=60, help="the same as --steps 60"
    )
    parser.add_argument("--seed", type=int, default=0, help="the random seed")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    Console().print(tabulate(run_all(options.steps, options.seed)))


if __name__ == "__main__":
    main()
