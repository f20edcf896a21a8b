"""Every optimizer passes the conformance kit with its state in low precision."""

import cases
import pytest

import optfn
from optfn import storage
from optfn.testing import check_transform

CODECS = {"bf16": storage.bf16(), "int8": storage.int8()}
REMOVES_NANS = (
    *("skip_nonfinite", "apply_if_finite", "skip_spikes", "loss_scale"),
    *("accumulate", "accumulate weighted"),
)
OF_PATHS = ("noisy_sgd", "kron", "apollo", "muon_clip")
# Derivatives do not pass through whole numbers; others are those of `testing/test_checks.py`.
SKIPPED = dict.fromkeys(
    ("hypergradients", "hyperparameters_vmap", "vmap_equals_loop", "jit_equals_eager"),
    "rounding moves what is near half a digit",
)
SKIPPED |= dict.fromkeys(("low_precision", "odd_leaves"), "test_whole_kit runs it")
GATHERS = "it gathers its params, and the compiler places the vectors"
OWN = (
    {name: {"nan_visible": "to remove them is what it is for"} for name in REMOVES_NANS}
    | {name: {"tree_layout": "what it does depends on the path"} for name in OF_PATHS}
    | {"flatten": {"sharding": GATHERS}}
    | {"lbfgsb": {"sharding": GATHERS, "fixed_point": "complex params have no bounds"}}
)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_it_passes_the_kit(name, codec):
    tx = optfn.store(cases.OPTIMIZERS[name], CODECS[codec], leaves=True)
    skip = SKIPPED | OWN.get(name, {})
    check_transform(tx, extra_args=cases.EXTRA_ARGS.get(name), skip=skip)
