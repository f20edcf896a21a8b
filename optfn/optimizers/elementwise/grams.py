"""Grams."""

from typing import Any

from optfn.compose.chain import chain
from optfn.compose.gradient_signs import with_gradient_signs
from optfn.optimizers.elementwise.adam import scale_by_adam
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


def grams(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> chain:
    """Grams: Adam's step sizes along the signs of the gradient itself.

    Like `cautious` it never opposes the newest gradient, but it moves all entries. The rule is
    p <- p - learning_rate * (|u| * sign(g) + weight_decay * p), with u from `scale_by_adam`.

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root.
        weight_decay: a number or a schedule.
        mask: where to decay, a bool per leaf; see `add_decayed_weights`.

    Source: Cao et al. 2024.
    """
    return chain(
        with_gradient_signs(scale_by_adam(b1, b2, eps)),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
