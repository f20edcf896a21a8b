"""Names and defaults: a stage's are its optimizer's, and both are optax's."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import test_sizes
from algorithms import CASES, STAGES, in_optax
from cases import gives_a_transform
from optax_names import OTHER_ARGUMENTS, OTHER_DEFAULTS

import optfn
from optfn.core.transform import transforms_in

EMPTY = inspect.Parameter.empty


def is_transform(value):
    return inspect.isclass(value) and issubclass(value, optfn.Transform)


def defined_in(*packages):
    """The public optimizers and stages from these packages of optfn, by name."""
    return {
        name: value
        for name, value in vars(optfn).items()
        if callable(value)
        and value.__module__.startswith(tuple(f"optfn.{p}." for p in packages))
        and (is_transform(value) or gives_a_transform(value))
    }


FUNCTIONS = {k: v for k, v in defined_in("optimizers").items() if inspect.isfunction(v)}
# Stages that are composed of stages.
COMPOSED = {k: v for k, v in FUNCTIONS.items() if k.startswith("scale_by_")}
OPTIMIZERS = {k: v for k, v in FUNCTIONS.items() if k not in COMPOSED}
OF_MATRICES = OPTIMIZERS.keys() & defined_in("optimizers.matrix").keys()
OF_BOUNDS = {"lbfgsb"}
DIRECTIONS = {k: v for k, v in defined_in("optimizers").items() if inspect.isclass(v)}
PUBLIC = FUNCTIONS | DIRECTIONS | defined_in("transforms")

# optfn's own. (optax has momentum's average as a stage only, and a retraction as two stages.)
NOT_IN_OPTAX = {
    *("momentum", "laprop", "grams", "qhm", "qhadam"),
    *("scale_by_laprop", "scale_by_qhm", "scale_by_qhadam"),
    *("retract_by_learning_rate", "correct_by_mars", "orthogonalize_to_params", "negate"),
    *("scale_by_dog", "scale_by_dowg", "given_hessian_diagonal", "hyperball", "scale_by_sophia"),
    *("stable_adamw", "scale_by_stable_adamw", "adam_mini", "scale_by_adam_mini"),
    *("add_cautious_decay", "descend_with_corrected_decay", "descend_with_independent_decay"),
    *("clip_by_norm", "scale_by_layer_decay"),
    *("normuon", "adamuon", "scion", "muon_clip", "scale_by_lmo"),
    *("scale_by_row_moment", "normalize_matrices", "equalize_rows"),
    *("newton_schulz", "scale_by_matrix_shape", "clip_by_matrix_rms"),
    *("soap", "kl_shampoo", "kl_soap", "shampoo", "splus"),
    *("scale_by_soap", "scale_by_kl_shampoo", "scale_by_kl_soap"),
    *("scale_by_shampoo", "scale_by_splus", "descend_by_sides", "descend_then_decay"),
    *("kron", "psgd_pro", "scale_by_kron", "scale_by_psgd_pro"),
    *("whiten_by_kron", "whiten_by_pro", "whiten_entries_by_kron"),
    *("dion", "dion2", "scale_by_dion", "scale_by_dion2"),
    *("apollo", "apollo_mini", "scale_by_apollo"),
    *("scale_by_prodigy", "scale_by_dadapt_adamw", "scale_by_momo", "scale_by_momo_adam"),
    *("lbfgsb", "scale_by_lbfgsb"),
}

# Where optax's function and its stage differ, and so do optfn's; the authors' eps of Grams.
NOT_THE_STAGE_S = {
    ("shampoo", "b2"),  # of the factors; the one of Adam's norms is another
    ("shampoo", "eps"),
    ("stable_adamw", "weight_decay"),
    ("dog", "init_step"),
    ("grams", "eps"),
    ("lars", "trust_coefficient"),
    ("adan", "eps_root"),
    ("ademamix", "alpha"),
    ("fromage", "min_norm"),
    ("lamb", "eps"),
    ("novograd", "eps"),
    ("optimistic_adam_v2", "nesterov"),
    ("scion", "radius"),  # the authors'; a farthest point is in the ball of radius 1
    ("apollo_mini", "scale"),  # for the rank of 1
}


# sm3's momentum is the stage's b1; an estimator, a line search or an optimizer within is another
# matter.
OTHER_NAMES = {
    ("sm3", "scale_by_sm3"),
    ("sophia", "hutchinson_estimator_diag_hessian"),
    ("lbfgs", "scale_by_zoom_linesearch"),
    ("lbfgsb", "scale_by_zoom_linesearch"),
    ("galore", "scale_by_adam"),
}


def parameters(function):
    return dict(inspect.signature(function).parameters)


def stages_in(tx):
    """All transforms that it is made of."""
    inner = [x for _, value in tx.fields("child") for x in transforms_in(value)]
    return [tx, *(stage for x in inner for stage in stages_in(x))]


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - NOT_IN_OPTAX))
def test_arguments_are_optax_s(name):
    """Their names, their order, their kinds and their defaults."""

    omitted = set(OTHER_ARGUMENTS.get(name, ("",))[0].split())
    defaults = {k: value for (owner, k), (value, _) in OTHER_DEFAULTS.items() if owner == name}

    def arguments(function):
        return [
            (k, p.kind, defaults.get(k, p.default))
            for k, p in parameters(function).items()
            if k not in omitted
        ]

    assert arguments(PUBLIC[name]) == arguments(in_optax(name))
    for k, default in defaults.items():
        assert parameters(PUBLIC[name])[k].default == default


def test_optax_has_not_got_the_rest():
    assert not any(in_optax(name) for name in NOT_IN_OPTAX)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_optimizer_s_defaults_are_its_stage_s(name):
    own = parameters(FUNCTIONS[name])
    required = {k: 0.1 for k, p in own.items() if p.default is EMPTY}
    # The optimizer of what is no matrix has defaults of its own, unless it is of the same file.
    switches = [{}] + [{k: True} for k in own if k == "centered"]
    switches += [{k: optfn.sgd(0.1)} for k in own if k == "rest"]
    for switch in switches:
        everything = "rest" in switch or "rest" not in own
        for stage in map(type, stages_in(FUNCTIONS[name](**required, **switch))):
            of_the_file = stage.__module__ == FUNCTIONS[name].__module__
            if stage.__name__ in DIRECTIONS and (everything or of_the_file):
                theirs = parameters(stage)
                shared = own.keys() & theirs.keys()
                assert shared or not theirs or (name, stage.__name__) in OTHER_NAMES
                for k in shared - {k for owner, k in NOT_THE_STAGE_S if owner == name}:
                    assert own[k].default == theirs[k].default, k
                    assert k == "learning_rate" or own[k].default != EMPTY, k


@pytest.mark.parametrize("name", COMPOSED)
def test_an_optimizer_s_defaults_are_those_of_its_composed_stage(name):
    theirs = parameters(COMPOSED[name])
    own = parameters(OPTIMIZERS[name.removeprefix("scale_by_")])
    for k in theirs:
        mine = own[k] if k in own else own[f"muon_{k}"]
        assert mine.default == theirs[k].default, k


def test_defaults_are_tested_for_every_direction():
    """Each is a stage of some optimizer, but for the one that is a stage only in optax too."""
    built = [case.here() for case in CASES] + [OPTIMIZERS[name](0.1) for name in OF_MATRICES]
    used = {type(stage).__name__ for tx in built for stage in stages_in(tx)}
    alone = {"scale_by_distance_over_gradients", "hutchinson_estimator_diag_hessian"}
    alone |= {"scale_by_zoom_linesearch", "scale_by_backtracking_linesearch"}
    alone |= {"scale_by_lbfgsb"}  # test_lbfgsb
    assert DIRECTIONS.keys() - used == alone


def test_every_algorithm_and_stage_has_its_case():
    assert {case.algorithm for case in CASES} == OPTIMIZERS.keys() - OF_MATRICES - OF_BOUNDS
    alone = {stage.name.split()[0] for stage in STAGES}
    alone |= test_sizes.STAGES.keys() | {"normalize_by_update_norm"}
    alone |= {"correct_by_mars", "orthogonalize_to_params"}  # test_theorems
    alone |= {"scale_by_distance_over_gradients", "normalize", "hyperball", "add_cautious_decay"}
    alone |= {"descend_with_corrected_decay", "descend_with_independent_decay"}
    alone |= {"hutchinson_estimator_diag_hessian"}  # test_curvature
    alone |= {"zero_nans"}  # transforms/test_nans.py
    alone |= {"scale_by_zoom_linesearch", "scale_by_backtracking_linesearch"}  # test_lbfgs
    alone |= {"scale_by_lbfgsb"}  # test_lbfgsb
    alone |= {"clip_by_norm", "keep_params_nonnegative"}  # transforms/test_clip.py, test_project.py
    alone |= {"scale_by_layer_decay"}  # compose/test_groups.py
    alone |= {"reduce_on_plateau"}  # compose/test_plateau
    alone |= {"equalize_rows"}  # matrix/test_muon_kin.py
    built = [case.here() for case in CASES] + [OPTIMIZERS[name](0.1) for name in OF_MATRICES]
    inside = {type(stage).__name__ for tx in built for stage in stages_in(tx)}
    assert alone | inside >= PUBLIC.keys() - FUNCTIONS.keys()


# Bad values of each argument: the message names what the user wrote, not what a stage calls it.
BAD_VALUES = {
    "a text": "text",
    "an object": object(),
    "NaN": float("nan"),
    "a complex number": 1j,
    "a class": optfn.schedules.linear,
    "an array of texts": np.array(["a"]),
    "a list": [1, 2],
    "a negative number": -1.0,
    "a number": 2.0,
    "a switch": True,
    "None": None,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_an_error_names_the_argument_that_the_user_wrote(name):
    function = PUBLIC[name]
    parameters = inspect.signature(function).parameters
    required = {k: 0.1 for k, p in parameters.items() if p.default is EMPTY}
    if name == "scale_by_layer_decay":
        required["layers_above"] = 1
    if name == "scale_by_dog":
        required["init_step"] = ("distance", 0.1)
    # Without these, others have no use.
    required |= {
        k: 0.1 for k in ("weight_decay", "weight_decay_rate", "momentum") if k in parameters
    }
    function(**required)
    refused = set()
    for argument in parameters:
        for value in BAD_VALUES.values():
            try:
                function(**required | {argument: value})
            except (TypeError, ValueError) as error:
                assert f"{name}({argument}=" in str(error), (argument, value, str(error))
                refused.add(argument)
    assert refused == set(parameters), set(parameters) - refused


def test_an_error_of_a_function_of_the_user_s_own_names_the_call_inside():
    def mine(rate):
        return optfn.chain(optfn.clip(1.0), optfn.sgd(rate, momentum="much"))

    with pytest.raises(TypeError, match=r"^sgd\(momentum=\.\.\.\) must be a number"):
        mine(0.1)


def test_a_mask_that_does_not_fit_is_called_as_the_user_called_it():
    with pytest.raises(ValueError, match=r"^lars\(weight_decay_mask=\.\.\.\) does not fit"):
        optfn.lars(0.1, weight_decay_mask={"a": True}).init({"b": jnp.ones(2)})
