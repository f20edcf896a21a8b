"""Every algorithm in single precision against optax's: the same gradients, the same path."""

import jax
import numpy as np
import optax
import pytest
from algorithms import (
    CASES,
    FADING,
    OPTAX,
    RATE,
    STAGES,
    assert_within,
    centring_error,
    in_optax,
    problem,
    run_as_data,
    run_closed_over,
)

import optfn

# What is not optax's path; a test says how.
OTHER_THERE = {"rprop", "adan", "lbfgs"}
SHARED = [
    case
    for case in CASES
    if case.algorithm not in OTHER_THERE and (case.algorithm in OPTAX or in_optax(case.algorithm))
]


def data_of(case):
    params, grads = case.problem(1e6)
    if case.optax_real:
        params, grads = real_leaves(params), real_leaves(grads)
    extra_args = {k: real_leaves(x) if case.optax_real else x for k, x in case.extra_args.items()}
    return in_single_precision((params, grads, extra_args))


def real_leaves(tree):
    return {k: x for k, x in tree.items() if k != "complex"} if isinstance(tree, dict) else tree


def in_single_precision(tree):
    return jax.tree.map(
        lambda x: x.astype(np.complex64 if np.iscomplexobj(x) else np.float32), tree
    )


def largest_so_far(x):
    return np.maximum.accumulate(abs(np.asarray(x, complex)), axis=0)


# With the numbers as constants of the program `test_oracles.py` has them.
@pytest.mark.parametrize("case", SHARED, ids=repr)
def test_paths_equal_optax_s(case):
    """Updates within 2e-5 of their size and 1e-5 of a step, params within 1e-6 over the run.

    1 - b2 is formed in float32 here and in Python there: 7.6e-6 of it at b2 = 0.999. A step is the
    rate for algorithms that normalize; for the others the rate times the largest gradient so far,
    by which sums are rounded. A centred second moment has its own condition.
    """
    data = data_of(case)
    params, updates = run_as_data(case.here(), *data)
    optax_params, optax_updates = run_closed_over(case.there(), *data)
    for name, g in data[1].items():
        wanted = np.asarray(optax_updates[name])
        assert np.isfinite(wanted).all(), f"optax gives no numbers for {name}"
        bound = 2e-5 * abs(wanted)
        bound += 1e-5 * RATE * (largest_so_far(g) if case.linear else 1)
        params_bound = 1e-6 * np.maximum(1, largest_so_far(optax_params[name]))
        if case.linear:  # updates may be larger than params, and each is rounded
            params_bound += 2.0**-22 * np.cumsum(abs(wanted), axis=0)
        if case.options.get("centered"):
            # Both moments are sums of some ten terms that count.
            errors = centring_error(np.asarray(g, complex), RATE, 1e-6, **case.options)
            bound += errors
            params_bound += np.cumsum(errors, axis=0)
        if case.differences:
            rounding = 2.0**-21 * largest_so_far(optax_params[name])
            bound += rounding
            params_bound += 4 * rounding
        slack = case.optax_slack
        assert_within(slack * bound, updates[name], wanted, f"updates of {name}")
        assert_within(slack * params_bound, params[name], optax_params[name], f"params {name}")


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_updates_of_stages_equal_optax_s(stage):
    """To a few roundings of the largest update so far."""
    params, grads = in_single_precision(problem(1e6))
    _, found = run_as_data(stage.here(), params, grads)
    if stage.name == "clip":  # optax clips no complex numbers
        del params["complex"], grads["complex"]
    _, wanted = run_closed_over(stage.there(), params, grads)
    for name, updates in wanted.items():
        assert_within(1e-6 * largest_so_far(updates), found[name], updates, name)


@pytest.mark.parametrize(
    ("name", "scheduled"),
    [
        ("adam", "b1"),
        ("adamw", "weight_decay"),
        ("rmsprop", "decay"),
        ("lion", "b2"),
        ("ema", "decay"),
    ],
)
def test_any_hyperparameter_takes_a_schedule(name, scheduled):
    """As optax's do inside `inject_hyperparams`."""
    options = {} if name == "ema" else {"learning_rate": RATE}
    here = getattr(optfn, name)(**options, **{scheduled: FADING.here})
    there = optax.inject_hyperparams(getattr(optax, name))(**options, **{scheduled: FADING.optax})
    params, grads = in_single_precision(problem(1e6))
    del params["complex"], grads["complex"]  # optax casts the hyperparameters to this dtype
    _, found = run_as_data(here, params, grads)
    _, wanted = run_closed_over(there, params, grads)
    for leaf, updates in wanted.items():
        bound = 2e-5 * abs(np.asarray(updates)) + 1e-5 * largest_so_far(updates)
        assert_within(bound, found[leaf], updates, leaf)


def test_optax_applies_the_steps_of_rprop_one_update_late():
    """Its updates are those that optfn, and torch, gave one step before."""
    params, grads = in_single_precision(problem(1e6))
    del params["complex"], grads["complex"]
    updates = run_as_data(optfn.rprop(RATE), params, grads)[1]
    late = run_closed_over(optax.rprop(RATE), params, grads)[1]
    for name, u in updates.items():
        turned = np.sign(grads[name][1:]) * np.sign(u[:-1]) > 0  # where the sign turned it waits
        np.testing.assert_array_equal(np.where(turned, 0, u[:-1]), late[name][1:])
        assert (np.asarray(late[name][0]) == 0).all()


def test_the_functions_of_lion_are_optax_s():
    """Of real numbers; a complex one keeps its direction, with the size that a real one gets."""
    modes = {"hard": {}, "smooth": {"smooth_beta": 3.0}, "refined": {}}
    x = np.asarray([0.0, 1e-4, -0.3, 0.99, 1.7, -40.0], np.float32)
    turned = x * np.exp(1j * np.arange(6)).astype(np.complex64)

    @jax.jit
    def updates(g, turned):
        found = {}
        for mode, given in modes.items():
            ours, theirs = (lib.scale_by_lion(0.5, mode=mode, **given) for lib in (optfn, optax))
            for tx, name in ((ours, "here"), (theirs, "there")):
                state = tx.init(g)
                for _ in range(2):
                    found[mode, name], state = tx.update(g, state)
            found[mode, "turned"], _ = ours.update(turned, ours.init(turned))
            found[mode, "first"], _ = ours.update(g, ours.init(g))
        return found

    found = updates(x, turned)
    for mode in modes:
        np.testing.assert_allclose(found[mode, "here"], found[mode, "there"], 1e-6)
        direction = np.exp(1j * np.arange(6))
        np.testing.assert_allclose(found[mode, "turned"], found[mode, "first"] * direction, 1e-5)
    tx = optfn.scale_by_lion(0.5, mode="smooth", smooth_beta=3.0)
    slope = jax.grad(lambda g: tx.update(g, tx.init(g))[0])(np.float32(0))
    np.testing.assert_allclose(slope, 0.5 * 3.0)  # at zero too
    for wrong in ("soft", None, 1):
        with pytest.raises(ValueError, match=r"scale_by_lion\(mode=...\) must be one of \('hard',"):
            optfn.scale_by_lion(mode=wrong)
