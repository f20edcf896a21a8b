"""Eager `init` compiles no more programs than optax's."""

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
SHAPES = [(8, 4), (11,)]

programs = 0


def count(event, duration, **kwargs):
    global programs
    programs += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(count)


def programs_of(call):
    jax.clear_caches()
    before = programs
    jax.block_until_ready(jax.tree.leaves(call()))
    return programs - before


def params_of(dtype):
    params = [jax.numpy.asarray(np.ones(shape, np.float32)).astype(dtype) for shape in SHAPES]
    return dict(zip("ab", params, strict=True))


@pytest.mark.parametrize("name", SHARED)
def test_no_more_than_optax(name):
    case, params = SHARED[name], params_of(np.float32)
    ours, theirs = case.here(), case.there()
    # One more is the step count of the state, which optax's stateless ones have not.
    allowed = max(1, programs_of(lambda: theirs.init(params)))
    assert programs_of(lambda: ours.init(params)) <= allowed


def test_no_more_than_optax_in_low_precision():
    """Though the state is in float32."""
    params = params_of("bfloat16")
    allowed = programs_of(lambda: optax.adam(0.1).init(params))
    assert programs_of(lambda: optfn.adam(0.1).init(params)) <= allowed
