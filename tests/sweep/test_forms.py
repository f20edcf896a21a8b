"""Functions that are made for each trial by the same code are one structure."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweep.problem import RATE, STILL, run, same

import optfn
from optfn import sweep
from optfn.sweep.held_numbers import taken_apart, with_numbers
from optfn.sweep.scheduler import Scheduler


def falling(rate, step):
    return rate / (1 + step)


def of_a_closure(learning_rate):
    return optfn.sgd(lambda step: learning_rate / (1 + step))


def of_a_default(learning_rate):
    return optfn.sgd(lambda step, rate=learning_rate: rate / (1 + step))


def of_a_partial(learning_rate):
    return optfn.sgd(partial(falling, learning_rate))


def of_an_attribute(learning_rate):
    def rate(step):
        return rate.start / (1 + step)

    rate.start = learning_rate
    return optfn.sgd(rate)


def of_a_leaf(learning_rate):
    return optfn.sgd(jax.tree_util.Partial(falling, learning_rate))


def of_optax(learning_rate):
    return optfn.from_optax(optax.chain(optax.clip(1.0), optax.adam(learning_rate)))


def clipped(learning_rate):
    return optfn.chain(optfn.clip(1.0), optfn.adam(learning_rate))


def frozen(learning_rate):
    return optfn.freeze(optfn.sgd(learning_rate), lambda path, leaf: path == "b")


def concrete(learning_rate):
    if learning_rate < 0:
        raise ValueError("a rate below 0")
    return optfn.sgd(lambda step: learning_rate if learning_rate > 0 else 0.0)


def by_width(learning_rate, width):
    """The width is a shape, so it stays a number of the function; the rate does not."""
    return optfn.sgd(lambda step: learning_rate * jnp.mean(jnp.ones(width)))


def structures(monkeypatch):
    """The structures that are entered, in a list that grows."""
    entered, enter = [], Scheduler.enter

    def noted(self, trial):
        entered.append(trial.structure)
        return enter(self, trial)

    monkeypatch.setattr(Scheduler, "enter", noted)
    return entered


@pytest.fixture(scope="module")
def expected():
    return run(RATE, STILL, of_a_leaf, trials=64, lanes=16)


@pytest.mark.parametrize("make", [of_a_closure, of_a_default, of_a_partial, of_an_attribute])
def test_a_number_in_a_function_is_a_leaf(make, expected, monkeypatch):
    """To the bit as in `jax.tree_util.Partial`."""
    entered = structures(monkeypatch)
    result = run(RATE, STILL, make, trials=64, lanes=16)
    assert entered == [0] and len(result.plan.forms.first) == 1
    same(result, expected)


def test_optaxs_optimizers_are_one_structure(monkeypatch):
    entered = structures(monkeypatch)
    result = run(RATE, STILL, of_optax, trials=64, lanes=16)
    assert entered == [0]
    ours = run(RATE, STILL, clipped, trials=64, lanes=16)
    np.testing.assert_allclose(result.scores, ours.scores, rtol=1e-4)
    best = result.best()
    assert best.optimizer.name == "from_optax"
    same_again = result.rerun(best.trial)
    assert same_again.score == best.score and entered == [0, 0, 0]


def test_functions_without_numbers_are_one_structure(monkeypatch):
    entered = structures(monkeypatch)
    result = run(RATE, STILL, frozen, trials=40, lanes=16)
    assert entered == [0] and (result.status == "ok").all()
    assert float(result.best().params["b"]) == 0


def test_what_a_function_needs_before_the_program_runs_stays_in_it(monkeypatch):
    entered = structures(monkeypatch)
    space = RATE | {"width": [2, 3]}
    result = run(space, STILL, by_width, trials=12, lanes=8, search=sweep.sobol())
    assert sorted(entered) == [0, 1] and (result.status == "ok").all()


def test_a_number_in_an_if_is_refused_beyond_the_structures_there_may_be(monkeypatch):
    monkeypatch.setattr("optfn.sweep.candidate.MOST_STRUCTURES", 2)
    result = run(RATE, STILL, concrete, trials=4, lanes=8)
    assert list(result.status) == ["ok", "ok", "failed", "failed"]
    assert all("jax.tree_util.Partial" in error for error in result.errors.values())


def test_functions_that_share_a_cell_or_hold_themselves_do_so_afterwards():
    count, scale = 2.0, 3.0

    def again(n):
        return scale if n == 0 else count + again(n - 1)

    def both():
        return again, lambda: count + again(2)

    tx = optfn.sgd(lambda step, both=both: both()[1]() + 0 * step)
    form, numbers = taken_apart(tx)
    changed = with_numbers(tx, {numbers.index(2.0): 10.0})
    of_changed, others = taken_apart(changed)
    assert of_changed == form and sorted(others) == [3.0, 10.0]
    rates = [optfn.hyperparameters(x, x.init(1.0))["learning_rate"] for x in (tx, changed)]
    assert rates == [2.0 + 2.0 * 2 + 3.0, 10.0 + 2.0 * 10 + 3.0]
