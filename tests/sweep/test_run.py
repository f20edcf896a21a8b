"""Sweeps: each lane is the run alone, whoever is beside it, and every trial ends as it should."""

import itertools
import math
import operator
import os
import re
import signal
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from sweep.problem import (
    BATCH,
    EVERY,
    RATE,
    RATES,
    SCORED,
    START,
    STILL,
    TASK,
    X,
    Y,
    alone,
    close,
    drawn,
    evaluate,
    init,
    loss,
    run,
    same,
)

import optfn
from optfn import schedules, sweep
from optfn.sweep import engine, lane, trials
from optfn.sweep.executor import Executor
from optfn.sweep.plan import Plan
from optfn.sweep.scheduler import Scheduler
from optfn.sweep.space import as_space

# By default all modes are compared with runs alone, and one or two of them with all else.
SLOW_LOOP = pytest.param("loop", marks=pytest.mark.slow)
SLOW_MAP = pytest.param("map", marks=pytest.mark.slow)


@pytest.mark.parametrize("mode", ["vmap", "map", "loop"])
def test_a_lane_is_the_run_alone(mode):
    result = run(RATE, trials=10, lanes=8, keep_best=10, mode=mode)
    assert (result.status == "ok").all() and (result.steps == 20).all()
    for i in (0, 3, 9):
        expected = alone(optax.adam, result.points[i], 20)
        member = result.trial(i)
        close(member.params, expected)
        np.testing.assert_allclose(member.score, evaluate(expected)["distance"], rtol=2e-4)


def test_neither_the_lanes_nor_the_neighbours_change_a_trial():
    few = run(RATE, trials=12, lanes=8)
    many = run(RATE, trials=12, lanes=16)
    np.testing.assert_array_equal(few.scores, many.scores)
    for name, curve in few.curves.items():
        np.testing.assert_array_equal(curve, many.curves[name])


BATCHES = {"data": (X, Y), "batch_size": BATCH}
WIDE = sweep.Task(jax.tree.map(np.float64, START), loss, **BATCHES, **SCORED)


@pytest.mark.parametrize(
    "mode, lanes, cores",
    [("vmap", 64, 3), ("map", 12, 4), pytest.param("loop", 8, 3, marks=pytest.mark.slow)],
)
def test_the_cores_do_not_change_a_trial(monkeypatch, mode, lanes, cores):
    """Each trains a part of the lanes; also with settings of jax that only one thread has."""
    monkeypatch.setattr(engine, "_cores", lambda: 1)
    with jax.enable_x64(True):
        one = run(RATE, WIDE, trials=lanes + 2, lanes=lanes, mode=mode)
        monkeypatch.setattr(engine, "_cores", lambda: cores)
        many = run(RATE, WIDE, trials=lanes + 2, lanes=lanes, mode=mode)
    parts = engine.parts_of(np.arange(lanes) > 2, mode)
    assert {len(part) for part in parts} == {{"vmap": 8, "map": 1, "loop": 1}[mode]}
    assert set(np.concatenate(parts)) == {*range(3, lanes)}
    assert one.best().params["w"].dtype == np.float64
    same(many, one)


@pytest.mark.parametrize("mode, cores", [("vmap", 1), ("vmap", 2), ("map", 2)])
def test_a_sweep_compiles_three_programs_and_none_for_a_refill(monkeypatch, mode, cores):
    """Of everything that is compiled: to begin runs, to train them, to fetch the best's params."""
    monkeypatch.setattr(engine, "_cores", lambda: cores)
    lanes, expected = 32, 3
    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        task = sweep.Task(START, loss, data=(X, Y))
        run(RATE, task, trials=4 * lanes, lanes=lanes, mode=mode, policy=sweep.asha(first=5))
        assert len(compiled) == expected
        space = {"learning_rate": sweep.Uniform(0.0, 1.0), "b1": [0.8, 0.9]}
        run(space, task, trials=lanes + 1, lanes=lanes, mode=mode)
        assert len(compiled) == expected
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_diverged_trial_ends_and_leaves_the_others_as_they_are():
    rates = [0.01, 0.02, 1e30, 0.03]
    result = run({"learning_rate": rates}, search=sweep.grid(), optimizer=optfn.sgd)
    assert list(result.status) == ["ok", "ok", "diverged", "ok"]
    assert result.steps[2] < 3 and result.best().values["learning_rate"] != 1e30
    calm = run(
        {"learning_rate": [0.01, 0.02, 0.015, 0.03]}, search=sweep.grid(), optimizer=optfn.sgd
    )
    np.testing.assert_array_equal(result.scores[[0, 1, 3]], calm.scores[[0, 1, 3]])
    assert np.isinf(result.trial(2).score)


DIRECTIONS = {
    "minimize": STILL,
    "maximize": sweep.Task(START, loss, data=(X, Y), evaluate=evaluate, maximize="distance"),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_diverged_trial_never_wins(direction):
    """Also not where its score would be the best: one far away, which is to be as far as can be."""
    rates = {"learning_rate": [1e30, 1e-3, 0.2]}
    task = DIRECTIONS[direction]
    result = run(rates, task, search=sweep.grid(), optimizer=optfn.sgd)
    assert result.best().values["learning_rate"] == (0.2 if direction == "minimize" else 1e-3)
    assert result.top(3)[-1].status == "diverged"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_threshold_of_optunas_applies_to_the_score_that_the_task_names(direction):
    """A rate of zero keeps the distance of the start, which is larger than after training."""
    policy = sweep.from_optuna(optuna.pruners.ThresholdPruner(lower=1.0), every=5)
    rates = {"learning_rate": [0.0, 0.1]}
    kwargs = {"optimizer": optfn.sgd, "policy": policy, "steps": 40}
    result = run(rates, DIRECTIONS[direction], search=sweep.grid(), **kwargs)
    assert [result.trial(i).status for i in range(2)] == ["ok", "pruned"]
    for number in (2, -1):
        with pytest.raises(IndexError, match=rf"number={number}\): there are 2 trials"):
            result.trial(number)


def test_if_all_diverge_the_error_says_what_was_tried():
    result = run({"learning_rate": [1e30, 1e31]}, search=sweep.grid(), optimizer=optfn.sgd)
    with pytest.raises(ValueError, match=r"2 diverged of 2: learning_rate from 1e[+]30 to"):
        result.best()


def test_a_loss_above_the_largest_is_a_divergence():
    result = run({"learning_rate": [0.01, 0.02]}, search=sweep.grid(), max_loss=1e-6)
    assert set(result.status) == {"diverged"} and (result.steps == 0).all()


def test_seeds_are_runs_of_the_same_trial_and_their_mean_counts():
    result = run(RATE, trials=4, seeds=2, lanes=8)
    assert result.scores.shape == (4, 2)
    for i in range(4):
        params = [alone(optax.adam, result.points[i], 20, seed) for seed in (0, 1)]
        expected = [evaluate(x)["distance"] for x in params]
        np.testing.assert_allclose(result.scores[i], expected, rtol=2e-4)
        member = result.trial(i)
        np.testing.assert_allclose(member.score, result.scores[i].mean())
        np.testing.assert_allclose(member.spread, result.scores[i].std(ddof=1))
    assert result.best().trial == result.scores.mean(1).argmin()


def test_trials_of_other_structure_are_trained_one_structure_after_the_other():
    space = {"learning_rate": [0.01, 0.02], "momentum": [None, 0.9]}
    result = run(space, STILL, search=sweep.grid(), optimizer=optfn.sgd, keep_best=4)
    for member in result.top(4):
        expected = alone(optax.sgd, member.values, 20, batches=EVERY, params=START)
        close(member.params, expected)


def test_asha_ends_the_worst_and_records_their_curves_to_that_point():
    result = run(
        {"learning_rate": sweep.LogUniform(1e-6, 1e-1)},
        trials=27,
        lanes=8,
        steps=45,
        policy=sweep.asha(first=5, eta=3),
    )
    pruned = result.status == "pruned"
    assert 0 < pruned.sum() < 27 and set(result.steps[pruned]) <= {5, 15}
    assert (result.steps[~pruned] == 45).all()
    known = np.isfinite(result.curves["distance"]).sum(1)
    np.testing.assert_array_equal(known, result.steps / 5)
    assert result.losses[~pruned].min() == result.best().score
    assert result.lane_steps < 27 * 45 / 2


def test_a_score_that_is_not_finite_has_a_status_of_its_own():
    task = sweep.Task(
        START,
        loss,
        data=(X, Y),
        evaluate=lambda p: {"s": jnp.log(-(p["b"] ** 2) - 1)},
        minimize="s",
    )
    for policy in (sweep.run_all(), sweep.asha(first=5)):
        result = run({"learning_rate": [0.01]}, task, search=sweep.grid(), policy=policy)
        assert list(result.status) == ["not_finite"]
        with pytest.raises(ValueError, match="no trial has a finite score, 1 not_finite of 1: "):
            result.best()


def test_results_are_told_in_lines_and_files(tmp_path):
    result = run({"learning_rate": [0.01, 0.1, 1e30]}, search=sweep.grid(), optimizer=optfn.sgd)
    head, *rows, counts = result.table(2).split("\n")
    assert head.split() == ["trial", "distance", "learning_rate", "steps", "status"]
    assert len(rows) == 2 and rows[0].split()[0] == str(result.best().trial)
    assert counts.startswith("3 trials: 2 ok, 1 diverged; ")
    result.to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[0].startswith("trial,learning_rate,")
    space = {"steps": [7, 100], "trial": [0.01]}
    named = run(space, search=sweep.grid(), optimizer=lambda steps, trial: optfn.sgd(trial / steps))
    columns = named.columns()
    assert columns["optimizer.steps"] == [7, 100] and columns["steps"] == [20, 20]
    assert columns["optimizer.trial"] == [0.01, 0.01] and columns["trial"] == [0, 1]


def test_a_loss_may_take_a_key_and_give_metrics():
    def noisy(params, batch, *, key):
        value = loss(params, batch) + jax.random.normal(key)
        return value, {"twice": 2 * value}

    task = sweep.Task(START, noisy, data=(X, Y))
    result = run({"learning_rate": [0.01]}, task, search=sweep.grid())
    np.testing.assert_allclose(2 * result.curves["loss"], result.curves["twice"], rtol=1e-6)
    assert not np.allclose(
        result.curves["loss"],
        run({"learning_rate": [0.01]}, STILL, search=sweep.grid()).curves["loss"],
    )


def test_auto_takes_a_mode_and_its_bits(tmp_path):
    """Which the table and a checkpoint have."""
    result = run(RATE, trials=9, lanes=8, mode="auto", checkpoint=tmp_path)
    assert result.mode == "map" and "; mode map; " in result.table()
    with pytest.raises(ValueError, match="it differs in mode map, now vmap"):
        run(RATE, trials=9, lanes=8, mode="vmap", checkpoint=tmp_path)
    same(result, run(RATE, trials=9, lanes=8, mode=result.mode))


def convolved(params, batch):
    images = jnp.broadcast_to(batch[0][:, None, :], (BATCH, 1, 3))
    kernel = params["w"][None, None, :]
    found = jax.lax.conv_general_dilated(images, kernel, (1,), "SAME")
    return jnp.mean((found.sum((1, 2)) + params["b"] - batch[1]) ** 2)


LARGE = {"w": np.ones(3, np.float32), "b": np.float32(0), "more": np.ones(2**17, np.float32)}
SUITED = {
    "vmap": (TASK, 16),
    "few": (TASK, 15),
    "large": (sweep.Task(LARGE, loss, data=(X, Y)), 16),
    "loop": (sweep.Task(init, convolved, data=(X, Y), batch_size=BATCH), 16),
}


@pytest.mark.parametrize("kind", SUITED)
def test_auto_is_a_rule(kind):
    task, lanes = SUITED[kind]
    plan = Plan(task, optfn.adam, as_space(RATE), 20, 5, lanes, 0)
    executor = Executor(plan, 1, "auto")
    state = executor.empty_lanes(plan.candidate({"learning_rate": 0.1}))
    mode = engine.usual_mode(state, executor.shared, task=executor.task, length=5)
    assert mode == (kind if kind in engine.MODES else "map")


def test_a_training_loop_of_ones_own_is_the_task_that_does_the_same():
    def begin(tx, key):
        params = init(key)
        return {"params": params, "state": tx.init(params), "count": jnp.zeros((), int)}

    def step(tx, carry, batch, key):
        value, grads = jax.value_and_grad(loss)(carry["params"], batch)
        params, state = optfn.step(tx, carry["params"], grads, carry["state"])
        carry = {"params": params, "state": state, "count": carry["count"] + 1}
        return carry, {"loss": value, "count": carry["count"]}

    loop = sweep.TrainingLoop(
        begin,
        step,
        params=lambda carry: carry["params"],
        data=(X, Y),
        batch_size=BATCH,
        **SCORED,
    )
    space = {"learning_rate": [0.01, 0.1, 1e30]}
    mine = run(space, loop, optfn.sgd, search=sweep.grid())
    theirs = run(space, TASK, optfn.sgd, search=sweep.grid())
    np.testing.assert_allclose(mine.scores, theirs.scores, rtol=1e-5)
    assert list(mine.status) == list(theirs.status) == ["ok", "ok", "diverged"]
    np.testing.assert_array_equal(mine.curves["count"][0], [3, 8, 13, 18])


def averaging_loop(*, states=1):
    def begin(tx, key):
        return {"params": START, "states": (tx.init(jax.tree.map(jnp.asarray, START)),) * states}

    def step(tx, carry, batch, key):
        value, grads = jax.value_and_grad(loss)(carry["params"], batch)
        params, state = optfn.step(tx, carry["params"], grads, carry["states"][0])
        return {"params": params, "states": (state,) * states}, {"loss": value}

    params = operator.itemgetter("params")
    return sweep.TrainingLoop(begin, step, params, data=(X, Y), **SCORED)


def test_averages_are_scored_and_kept_of_a_loop_too():
    space = {"learning_rate": [0.5]}
    kwargs = {"optimizer": optfn.schedule_free_sgd, "search": sweep.grid(), "mode": "map"}
    mine, theirs = run(space, averaging_loop(), **kwargs), run(space, STILL, **kwargs)
    np.testing.assert_allclose(mine.scores, theirs.scores, rtol=1e-6)
    np.testing.assert_allclose(evaluate(mine.best().params)["distance"], mine.best().score)
    with pytest.warns(UserWarning, match="the carry has 2 states of it for them, instead of one"):
        trained = run(space, averaging_loop(states=2), **kwargs)
    assert abs(trained.best().score - mine.best().score) > 1e-4
    with warnings.catch_warnings(action="error"):
        run(space, averaging_loop(states=2), **kwargs | {"optimizer": optfn.sgd})


def rate_at(key, step):
    return 0.1 * jax.random.uniform(jax.random.fold_in(key, step))


def keyed(key):
    return optfn.sgd(jax.tree_util.Partial(rate_at, key))


def keyed_in_optax(key):
    return optax.sgd(lambda step: rate_at(key, step))


@pytest.mark.parametrize("mode", ["vmap", SLOW_MAP, SLOW_LOOP])
def test_the_keys_of_an_optimizer_are_folded_with_the_seed_of_the_run(mode):
    kwargs = {"trials": 1, "seeds": 2, "lanes": 16, "mode": mode}
    result = run({"key": jax.random.key(5)}, STILL, keyed, **kwargs)
    for seed in (0, 1):
        key = jax.random.fold_in(jax.random.key(5), seed)
        expected = alone(keyed_in_optax, {"key": key}, 20, batches=EVERY, params=START)
        distance = evaluate(expected)["distance"]
        np.testing.assert_allclose(result.scores[0, seed], distance, rtol=1e-4)


def test_the_noise_of_an_optimizer_is_another_for_each_seed_of_the_run():
    """And that of the optimizer itself for the first."""
    kwargs = {"trials": 1, "seeds": 2, "lanes": 16, "mode": "map"}
    result = run({"learning_rate": 0.05, "seed": 7}, STILL, optfn.noisy_sgd, **kwargs)
    for i in (0, 1):
        values = {"learning_rate": 0.05, "seed": 7 + i}
        params = alone(optfn.noisy_sgd, values, 20, batches=EVERY, params=START)
        expected = evaluate(params)["distance"]
        np.testing.assert_allclose(result.scores[0, i], expected, rtol=1e-4)
    assert result.rerun(0, seeds=[1]).score == result.scores[0, 1] != result.scores[0, 0]


def test_a_lane_that_copies_another_keeps_the_noise_of_its_seed():
    """In a population of which the worst half takes over the best."""
    kwargs = {"trials": 8, "seeds": 2, "lanes": 16, "mode": "map", "policy": sweep.pbt(every=5)}
    scheduler = Scheduler(
        run(RATE, STILL, optfn.noisy_sgd, **kwargs).plan,
        session=sweep.random().start(RATE, 8, 0),
        policy=sweep.pbt(every=5),
        seeds_of=lambda number: (0, 1),
        mode="map",
        keep_best=1,
    )
    scheduler.advance()
    assert (scheduler.copied_from[0] != np.arange(8)).any()
    tx = scheduler.executor.state.candidate.tx
    np.testing.assert_array_equal(tx.stages[0].seed, [0, 1] * 8)


NARROW = {
    "bfloat16": jnp.bfloat16(1),  # whose sum stays at 256
    "float16": jnp.float16(300),
    "uint8": jnp.uint8(200),
    "int32": jnp.int32(2**30),
    "bool": True,
    "int": 3,
}


def narrow(params, batch):
    return jnp.float16(300) + jnp.float16(0) * params["b"].astype(jnp.float16), NARROW


def measured(params):
    return {f"measured {name}": value for name, value in NARROW.items()}


NARROW_TASK = sweep.Task(START, narrow, data=(X, Y), evaluate=measured)


@pytest.mark.parametrize("mode", ["vmap", SLOW_MAP, SLOW_LOOP])
def test_means_are_right_whatever_the_dtype(mode):
    """And what is measured may be of any, also where lanes are empty."""
    kwargs = {"search": sweep.grid(), "mode": mode, "lanes": 16, "steps": 300, "segment": 300}
    result = run({"learning_rate": [0.01, 0.02]}, NARROW_TASK, optfn.sgd, **kwargs)
    assert (result.status == "ok").all() and (result.scores == 300).all()
    for name, value in NARROW.items():
        assert (result.curves[name] == float(value)).all(), name
        assert (result.curves[f"measured {name}"] == float(value)).all(), name


SEVEN = [(X[i : i + BATCH], Y[i : i + BATCH]) for i in range(7)]
SOURCES = {"function": lambda step: SEVEN[step % 7], "iterable": SEVEN}
TASKS = {name: sweep.Task(START, loss, stream=stream, **SCORED) for name, stream in SOURCES.items()}


def from_seven(start):
    """The batches of a run that begins at this step of the sweep."""
    return jax.tree.map(lambda *x: np.stack(x), *(SEVEN[(start + n) % 7] for n in range(20)))


@pytest.mark.parametrize("mode", ["vmap", SLOW_LOOP])
def test_a_stream_feeds_all_lanes_and_a_trial_knows_where_it_began(mode):
    """From a function of the step, and from an iterable that is restarted after 7 batches."""
    results = {}
    for name, task in TASKS.items():
        results[name] = result = run(RATE, task, trials=10, lanes=8, keep_best=10, mode=mode)
        assert set(result.started_at[:8]) == {0} and set(result.started_at[8:]) == {20}
        for i in (0, 9):
            member, batches = result.trial(i), from_seven(result.started_at[i])
            close(member.params, alone(optax.adam, member.values, 20, 0, batches, START))
            again = result.rerun(i)
            assert again.trial == i and again.score == member.score
    same(*results.values())


SOURCE = {}
STREAMED = sweep.Task(START, loss, stream=lambda step: SOURCE["stream"](step), **SCORED)


def streamed(stream, **kwargs):
    """A sweep with this stream; of one task, so that all share its programs."""
    SOURCE["stream"] = stream
    kwargs = {"search": sweep.grid(), "lanes": 16, "mode": "map"} | kwargs
    return run({"learning_rate": [0.01, 0.05]}, STREAMED, **kwargs)


@pytest.mark.parametrize("steps", [20, 18])
def test_a_stream_is_asked_for_the_steps_that_are_needed(steps, tmp_path):
    """Also where the last segment is not a whole one, and for the checkpoint's sake."""
    asked = []

    def stream(step):
        asked.append(step)
        return batches[step]

    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(steps)]
    result = streamed(stream, steps=steps)
    assert asked == list(range(steps)) and (result.steps == steps).all()
    asked.clear()
    kwargs = {"steps": steps, "checkpoint": tmp_path, "max_bytes": 10**9}
    same(streamed(stream, **kwargs), result)
    same(streamed(stream, **kwargs), result)
    assert set(asked) == set(range(steps))


def test_what_a_stream_raises_counts_where_the_batch_is_needed():
    """Lanes that will have diverged are not known when the next segment is prepared."""
    batches = [(X[i : i + 16], Y[i : i + 16]) for i in range(5)]
    kwargs = {"lanes": 16, "mode": "map", "search": sweep.grid(), "optimizer": optfn.sgd}
    task = sweep.Task(START, loss, stream=batches.__getitem__, **SCORED)
    result = run({"learning_rate": [1e30, 1e31]}, task, **kwargs)
    assert list(result.status) == ["diverged", "diverged"]
    with pytest.raises(IndexError):
        run({"learning_rate": [1e30, 0.01]}, task, **kwargs)


def test_a_loader_may_use_its_buffer_again():
    x, y = np.zeros((16, 3), np.float32), np.zeros(16, np.float32)

    def reused(step):
        x[:], y[:] = X[step : step + 16], Y[step : step + 16]
        return x, y

    same(streamed(reused), streamed(lambda step: (X[step : step + 16], Y[step : step + 16])))


UNLIKE = {
    "(float32[10, 3], float32[10]) at step 6, and (float32[16, 3], float32[16]) at step 5": (
        X[:10],
        Y[:10],
    ),
    "(float64[16, 3], float32[16]) at step 6": (X[:16].astype(np.float64), Y[:16]),
    "{x: float32[16, 3]} at step 6": {"x": X[:16]},
}


@pytest.mark.parametrize("message", UNLIKE)
def test_batches_that_are_not_alike_are_refused(message):
    def stream(step):
        return UNLIKE[message] if step == 6 else (X[:16], Y[:16])

    with pytest.raises(ValueError, match=re.escape(f"the task's stream gave {message}")):
        streamed(stream)


class Once:
    """Batches that cannot be had twice."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


def test_a_stream_that_ends_is_refused():
    task = sweep.Task(START, loss, stream=Once(SEVEN[:2]), **SCORED)
    with pytest.raises(ValueError, match="stream ended after 2 batches"):
        run(RATE, task, trials=8)


def test_common_batches_are_drawn_by_the_step_of_the_sweep():
    kwargs = {"batch_size": BATCH, "common_batches": True}
    task = sweep.Task(START, loss, data=(X, Y), **kwargs, **SCORED)
    result = run(RATE, task, trials=10, lanes=8, keep_best=10)

    for i in (0, 9):
        member, batches = result.trial(i), drawn(result.started_at[i] + jnp.arange(20))
        close(member.params, alone(optax.adam, member.values, 20, 0, batches, START))
        assert result.rerun(i).score == member.score


MLP = eqx.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(3))


def test_a_module_that_can_be_called_is_params():
    """And a function is none, whatever it is made of."""
    arrays, rest = eqx.partition(MLP, eqx.is_array)

    def loss_of(arrays, batch):
        model = eqx.combine(arrays, rest)
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    def ready(arrays, key):
        return arrays

    kwargs = {"optimizer": optfn.sgd, "search": sweep.grid(), "mode": "map", "lanes": 16}
    results = [
        run({"learning_rate": [0.01, 0.1]}, sweep.Task(init, loss_of, data=(X, Y)), **kwargs)
        for init in (
            arrays,
            eqx.filter_jit(lambda key: arrays),
            jax.tree_util.Partial(ready, arrays),
        )
    ]

    @jax.jit
    def descend(arrays):
        def step(_, arrays):
            grads = jax.grad(loss_of)(arrays, (X, Y))
            return jax.tree.map(lambda p, g: p - 0.1 * g, arrays, grads)

        return jax.lax.fori_loop(0, 20, step, arrays)

    expected = descend(arrays)
    for result in results:
        close(result.best().params, expected)


TWELVE = [(X[i : i + 8], Y[i : i + 8]) for i in range(12)]
COMMON = {
    "stream": {"stream": TWELVE},
    "common batches": {"data": (X, Y), "batch_size": 8, "common_batches": True},
}


@pytest.mark.parametrize("kind", COMMON)
def test_a_trial_that_waited_for_others_is_rerun_with_the_batches_it_had(kind, tmp_path):
    task = sweep.Task(START, loss, **COMMON[kind], **SCORED)
    policy = sweep.successive_halving(first=5, bracket=36)
    kwargs = {"trials": 36, "lanes": 16, "mode": "map", "policy": policy, "steps": 25}
    run(RATE, task, max_seconds=0.0, checkpoint=tmp_path, **kwargs)
    result = run(RATE, task, checkpoint=tmp_path, **kwargs)
    waited = [t for t in result.segments if np.ptp(t) >= len(t)]
    ended = np.flatnonzero(result.status == "ok")
    assert len(ended) and all(result.segments[i] in waited for i in ended)
    for i in ended:
        segments = result.segments[i]
        assert len(segments) == 5 and result.started_at[i] == 5 * segments[0]
        assert result.rerun(i).score == result.trial(i).score


def test_a_trial_that_had_no_lanes_is_rerun_from_the_first_step():
    space = {"learning_rate": [0.01, 0.02], "momentum": [None, 0.9]}
    kwargs = {"optimizer": optfn.sgd, "search": sweep.grid(), "mode": "map", "lanes": 16}
    task = sweep.Task(START, loss, stream=lambda step: TWELVE[:10][step], **SCORED)
    result = run(space, task, max_seconds=0.0, steps=10, **kwargs)
    late = next(i for i in range(4) if not result.segments[i])
    assert result.started_at[late] == -1 and result.steps[late] == 0
    alone = run({n: [v] for n, v in result.points[late].items()}, task, steps=10, **kwargs)
    assert result.rerun(late).score == alone.best().score


def test_params_may_be_given_and_held_out_data_reach_the_evaluation():
    start = START | {"b": np.float32(1)}
    task = sweep.Task(
        start,
        loss,
        data=(X[:48], Y[:48]),
        evaluate=lambda params, held_out: {"test": loss(params, held_out)},
        held_out=(X[48:], Y[48:]),
        minimize="test",
    )
    result = run({"learning_rate": [0.01]}, task, optimizer=optfn.sgd, search=sweep.grid())
    batches = EVERY[0][:, :48], EVERY[1][:, :48]
    expected = alone(optax.sgd, {"learning_rate": 0.01}, 20, batches=batches, params=start)
    close(result.best().params, expected)
    np.testing.assert_allclose(result.best().score, loss(expected, (X[48:], Y[48:])), rtol=1e-4)


def test_a_trial_alone_has_the_same_bits():
    result = run(RATE, trials=12, lanes=8, seeds=2, keep_best=2, policy=sweep.asha(first=5))
    best = result.best()
    again = result.rerun(best.trial)
    assert again.score == best.score and again.values == best.values
    jax.tree.map(np.testing.assert_array_equal, again.params, best.params)
    other = result.rerun(best.trial, seeds=[7])
    assert other.score != best.score
    many = result.rerun(best.trial, seeds=range(9))  # more than the lanes, and not a divisor
    assert many.spread > 0
    with pytest.raises(ValueError, match="must have a seed for each run, found none"):
        result.rerun(best.trial, seeds=[])


@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_lanes_on_eight_devices_are_those_on_one(axis_type):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    kwargs = {"trials": 40, "seeds": 3, "keep_best": 3, "policy": sweep.asha(first=5)}
    many = run(RATE, mesh=mesh, lanes=20, **kwargs)
    assert many.lane_steps % (24 * 5) == 0  # on 8 devices, 8 trials of 3 lanes
    one = run(RATE, lanes=24, **kwargs)
    np.testing.assert_allclose(many.scores, one.scores, rtol=1e-4)
    np.testing.assert_array_equal(many.status, one.status)
    assert many.kept.keys() == one.kept.keys()


def test_paused_trials_go_on_where_they_were():
    """Successive halving has scores of those that came to the end as running all has them."""
    policy = sweep.successive_halving(first=5, eta=3, bracket=9)
    told = []
    kwargs = {"trials": 18, "lanes": 8, "steps": 25, "keep_best": 4}
    halved = run(RATE, policy=policy, progress=told.append, **kwargs)
    # Of each of two brackets at most 3 wait, with 4 params, 8 moments, 5 hyperparameters, the
    # optimizer's step, a seed and an age of four bytes each, and two flags of one.
    assert told[0].host_bytes == 2 * 3 * (20 * 4 + 2)
    assert "paused trials take up to" in str(told[0])
    full = run(RATE, **kwargs)
    ok = halved.status == "ok"
    assert ok.sum() == 2 and (halved.steps[~ok] < 25).all()
    np.testing.assert_array_equal(halved.scores[ok], full.scores[ok])
    best = halved.best().trial
    assert best == full.best().trial
    jax.tree.map(np.testing.assert_array_equal, halved.kept[best], full.kept[best])


def test_confirmed_trials_are_scored_on_fresh_seeds():
    result = run(RATE, trials=9, lanes=8, confirm=sweep.Confirm(top=3, seeds=2), keep_best=2)
    confirmed = np.flatnonzero(np.isfinite(result.confirmed).all(1))
    plain = run(RATE, trials=9, lanes=8)
    assert set(confirmed) == set(plain.order()[:3])
    for i in confirmed:
        member = result.trial(i)
        params = [alone(optax.adam, member.values, 20, seed) for seed in (1, 2)]
        fresh = [evaluate(x)["distance"] for x in params]
        np.testing.assert_allclose(result.confirmed[i], fresh, rtol=2e-4)
        np.testing.assert_allclose(member.score, np.mean(fresh), rtol=2e-4)
    assert list(result.order()[:3]) == sorted(confirmed, key=lambda i: result.trial(i).score)
    assert list(result.kept) == list(result.order()[:2]) and result.best().params is not None
    np.testing.assert_array_equal(result.scores, plain.scores)


def test_a_confirmation_that_was_cut_off_counts_as_far_as_it_came():
    told = []

    def press(progress):
        told.append(progress)
        if len(told) == 8 + 5:  # 8 of its 10 runs have come to the end
            os.kill(os.getpid(), signal.SIGINT)

    confirm = sweep.Confirm(top=5, seeds=2)
    result = run(RATE, trials=9, lanes=8, confirm=confirm, keep_best=2, progress=press)
    confirmed = np.isfinite(result.confirmed)
    assert len(told) == 13 and confirmed.all(1).sum() == 4 and confirmed.sum() == 8
    assert len(result.kept) == 2


def test_metrics_and_scores_have_names_of_their_own():
    """A metric called "steps" is not the count of the steps."""

    def counted(params, batch):
        return loss(params, batch), {"steps": 7.0}

    space = {"learning_rate": [0.01]}
    result = run(space, sweep.Task(START, counted, data=(X, Y)), search=sweep.grid())
    plain = run(space, sweep.Task(START, loss, data=(X, Y)), search=sweep.grid())
    np.testing.assert_array_equal(result.curves["steps"], np.full((1, 4), 7.0))
    np.testing.assert_array_equal(result.scores, plain.scores)
    twice = sweep.Task(START, counted, data=(X, Y), evaluate=lambda params: {"steps": 1.0})
    with pytest.raises(ValueError, match="no other score has, found steps in both"):
        run(space, twice, search=sweep.grid())


def test_progress_goes_to_a_function_and_time_ends_a_sweep():
    told = []
    run(RATE, trials=9, lanes=8, progress=told.append)
    assert [p.ok for p in told] == [0, 0, 0, 8, 8, 8, 8, 9] and told[-1].trials == 9
    assert "9/9 trials: best " in str(told[-1])
    result = run(RATE, trials=9, lanes=8, max_seconds=0.0)
    assert list(result.status) == ["stopped"] * 8 and (result.steps == 5).all()
    assert np.isfinite(result.best().score)


def test_a_population_copies_its_best_and_its_optimizer_is_its_line():
    """Of 8 members, half of them hopeless; the best's line trained alone comes to its params."""
    result = run(
        {"learning_rate": sweep.LogUniform(1e-7, 0.1)},
        STILL,
        trials=8,
        optimizer=optfn.momentum,
        policy=sweep.pbt(every=5),
        keep_best=8,
    )
    assert (result.status == "ok").all() and result.copied_from.shape == (3, 8)
    assert (result.copied_from != np.arange(8)).sum(1).tolist() == [2, 2, 2]
    best = next(m for m in result.top(8) if len(m.hyperparameter_history) > 1)
    rates = {step: point["learning_rate"] for step, point in best.hyperparameter_history}
    boundaries = sorted(rates)

    def line(rates):
        def schedule(count):
            rate = rates[0]
            for step in boundaries[1:]:
                rate = jnp.where(count >= step, rates[step], rate)
            return rate

        return optax.chain(optax.ema(0.9, debias=False), optax.scale_by_learning_rate(schedule))

    close(best.params, alone(line, {"rates": rates}, 20, batches=EVERY, params=START))
    scheduled = optfn.hyperparameters(best.optimizer, best.optimizer.init(best.params))
    np.testing.assert_allclose(scheduled["learning_rate"], rates[0])


def test_a_population_survives_divergence_and_says_if_all_diverged():
    space = {"learning_rate": [0.01, 0.02, 0.03, 1e30, 1e30]}
    kwargs = {"optimizer": optfn.sgd, "trials": 16, "policy": sweep.pbt(every=5)}
    result = run(space, **kwargs)
    assert (result.status == "ok").any()
    first = [line[0][1]["learning_rate"] for line in result.own_history]
    assert first.count(1e30) > 2
    copied = result.copied_from[0] != np.arange(16)
    assert all(copied[i] for i, rate in enumerate(first) if rate == 1e30)
    result = run({"learning_rate": [1e30, 2e30]}, **kwargs)
    with pytest.raises(ValueError, match="16 diverged of 16"):
        result.best()


def test_a_population_has_all_its_members_in_lanes():
    with pytest.raises(ValueError, match="pbt trains all members side by side: trials=16 must be"):
        run(RATE, trials=16, lanes=8, policy=sweep.pbt(every=5))


def test_memory_bounds_the_lanes():
    bound = {"trials": 64, "lanes": 64, "max_bytes": 30_000}
    result = run(RATE, STILL, **bound)
    lanes = result.plan.lanes
    assert 8 <= lanes < 64
    with pytest.raises(ValueError, match=r"max_bytes=\.\.\.. must be at least \d+, which 8 lanes"):
        run(RATE, STILL, **bound | {"max_bytes": 100})


def test_idle_lanes_are_left_behind_where_that_pays(monkeypatch):
    """Where one program trains all, by a clock to which compiling is free; scores stay."""
    ticks = iter(range(10**6))
    kwargs = {"trials": 40, "lanes": 32, "keep_best": 4}
    task = sweep.Task(START, loss, **BATCHES, **SCORED)
    assert run(RATE, task, **kwargs).lane_steps == 20 * 32 + 20 * 8  # by threads
    monkeypatch.setattr(engine, "by_threads", lambda mesh: False)
    whole = run(RATE, task, **kwargs)
    monkeypatch.setattr("optfn.sweep.executor.time.perf_counter", lambda: 10.0 * next(ticks))
    compacted = run(RATE, task, **kwargs)
    same(compacted, whole)
    assert compacted.lane_steps == 20 * 32 + 20 * 16 < whole.lane_steps


def test_rows_are_drawn_at_once_within_bounds(monkeypatch):
    """A few steps at a time where a segment draws more: the same rows."""
    kwargs = {"trials": 8, "lanes": 8, "steps": 12, "segment": 12}
    expected = run(RATE, sweep.Task(START, loss, **BATCHES, **SCORED), **kwargs)
    monkeypatch.setattr(lane, "MOST_ROWS", 5 * BATCH)  # 4 of 12 steps, three times
    result = run(RATE, sweep.Task(START, loss, **BATCHES, **SCORED), **kwargs)
    np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-6)
    assert [lane._equal_parts(*of) for of in [(12, 12), (12, 5), (7, 5), (3, 0)]] == [1, 3, 7, 3]


def test_several_optimizers_are_compared():
    compared = sweep.compare(
        TASK,
        {"sgd": (optfn.sgd, RATE), "adam": (optfn.adam, RATE)},
        trials=8,
        steps=20,
        segment=5,
        mode="vmap",
    )
    name, member = compared.best()
    assert name == compared.order()[0] and member.score == compared[name].best().score
    assert member.score <= min(result.best().score for result in compared.values())
    head, *rows = compared.table().splitlines()
    assert head.split()[:4] == ["optimizer", "distance", "near", "pruned"]
    assert [row.split()[0] for row in rows] == compared.order()
    with pytest.raises(ValueError, match="has no optimizer"):
        sweep.compare(TASK, {}, trials=8, steps=20)


def test_lanes_on_a_mesh_do_not_talk_to_each_other():
    mesh = jax.make_mesh((8,), ("lanes",))
    scheduler = Scheduler(
        Plan(TASK, optfn.adam, as_space(RATE), 20, 5, 8, 0, math.inf, mesh),
        session=sweep.random().start(RATE, 8, 0),
        policy=sweep.run_all(),
        seeds_of=lambda number: (0,),
        mode="vmap",
        keep_best=1,
    )
    scheduler.advance()
    executor = scheduler.executor
    occupied = executor.to_devices(np.ones(8, bool))
    options = {"task": TASK, "length": 5, "mode": "vmap", "mesh": mesh}
    lowered = engine._train_together.lower(
        executor.state, occupied, executor.shared, np.int32(0), None, **options
    )
    text = lowered.compile().as_text()
    assert "while" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter"):
        assert collective not in text


BAD_TASKS = {
    "Task(loss=...) must be a function, found 3": {"loss": 3},
    "Task(evaluate=...) must be a function, found {}": {"evaluate": {}},
    "Task(...) has one score: give minimize or maximize": {"minimize": "a", "maximize": "b"},
    "Task(batch_size=...) must be a whole number from 1 to the 64 examples of the data, found 65": {
        "batch_size": 65
    },
    "Task(data=...) must be arrays with the same number of examples in front, found [3, 64]": {
        "data": (X, Y[:3]),
        "batch_size": 3,
    },
    "Task(...): batch draws its own examples; leave batch_size out": {
        "batch": lambda key, data: data,
        "batch_size": 3,
    },
    "Task(stream=...) gives whole batches; leave data out": {"stream": [1]},
    "Task(stream=...) must be a function of the step or an iterable of batches, found 3": {
        "stream": 3,
        "data": None,
    },
    "at 'activation'. Of an Equinox module, give the arrays, eqx.partition": {"init": MLP},
    "must be a function of a key or a tree of arrays, found 'zeros' at the root": {"init": "zeros"},
    "Task(stream=...) cannot be restarted": {"stream": iter([1]), "data": None},
}


@pytest.mark.parametrize("message", BAD_TASKS)
def test_bad_tasks_are_refused(message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        sweep.Task(**{"init": init, "loss": loss, "data": (X, Y)} | BAD_TASKS[message])


LENGTHS = itertools.count()
BAD_RUNS = {
    "sweep.run(policy=...) must be a policy such as asha(first=100), found 'asha'": {
        "policy": "asha"
    },
    "sweep.run(policy=...) must be a policy such as asha(first=100), found the class asha": {
        "policy": sweep.asha
    },
    "sweep.run(optimizer=...) must be a function that returns an optimizer, such as optfn.adam": {
        "optimizer": optfn.adam(0.1)
    },
    "sweep.run(task=...) must be a Task or a TrainingLoop, found function": {"task": loss},
    "sweep.run(steps=...) must be": {"steps": 0},
    "sweep.run(seeds=...) must be": {"seeds": 0},
    "sweep.run(segment=...) must be": {"segment": 0.5},
    "sweep.run(mode=...) must be auto, vmap, map or loop, found 'pmap'": {"mode": "pmap"},
    "sweep.run(lanes=...) must be at least 8, found 4": {"lanes": 4},
    "sweep.run(lanes=...) must be": {"lanes": 8.5},
    "trials=None: random() has no end": {"trials": None},
    "the space must be a dict": {"space": 3},
    "the optimizer of trial 0 must be an optfn transform, found int": {
        "optimizer": lambda learning_rate: 3
    },
    "the task's score 'd' is none of those there are: loss": {
        "task": sweep.Task(START, loss, data=(X, Y), minimize="d")
    },
    "Task(loss=...) must give scalars, found 'loss' with shape (64,)": {
        "task": sweep.Task(init, lambda params, batch: batch[1] * params["b"], data=(X, Y))
    },
    "must give scalars to record with other names than 'loss'": {
        "task": sweep.Task(
            init, lambda params, batch: (loss(params, batch), {"loss": 0.0}), data=(X, Y)
        )
    },
    "Task(evaluate=...) must give a dict of scalars, found": {
        "task": sweep.Task(init, loss, data=(X, Y), evaluate=lambda params: params["b"])
    },
    'mode="loop") trains on one device; leave the mesh out': {
        "mode": "loop",
        "mesh": jax.make_mesh((8,), ("lanes",)),
    },
    "seed must be a whole number of at least 0, found -1": {"seed": -1, "search": sweep.grid()},
    "sweep.run(seed=...) must be below 2**32": {"seed": 2**32},
    "sweep.run(max_loss=...) must be a number, found nan": {"max_loss": float("nan")},
    "have 33 different structures": {
        "catch": (),
        "optimizer": lambda learning_rate: optfn.chain(
            *[optfn.scale(1.0)] * next(LENGTHS), optfn.sgd(learning_rate)
        ),
        "trials": 40,
        "lanes": 40,
    },
}


@pytest.mark.parametrize("message", BAD_RUNS)
def test_bad_sweeps_are_refused(message):
    arguments = {"space": RATE, "trials": 8} | BAD_RUNS[message]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        run(**arguments)


def test_an_error_of_the_optimizer_names_the_trial():
    with pytest.raises(TypeError) as caught:
        run(RATE, optimizer=lambda learning_rate: optfn.adam(learning_rate, b9=0.9), trials=8)
    assert "in the optimizer of trial 0: learning_rate=0.0" in caught.value.__notes__[0]


def test_the_table_of_all_trials_finds_the_scores_once(monkeypatch):
    result, calls = run(RATE, STILL, trials=8), []
    mean = trials._mean
    monkeypatch.setattr(trials, "_mean", lambda scores: calls.append(None) or mean(scores))
    assert len(result.columns()["trial"]) == 8 and result.table() and len(calls) <= 1


def test_a_refined_space_holds_the_best_and_is_smaller():
    space = RATE | {"b1": [0.5, 0.9, 0.99], "b2": 0.999}
    result = run(space, trials=30, lanes=8)
    best, few = result.top(5), result.refined_space(5)
    assert list(few) == list(space) and few["b2"] == sweep.Fixed(0.999)
    assert set(few["b1"].options) == {member.values["b1"] for member in best}
    rates = [member.values["learning_rate"] for member in best]
    part = few["learning_rate"]
    assert part.low <= min(rates) and max(rates) <= part.high
    assert part.low > RATES.low and part.high <= np.float32(RATES.high)
    again = run(few, trials=30, lanes=8)
    assert np.median(again.losses) < np.median(result.losses)
    with pytest.raises(ValueError, match="needs two or more trials with a finite score, found 1"):
        result.refined_space(1)


def test_the_best_of_optimizers_with_arrays_is_as_it_was_made():
    def stairs(by):
        return optfn.sgd(schedules.piecewise_constant(by * jnp.asarray([1.0, 0.5, 0.1]), (5, 10)))

    result = run({"by": [0.1, 0.2]}, STILL, stairs, search=sweep.grid(), mode="map")
    best = result.best()
    wanted = stairs(best.values["by"])
    assert jax.tree.structure(best.optimizer) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, best.optimizer, wanted)
