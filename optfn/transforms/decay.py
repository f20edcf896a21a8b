"""Weight decay."""

from typing import Any

from optfn.core.data import per_leaf
from optfn.core.leafwise import Leafwise


class add_decayed_weights(Leafwise):
    """Adds `weight_decay * param` to the updates.

    Before `scale_by_learning_rate` and after the direction this is the decoupled decay of AdamW,
    whose strength is the learning rate times the decay. Before the direction it is the gradient of
    an L2 penalty.

        u = g + weight_decay * p

    Args:
        weight_decay: a number or a schedule.
        mask: a bool per leaf, True where the weights decay: a tree, of which a prefix is enough, or
            a function `(path, leaf) -> bool`. None decays all. Biases and norm scales are usually
            left out: `mask=lambda path, leaf: leaf.ndim > 1`.

    Raises:
        ValueError: `update` was not given the params.

    Source: Loshchilov and Hutter 2019.
    """

    needs_params = True

    weight_decay: Any = 0.0
    mask: Any = per_leaf(default=None, of=bool)

    def update_leaf(self, g, slots, param, t):
        if self.mask is not None and not self.mask:
            return g, slots
        return g + self.weight_decay * param, slots
