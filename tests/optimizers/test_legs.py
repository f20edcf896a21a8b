"""The legs of the README's table exist, and all that exist are in it."""

import inspect
import re
import sys
from pkgutil import resolve_name

import algorithms
import oracles
import pytest
import recorded
import test_curvature
import test_dion
import test_golden
import test_kron
import test_lbfgs
import test_lbfgsb
import test_low_rank
import test_muon
import test_muon_kin
import test_optax
import test_packages
import test_psgd_pro
import test_scion
import test_shampoo
import test_soap
import test_theorems
from compose import test_qk_clip
from legs import LEGS
from test_signatures import OF_BOUNDS, OF_MATRICES, OPTIMIZERS

import optfn

THEOREMS = (test_theorems, test_curvature, test_lbfgs, test_lbfgsb)
# All tests of matrix optimizers.
OF_MATRIX_OPTIMIZERS = (
    *(test_muon, test_muon_kin, test_scion, test_dion, test_soap, test_shampoo, test_kron),
    *(test_psgd_pro, test_low_rank, test_qk_clip, test_packages),
)


def test_every_optimizer_has_legs():
    assert LEGS.keys() == OPTIMIZERS.keys()


def has_test(modules, name):
    return any(inspect.isfunction(getattr(module, name, None)) for module in modules)


@pytest.mark.parametrize("name", LEGS)
def test_stages_exist(name):
    assert all(inspect.isclass(getattr(optfn, stage)) for stage in LEGS[name].stages)


@pytest.mark.parametrize("name", sorted(LEGS.keys() - OF_MATRICES - OF_BOUNDS))
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
    assert has_test(THEOREMS, leg.theorem)


def test_legs_of_what_takes_bounds_stand():
    assert LEGS.keys() >= OF_BOUNDS
    leg = LEGS["lbfgsb"]
    assert test_lbfgsb.lbfgsb is getattr(oracles, leg.oracle)
    assert not leg.optax and not leg.golden
    assert has_test(THEOREMS, leg.theorem)


@pytest.mark.parametrize("name", sorted(OF_MATRICES))
def test_legs_of_a_matrix_optimizer_stand(name):
    leg = LEGS[name]
    oracle = resolve_name(f"oracles.{leg.oracle}")
    assert inspect.isfunction(oracle)
    assert any(compares(module, name, oracle) for module in OF_MATRIX_OPTIMIZERS)
    assert leg.optax == (algorithms.in_optax(name) is not None)
    text = "".join(map(inspect.getsource, OF_MATRIX_OPTIMIZERS))
    assert leg.optax == (f"optax.contrib.{name}(" in text)
    records = [record for record in recorded.PACKAGES if recorded.optimizer_of(record) == name]
    assert set(leg.golden) == {recorded.PACKAGES[record] for record in records}
    assert all(re.search(rf'"{record}["/]', text) for record in records)
    assert has_test(OF_MATRIX_OPTIMIZERS, leg.theorem)


def compares(module, name, oracle):
    """Whether tests build the optimizer and hold its oracle."""
    held = [oracle, sys.modules[oracle.__module__]]
    has_oracle = any(value is one for value in vars(module).values() for one in held)
    return has_oracle and f"optfn.{name}(" in inspect.getsource(module)


def test_every_record_is_of_an_optimizer():
    assert {recorded.optimizer_of(record) for record in recorded.PACKAGES} <= OF_MATRICES
