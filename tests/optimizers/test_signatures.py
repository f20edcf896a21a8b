"""Names and defaults: a stage's are its optimizer's, and both are optax's."""

import inspect

import optax
import pytest
from algorithms import CASES, STAGES

import optfn

EMPTY = inspect.Parameter.empty


def defined_in(*packages):
    """The public optimizers and stages from these packages of optfn, by name."""
    return {
        name: value
        for name, value in vars(optfn).items()
        if callable(value) and value.__module__.startswith(tuple(f"optfn.{p}." for p in packages))
    }


OPTIMIZERS = {k: v for k, v in defined_in("optimizers").items() if inspect.isfunction(v)}
DIRECTIONS = {k: v for k, v in defined_in("optimizers").items() if inspect.isclass(v)}
PUBLIC = OPTIMIZERS | DIRECTIONS | defined_in("transforms")

# optfn's own: optax has the average as a stage only.
NOT_IN_OPTAX = {"momentum"}

# What optax's functions take and optfn's do not. A storage dtype is chosen by wrapping a transform,
# not by a flag of each rule; Lion's other functions in the place of the sign are other algorithms.
NOT_HERE = {"mu_dtype", "accumulator_dtype"}
NOT_IN_LION = {"mode", "smooth_beta"}

# optax's default None means no rate and, with it, ascent.
REQUIRED_HERE = {("scale_by_learning_rate", "learning_rate")}


def parameters(function):
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - NOT_IN_OPTAX))
def test_arguments_are_optax_s(name):
    """Their names, their order, their kinds and their defaults."""

    omitted = NOT_HERE | NOT_IN_LION if name == "scale_by_lion" else NOT_HERE

    def arguments(function):
        return [
            (k, p.kind, EMPTY if (name, k) in REQUIRED_HERE else p.default)
            for k, p in parameters(function).items()
            if k not in omitted
        ]

    assert arguments(PUBLIC[name]) == arguments(getattr(optax, name))
    for k in {k for stage, k in REQUIRED_HERE if stage == name}:
        assert parameters(PUBLIC[name])[k].default is EMPTY


def test_optax_has_not_got_the_rest():
    assert not any(hasattr(optax, name) for name in NOT_IN_OPTAX)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_s_defaults_are_its_stage_s(name):
    own = parameters(OPTIMIZERS[name])
    switches = [{}] + [{k: True} for k in own if k == "centered"]
    for switch in switches:
        stages = OPTIMIZERS[name](0.1, **switch).stages
        for stage in stages:
            if type(stage).__name__ in DIRECTIONS:
                shared = own.keys() & parameters(type(stage)).keys()
                assert shared
                for k in shared:
                    assert own[k].default == parameters(type(stage))[k].default != EMPTY, k


def test_defaults_are_tested_for_every_direction():
    """Each is the first stage of some optimizer."""
    built = [case.here() for case in CASES]
    used = {type(stage).__name__ for tx in built for stage in tx.stages}
    assert DIRECTIONS.keys() <= used


def test_every_algorithm_and_stage_has_its_case():
    assert {case.algorithm for case in CASES} == OPTIMIZERS.keys()
    alone = {stage.name.split()[0] for stage in STAGES}
    inside = {type(stage).__name__ for case in CASES for stage in case.here().stages}
    assert alone | inside >= PUBLIC.keys() - OPTIMIZERS.keys()
