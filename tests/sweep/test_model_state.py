"""A model's own state: trained along, scored, kept, parked, copied and restored with its params."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweep.problem import BATCH, RATE, X, Y, drawn, key_of, run, same

import optfn
from optfn import sweep

START = (np.ones(3, np.float32), np.float32(0))  # params that are themselves a pair
FRESH = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32), "steps": np.int32(0)}


def init(key):
    return (jax.random.normal(key, (3,)), jnp.zeros(())), jax.tree.map(jnp.asarray, FRESH)


def off(params, mean, var, batch):
    (w, b), (x, y) = params, batch
    return jnp.mean(((x - mean[None]) / jnp.sqrt(var[None] + 1e-3) @ w + b - y) ** 2)


def loss(params, state, batch):
    mean, var = batch[0].mean(0), batch[0].var(0)
    new = {"mean": 0.9 * state["mean"] + 0.1 * mean, "var": 0.9 * state["var"] + 0.1 * var}
    return off(params, mean, var, batch), new | {"steps": state["steps"] + 1}


def evaluate(params, state):
    return {"off": off(params, state["mean"], state["var"], (X, Y))}


SCORED = {"has_state": True, "evaluate": evaluate, "minimize": "off"}
TASK = sweep.Task(init, loss, data=(X, Y), batch_size=BATCH, **SCORED)
STILL = sweep.Task((START, FRESH), loss, data=(X, Y), **SCORED)


@partial(jax.jit, static_argnames="steps")
def alone(rate, steps, seed):
    """Training without a sweep, with optax's optimizer."""
    tx, (params, state) = optax.sgd(rate, 0.9), init(key_of(0, seed))

    def step(carry, batch):
        params, slots, state = carry
        grads, state = jax.grad(loss, has_aux=True)(params, state, batch)
        updates, slots = tx.update(grads, slots, params)
        return (optax.apply_updates(params, updates), slots, state), None

    start = params, tx.init(params), state
    params, _, state = jax.lax.scan(step, start, drawn(jnp.arange(steps), seed))[0]
    return params, state


def evaluates_to_its_scores(trial):
    for each in trial.runs:
        again = evaluate(each.params, each.model_state)["off"]
        np.testing.assert_allclose(again, each.score, rtol=1e-5)


def test_it_is_that_of_training_alone():
    space = {"learning_rate": [0.01, 0.1], "momentum": 0.9}
    kwargs = {"search": sweep.grid(), "seeds": 2, "keep_best": 2, "lanes": 16}
    result = run(space, TASK, optfn.sgd, **kwargs)
    for trial in result.top(2):
        evaluates_to_its_scores(trial)
        assert trial.model_state is trial.runs[0].model_state
        for seed, each in enumerate(trial.runs):
            expected = alone(trial.values["learning_rate"], 20, seed)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=3e-7),
                (each.params, each.model_state),
                expected,
            )


def test_it_outlives_a_kill_and_its_code(tmp_path):
    kwargs = {"trials": 8, "lanes": 8, "mode": "map", "keep_best": 3}
    whole = run(RATE, STILL, **kwargs)
    kwargs["checkpoint"] = tmp_path
    assert run(RATE, STILL, max_seconds=0.0, **kwargs).best().model_state["steps"] == 5
    same(run(RATE, STILL, **kwargs), whole)
    found, best = sweep.Result.load(tmp_path).best(), whole.best()
    jax.tree.map(np.testing.assert_array_equal, found.model_state, best.model_state)
    jax.tree.map(np.testing.assert_array_equal, found.params, best.params)
    other = sweep.Task(
        (START, FRESH | {"var": np.zeros(3, np.float32)}), loss, data=(X, Y), **SCORED
    )
    with pytest.raises(ValueError, match="differs in its data"):
        run(RATE, other, **kwargs)


@pytest.mark.slow
def test_it_is_parked_and_confirmed_with_its_params(tmp_path):
    policy = sweep.successive_halving(first=5, bracket=8)
    kwargs = {"trials": 8, "lanes": 8, "score": "best", "policy": policy, "steps": 40}
    kwargs["confirm"] = sweep.Confirm(top=1, seeds=2)
    result = run(RATE, STILL, **kwargs)
    evaluates_to_its_scores(result.best())
    assert len(result.best().runs) == 2
    kwargs["checkpoint"] = tmp_path
    run(RATE, STILL, max_seconds=0.0, **kwargs)
    same(run(RATE, STILL, **kwargs), result)


@pytest.mark.slow
def test_a_population_copies_it_with_the_params():
    result = run(RATE, STILL, policy=sweep.pbt(every=5), trials=8, keep_best=8)
    assert any(len(trial.hyperparameter_history) > 1 for trial in result.top(8))
    for trial in result.top(8):
        evaluates_to_its_scores(trial)
        assert trial.model_state["steps"] == 20


def test_it_goes_with_averages_and_changes_in_every_small_step():
    def averaging(learning_rate):
        return optfn.accumulate(optfn.schedule_free_sgd(learning_rate), 2)

    result = run({"learning_rate": [0.05, 0.1]}, STILL, averaging, search=sweep.grid(), mode="map")
    evaluates_to_its_scores(result.best())
    assert result.best().model_state["steps"] == 20


def test_steps_that_a_line_search_tries_leave_it_as_it_is():
    tx = optfn.chain(optfn.sgd(1.0), optfn.scale_by_backtracking_linesearch(5))
    candidate = sweep.candidate.Candidate(tx, {})

    @jax.jit
    def trained(batch):
        carry = STILL.begin(candidate, jax.random.key(0), (START, FRESH))
        carry, _ = STILL.advance(candidate, carry, batch, jax.random.key(1))
        return STILL.scored_model(tx, carry).state

    expected = loss(START, FRESH, (X, Y))[1]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), trained((X, Y)), expected)


@pytest.mark.slow
def test_tasks_of_a_function_have_states_of_their_own_shape(tmp_path):
    def of_width(width):
        def wide(params, state, batch):
            return loss(params, {k: v for k, v in state.items() if k != "more"}, batch)

        def with_more(params, state, batch):
            value, new = wide(params, state, batch)
            return value, new | {"more": state["more"] + 1}, {"width": 1.0 * width}

        start = START, FRESH | {"more": np.zeros(width, np.float32)}
        return sweep.Task(start, with_more, data=(X, Y), **SCORED)

    kwargs = {"search": sweep.grid(), "keep_best": 4, "lanes": 8, "mode": "map"}
    space = {"learning_rate": [0.01, 0.1], "width": [2, 5]}
    result = run(space, of_width, **kwargs)
    for trial in result.top(4):
        np.testing.assert_array_equal(trial.model_state["more"], np.full(trial.values["width"], 20))
    run(space, of_width, checkpoint=tmp_path, max_seconds=0.0, **kwargs)
    same(run(space, of_width, checkpoint=tmp_path, **kwargs), result)


def test_a_random_key_in_it_is_kept(tmp_path):
    def noisy(params, state, batch):
        state, noise = jax.random.split(state)
        value, _ = loss(params, FRESH, batch)
        return value + params[0] @ jax.random.normal(noise, (3,)), state

    task = sweep.Task((START, jax.random.key(3)), noisy, data=(X, Y), has_state=True)
    kwargs = {"trials": 8, "lanes": 8, "mode": "map", "checkpoint": tmp_path}
    run(RATE, task, max_seconds=0.0, **kwargs)
    for best in (run(RATE, task, **kwargs).best(), run(RATE, task, **kwargs).best()):
        expected = jax.random.key(3)
        for _ in range(20):
            expected = jax.random.split(expected)[0]
        found = jax.random.key_data(best.model_state)
        np.testing.assert_array_equal(found, jax.random.key_data(expected))


BAD = {
    "Task(init=...) must give a pair (params, model_state) with has_state=True, found a dict": (
        {"w": np.ones(3)},
        loss,
    ),
    "must give (loss, model_state) or (loss, model_state, metrics) with has_state=True": (
        (START, FRESH),
        lambda params, state, batch: loss(params, state, batch)[0],
    ),
    "a model state of the form that it was given: only the old one has an entry at 'steps'": (
        (START, FRESH),
        lambda params, state, batch: (0.0, {"mean": state["mean"], "var": state["var"]}),
    ),
    "at 'steps' the new one has float32[], the old one int32[]": (
        (START, FRESH),
        lambda params, state, batch: (0.0, state | {"steps": 0.5 * state["steps"]}),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_state_is_refused(message):
    init, loss = BAD[message]
    with pytest.raises((TypeError, ValueError)) as caught:
        task = sweep.Task(init, loss, data=(X, Y), has_state=True)
        run(RATE, task, trials=8)
    assert message in str(caught.value)
