"""The coordinate check: how activations grow with the width of a model, in its first steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optfn
from optfn.core.data import check_count
from optfn.core.text_table import in_columns
from optfn.core.transform import as_transform
from optfn.core.tree import PyTree, leaf_paths


@dataclass(frozen=True, repr=False, eq=False)
class CoordinateCheck:
    """How large activations are, by width and step. It prints as a table of exponents.

    An exponent is the slope of log(size) over log(width), fitted by least squares: 0 is a size that
    does not depend on the width.

    Attributes:
        widths: the widths, ascending.
        sizes: by the name of an activation, float `[steps + 1, widths]`, the root mean square of
            its entries after as many steps.
        changes: the same of its difference to that of the initial params; 0 at first.
        losses: float `[steps + 1, widths]`.
    """

    widths: tuple[int, ...]
    sizes: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]
    losses: np.ndarray

    @property
    def exponents(self) -> dict[str, np.ndarray]:
        """The exponents of the sizes, by name float `[steps + 1]`."""
        return {name: self._slopes(sizes) for name, sizes in self.sizes.items()}

    @property
    def change_exponents(self) -> dict[str, np.ndarray]:
        """The exponents of the changes after one step or more, by name float `[steps]`."""
        return {name: self._slopes(changes[1:]) for name, changes in self.changes.items()}

    def _slopes(self, sizes: np.ndarray) -> np.ndarray:
        """Of each row; NaN where a size is zero or not finite."""
        x = np.log(np.asarray(self.widths, float))
        x = x - x.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.asarray(sizes, float)) @ x / (x @ x)

    @property
    def worst(self) -> float:
        """The largest exponent, by absolute value, of all sizes and changes after the last step.

        Infinity if one of these is not finite; what is zero has no exponent and is left out.
        """
        last = [x[-1] for x in (*self.sizes.values(), *self.changes.values())]
        if not np.isfinite(last).all():
            return np.inf
        both = [*self.exponents.values(), *self.change_exponents.values()]
        return max((abs(x[-1]) for x in both if not np.isnan(x[-1])), default=np.nan)

    def plot(self, axes: Any = None) -> Any:
        """The size of every activation over the width, one line for each step, with matplotlib.

        Flat lines are what is wanted. Changes are dashed.

        Args:
            axes: an array of axes, one for each activation; None makes a figure.

        Returns:
            The axes.
        """
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        count = len(self.sizes)
        if axes is None:
            across = min(count, 4)
            down = -(-count // across)
            figure = Figure(figsize=(3.2 * across, 2.8 * down), layout="constrained")
            axes = figure.subplots(down, across, sharex=True, squeeze=False)
        axes = np.atleast_1d(axes)
        steps = len(self.losses)
        for ax, name in zip(axes.flat, self.sizes, strict=False):
            for step in range(steps):
                style = {
                    "color": colormaps["viridis"](0.9 * step / max(steps - 1, 1)),
                    "marker": ".",
                }
                style["label"] = f"after {step}" if step in (0, steps - 1) else None
                ax.loglog(self.widths, self.sizes[name][step], **style)
                if step:
                    ax.loglog(
                        self.widths, self.changes[name][step], **style | {"ls": "--", "label": None}
                    )
            ax.set_title(f"{name}: {self.exponents[name][-1]:+.2f}", fontsize="small")
            ax.set_xticks(self.widths, list(map(str, self.widths)))
            ax.minorticks_off()
            ax.grid(alpha=0.3)
        for ax in axes.flat[count:]:
            ax.set_visible(False)
        axes.flat[0].set(xlabel="width", ylabel="root mean square")
        axes.flat[0].legend(fontsize="small")
        return axes

    def __repr__(self) -> str:
        steps = len(self.losses) - 1
        heads = ["exponents", "at first", f"after {steps}", "of the change"]
        sizes, changes = self.exponents, self.change_exponents
        rows = [
            [name, f"{x[0]:+.2f}", f"{x[-1]:+.2f}", f"{changes[name][-1]:+.2f}"]
            for name, x in sizes.items()
        ]
        return in_columns([heads, *rows], left=(0,))


def coordinate_check(
    make_model: Callable[[int], tuple[Any, PyTree, Callable[..., Any]]],
    widths: Sequence[int],
    batch: PyTree,
    *,
    steps: int = 8,
) -> CoordinateCheck:
    """Trains a model of each width for a few steps and measures its activations.

    Whether a width transfer is complete: after a few steps every activation, and its change, has
    about the same size at all widths. One that grows will overflow in wide models, and with it the
    best rate falls; one that shrinks has stopped to learn. At first the output of a model may
    shrink with the width, as it does with muP.

        def make_model(width):
            model = Transformer(width)
            params = model.init(jax.random.key(0), batch[0])

            def loss(params, batch):
                logits, state = model.apply(params, batch[0], mutable="intermediates")
                return cross_entropy(logits, batch[1]), {"logits": logits, **state}

            return optfn.adamw(1e-2), params, loss

        check = coordinate_check(make_model, [32, 64, 128, 256], batch)
        print(check)
        check.plot()

    Every step is on the same batch. Take a rate near the best one of the base: with a small one
    nothing changes.

    Args:
        make_model: a function of the width that returns an optimizer, initial params, and
            `loss(params, batch) -> (loss, activations)`. Activations are a tree of arrays, of the
            same names at each width.
        widths: two or more widths.
        batch: what each loss gets.
        steps: the updates at each width.

    Raises:
        TypeError: `make_model` or `loss` returns something else.
        ValueError: there are fewer than two widths; or the activations differ in their names.
    """
    where = "coordinate_check"
    check_count(steps, f"{where}(steps=...)")
    widths = tuple(sorted(set(widths)))
    if len(widths) < 2:
        raise ValueError(f"{where}(widths=...) must be two or more widths, found {widths}.")
    found = []
    for width in widths:
        made = make_model(width)
        if not (isinstance(made, tuple) and len(made) == 3 and callable(made[2])):
            raise TypeError(
                f"{where}(make_model=...) must return (optimizer, params, loss), found "
                f"{type(made).__name__} at width {width}."
            )
        found.append(_measured(*made, batch, steps))
    names = list(found[0][0])
    for width, (sizes, _, _) in zip(widths, found, strict=True):
        if list(sizes) != names:
            other = sorted(set(sizes) ^ set(names))
            raise ValueError(
                f"{where}(make_model=...): activations must have the same names at each width; at "
                f"{width} and at {widths[0]} they differ in {', '.join(other)}."
            )
    sizes, changes = (
        {name: np.stack([one[part][name] for one in found], axis=1) for name in names}
        for part in (0, 1)
    )
    return CoordinateCheck(widths, sizes, changes, np.stack([one[2] for one in found], axis=1))


def _measured(
    tx: Any, params: PyTree, loss: Callable[..., Any], batch: PyTree, steps: int
) -> tuple[Any, ...]:
    """Sizes and changes by name, and losses, of one model, each `[steps + 1]`."""
    tx = as_transform(tx, "coordinate_check(make_model=...): its optimizer")

    def size(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(optfn.abs_sq(jnp.asarray(x).astype(jnp.float32))))

    @jax.jit
    def run(tx: Any, params: PyTree, batch: PyTree) -> Any:
        def told(params: PyTree) -> Any:
            result = loss(params, batch)
            if not (isinstance(result, tuple) and len(result) == 2):
                raise TypeError(
                    "coordinate_check(make_model=...): loss(params, batch) must return (loss, "
                    f"activations), found {type(result).__name__}."
                )
            return result

        _, first = told(params)

        def step(carry: Any, _: None) -> tuple[Any, Any]:
            params, state = carry
            (value, activations), grads = jax.value_and_grad(told, has_aux=True)(params)
            difference = jax.tree.map(lambda x, y: x - y, activations, first)
            sizes = [[size(x) for x in jax.tree.leaves(t)] for t in (activations, difference)]
            return optfn.step(tx, params, grads, state), (value, *sizes)

        # The last update is not measured.
        return jax.lax.scan(step, (params, tx.init(params)), length=steps + 1)[1]

    losses, sizes, changes = run(tx, params, batch)
    names = leaf_paths(jax.eval_shape(lambda: loss(params, batch)[1]))
    sizes, changes = (
        {name or "activation": np.asarray(x) for name, x in zip(names, xs, strict=True)}
        for xs in (sizes, changes)
    )
    return sizes, changes, np.asarray(losses)
