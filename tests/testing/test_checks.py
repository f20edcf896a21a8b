"""The conformance kit: optfn passes all of it, and it sees what is wrong with others."""

import cases
import chex
import jax
import pytest

import optfn
from optfn.core.transform import transforms_in
from optfn.schedules import Schedule, constant
from optfn.testing import check_transform, checks, sharding
from optfn.testing.checks import CHECKS, Subject, example_grads, example_params

# What says nothing about whom: the checks that may not apply, and to which cases.
REMOVES_NANS = (
    *("skip_nonfinite", "apply_if_finite", "skip_spikes", "loss_scale", "zero_nans"),
    *("accumulate", "accumulate weighted"),
)
AVERAGES = ("schedule_free_sgd", "schedule_free_adamw", "primal_averaging")
OF_PATHS = ("noisy_sgd", "kron", "apollo", "muon_clip")
SKIPPED = {name: {"tree_layout": "what it does depends on the path"} for name in OF_PATHS} | {
    name: {"low_precision": "params that were not stepped are not what it averages"}
    for name in AVERAGES
}
SKIPPED |= {name: {"nan_visible": "to remove them is what it is for"} for name in REMOVES_NANS}
SKIPPED |= {"flatten": {"sharding": "it gathers its params, and the compiler places the vectors"}}
SEARCHES = ("lbfgs", "lbfgsb", "backtracking")
SKIPPED |= {
    name: {"hypergradients": "a while loop has no derivative backwards"} for name in SEARCHES
}
SKIPPED["lbfgsb"]["fixed_point"] = "complex params have no bounds"
SKIPPED["lbfgsb"]["sharding"] = SKIPPED["flatten"]["sharding"]
OF_NUMBERS = ("one_trace", "schedule_equals_constant", "hyperparameters_vmap", "round_trip")
NOT_APPLICABLE = {
    **{check: {"centralize"} for check in OF_NUMBERS},  # has none
    "tree_layout": set(OF_PATHS),
    "fixed_point": {"lbfgsb"},  # optimizers/test_lbfgsb.py
    "sharding": {"flatten", "lbfgsb"},  # interop/test_jax_sharding.py
    "low_precision": AVERAGES,  # compose/test_averaging.py
    "nan_visible": REMOVES_NANS,  # compose/test_finite.py, test_accumulate.py, transforms/test_nans
    "hypergradients": {*SEARCHES, "centralize"},
}

# What compiles most, which is left to `pytest -m slow`.
COSTLY = (
    *("hypergradients", "hyperparameters_vmap", "vmap_equals_loop", "jit_equals_eager"),
    *("low_precision", "odd_leaves", "schedule_equals_constant"),
)
# They tell little beside float16 and bfloat16 params with wider gradients: left to it too.
LEAST_TELLING = ("bfloat16", "float32 params with bfloat16 gradients")
WAYS_OF_OLDEST = ("all split", "the state alone split")
# These run the fixed point in double precision and place arrays on automatic axes by default: all
# are on their oracles' paths in double precision, and explicit axes tell where all slots lie.
IN_FULL = set(sorted(cases.OPTIMIZERS)[::4])


@pytest.fixture
def costly(request, monkeypatch, name):
    """The checks to leave out for want of time, each with the reason."""
    left_out = dict.fromkeys(COSTLY, "test_whole_kit runs it")
    if name not in IN_FULL:
        left_out["double_precision"] = "test_whole_kit runs it"
        monkeypatch.setattr(sharding, "_check_arrays", lambda *_: None)
    dtypes = checks.DTYPES.keys() - set(LEAST_TELLING)
    if request.config.option.markexpr == "oldest":
        dtypes = {"float32"}
        left_out["double_precision"] = "float32 is the one dtype"
        # The other ways are the same rule of optfn's, whatever the versions are.
        ways = {k: v for k, v in sharding.SPLIT.items() if k in WAYS_OF_OLDEST}
        monkeypatch.setattr(sharding, "SPLIT", ways)
    monkeypatch.setattr(checks, "DTYPES", {k: v for k, v in checks.DTYPES.items() if k in dtypes})
    # What is not split is met where only some of params, gradients and state are, and a leaf on one
    # axis among those on two.
    shapes = {k: v for k, v in sharding.SHAPES.items() if k != "whole"}
    monkeypatch.setattr(sharding, "SHAPES", shapes)
    meshes = {k: v for k, v in sharding.MESHES.items() if k != "one axis"}
    monkeypatch.setattr(sharding, "MESHES", meshes)
    return left_out


# They are there for others: an optax transformation, a tree among the extra arguments, and a mesh.
NOT_ALONE = {"from_optax", "given_hessian_diagonal", "on_mesh", "offload"}


def parts(tx):
    """The classes of all transforms that it is made of."""
    inner = [x for _, value in tx.fields("child") for x in transforms_in(value)]
    return {type(tx)}.union(*map(parts, inner))


def test_every_public_transform_is_among_the_cases():
    used = set().union(*map(parts, [*cases.OPTIMIZERS.values(), *cases.STAGES.values()]))
    classes = {x for x in vars(optfn).values() if isinstance(x, type)}
    public = {x for x in classes if issubclass(x, optfn.Transform)}
    public -= {optfn.Transform, optfn.Leafwise, optfn.Matrixwise, optfn.Wrapper}
    assert {x.__name__ for x in public - used} == NOT_ALONE


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_optimizer_passes(name, costly):
    _check_optimizer(name, costly)


@pytest.mark.newest
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_a_schedule_is_taken_for_every_number(name):
    """Traced only; that constant ones change no value is for `test_whole_kit` to see."""
    tx, params = cases.OPTIMIZERS[name], example_params()
    grads, subject = example_grads(params), Subject(tx, cases.EXTRA_ARGS.get(name, {}))
    scheduled = jax.tree.map(
        lambda x: x if isinstance(x, Schedule) else constant(x),
        tx,
        is_leaf=lambda x: isinstance(x, Schedule),
    )

    def run(tx):
        second = jax.eval_shape(lambda *data: subject.twice(tx, *data), grads, params)
        return jax.eval_shape(tx.init, params), second

    found, expected = run(scheduled), run(tx)
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_whole_kit(name):
    _check_optimizer(name, {})


def _check_optimizer(name, costly):
    skip, extra_args = costly | SKIPPED.get(name, {}), cases.EXTRA_ARGS.get(name)
    outcome = check_transform(cases.OPTIMIZERS[name], extra_args=extra_args, skip=skip)
    _check_all(name, outcome, costly)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.STAGES)
def test_stage_passes(name):
    skip = SKIPPED.get(name)
    _check_all(name, check_transform(cases.STAGES[name], learning_rate=0.05, skip=skip))


def _check_all(name, outcome, costly=()):
    assert outcome.keys() == CHECKS.keys()
    left_out = {check for check, result in outcome.items() if result != "passed"}
    not_applicable = {check for check, names in NOT_APPLICABLE.items() if name in names}
    assert left_out == not_applicable.union(costly)
