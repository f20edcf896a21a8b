"""The legs of the README's table exist, and all that exist are in it."""

import inspect

import algorithms
import oracles
import pytest
import test_curvature
import test_golden
import test_lbfgs
import test_optax
import test_theorems
from legs import LEGS

import optfn


def test_every_optimizer_has_legs():
    functions = {
        name
        for name, value in vars(optfn).items()
        if inspect.isfunction(value) and value.__module__.startswith("optfn.optimizers.")
    }
    assert LEGS.keys() == functions


THEOREMS = (test_theorems, test_curvature, test_lbfgs)


@pytest.mark.parametrize("name", LEGS)
def test_legs_stand(name):
    leg = LEGS[name]
    assert inspect.isfunction(getattr(oracles, leg.oracle))
    assert name in {case.algorithm for case in algorithms.CASES}
    there = algorithms.in_optax(name) is not None and name not in test_optax.OTHER_THERE
    assert leg.optax == there
    golden = {
        facts.get("package", "torch")
        for case, facts in test_golden.CASES.items()
        if facts["oracle"] == name and case not in test_golden.ORACLE_ONLY
    }
    assert set(leg.golden) == golden
    assert any(inspect.isfunction(getattr(m, leg.theorem, None)) for m in THEOREMS)
    assert all(inspect.isclass(getattr(optfn, stage)) for stage in leg.stages)
