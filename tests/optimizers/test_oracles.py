"""Every algorithm in double precision against its oracle, NumPy lines written from the paper."""

import numpy as np
import pytest
from algorithms import (
    CASES,
    RATE,
    STAGES,
    assert_within,
    centring_error,
    problem,
    run_as_data,
    run_closed_over,
)

# Compiling is what takes time here: only these also with the numbers as constants of the program,
# and every eighth of them by default.
DEFAULTS = [case for case in CASES if repr(case) == case.algorithm]
BY_DEFAULT = DEFAULTS[::8]


# In the scope of the module, so that all tests of a case come together and share its program.
@pytest.fixture(scope="module", params=CASES, ids=repr)
def case(request):
    return request.param


@pytest.fixture(scope="module", params=STAGES, ids=repr)
def stage(request):
    return request.param


def assert_on_the_oracle_s_path(case, run):
    """At 1e-11 of the length of the path, which is the sum of all that was rounded on it.

    Adam's 1 - b2^t has a relative error of 2^-53 / (1 - b2), 1e-13; 100 steps add up to 1e-11. A
    centred second moment has its own condition.
    """
    params, grads = case.problem()
    found, _ = run(case.here(), params, grads, case.extra_args)
    for name, wanted in case.oracle(params, grads).items():
        steps = abs(np.diff(wanted, axis=0, prepend=params[name][None]))
        bound = 1e-11 * (abs(params[name]) + np.cumsum(steps, axis=0))
        if case.options.get("centered"):
            # Both moments are sums of some ten terms that count.
            errors = centring_error(grads[name], RATE, 1e-14, **case.options)
            assert np.median(errors / (steps + 1e-300)) < 1e-11, "the bound says nothing"
            bound += np.cumsum(errors, axis=0)
        assert_within(case.oracle_slack * bound, found[name], wanted, name)


def test_params_equal_the_oracle_s(case, x64):
    assert_on_the_oracle_s_path(case, run_as_data)


@pytest.mark.parametrize("default", BY_DEFAULT, ids=repr)
def test_params_equal_the_oracle_s_with_the_numbers_closed_over(default, x64):
    assert_on_the_oracle_s_path(default, run_closed_over)


@pytest.mark.slow
@pytest.mark.parametrize("default", [x for x in DEFAULTS if x not in BY_DEFAULT], ids=repr)
def test_params_of_all_others_equal_the_oracle_s_with_the_numbers_closed_over(default, x64):
    assert_on_the_oracle_s_path(default, run_closed_over)


def test_updates_of_stages_equal_the_oracle_s(stage, x64):
    """At 1e-11 of the largest update so far, which is what a sum of them is rounded by."""
    params, grads = problem(1e25)
    _, found = run_as_data(stage.here(), params, grads)
    for name, wanted in stage.oracle(grads).items():
        bound = 1e-11 * np.maximum.accumulate(abs(wanted))
        assert_within(bound, found[name], wanted, name)


def test_a_gradient_that_is_no_number_is_seen(case, x64):
    """NaN comes out where it went in, at once, and nowhere else."""
    assert_no_number_is_seen(case, *case.problem(), case.extra_args)


def test_a_gradient_that_is_no_number_is_seen_by_a_stage(stage, x64):
    assert_no_number_is_seen(stage, *problem(1e25), {})


def assert_no_number_is_seen(case, params, grads, extra_args):
    _, clean = run_as_data(case.here(), params, grads, extra_args)
    first = next(iter(grads))
    grads[first][60, 1] = np.nan
    path, updates = run_as_data(case.here(), params, grads, extra_args)
    if repr(case).startswith("clip_by_global_norm"):
        assert all(np.isnan(u[60]).all() for u in updates.values())
        return
    if getattr(case, "treewise", False):
        assert np.isnan(updates[first][60, 1])
        assert all(np.isnan(p[61:]).all() for p in path.values())
        return
    assert np.isnan(updates[first][60, 1])
    assert np.isnan(path[first][60:, 1]).all()
    if getattr(case, "layerwise", False):
        assert np.isnan(updates.pop(first)[60]).all()
        clean.pop(first)
    for name, wanted in clean.items():
        np.testing.assert_array_equal(np.delete(updates[name], 1, 1), np.delete(wanted, 1, 1))
