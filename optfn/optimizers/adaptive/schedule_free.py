"""The two forms of Schedule-Free that its authors recommend."""

from typing import Any

from jax.typing import DTypeLike

from optfn import schedules
from optfn.compose.averaging import schedule_free
from optfn.compose.chain import chain
from optfn.core.arguments import Argument
from optfn.core.data import as_number
from optfn.core.transform import Transform
from optfn.optimizers.elementwise.rmsprop import scale_by_rms
from optfn.transforms.decay import add_decayed_weights


def schedule_free_sgd(
    learning_rate: Any = 1.0,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    weight_decay: Any = None,
    weight_lr_power: Any = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    keep_average: bool = False,
) -> schedule_free:
    """Schedule-Free SGD: gradient descent without a decaying rate or a planned number of steps.

    Its rates are 10 to 50 times those of SGD with momentum. Evaluate at
    `evaluation_params(tx, state, params)`. The rule is `schedule_free` applied to
    g + weight_decay * p.

    Args:
        learning_rate: a number; without `warmup_steps` also a schedule that warms up.
        warmup_steps: the steps of a linear rise from 0 to `learning_rate`, a number; None for no
            warm-up.
        b1: the share of the average in the params.
        weight_decay: a number or a schedule; None for no decay.
        weight_lr_power: the power of the rate in the average's weights.
        state_dtype: the dtype in which z is stored; see `schedule_free`.
        keep_average: whether the state holds the average, which b1 = 0 needs; see `schedule_free`.

    Source: Defazio et al. 2024.
    """
    direction: list[Transform] = [] if weight_decay is None else [add_decayed_weights(weight_decay)]
    rate = _warmed_up(learning_rate, warmup_steps)
    return schedule_free(
        chain(*direction), rate, b1, weight_lr_power, state_dtype, keep_average=keep_average
    )


def schedule_free_adamw(
    learning_rate: Any = 0.0025,
    warmup_steps: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    weight_lr_power: Any = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    keep_average: bool = False,
) -> schedule_free:
    """Schedule-Free AdamW: AdamW without a decaying rate or a planned number of steps.

    Its rates are up to 10 times those of AdamW with a schedule, and a warm-up helps. Evaluate at
    `evaluation_params(tx, state, params)`. The rule is `schedule_free` applied to AdamW without
    momentum.

    Args:
        learning_rate: a number; without `warmup_steps` also a schedule that warms up.
        warmup_steps: the steps of a linear rise from 0 to `learning_rate`, a number; None for no
            warm-up.
        b1: the share of the average in the params.
        b2: decay of the second moment.
        eps: added to the root.
        weight_decay: a number or a schedule.
        weight_lr_power: the power of the rate in the average's weights.
        state_dtype: the dtype in which z is stored; see `schedule_free`.
        keep_average: whether the state holds the average, which b1 = 0 needs; see `schedule_free`.

    Source: Defazio et al. 2024.
    """
    direction = scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True)
    return schedule_free(
        chain(direction, add_decayed_weights(weight_decay)),
        _warmed_up(learning_rate, warmup_steps),
        b1,
        weight_lr_power,
        state_dtype,
        keep_average=keep_average,
    )


def _warmed_up(learning_rate: Any, warmup_steps: Any) -> Any:
    if warmup_steps is None:
        return learning_rate
    if callable(learning_rate):
        raise TypeError(
            "warmup_steps is for a learning_rate that is a number; a schedule has its own warm-up."
        )
    for name, value in (("learning_rate", learning_rate), ("warmup_steps", warmup_steps)):
        as_number(value, Argument(f"schedule_free({name}=...)", value))
    return schedules.warmup_constant(learning_rate, warmup_steps)
