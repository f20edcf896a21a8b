"""A trial that breaks a constraint never wins."""

import csv
import warnings

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from sweep.problem import X, run

import optfn
from optfn import sweep
from optfn.sweep.optuna_search import optuna_search

MOST = 0.9
TASK = sweep.Task(
    {"w": jnp.zeros(())},
    lambda p, _: -p["w"],
    data=X,
    evaluate=lambda p: {"near": -((p["w"] - 1) ** 2), "size": p["w"], "excess": p["w"] - MOST},
    maximize="near",
)
# A weight is its rate times the steps: that of the third is the best, and too large.
RATES = {"learning_rate": [0.01, 0.04, 0.05, 0.07]}


def go(**kwargs):
    kwargs = {"search": sweep.grid(), "mode": "map", "constraints": {"size": (0, MOST)}} | kwargs
    return run(RATES, TASK, optfn.sgd, **kwargs)


@pytest.fixture(scope="module")
def result():
    return go()


FORMS = {
    "a name": "excess",
    "names": ["excess"],
    "whether it is kept": lambda scores: scores["size"] <= MOST,
    "how much it is broken": lambda scores: jnp.float32(scores["size"] - MOST),
    "several": ["excess", lambda scores: scores["near"] < 0],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form, result):
    other = go(constraints=FORMS[form])
    np.testing.assert_array_equal(other.feasible, result.curves["size"][:, -1] <= MOST)
    np.testing.assert_array_equal(other.order(), result.order())


def test_what_breaks_one_never_wins_and_is_marked(result, tmp_path):
    assert list(result.feasible) == [True, True, False, False]
    sizes = result.curves["size"][:, -1]
    np.testing.assert_allclose(result.violations[:, 0], np.maximum(-sizes, sizes - MOST))
    assert [t.values["learning_rate"] for t in result.top(4)] == [0.04, 0.01, 0.05, 0.07]
    assert [t.feasible for t in result.top(4)] == [True, True, False, False]
    best = result.best()
    np.testing.assert_allclose(-((best.params["w"] - 1) ** 2), best.score)
    head, *rows = (row.split() for row in result.table().splitlines()[:-1])
    assert head[-1] == "constraints"
    assert [row[-1] for row in rows] == ["kept", "kept", "broken", "broken"]
    result.to_csv(tmp_path / "all.csv")
    with open(tmp_path / "all.csv") as file:
        assert [r["constraints"] for r in csv.DictReader(file)] == ["kept"] * 2 + ["broken"] * 2
    page = result.report(tmp_path / "all.html").read_text()
    assert "Bounds(name=&#x27;size&#x27;, low=0.0, high=0.9)" in page and ">broken<" in page
    assert sweep.pareto(result, {"near": "maximize", "size": "minimize"}).numbers == (1, 0)


def test_without_a_trial_that_keeps_them_there_is_no_best():
    with pytest.warns(UserWarning, match=r"Confirm\(top=2\) confirms 0"):
        none = go(constraints={"size": (2, np.inf)}, confirm=sweep.Confirm(2, 1))
    assert "best near none" in repr(none)
    with pytest.raises(ValueError, match="none of the 4 trials with a finite score keeps all cons"):
        none.best()


def test_only_what_keeps_them_is_confirmed():
    result = go(confirm=sweep.Confirm(2, 1))
    np.testing.assert_array_equal(np.isfinite(result.confirmed[:, 0]), result.feasible)
    assert result.best().values["learning_rate"] == 0.04


def test_a_policy_does_not_promote_what_breaks_one():
    policy = sweep.asha(first=5, eta=2)
    assert go(policy=policy, constraints=()).steps[3] == 20
    result = go(policy=policy, constraints={"size": (0, 0.22)})
    assert list(result.steps[2:]) == [5, 5] and list(result.status[2:]) == ["pruned"] * 2


def test_the_scores_are_of_the_moment_that_counts():
    """Weights come to 1 and go on: the third one there at the end, the fourth on its way."""
    result = go(score="best", constraints={"size": (0, 1.01)})
    moments = result.curves["near"].argmax(axis=1)
    for name, found in result.at_score.items():
        np.testing.assert_array_equal(found, result.curves[name][range(4), moments])
    assert moments[3] == 2 and list(result.feasible) == [True, True, True, False]
    assert result.best().values["learning_rate"] == 0.05


def test_a_checkpoint_has_them(tmp_path):
    go(checkpoint=tmp_path)
    for found in (sweep.Result.load(tmp_path), go(checkpoint=tmp_path)):
        assert list(found.feasible) == [True, True, False, False] and found.best().trial == 1
    with pytest.raises(ValueError, match="differs in its constraints"):
        go(checkpoint=tmp_path, constraints={"size": (0, 2)})


def test_optuna_has_them_where_it_stores_its_own(tmp_path):
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(), study_name="s"
    )
    result = go(search=optuna_search(study), trials=8)
    stored = [trial.system_attrs["constraints"] for trial in study.trials]
    np.testing.assert_array_equal(stored, result.violations)
    shared = go(search=sweep.shared_search(tmp_path / "j"), trials=8)
    other = go(search=sweep.shared_search(tmp_path / "j"), trials=8)  # a worker that comes too late
    np.testing.assert_array_equal(other.violations, shared.violations)
    assert other.best().trial == shared.best().trial


@pytest.mark.skipif(int(optuna.__version__[0]) < 5, reason="which has to be told where they are")
def test_a_sampler_learns_of_them():
    """What it is to minimize falls to the left, where it is forbidden."""
    share = []
    for told in (True, False):
        session, tried = optuna_search().start({"x": sweep.Uniform(0.0, 1.0)}, 40, 0), []
        for i in range(40):
            (point,) = session.ask(1)
            tried.append(point["x"])
            if told:
                session.constrain(i, [0.6 - point["x"]])
            session.tell(i, point["x"], "ok")
        share.append(np.mean(np.array(tried[20:]) > 0.5))
        again = optuna_search().start({"x": sweep.Uniform(0.0, 1.0)}, 40, 0)
        again.restore(session.state())  # which compares all points
    assert share[0] > 0.6 and share[1] < 0.2


BAD = {
    "'far' is none of the scores there are: excess, loss, near, size": (
        ValueError,
        {"far": (0, 1)},
    ),
    "must be names of scores, functions": (TypeError, 3),
    "must have a pair (low, high) for 'size'": (TypeError, {"size": 3}),
    "no 'size' lies between 2 and 1": (ValueError, {"size": (2, 1)}),
    "must give True or False, or a number": (TypeError, lambda scores: "small"),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_constraint_is_refused(message):
    kind, constraints = BAD[message]
    with pytest.raises(kind) as caught, warnings.catch_warnings(action="ignore"):
        go(constraints=constraints)
    assert message in str(caught.value)
