"""The trials of which none is worse than another in all scores."""

import csv
import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure
from sweep.problem import X, run

import optfn
from optfn import sweep
from optfn.sweep import plot

TASK = sweep.Task(
    {"w": jnp.zeros(())},
    lambda p, _: -p["w"],
    data=X,
    evaluate=lambda p: {"near": -((p["w"] - 1) ** 2), "size": p["w"]},
    maximize="near",
)
AIMS = {"near": "maximize", "size": "minimize"}


@pytest.fixture(scope="module")
def result():
    rates = {"learning_rate": [0.01, 0.04, 0.05, 0.07, 0.2, 1e38]}
    return run(rates, TASK, optfn.sgd, search=sweep.grid(), mode="map")


def test_who_is_beaten_by_none(result, tmp_path):
    """A weight of 20 rates is nearer to 1 the larger it is, up to there; then it is beaten."""
    front = sweep.pareto(result, AIMS)
    assert [trial.values["learning_rate"] for trial in front.trials] == [0.05, 0.04, 0.01]
    first = front.table().splitlines()[1].split()
    assert front.table().splitlines()[0].split() == ["trial", "near", "size", "learning_rate"]
    assert first[0] == "2" and first[2:] == ["1", "0.05"]
    result.to_csv(tmp_path / "all.csv")
    with open(tmp_path / "all.csv") as file:
        sizes = [float(row["size"]) for row in csv.DictReader(file)]
    np.testing.assert_array_equal(sizes[:5], result.curves["size"][:5, -1])
    ax = plot.pareto(front, Figure().subplots())
    (_, chosen, _), labels = ax.get_lines(), (ax.get_xlabel(), ax.get_ylabel())
    assert labels == ("near", "size")
    np.testing.assert_allclose(np.sort(chosen.get_ydata()), [0.2, 0.8, 1.0], rtol=1e-5)


def test_the_page_has_it_when_asked(result, tmp_path):
    plain = result.report(tmp_path / "plain.html").read_text()
    page = result.report(tmp_path / "front.html", pareto=AIMS).read_text()
    assert page.count("<img") == plain.count("<img") + 1 and "Beaten by none" not in plain
    assert "Beaten by none in near (maximize), size (minimize)" in page
    assert sweep.pareto(result, AIMS).table() in page
    with pytest.raises(ValueError, match="'far' is none of the scores"):
        result.report(tmp_path / "no.html", pareto={"far": "minimize"})
    assert not (tmp_path / "no.html").exists()


def test_it_is_what_optuna_finds(result):
    rng, names = np.random.default_rng(0), ("near", "size", "loss")
    distributions = {"i": optuna.distributions.IntDistribution(0, 29)}
    for scores in (1, 2, 3):
        values = {name: rng.integers(0, 6, (30, 1)) / 1.0 for name in names[:scores]}
        aims = dict(zip(names, rng.choice(["minimize", "maximize"], scores).tolist(), strict=False))
        many = replace(
            result,
            at_score={name: x[:, 0] for name, x in values.items()},
            violations=np.zeros((30, 0)),
            points=[{"i": i} for i in range(30)],
            status=np.array(["ok"] * 30),
        )
        with warnings.catch_warnings(action="ignore"):
            study = optuna.create_study(directions=list(aims.values()))
        for i in range(30):
            own = [float(values[name][i, 0]) for name in aims]
            study.add_trial(
                optuna.create_trial(params={"i": i}, distributions=distributions, values=own)
            )
        if scores == 1:
            best = study.best_trial.values[0]
            expected = [t.params["i"] for t in study.trials if t.values[0] == best]
        else:
            expected = [t.params["i"] for t in study.best_trials]
        assert sorted(sweep.pareto(many, aims).numbers) == expected


def test_only_what_ran_to_the_end_counts(result):
    status = result.status.copy()
    status[2] = "pruned"
    rates = [
        t.values["learning_rate"] for t in sweep.pareto(replace(result, status=status), AIMS).trials
    ]
    assert rates == [0.04, 0.01]


BAD = {
    "must be a dict such as": (TypeError, ["near"]),
    "must be minimize or maximize, found 'up' for 'near'": (ValueError, {"near": "up"}),
    "'far' is none of the scores there are: loss, near, size": (ValueError, {"far": "minimize"}),
    "no trial ran to the end with finite scores": (ValueError, {}),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_direction_is_refused(message, result):
    kind, directions = BAD[message]
    with pytest.raises(kind) as caught:
        sweep.pareto(result, directions)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="must have two scores, found near"):
        plot.pareto(sweep.pareto(result, {"near": "maximize"}))
