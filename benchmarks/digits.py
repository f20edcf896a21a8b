"""Handwritten digits and a network that learns them: the task of all ways to sweep."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn import sweep

BATCH_SIZE = 64
SPACE = {
    "learning_rate": sweep.LogUniform(1e-5, 1.0),
    "b1": sweep.OneMinusLogUniform(0.01, 0.5),
}

Point = dict[str, Any]
Images = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def images() -> Images:
    """Standardised pixels and labels: 1,347 to train on, 450 to evaluate on."""
    from sklearn.datasets import load_digits  # slow, so only where it is used

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(labels))
    x = ((pixels - pixels.mean()) / pixels.std()).astype(np.float32)[order]
    y = labels.astype(np.int32)[order]
    return (x[450:], y[450:]), (x[:450], y[:450])


def init(width: int, key: jax.Array) -> dict[str, jax.Array]:
    """The params of a hidden layer and ten outputs."""
    hidden, out = jax.random.split(key)
    return {
        "hidden": jax.random.normal(hidden, (64, width)) / 8,
        "hidden_bias": jnp.zeros((1, width)),
        "out": jax.random.normal(out, (width, 10)) / width**0.5,
        "out_bias": jnp.zeros((1, 10)),
    }


def loss(params: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    hidden = jax.nn.relu(x @ params["hidden"] + params["hidden_bias"])
    logits = hidden @ params["out"] + params["out_bias"]
    chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def evaluate(params: dict[str, jax.Array], held_out: Any) -> dict[str, jax.Array]:
    return {"test_loss": loss(params, held_out)}


def batch(key: jax.Array, data: Any) -> Any:
    """A batch, drawn as a `Task` draws it with replacement."""
    rows = jax.random.randint(key, (BATCH_SIZE,), 0, len(data[1]))
    return jax.tree.map(lambda x: x[rows], data)


def task(images: Images, width: int) -> sweep.Task:
    train, held_out = images
    return sweep.Task(
        functools.partial(init, width),
        loss,
        data=train,
        batch_size=BATCH_SIZE,
        replacement=True,  # as the loops it is compared with draw
        evaluate=evaluate,
        held_out=held_out,
        minimize="test_loss",
    )


def points(trials: int, seed: int) -> Sequence[Point]:
    """The points that `sweep.run` tries with this seed."""
    return sweep.random().start(SPACE, trials, seed).ask(trials)
