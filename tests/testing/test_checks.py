"""The conformance kit: optfn passes all of it, and it sees what is wrong with others."""

import cases
import pytest

from optfn.testing import check_transform
from optfn.testing.checks import CHECKS

# What says nothing about whom: the checks that may not apply, and to which cases.
WITHOUT_SLOTS = {  # of the params' shapes
    "sgd", "scale", "scale_by_learning_rate", "scale_by_schedule", "clip", "clip_by_global_norm",
    "add_decayed_weights", "sign_sgd", "fromage", "noisy_sgd", "orthograd", "polyak_sgd",
    "reduce_on_plateau", "packed",
}  # fmt: skip
AVERAGES = ("schedule_free_sgd", "schedule_free_adamw", "primal_averaging")
SKIPPED = {"noisy_sgd": {"tree_layout": "the noise depends on the path"}} | {
    name: {"low_precision": "params that were not stepped are not what it averages"}
    for name in AVERAGES
}
NOT_APPLICABLE = {
    "sharding": WITHOUT_SLOTS,
    "tree_layout": {"noisy_sgd"},
    "low_precision": AVERAGES,  # compose/test_averaging.py
}


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_optimizer_passes(name):
    skip, extra_args = SKIPPED.get(name), cases.EXTRA_ARGS.get(name)
    outcome = check_transform(cases.OPTIMIZERS[name], extra_args=extra_args, skip=skip)
    _check_all(name, outcome)


@pytest.mark.parametrize("name", cases.STAGES)
def test_stage_passes(name):
    _check_all(name, check_transform(cases.STAGES[name], learning_rate=0.05))


def _check_all(name, outcome):
    assert outcome.keys() == CHECKS.keys()
    left_out = {check for check, result in outcome.items() if result != "passed"}
    assert left_out == {check for check, names in NOT_APPLICABLE.items() if name in names}
