"""`jax.jit` with the optimizer as an argument: new numbers, the same program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.rates import FORMS, GRADS, PARAMS, assert_one_trace_serves_all

import optfn
from optfn import schedules


def counted_step():
    """A jitted step from PARAMS along GRADS, and its number of traces."""
    traces = []

    @jax.jit
    def step(tx):
        traces.append(None)
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        return optfn.apply_updates(PARAMS, updates)

    return step, lambda: len(traces)


@pytest.mark.parametrize("form", FORMS)
def test_fifty_rates_are_one_trace(form):
    step, count = counted_step()
    assert_one_trace_serves_all(step, form, count)


def test_replace_keeps_the_program_whatever_the_type_of_the_new_value():
    step, count = counted_step()
    tx = optfn.adamw(schedules.warmup_cosine(1e-3, 10, 100), weight_decay=jnp.float32(0.1))
    step(tx)
    for value in (1, 0.5, np.float32(0.5), np.float64(0.5), np.int64(1), jnp.float32(0.5)):
        tx = optfn.replace(tx, **{"learning_rate.peak_value": value, "weight_decay": value})
        step(tx)
    assert count() == 1
