"""The paths of torch, which `golden/make_torch.py` recorded, against the oracles' and optfn's.

optfn walks those of torch's conventions that are optax's too; the oracles know the others as well.
"""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
from algorithms import assert_within, centring_error, run_as_data

import optfn

with np.load(Path(__file__).parents[1] / "golden" / "torch.npz") as file:
    GOLDEN = dict(file)
CASES = json.loads(GOLDEN["meta"].item())["cases"]

# What torch does and optfn, like optax, does not: see `make_torch.py`.
ORACLE_ONLY = {
    "adam_amsgrad": "corrects the bias after the maximum",
    "adagrad": "adds eps to the root",
    "adagrad_initial": "adds eps to the root",
}

each = pytest.mark.parametrize("name", CASES)


def assert_on_torch_s_path(found, name):
    """At 1e-11 of its length; a centred second moment has its own condition."""
    p0, grads, wanted = GOLDEN["p0"], GOLDEN["grads"], GOLDEN[name]
    steps = abs(np.diff(wanted, axis=0, prepend=p0[None]))
    bound = 1e-11 * (abs(p0) + np.cumsum(steps, axis=0))
    if name == "rmsprop_centered":
        errors = centring_error(grads, 0.01, 1e-14, eps_in_sqrt=False)
        assert np.median(errors / (steps + 1e-300)) < 1e-11, "the bound says nothing"
        bound += np.cumsum(errors, axis=0)
    assert_within(bound, found, wanted, name)


@each
def test_the_oracles_walk_torch_s_paths(name):
    case = CASES[name]
    path = getattr(oracles, case["oracle"])
    assert_on_torch_s_path(path(GOLDEN["p0"], GOLDEN["grads"], **case["oracle_kwargs"]), name)


@pytest.mark.parametrize("name", sorted(CASES.keys() - ORACLE_ONLY.keys()))
def test_optfn_walks_torch_s_paths(name, x64):
    arguments = dict(CASES[name]["oracle_kwargs"])
    tx = getattr(optfn, CASES[name]["oracle"])(arguments.pop("lr"), **arguments)
    found, _ = run_as_data(tx, GOLDEN["p0"], GOLDEN["grads"])
    assert_on_torch_s_path(found, name)


@pytest.mark.parametrize("name", ORACLE_ONLY)
def test_the_conventions_differ_where_they_are_said_to(name, x64):
    """Otherwise optfn could be held to these paths too."""
    case = CASES[name]
    own = {"max_after_correction", "eps_in_sqrt"}
    arguments = {k: v for k, v in case["oracle_kwargs"].items() if k not in own}
    tx = getattr(optfn, case["oracle"])(arguments.pop("lr"), **arguments)
    found, _ = run_as_data(tx, GOLDEN["p0"], GOLDEN["grads"])
    with pytest.raises(AssertionError, match="of the bound"):
        assert_on_torch_s_path(found, name)
