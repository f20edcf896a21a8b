"""The table of optax's names misses none, and says of none what is not so."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax_names
import pytest

import optfn
from optfn import schedules
from optfn.core.optax_names import ELSEWHERE, LEFT, PLANNED

ALONE = {name for names in LEFT.values() for name in names}
HERE = {"projections"}  # optax's functions work unchanged; optfn has sets under this name
WRITTEN = ELSEWHERE.keys() | set(PLANNED) | ALONE
PUBLIC = list(optax_names.names())
SAME = [name for module, name in PUBLIC if optax_names.kind(module, name) == "same"]


def test_every_name_of_optax_has_a_place():
    """A name that a newer optax adds is an error here."""
    assert len(PUBLIC) > 350
    assert all(optax_names.kind(module, name) for module, name in PUBLIC)
    with pytest.raises(KeyError, match="no place"):
        optax_names.kind("optax", "a_name_of_a_newer_optax")


def test_a_name_has_one_place():
    places = [*ELSEWHERE, *PLANNED, *(name for names in LEFT.values() for name in names)]
    assert len(places) == len(set(places))
    assert {name for name in WRITTEN if hasattr(optfn, name)} == HERE


def test_no_name_is_listed_that_optax_has_not():
    assert {name for _, name in PUBLIC} >= WRITTEN


def test_every_place_exists():
    for name, text in ELSEWHERE.items():
        for path in re.findall(r"\boptfn((?:\.\w+)+)", text):
            value = optfn
            for part in path[1:].split("."):
                value = getattr(value, part)
        for path in re.findall(r"\boptax\.(\w+)\(", text):
            assert hasattr(optax, path), name


def test_every_argument_of_a_function_that_is_written_otherwise_is_named():
    for name, text in ELSEWHERE.items():
        value = optax_names.in_optax(name)
        if inspect.isfunction(value) or name == "MultiSteps":
            for argument in optax_names.parameters(value):
                assert re.search(rf"\b{argument}\b", text), (name, argument)


@pytest.mark.parametrize("name", sorted(WRITTEN - HERE))
def test_a_name_that_is_not_here_says_what_to_write(name):
    for module in (optfn, schedules):
        with pytest.raises(AttributeError) as error:
            getattr(module, name)
        assert str(error.value).startswith(f"module '{module.__name__}' has no attribute '{name}'.")
        if name in ELSEWHERE:
            assert ELSEWHERE[name] in str(error.value)


def test_a_name_that_nobody_has_is_an_ordinary_error():
    with pytest.raises(AttributeError) as error:
        getattr(optfn, "adma")  # noqa: B009
    assert str(error.value) == "module 'optfn' has no attribute 'adma'"
    assert error.value.name == "adma"
    assert error.value.obj is optfn
    assert not hasattr(optfn, "__wrapped__")
    assert not hasattr(schedules, "cosine_decay")


def test_an_argument_that_differs_without_a_reason_is_an_error(monkeypatch):
    assert len(SAME) > 100
    for name in SAME:
        optax_names.differences(name)
    monkeypatch.delitem(optax_names.OTHER_DEFAULTS, ("adadelta", "learning_rate"))
    with pytest.raises(KeyError, match="another default"):
        optax_names.differences("adadelta")
    monkeypatch.delitem(optax_names.OTHER_ARGUMENTS, "schedule_free_sgd")
    with pytest.raises(KeyError, match="say why"):
        optax_names.differences("schedule_free_sgd")


def test_no_reason_is_left_of_an_argument_that_is_the_same():
    for name, (arguments, _) in optax_names.OTHER_ARGUMENTS.items():
        theirs, ours = (
            optax_names.parameters(f) for f in (optax_names.in_optax(name), getattr(optfn, name))
        )
        for argument in arguments.split():
            assert argument in theirs or argument in ours, (name, argument)
            both = argument in theirs and argument in ours
            assert not both or repr(theirs[argument]) != repr(ours[argument]), (name, argument)
    for name, argument in optax_names.OTHER_DEFAULTS:
        default = optax_names.parameters(optax_names.in_optax(name))[argument].default
        assert default is not optax_names.OTHER_DEFAULTS[name, argument][0]


def test_an_argument_that_is_only_called_otherwise_has_optax_s_name_too():
    found = []
    for name in SAME:
        here = getattr(optfn, name)
        theirs, ours = map(optax_names.parameters, (optax_names.in_optax(name), here))
        fields = dataclasses.fields(here) if dataclasses.is_dataclass(here) else ()
        also = {field.metadata.get("also_called") for field in fields}
        explained = optax_names.OTHER_ARGUMENTS.get(name, ("",))[0].split()
        for other in optax_names._renamed(theirs, ours):
            is_star = theirs[other].kind is inspect.Parameter.VAR_POSITIONAL
            if other not in explained and not is_star:
                assert other in also, (name, other)
                found.append(name)
    assert {"masked", "partition", "apply_if_finite"} <= {*found}


# What the table says of stages, next to optax's.

PARAMS = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5)}
GRADS = [jax.tree.map(lambda p, t=t: jnp.cos(3.0 * t + p), PARAMS) for t in range(7)]


def path(tx):
    state, found = tx.init(PARAMS), []
    for grads in GRADS:
        updates, state = tx.update(grads, state, PARAMS)
        found.append(updates)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found), state


def written(name, **arguments):
    (expression, *_) = re.findall(r"`([^`]*)`", ELSEWHERE[name])
    return eval(expression, {"optfn": optfn, "optax": optax, "jax": jax, **arguments})


FROZEN = {"a": True, "b": False}
GROUPS = {"a": "x", "b": "y"}
STAGES = {
    "identity": (written("identity"), optax.identity()),
    "apply_every": (written("apply_every", k=3), optax.apply_every(3)),
    "selective_transform": (
        written("selective_transform", optimizer=optfn.sgd(0.1, 0.9), freeze_mask=FROZEN),
        optax.selective_transform(optax.sgd(0.1, 0.9), freeze_mask=FROZEN),
    ),
    "multi_transform": (
        written(
            "multi_transform",
            transforms={"x": optfn.sgd(0.1, 0.9), "y": optfn.sgd(1.0)},
            param_labels=GROUPS,
        ),
        optax.multi_transform({"x": optax.sgd(0.1, 0.9), "y": optax.sgd(1.0)}, GROUPS),
    ),
    "MultiSteps": (
        written(
            "MultiSteps",
            opt=optfn.sgd(0.1, 0.9),
            every_k_schedule=3,
            use_grad_mean=False,
            accumulator_dtype="float32",
        ),
        optax.MultiSteps(optax.sgd(0.1, 0.9), 3, use_grad_mean=False),
    ),
    "stateless": (
        written("stateless", f=lambda u, p: jax.tree.map(jnp.multiply, u, p)),
        optax.stateless(lambda u, p: jax.tree.map(jnp.multiply, u, p)),
    ),
    "freeze": (optfn.freeze(optfn.chain(), FROZEN), optax.freeze(FROZEN)),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_as_the_table_writes_it_does_what_optax_s_does(name):
    ours, theirs = STAGES[name]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        path(ours)[0],
        path(theirs)[0],
    )


def test_a_snapshot_as_the_table_writes_it_is_optax_s():
    name, measure = "norm", optax.tree.norm
    tx = optfn.chain(written("snapshot", measure_name=name, measure=measure), optfn.sgd(0.1))
    _, state = path(tx)
    _, other = path(optax.chain(optax.snapshot(name, measure), optax.sgd(0.1)))
    found = optfn.metrics(tx, state)[name]
    np.testing.assert_allclose(found, optax.tree.get(other, name), rtol=1e-6)
    assert optax.tree.get(state, name) == found
    _, without_params = tx.update(GRADS[-1], state)
    np.testing.assert_allclose(optax.tree.get(without_params, name), found, rtol=1e-6)


@pytest.mark.parametrize("x", [[3.0, -4.0], [0.0, 0.0], [0.01, 0.0]])
def test_a_safe_norm_as_the_table_writes_it_is_optax_s(x):
    ours = jax.value_and_grad(lambda x: written("safe_norm", x=x, min_norm=0.1))(jnp.asarray(x))
    theirs = jax.value_and_grad(lambda x: optax.safe_norm(x, 0.1))(jnp.asarray(x))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
