"""Draws the pictures of a first lecture on optimization.

    zig_zag.png      gradient descent, momentum, RMSprop and Adam on an elongated bowl
    noise_ball.png   mini-batches at a constant and at a decayed learning rate
    schedules.png    ways to decay the learning rate, the last by hand

    python examples/plot_lecture.py

An optimizer is data, and so is a schedule: each can hold an array where it usually holds a number.
So the curves of a picture come from one call of one compiled function, `jax.vmap` over the
optimizers or the schedules themselves. (Only the rates set by hand come from a Python loop.)
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import optfn
from optfn import schedules

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"


def bowl(curvature, point):
    """The height above the minimum at the origin, of points `[..., xy]`."""
    return (curvature * point**2).sum(-1) / 2


def draw_bowl(axis, curvature, start, *, xlim: tuple, ylim: tuple) -> None:
    """The contours of a bowl, a dot at the start and a star at the minimum."""
    x, y = (np.linspace(low, high, 200) for low, high in (xlim, ylim))
    points = np.stack(np.meshgrid(x, y), -1)
    heights, levels = bowl(curvature, points), np.geomspace(0.02, 30, 12)
    axis.contour(*points.T, heights.T, levels, colors="0.8", linewidths=0.8, zorder=0)
    axis.plot(*start, "ko", markersize=6, zorder=3)
    axis.plot(0, 0, "k*", markersize=9, zorder=3)
    axis.set(xlim=xlim, ylim=ylim)


# --- Picture 1: the zig-zag -----------------------------------------------------------------------

# A bowl a hundred times as steep in y as in x. Gradient descent diverges at rates above 2 / 10.
CURVATURE = np.array([0.1, 10.0])
START = np.array([-9.0, 1.5])


class Walk(NamedTuple):
    """An algorithm, the learning rates it is drawn with, and what they show."""

    make: Callable[..., optfn.Transform]
    rates: tuple[float, float]
    moral: str


WALKS = {
    "gradient descent": Walk(
        optfn.sgd, (0.19, 0.203), "Gradient descent zig-zags; at a slightly larger rate it diverges"
    ),
    "momentum": Walk(
        optfn.momentum, (0.203, 1.0), "Momentum damps the zig-zag and allows five times that rate"
    ),
    "RMSprop": Walk(
        optfn.rmsprop, (0.1, 0.3), "RMSprop is as fast along x as along y, but hops at a large rate"
    ),
    "Adam": Walk(optfn.adam, (0.2, 0.6), "Adam: the speed of RMSprop, the swing of momentum"),
}


def descend(optimizer, steps: int):
    """The path `[steps + 1, xy]` of an optimizer from the start."""

    def step(carry, _):
        point, state = carry
        grads = jax.grad(bowl, argnums=1)(CURVATURE, point)
        point, state = optfn.step(optimizer, point, grads, state)
        return (point, state), point

    start = jnp.asarray(START, float)
    _, points = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return jnp.concatenate([start[None], points])


def zig_zag(steps: int) -> dict[str, np.ndarray]:
    """The paths `[rate, step, xy]` of every algorithm."""
    optimizers = {name: walk.make(np.array(walk.rates)) for name, walk in WALKS.items()}

    @jax.jit
    @partial(jax.vmap, in_axes=(optfn.in_axes(optimizers),))
    def descend_all(optimizers):
        return {name: descend(optimizer, steps) for name, optimizer in optimizers.items()}

    return jax.device_get(descend_all(optimizers))


def draw_zig_zag(paths: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(11, 10), layout="constrained")
    axes = figure.subplots(len(WALKS), 2, sharex="col", sharey="col", width_ratios=(2, 1))
    for (bowl_axis, loss_axis), (name, walk) in zip(axes, WALKS.items(), strict=True):
        draw_bowl(bowl_axis, CURVATURE, START, xlim=(-9.8, 2.8), ylim=(-2.3, 2.3))
        for path, rate, color in zip(paths[name], walk.rates, (BLUE, VERMILLION), strict=True):
            style = {"color": color, "linewidth": 1.2, "label": f"rate {rate:g}"}
            gone = np.abs(path[:, 1]) > bowl_axis.get_ylim()[1]
            bowl_axis.plot(*until(gone, path).T, "o-", markersize=3, **style)
            loss_axis.plot(bowl(CURVATURE, path), **style)
        bowl_axis.set_title(walk.moral, loc="left", fontsize=11)
        bowl_axis.set_ylabel("y, curvature 10")
        bowl_axis.legend(loc="upper right", title=name)
        loss_axis.set(yscale="log", ylabel="loss")
        loss_axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("x, curvature 0.1 (dot: the start, star: the minimum)")
    axes[-1, 1].set_xlabel("step")
    return figure


def until(condition: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The path up to and including the first point where the condition holds."""
    return path[: condition.argmax() + 1] if condition.any() else path


# --- Picture 2: the noise ball --------------------------------------------------------------------

# The loss of an example is its squared distance, weighted more in y. The loss of all examples is
# least at their mean, the origin; the loss of a mini-batch is least at the mini-batch's mean.
BATCH_SIZE = 16
STEPS_PER_EPOCH = 16
WEIGHT = np.array([1.0, 3.0])
FAR = np.array([-4.0, 3.0])
RATE = 0.3
DECAY_RATES = {"constant": 0.0, "decayed": 1.0}


def make_examples() -> jax.Array:
    examples = 2 * np.random.default_rng(0).normal(size=(BATCH_SIZE * STEPS_PER_EPOCH, 2))
    return jnp.asarray(examples - examples.mean(0), float)


def batch_loss(point, batch):
    return jax.vmap(lambda example: bowl(WEIGHT, point - example))(batch).mean()


@jax.jit
def train_epoch(optimizer, point, state, examples, key):
    """Trains on random mini-batches for an epoch; also returns the path `[batch, xy]`."""

    def step(carry, batch):
        point, state = carry
        grads = jax.grad(batch_loss)(point, examples[batch])
        point, state = optfn.step(optimizer, point, grads, state)
        return (point, state), point

    batches = jax.random.randint(key, (STEPS_PER_EPOCH, BATCH_SIZE), 0, len(examples))
    (point, state), path = jax.lax.scan(step, (point, state), batches)
    return point, state, path


def train(optimizer, examples, epochs: int, key):
    """The path `[step, xy]` of a whole run."""

    def step(carry, key):
        point, state, path = train_epoch(optimizer, *carry, examples, key)
        return (point, state), path

    start = jnp.asarray(FAR, float)
    keys = jax.random.split(key, epochs)
    _, paths = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return jnp.concatenate([start[None], paths.reshape(-1, 2)])


def noise_ball(seeds: int, epochs: int) -> dict[str, np.ndarray]:
    """The paths `[seed, step, xy]` at the constant and at the decayed rate."""
    decay_rates = np.array(list(DECAY_RATES.values()))
    rate = schedules.per_epoch(schedules.inverse_time(RATE, decay_rates), STEPS_PER_EPOCH)
    optimizer = optfn.sgd(rate)

    @jax.jit
    @partial(jax.vmap, in_axes=(optfn.in_axes(optimizer), None, None))
    @partial(jax.vmap, in_axes=(None, None, 0))
    def train_all(optimizer, examples, key):
        return train(optimizer, examples, epochs, key)

    paths = train_all(optimizer, make_examples(), jax.random.split(jax.random.key(0), seeds))
    return dict(zip(DECAY_RATES, jax.device_get(paths), strict=True))


def draw_noise_ball(paths: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    *bowl_axes, distance_axis = figure.subplots(1, 3)
    titles = {
        "constant": f"constant rate {RATE:g}",
        "decayed": f"decayed rate {RATE:g} / (1 + epoch)",
    }
    for axis, kind, color in zip(bowl_axes, DECAY_RATES, (VERMILLION, BLUE), strict=True):
        draw_bowl(axis, WEIGHT, FAR, xlim=(-4.5, 1.5), ylim=(-1.8, 3.4))
        axis.plot(*paths[kind][0].T, "o-", color=color, markersize=2, linewidth=0.6)
        axis.set(aspect="equal", xlabel="x, curvature 1", ylabel="y, curvature 3")
        axis.set_title(titles[kind])

        distances = np.linalg.norm(paths[kind], axis=-1)
        epochs = np.arange(distances.shape[1]) / STEPS_PER_EPOCH
        low, high = np.quantile(distances, (0.1, 0.9), axis=0)
        distance_axis.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        distance_axis.plot(epochs, distances.mean(0), color=color, label=titles[kind])
    distance_axis.set(yscale="log", xlabel="epoch", ylabel="distance from the minimum")
    distance_axis.set_title(f"mean and middle 80 % of {len(paths['constant'])} runs")
    distance_axis.set_box_aspect(5.2 / 6)  # as the bowls
    distance_axis.yaxis.set_major_formatter("{x:g}")
    distance_axis.grid(alpha=0.3)
    distance_axis.legend()
    return figure


# --- Picture 3: the schedules ---------------------------------------------------------------------


class Family(NamedTuple):
    """A schedule by epoch, and the values of one of its arguments to draw it with."""

    title: str
    schedule: optfn.Schedule
    argument: str
    values: tuple[float, float, float]
    legend: Literal["upper right", "lower center"] = "upper right"


FAMILIES = (
    Family(
        "inverse time: 1 / (1 + decay_rate · epoch)",
        schedules.inverse_time(1, 0.1),
        "decay_rate",
        (0.02, 0.1, 0.5),
    ),
    Family(
        "exponential: decay_rate to the power of epoch",
        schedules.exponential(1, 1, 0.95),
        "decay_rate",
        (0.99, 0.95, 0.8),
    ),
    Family("inverse root: k / √(epoch + 1)", schedules.inverse_sqrt(1), "k", (1, 0.5, 0.25)),
    Family(
        "staircase: halved every transition_steps",
        schedules.exponential(1, 20, 0.5, staircase=True),
        "transition_steps",
        (30, 20, 10),
    ),
    Family("cosine", schedules.cosine(1, 100), "total_steps", (100, 75, 50)),
    Family(
        "warm-up, then cosine", schedules.warmup_cosine(1, 20, 100), "warmup_steps", (5, 20, 40)
    ),
    Family(
        "warm-up, stable, decay",
        schedules.wsd(1, 5, 30, 100),
        "decay_steps",
        (10, 30, 60),
        "lower center",
    ),
    Family(
        "one cycle",
        schedules.one_cycle(peak_value=1, total_steps=100),
        "pct_start",
        (0.1, 0.3, 0.5),
    ),
)

# The rates that a person sets during the run, by epoch.
EDITS = {20: 0.1, 45: 0.03, 75: 0.01}


def schedule_curves(epochs: np.ndarray) -> list[np.ndarray]:
    """The rates `[value, epoch]` of every family."""
    swept = [optfn.replace(f.schedule, **{f.argument: np.array(f.values)}) for f in FAMILIES]

    @jax.jit
    @partial(jax.vmap, in_axes=(optfn.in_axes(swept),))
    def evaluate(schedules):
        return [schedule(epochs) for schedule in schedules]

    return jax.device_get(evaluate(swept))


def decay_by_hand(epochs: int) -> list[float]:
    """The rate in every epoch of a run that a person tunes.

    A new rate is a new number for the compiled `train_epoch`, which is not compiled again.
    """
    examples, point = make_examples(), jnp.asarray(FAR, float)
    optimizer = optfn.sgd(RATE)
    state = optimizer.init(point)
    rates = []
    for epoch, key in enumerate(jax.random.split(jax.random.key(0), epochs)):
        if epoch in EDITS:
            optimizer = optfn.replace(optimizer, learning_rate=EDITS[epoch])
        rates.append(float(optfn.hyperparameters(optimizer, state)["learning_rate"]))
        point, state, _ = train_epoch(optimizer, point, state, examples, key)
    return rates


def draw_schedules(epochs: np.ndarray, curves: list[np.ndarray], by_hand: list[float]) -> Figure:
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    axes = figure.subplots(3, 3, sharex=True, sharey=True)
    *family_axes, hand_axis = axes.flat
    styles = {BLUE: "-", VERMILLION: "--", GREEN: "-."}
    for axis, family, rates in zip(family_axes, FAMILIES, curves, strict=True):
        for curve, value, color in zip(rates, family.values, styles, strict=True):
            axis.plot(epochs, curve, styles[color], color=color, label=f"{value:g}")
        axis.set_title(family.title, fontsize=11)
        axis.legend(loc=family.legend, title=family.argument)

    share = np.array(by_hand) / RATE
    hand_axis.stairs(share, range(len(share) + 1), baseline=None, color=BLUE, linewidth=1.5)
    edits = list(EDITS)
    hand_axis.plot(edits, share[edits], "o", color=VERMILLION, label="a person sets a new rate")
    hand_axis.set_title("by hand, during the run", fontsize=11)
    hand_axis.legend()

    for axis in axes.flat:
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    for axis in axes[:, 0]:
        axis.set_ylabel("learning rate (relative)")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent / "output"
    parser.add_argument("--output", type=Path, default=default, help="the pictures' directory")
    parser.add_argument("--quick", action="store_true", help="fewer runs and pixels")
    options = parser.parse_args()

    epochs = np.linspace(0, 100, 1000, endpoint=False)
    figures = {
        "zig_zag": draw_zig_zag(zig_zag(steps=60)),
        "noise_ball": draw_noise_ball(noise_ball(seeds=16 if options.quick else 256, epochs=20)),
        "schedules": draw_schedules(epochs, schedule_curves(epochs), decay_by_hand(epochs=100)),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = options.output / f"{name}.png"
        figure.savefig(path, dpi=75 if options.quick else 150)
        print(f"Figure: {path}")


if __name__ == "__main__":
    main()
