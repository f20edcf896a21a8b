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

each_way = pytest.mark.parametrize("run", [run_as_data, run_closed_over], ids=["data", "closed"])


@each_way
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_params_equal_the_oracle_s(case, run, x64):
    """At 1e-11 of the length of the path, which is the sum of all that was rounded on it.

    Adam's 1 - b2^t has a relative error of 2^-53 / (1 - b2), 1e-13; 100 steps add up to 1e-11. A
    centred second moment has its own condition.
    """
    params, grads = problem(case.largest, first_step_zero=case.first_step_zero)
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


@each_way
@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_updates_of_stages_equal_the_oracle_s(stage, run, x64):
    """At 1e-11 of the largest update so far, which is what a sum of them is rounded by."""
    params, grads = problem(1e25)
    _, found = run(stage.here(), params, grads)
    for name, wanted in stage.oracle(grads).items():
        bound = 1e-11 * np.maximum.accumulate(abs(wanted))
        assert_within(bound, found[name], wanted, name)
