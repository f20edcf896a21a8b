"""The learning rate of a whole run, in the way that recipes take it: a peak and a length."""

import math
from typing import Any

from optfn import schedules
from optfn.core.arguments import Argument
from optfn.core.data import as_number, check_within
from optfn.core.schedule import Schedule


def over_a_run(
    recipe: str,
    shape: str,
    learning_rate: Any,
    total_steps: Any,
    warmup_steps: Any,
    *,
    warmup: float,
    end: float = 0.0,
) -> Schedule:
    """The schedule from 0 to the peak and down.

    Args:
        recipe: the name of the function that is called, for messages.
        shape: "cosine", "linear" or "wsd".
        learning_rate, total_steps, warmup_steps: as the user gives them.
        warmup: the share of the steps that are the warm-up, if the user does not say how many.
        end: the last rate over the peak; "wsd" ends at 0.
    """
    given = {"learning_rate": learning_rate, "total_steps": total_steps}
    given |= {} if warmup_steps is None else {"warmup_steps": warmup_steps}
    numbers = {k: as_number(x, Argument(f"{recipe}({k}=...)", x)) for k, x in given.items()}
    peak, total = numbers["learning_rate"], numbers["total_steps"]
    check_within(total, (1, math.inf), f"{recipe}(total_steps=...)")
    first = numbers.get("warmup_steps", warmup * total)
    longest = total if isinstance(total, float) else math.inf
    check_within(first, (0, longest), f"{recipe}(warmup_steps=...)")
    if shape == "cosine":
        return schedules.warmup_cosine(peak, first, total, end_value=end * peak)
    if shape == "linear":
        return schedules.warmup_linear(peak, first, total, end_value=end * peak)
    if shape == "wsd":
        return schedules.wsd(peak, first, 0.2 * total, total, tail="sqrt")
    raise ValueError(
        f"{recipe}(schedule=...) must be 'cosine', 'linear' or 'wsd', found {shape!r}."
    )
