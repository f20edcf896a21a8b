"""Stages that multiply the updates by a number."""

from typing import Any

import jax

from optfn.core.data import check_within, per_leaf, static
from optfn.core.leafwise import Leafwise
from optfn.core.updates_kind import Updates


class scale(Leafwise):
    """Multiplies every update by `step_size`.

    Args:
        step_size: a number or a schedule.
    """

    elementwise = True
    elementary = True

    step_size: Any

    def update_leaf(
        self, update: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return self.step_size * update, slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.scaled()


class scale_by_learning_rate(Leafwise):
    """Multiplies by minus the learning rate: an ascent direction becomes a step downhill.

    The last stage of an optimizer.

    Args:
        learning_rate: a number or a schedule.
        flip_sign: False multiplies by plus the rate.
    """

    elementwise = True
    elementary = True

    learning_rate: Any
    flip_sign: bool = static(default=True, kw_only=True)

    def update_leaf(
        self, update: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        rate = -self.learning_rate if self.flip_sign else self.learning_rate
        return rate * update, slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned() if self.flip_sign else incoming


class scale_by_layer_decay(Leafwise):
    """Multiplies the updates of each leaf by a power of `decay`: the lower its layer, the smaller.

        u = decay^n g        n layers are above the leaf's layer

    For fine-tuning: the head learns at the full rate, each layer below it more slowly. It is a
    factor on the learning rate, so it must follow the optimizer. Before an optimizer that ignores
    the scale of gradients, such as Adam, it does nothing. With twelve layers between embeddings and
    a head:

        layers_above = by_path(
            {"embed/**": 13, "head/**": 0} | {f"layers_{i}/**": 12 - i for i in range(12)}
        )
        chain(adamw(1e-3), scale_by_layer_decay(0.75, layers_above))

    In papers that count the depth from 0 at the embeddings, n is the head's depth minus the leaf's.

    Args:
        decay: a number or a schedule, from 0 to 1; 1 leaves the updates as they are.
        layers_above: the number of layers between a leaf's layer and the loss, an int from 0 on: a
            tree (a prefix is enough), a function `(path, leaf) -> int` or a function
            `params -> tree`.

    Raises:
        TypeError: a value of `layers_above` is not an int, or is a bool.
        ValueError: `decay` is not from 0 to 1; or a value of `layers_above` is below 0.

    Source: Howard and Ruder 2018; Clark et al. 2020 (ELECTRA); Bao et al. 2022 (BEiT).
    """

    elementwise = True
    elementary = True

    decay: Any
    layers_above: Any = per_leaf(of=int)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_above is None:
            raise TypeError("scale_by_layer_decay(layers_above=...) must be a tree or a function.")
        check_within(self.decay, (0, 1), "scale_by_layer_decay(decay=...)")

    def update_leaf(
        self, update: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        if self.layers_above < 0:
            raise ValueError(
                f"scale_by_layer_decay(layers_above=...) must not be below 0, found "
                f"{self.layers_above}."
            )
        return self.decay**self.layers_above * update, slots


class negate(Leafwise):
    """Negates the updates: u = -g. The last stage of an optimizer without a learning rate."""

    elementwise = True
    elementary = True

    def update_leaf(
        self, update: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        return -update, slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


def scale_by_schedule(step_size_fn: Any) -> scale:
    """`scale` under the name that optax uses for a step size schedule."""
    return scale(step_size_fn)
