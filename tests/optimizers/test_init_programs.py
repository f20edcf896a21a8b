"""Eager `init` compiles no more programs than optax's."""

from itertools import count

import jax
import numpy as np
import optax
import pytest
from algorithms import CASES, OPTAX, in_optax

import optfn

SHARED = {
    case.algorithm: case
    for case in CASES
    if repr(case) == case.algorithm and (case.algorithm in OPTAX or in_optax(case.algorithm))
}
sizes = count(10_007)
programs = 0


def note_program(event, duration, **kwargs):
    global programs
    programs += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(note_program)


def programs_of(tx, dtype):
    params = params_of(dtype)
    before = programs
    jax.block_until_ready(jax.tree.leaves(tx.init(params)))
    return programs - before


def params_of(dtype):
    """A matrix and a vector of sizes that no array has had, for which nothing is compiled."""
    shapes = {"matrix": (next(sizes), 2), "vector": (next(sizes),)}
    return {name: jax.device_put(np.ones(shape, dtype)) for name, shape in shapes.items()}


def assert_no_more(ours, theirs, dtype=np.float32):
    # One more is the step count of the state, which optax's stateless ones have not.
    assert programs_of(ours, dtype) <= max(1, programs_of(theirs, dtype))


USUAL = params_of(np.float32)  # the same for all tests, and compiled for once


@pytest.mark.parametrize("name", SHARED)
def test_no_more_than_optax(name):
    """For params of new shapes; numbers of the whole tree have been made before."""
    ours, theirs = SHARED[name].here(), SHARED[name].there()
    for tx in (ours, theirs):
        tx.init(USUAL)
    assert_no_more(ours, theirs)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "lbfgs"])
def test_no_more_than_optax_where_nothing_was_made_before(name):
    jax.clear_caches()
    theirs = programs_of(SHARED[name].there(), np.float32)
    jax.clear_caches()
    assert programs_of(SHARED[name].here(), np.float32) <= theirs


def test_no_more_than_optax_in_low_precision():
    """Though the state is in float32."""
    assert_no_more(optfn.adam(0.1), optax.adam(0.1), jax.numpy.bfloat16)
