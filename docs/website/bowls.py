"""Draws the path of every optimizer on an elongated bowl: `python -m website.bowls FOLDER`."""

import inspect
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

import jax
import jax.numpy as jnp
import numpy as np
from legs import LEGS
from matplotlib.figure import Figure
from plot_lecture import BLUE, CURVATURE, START, bowl, draw_bowl

import optfn

STEPS = 100
XLIM, YLIM = (-9.8, 4.8), (-2.3, 2.3)
RATES = np.geomspace(1e-3, 30.0, 46)
# Without bounds, for those that keep to a box.
BOX = optfn.Box({"kernel": jnp.full(2, -jnp.inf)}, {"kernel": jnp.full(2, jnp.inf)})
# What a picture would not show.
LIKE = {"muon_clip": "muon"}


class Walk(NamedTuple):
    """The best path of an optimizer, and the rate at which it took it.

    Attributes:
        path: the points, `[step, xy]`.
        rate: the best of `RATES`, or None of an optimizer that finds its rate.
    """

    path: np.ndarray
    rate: float | None


def walk(name: str) -> Walk:
    """The path of least mean loss, on a logarithmic scale, of those that stay in the picture."""
    function = getattr(optfn, name)
    takes_matrices = ".matrix." in function.__module__
    rate = inspect.signature(function).parameters.get("learning_rate")
    if rate is None or rate.default is not rate.empty:
        return Walk(np.asarray(jax.jit(lambda: _descend(function(), takes_matrices))()), None)
    tried = jax.vmap(lambda rate: _descend(function(rate), takes_matrices))
    paths = np.asarray(jax.jit(tried)(jnp.asarray(RATES, jnp.float32)))
    heights = np.nan_to_num(bowl(CURVATURE, paths.astype(float)), nan=np.inf)
    score = np.log(np.clip(heights, 1e-6, 1e6)).mean(-1)
    out_of_sight = (np.abs(paths[..., 1]) > YLIM[1]) | (paths[..., 0] > XLIM[1])
    best = (score + 100 * out_of_sight.any(-1)).argmin()
    return Walk(paths[best], RATES[best])


def _descend(tx: optfn.Transform, takes_matrices: bool) -> jax.Array:
    """The path `[step, xy]`; a matrix has the point on its diagonal."""

    def loss(params):
        point = jnp.diagonal(params["kernel"]) if takes_matrices else params["kernel"]
        return (CURVATURE.astype(np.float32) * point**2).sum() / 2

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        offered = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss, "box": BOX}
        extra = {name: offered[name] for name in tx.declared_extra_args() if name in offered}
        params, state = optfn.step(tx, params, grads, state, **extra)
        return (params, state), optfn.evaluation_params(tx, state, params)["kernel"]

    start = jnp.asarray(START, jnp.float32)
    params = {"kernel": jnp.diag(start) if takes_matrices else start}
    _, points = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
    points = jnp.diagonal(points, axis1=-2, axis2=-1) if takes_matrices else points
    return jnp.concatenate([start[None], points])


def draw(name: str, walked: Walk) -> Figure:
    figure = Figure(figsize=(7, 2.6))
    path_axis, loss_axis = figure.subplots(1, 2, width_ratios=(2.2, 1))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.15, top=0.88, wspace=0.22)
    draw_bowl(path_axis, CURVATURE, START, xlim=XLIM, ylim=YLIM)
    path_axis.plot(*walked.path.T, "o-", color=BLUE, markersize=2.5, linewidth=1)
    at = "its own rate" if walked.rate is None else f"rate {walked.rate:.2g}"
    path_axis.set_title(f"{name}, {at}", loc="left", fontsize=10)
    loss_axis.plot(np.maximum(bowl(CURVATURE, walked.path), 1e-10), color=BLUE)
    loss_axis.set(yscale="log", ylim=(1e-8, 100))
    loss_axis.set_title("loss by step", loc="left", fontsize=10)
    loss_axis.grid(alpha=0.3)
    for axis in (path_axis, loss_axis):
        axis.tick_params(labelsize=8)
    return figure


def main(folder: Path, part: int, parts: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in [name for name in LEGS if name not in LIKE][part::parts]:
        draw(name, walk(name)).savefig(folder / f"{name}.png", dpi=100)
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
