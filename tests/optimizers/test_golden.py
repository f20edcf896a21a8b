"""The paths of torch and of other packages, as recorded, against the oracles' and optfn's.

`golden/make_torch.py` and `golden/make_packages.py` recorded them. optfn walks those of torch's
conventions that are optax's too; the oracles know the others as well.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from algorithms import assert_within, centring_error, run_as_data

import optfn
from optfn import schedules

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN, CASES = {}, {}
for file in ("torch", "packages"):
    with np.load(FOLDER / f"{file}.npz") as recorded:
        GOLDEN[file] = dict(recorded)
    cases = json.loads(GOLDEN[file]["meta"].item())["cases"]
    CASES |= {f"{file}/{name}": case for name, case in cases.items()}

# What torch does and optfn, like optax, does not: see `make_torch.py`.
ORACLE_ONLY = {
    "torch/adam_amsgrad": "corrects the bias after the maximum",
    "torch/adagrad": "adds eps to the root",
    "torch/adagrad_initial": "adds eps to the root",
}

# What a package computes in float32: the bias correction.
ROUNDED = {"packages/laprop": 1e-7}

each = pytest.mark.parametrize("name", CASES)


def recorded_path(name):
    """The first params, the gradients of all steps, and the params after each."""
    file, case = name.split("/")
    return GOLDEN[file]["p0"], GOLDEN[file]["grads"], GOLDEN[file][case]


def assert_on_recorded_path(found, name):
    """At 1e-11 of its length; a centred second moment has its own condition."""
    p0, grads, wanted = recorded_path(name)
    steps = abs(np.diff(wanted, axis=0, prepend=p0[None]))
    bound = ROUNDED.get(name, 1e-11) * (abs(p0) + np.cumsum(steps, axis=0))
    if name == "torch/rmsprop_centered":
        errors = centring_error(grads, 0.01, 1e-14, eps_in_sqrt=False)
        assert np.median(errors / (steps + 1e-300)) < 1e-11, "the bound says nothing"
        bound += np.cumsum(errors, axis=0)
    assert_within(bound, found, wanted, name)


def optfn_path(name, left_out=()):
    case = CASES[name]
    arguments = {k: v for k, v in case["oracle_kwargs"].items() if k not in left_out}
    rate = arguments.pop("lr")
    if isinstance(rate, list):
        rates = jnp.asarray(rate)
        rate = schedules.custom(lambda step: rates[step])
    tx = getattr(optfn, case["oracle"])(rate, **arguments)
    return run_as_data(tx, *recorded_path(name)[:2])[0]


@each
def test_the_oracles_walk_the_recorded_paths(name):
    case = CASES[name]
    p0, grads, _ = recorded_path(name)
    found = getattr(oracles, case["oracle"])(p0, grads, **case["oracle_kwargs"])
    assert_on_recorded_path(found, name)


@pytest.mark.parametrize("name", sorted(CASES.keys() - ORACLE_ONLY.keys()))
def test_optfn_walks_the_recorded_paths(name, x64):
    assert_on_recorded_path(optfn_path(name), name)


@pytest.mark.parametrize("name", ORACLE_ONLY)
def test_the_conventions_differ_where_they_are_said_to(name, x64):
    """Otherwise optfn could be held to these paths too."""
    found = optfn_path(name, left_out=("max_after_correction", "eps_in_sqrt"))
    with pytest.raises(AssertionError, match="of the bound"):
        assert_on_recorded_path(found, name)
