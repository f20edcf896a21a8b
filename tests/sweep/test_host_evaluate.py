"""Scores that a function of the host gives."""

import numpy as np
import pytest
from sklearn.metrics import mean_squared_error
from sweep.problem import RATE, START, STILL, X, Y, evaluate, loss, run, same

import optfn
from optfn import sweep

ALL = {"trials": 8, "lanes": 8, "mode": "map"}


def distance(params):
    assert type(params["w"]) is np.ndarray
    return float(np.sum((params["w"] - np.float32([1.0, -2.0, 0.5])) ** 2))


def task_with(host_evaluate, **score):
    return sweep.Task(
        START, loss, data=(X, Y), host_evaluate=host_evaluate, **score or {"minimize": "distance"}
    )


ON_HOST = task_with(distance)


@pytest.mark.parametrize("score", ["last", "best"])
def test_it_scores_as_evaluate_does(score):
    """Pruning, parking and the best on the way included: all follow the score."""
    policy = sweep.successive_halving(first=5, bracket=8)
    kwargs = ALL | {"seeds": 2, "score": score, "policy": policy, "keep_best": 2}
    kwargs["space"] = {"learning_rate": sweep.LogUniform(1e-3, 3.0)}
    found, wanted = run(task=ON_HOST, **kwargs), run(task=STILL, **kwargs)
    assert list(found.status) == list(wanted.status) and "pruned" in found.status
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
    np.testing.assert_allclose(found.curves["distance"], wanted.curves["distance"], rtol=1e-5)
    np.testing.assert_array_equal(found.curves["loss"], wanted.curves["loss"])
    for trial in found.top(2):
        assert [distance(run.params) for run in trial.runs] == pytest.approx(
            [run.score for run in trial.runs], rel=1e-6
        )


def test_several_numbers_beside_those_of_the_program(tmp_path):
    """Hyperparameters of the task come along; a kill changes nothing."""

    def measured(params, *, scale):
        x, y = X, Y
        found = mean_squared_error(y, x @ params["w"] + params["b"])
        return {"fit": -scale * found, "scale": scale}

    task = sweep.Task(
        START,
        loss,
        data=(X, Y),
        evaluate=evaluate,
        host_evaluate=measured,
        maximize="fit",
    )
    space = RATE | {"scale": [1.0, 2.0]}
    result = run(space, task, **ALL)
    best = result.best()
    assert result.curves.keys() == {"loss", "distance", "fit", "scale"}
    scale, params = best.values["scale"], best.params
    assert best.score == pytest.approx(-scale * float(loss(params, (X, Y))), rel=1e-5)
    assert (result.curves["scale"][:, -1] == [p["scale"] for p in result.points]).all()
    run(space, task, checkpoint=tmp_path, max_seconds=0.0, **ALL)
    same(run(space, task, checkpoint=tmp_path, **ALL), result)
    assert sweep.Result.load(tmp_path).best().score == best.score
    other = sweep.Task(
        START,
        loss,
        data=(X, Y),
        evaluate=evaluate,
        host_evaluate=lambda params, *, scale: measured(params, scale=-scale),
        maximize="fit",
    )
    with pytest.raises(ValueError, match="differs in its task"):
        run(space, other, checkpoint=tmp_path, **ALL)


def test_it_gets_the_model_that_is_scored():
    """Averages, and the state of the model; of a loop what it says are its params."""

    def counted(params, state, batch):
        return loss(params, batch), state + 1

    seen = []
    task = sweep.Task(
        (START, np.int32(0)),
        counted,
        data=(X, Y),
        has_state=True,
        host_evaluate=lambda params, state: seen.append(int(state)) or distance(params),
        minimize="distance",
    )
    result = run({"learning_rate": [0.5]}, task, optfn.schedule_free_sgd, search=sweep.grid())
    assert seen == [5, 10, 15, 20]
    assert result.best().score == distance(result.best().params)


def failing(calls_that_fail):
    calls = {}

    def host_evaluate(params, *, which):
        which = int(which)
        calls[which] = calls.get(which, 0) + 1
        if calls[which] == calls_that_fail.get(which):
            raise RuntimeError(f"no score for {which}")
        return distance(params)

    return task_with(host_evaluate)


@pytest.mark.parametrize("policy", [sweep.run_all(), sweep.successive_halving(5, bracket=4)])
def test_what_it_raises_is_the_failure_of_the_trial(policy, tmp_path):
    """Nobody waits for it, also where it has been scored before."""
    space = {"learning_rate": [0.05], "which": [0, 1, 2, 3]}
    kwargs = {"search": sweep.grid(), "policy": policy, "lanes": 8, "mode": "map"}
    result = run(space, failing({0: 2, 1: 1}), checkpoint=tmp_path, **kwargs)
    assert result.errors == {i: f"RuntimeError: no score for {i}" for i in (0, 1)}
    assert list(result.status[:2]) == ["failed"] * 2 and list(result.steps[:2]) == [10, 5]
    assert np.isinf(result.losses[:2]).all() and "stopped" not in result.status
    if isinstance(policy, sweep.run_all):
        whole = run(space, failing({}), **kwargs)
        np.testing.assert_array_equal(result.scores[2:], whole.scores[2:])
        with pytest.raises(RuntimeError, match="no score for 1") as caught:
            run(space, failing({1: 1}), catch=(), **kwargs)
        assert caught.value.__notes__[0].startswith("in the host_evaluate of trial 1: ")


def test_a_sweep_in_which_all_fail_raises_the_first_error():
    with pytest.raises(RuntimeError, match="no score for 0"):
        run({"learning_rate": 0.1, "which": [0, 1]}, failing({0: 1, 1: 1}), search=sweep.grid())


def test_a_fresh_run_that_fails_is_the_worst():
    calls = []

    def once(params):
        calls.append(0)
        if len(calls) == 33:
            raise RuntimeError("once")
        return distance(params)

    result = run(RATE, task_with(once), confirm=sweep.Confirm(top=2, seeds=1), **ALL)
    assert sorted(np.isinf(result.confirmed[~np.isnan(result.confirmed)])) == [False, True]
    assert result.best().score == distance(result.best().params)


BAD = {
    "must be a function, found 3": {"host_evaluate": 3},
    "or one number whose name is given by minimize or maximize, found 0.5 by the name None": {
        "host_evaluate": lambda params: 0.5
    },
    "must give a dict of numbers, or one number": {"host_evaluate": lambda params: {"a": [1, 2]}},
    "that no other score has, found loss in both": {"host_evaluate": lambda params: {"loss": 1}},
    "must give the score 'a', found b": {"host_evaluate": lambda p: {"b": 1}, "minimize": "a"},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_score_is_refused(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        run(RATE, sweep.Task(START, loss, data=(X, Y), **BAD[message]), **ALL)
    assert message in str(caught.value)


def test_a_population_needs_all_its_scores():
    space = {"learning_rate": RATE["learning_rate"], "which": 0}
    with pytest.raises(RuntimeError, match="no score for 0"):
        run(space, failing({0: 1}), policy=sweep.pbt(every=5), **ALL)


def test_programs_let_go_of_what_it_holds():
    held = np.zeros(3)
    task = task_with(lambda params: distance(params) + held[0])
    assert task.without_arrays.host_evaluate is None
