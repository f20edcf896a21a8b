"""Fifty learning rates, in every form a user may give them, and what one step must do with them."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

import optfn
from optfn import schedules

RATES = np.geomspace(1e-4, 1e-1, 50)

# Each builds an optimizer from a rate.
FORMS: dict[str, Callable] = {
    "floats": lambda rate: optfn.adam(float(rate)),
    "NumPy scalars": lambda rate: optfn.adam(np.float32(rate)),
    "arrays": lambda rate: optfn.adam(jnp.float32(rate)),
    "schedule peaks": lambda rate: optfn.adam(
        schedules.warmup_cosine(float(rate), warmup_steps=0, total_steps=100)
    ),
}

PARAMS = np.asarray([1.0, -2.0, 3.0], np.float32)
GRADS = np.asarray([0.5, 2.0, -1.0], np.float32)


def assert_one_trace_serves_all(step: Callable, form: str, count: Callable[[], int]) -> None:
    """Takes one step from the same params with each rate; checks where it ends and the traces.

    Adam's first step is known: the moments of one gradient, debiased, are the gradient and its
    square, so that every entry moves by the rate, times the sign of its gradient.

    Args:
        step: a function of an optimizer that gives the params after one step.
        form: a key of FORMS.
        count: gives the number of traces of `step` so far.
    """
    ends = [step(FORMS[form](rate)) for rate in RATES]
    expected = PARAMS - RATES[:, None] * np.sign(GRADS)
    # Half a unit in the last place of the params, and eps and rounding relative to the step.
    np.testing.assert_allclose(np.stack(ends), expected, rtol=2**-24, atol=1e-6 * RATES.max())
    assert count() == 1
