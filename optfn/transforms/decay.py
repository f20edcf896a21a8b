"""Weight decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.data import per_leaf, static
from optfn.core.leafwise import Leafwise
from optfn.core.schedule import Schedule
from optfn.core.updates_kind import Updates


def decays(mask: bool | None) -> bool:
    """Whether a leaf with this mask entry decays; without a mask every leaf does."""
    return mask is None or mask


class _Decay(Leafwise):
    """A stage that decays the weights selected by a mask."""

    needs_params = True
    decays_params = True

    weight_decay: Any = 0.0
    mask: Any = per_leaf(default=None, of=bool)


class add_decayed_weights(_Decay):
    """Adds `weight_decay * param` to the updates.

    Before `scale_by_learning_rate` and after the direction this is the decoupled decay of AdamW,
    whose strength is the learning rate times the decay. Before the direction it is the gradient of
    an L2 penalty.

        u = g + weight_decay * p

    Args:
        weight_decay: a number or a schedule.
        mask: a bool per leaf, True where the weights decay: a tree (a prefix is enough), a
            function `(path, leaf) -> bool` or a function `params -> tree`; None decays all. Biases
            and norm scales are usually left out: `mask=lambda path, leaf: leaf.ndim > 1`.

    Raises:
        ValueError: `update` was not given the params.

    Source: Loshchilov and Hutter 2019.
    """

    elementwise = True

    def update_leaf(
        self, g: jax.Array, slots: Any, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Any]:
        known_to_be_none = isinstance(self.weight_decay, np.generic) and self.weight_decay == 0
        if known_to_be_none or not decays(self.mask):
            return g, slots
        return g + self.weight_decay * param, slots


class add_cautious_decay(_Decay):
    """Adds `weight_decay * param` to the entries of the updates that it does not oppose.

        u = g + weight_decay * p  where g * p >= 0,  else  g

    Instead of `add_decayed_weights`, after any direction: the decay never works against the
    direction, and does not move the minima of the loss.

    Args:
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Raises:
        ValueError: `update` was not given the params.

    Source: Chen et al. 2025.
    """

    elementwise = True

    def update_leaf(
        self, g: jax.Array, slots: Any, param: Any, t: jax.Array
    ) -> tuple[jax.Array, Any]:
        if not decays(self.mask):
            return g, slots
        along = (jnp.sign(g) * jnp.sign(param).conj()).real >= 0
        return g + jnp.where(along, self.weight_decay * param, 0), slots


class _DecayingStep(Leafwise):
    """A last stage: the learning rate, and a decay that is not proportional to it."""

    needs_params = True
    decays_params = True

    learning_rate: Any
    max_learning_rate: Any
    weight_decay: Any = 0.0
    mask: Any = per_leaf(default=None, of=bool)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.max_learning_rate, Schedule):
            raise TypeError(
                f"{type(self).__name__}(max_learning_rate=...) must be a number, the largest rate "
                "of the schedule, found a schedule."
            )

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        step = -self.learning_rate * g
        if not decays(self.mask):
            return step, slots
        return step - self._decay() * param, slots

    def _decay(self) -> Any:
        raise NotImplementedError

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()


class descend_with_corrected_decay(_DecayingStep):
    """The learning rate with a decay proportional to its square, as in AdamC and SGDC.

        p <- p - learning_rate * u - learning_rate^2 / max_learning_rate * weight_decay * p

    Instead of `add_decayed_weights` and `scale_by_learning_rate`, after any direction. For weights
    followed by a normalization it keeps the norms of weights and gradients stable while the rate
    falls; give other weights a plain decay with `partition`.

    Args:
        learning_rate: a schedule, or a number.
        max_learning_rate: the largest rate of the schedule, a number; to be replaced and swept
            together with it.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Raises:
        ValueError: `update` was not given the params.

    Source: Defazio 2025.
    """

    elementwise = True

    def _decay(self) -> Any:
        share = self.learning_rate / self.max_learning_rate
        return share * self.learning_rate * self.weight_decay


class descend_with_independent_decay(_DecayingStep):
    """The learning rate with a decay that follows the schedule's shape, not its peak.

        p <- p - learning_rate * u - learning_rate / max_learning_rate * weight_decay * p

    Instead of `add_decayed_weights` and `scale_by_learning_rate`, after any direction: the best
    decay is then much the same for every peak rate. Its values are AdamW's times the peak rate:
    1e-4 for 0.1 at 1e-3.

    Args:
        learning_rate: a schedule, or a number.
        max_learning_rate: the largest rate of the schedule, a number; to be replaced and swept
            together with it.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Raises:
        ValueError: `update` was not given the params.

    Source: Wortsman et al. 2023, "Small-scale proxies".
    """

    elementwise = True

    def _decay(self) -> Any:
        return self.learning_rate / self.max_learning_rate * self.weight_decay


class descend_then_decay(Leafwise):
    """The learning rate, and a decay of the params that the step leads to.

        p <- (1 - learning_rate * weight_decay) * (p - learning_rate * u)

    Instead of `add_decayed_weights` and `scale_by_learning_rate`, after any direction. From these
    it differs by a term of the order of the rate's square; SOAP and its kin are defined by it.

    Args:
        learning_rate: a number or a schedule.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        start: the number of updates before the first that decays, for directions that need as many
            before they move the params.

    Raises:
        ValueError: `update` was not given the params.

    Source: Vyas et al. 2025, the authors' code.
    """

    elementwise = True
    needs_params = True
    decays_params = True

    learning_rate: Any
    weight_decay: Any = 0.0
    mask: Any = per_leaf(default=None, of=bool)
    start: int = static(default=0, kw_only=True)

    def update_leaf(
        self, g: jax.Array, slots: None, param: Any, t: jax.Array
    ) -> tuple[jax.Array, None]:
        step = -self.learning_rate * g
        if not decays(self.mask):
            return step, slots
        decay = jnp.where(t > self.start, self.learning_rate * self.weight_decay, 0)
        return step - decay * (param + step), slots

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming.turned()
