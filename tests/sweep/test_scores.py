"""Which score of a run counts, and that its params have it."""

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from sweep.problem import RATE, STILL, X, evaluate, run, same

import optfn
from optfn import sweep

GRID = {"search": sweep.grid(), "optimizer": optfn.sgd, "lanes": 16}
RATES = [0.01, 0.1, 0.15, 1e-3]


def off(params):
    return {"off": (params["w"] - 1) ** 2}


# Its weight rises by the rate in each step, past the best one.
DRIFT = sweep.Task({"w": jnp.zeros(())}, lambda p, _: -p["w"], data=X, evaluate=off, minimize="off")


@pytest.mark.parametrize(
    "mode", ["map", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("vmap", "loop"))]
)
def test_the_best_on_the_way_has_its_params(mode, tmp_path):
    kwargs = {"mode": mode, "score": "best", "keep_best": 4, **GRID}
    result = run({"learning_rate": RATES}, DRIFT, **kwargs)
    np.testing.assert_array_equal(result.scores[:, 0], result.curves["off"].min(axis=1))
    for best in result.top(4):
        np.testing.assert_allclose(off(best.params)["off"], best.score, rtol=1e-6)
        assert result.rerun(best.trial).score == best.score
    assert result.best().values["learning_rate"] == 0.1
    np.testing.assert_allclose(result.best().params["w"], 1.0, rtol=1e-6)
    last = run({"learning_rate": RATES}, DRIFT, **kwargs | {"score": "last"})
    np.testing.assert_array_equal(last.scores[:, 0], result.curves["off"][:, -1])
    assert last.best().values["learning_rate"] == 0.01


def test_the_mean_of_the_last_counts(tmp_path):
    kwargs = {"score": ("mean", 3), **GRID}
    result = run({"learning_rate": RATES}, DRIFT, **kwargs)
    expected = result.curves["off"][:, 1:].mean(axis=1)
    np.testing.assert_allclose(result.scores[:, 0], expected, rtol=1e-6)
    run({"learning_rate": RATES}, DRIFT, max_seconds=0.0, checkpoint=tmp_path, **kwargs)
    same(run({"learning_rate": RATES}, DRIFT, checkpoint=tmp_path, **kwargs), result)
    with pytest.raises(ValueError, match="differs in score of a run"):
        run({"learning_rate": RATES}, DRIFT, checkpoint=tmp_path, **kwargs | {"score": "last"})


@pytest.mark.slow
def test_each_run_of_a_trial_has_its_own_best(tmp_path):
    """Also after a kill, under confirmation and for trials that have waited."""
    policy = sweep.successive_halving(first=5, bracket=8)
    kwargs = {"trials": 8, "seeds": 2, "lanes": 8, "score": "best", "policy": policy}
    kwargs |= {"confirm": sweep.Confirm(top=1, seeds=2), "steps": 40}
    result = run(RATE, STILL, **kwargs)
    kwargs |= {"checkpoint": tmp_path}
    run(RATE, STILL, max_seconds=0.0, **kwargs)
    same(run(RATE, STILL, **kwargs), result)
    for best in (result.best(), run(RATE, STILL, **kwargs | {"confirm": None}).best()):
        scores = [float(evaluate(run.params)["distance"]) for run in best.runs]
        np.testing.assert_allclose(scores, [run.score for run in best.runs], rtol=1e-5)
        np.testing.assert_allclose(best.score, np.mean(scores), rtol=1e-5)


@pytest.mark.slow
def test_a_member_of_a_population_carries_its_best_with_it():
    policy = sweep.pbt(every=5)
    result = run(
        RATE, STILL, policy=policy, trials=8, score="best", keep_best=8, optimizer=optfn.sgd
    )
    np.testing.assert_array_equal(result.at_score["distance"], result.scores[:, 0])
    for member in result.top(8):
        np.testing.assert_allclose(evaluate(member.params)["distance"], member.score, rtol=1e-5)
    line = next(m for m in result.top(8) if len(m.hyperparameter_history) > 1)
    row = next(row for row in result.table(8).splitlines() if row.split()[0] == str(line.trial))
    first, last = (f"{line.hyperparameter_history[i][1]['learning_rate']:.4g}" for i in (0, -1))
    assert f"{first} → " in row and f" → {last} " in row


def test_a_run_that_no_longer_improves_ends_and_may_win():
    kwargs = {"score": "best", "patience": 1, **GRID}
    result = run({"learning_rate": RATES}, DRIFT, **kwargs)
    assert list(result.status) == ["ok"] * 4 and list(result.steps) == [20, 15, 10, 20]
    assert result.best().steps == 15 and result.best().score < 1e-9
    assert result.rerun(1).steps == 15
    maximized = sweep.Task(
        {"w": jnp.zeros(())},
        lambda p, _: -p["w"],
        data=X,
        evaluate=lambda p: {"near": -off(p)["off"]},
        maximize="near",
    )
    other = run({"learning_rate": RATES}, maximized, **kwargs)
    np.testing.assert_array_equal(other.scores, -result.scores)
    np.testing.assert_array_equal(other.steps, result.steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        sweep.successive_halving(first=5),
        sweep.from_optuna(optuna.pruners.MedianPruner(n_startup_trials=2), every=5),
    ],
)
def test_nobody_waits_for_a_run_that_ended_by_itself(policy):
    kwargs = {"score": "best", "patience": 1, "steps": 40, "policy": policy, **GRID}
    result = run({"learning_rate": [0.1, 0.15, 0.2, 0.25, 0.01, 0.02]}, DRIFT, **kwargs)
    assert set(result.status) <= {"ok", "pruned"} and result.best().score < 1e-9


@pytest.mark.slow
def test_what_diverges_has_no_best():
    result = run({"learning_rate": [0.1, 1e30]}, score="best", **GRID)
    assert list(result.status) == ["ok", "diverged"] and np.isinf(result.trial(1).score)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [None, sweep.successive_halving(first=5)])
def test_as_many_are_confirmed_as_were_asked_for(policy):
    confirm = sweep.Confirm(top=6, seeds=1)
    result = run(RATE, STILL, trials=30, lanes=16, steps=50, policy=policy, confirm=confirm)
    assert np.isfinite(result.confirmed).sum() == 6 <= (result.status == "ok").sum()
    with pytest.warns(UserWarning, match=r"Confirm\(top=6\) confirms 2: .* of 30: 2 ok, 28 pruned"):
        by_brackets = sweep.successive_halving(first=5, bracket=15)
        run(RATE, STILL, trials=30, lanes=16, steps=50, policy=by_brackets, confirm=confirm)


def test_no_halving_judges_in_the_last_third():
    """But by the only rung there is."""
    for steps in (10, 27, 60, 100, 600, 1000):
        for first in (1, 5, 10, 60):
            for eta in (2, 3, 4):
                for kind in (sweep.asha, sweep.successive_halving, sweep.hyperband):
                    try:
                        rungs = kind(first, eta=eta).rungs(steps, segment=1)
                    except ValueError:
                        continue
                    assert all(3 * age <= 2 * steps for age in rungs[1:])


BAD = {
    'score=...) must be "last", "best" or ("mean", k)': {"score": "first"},
    'score=("mean", k)) must be': {"score": ("mean", 0)},
    "patience=...) must be": {"patience": 0},
    "a population trains all its members to the end": {"patience": 2, "policy": sweep.pbt(every=5)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_scores_are_refused(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        run(RATE, STILL, trials=8, **BAD[message])
    assert message in str(caught.value)
