"""Spaces of more than the optimizer's numbers: the task's, choices with spaces, own points."""

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from sweep.problem import RATE, RATES, START, STILL, X, Y, close, loss, run, same

import optfn
from optfn import schedules, sweep
from optfn.sweep.one_of import check_names


def scaled_init(key, *, scale=1.0):
    return jax.tree.map(lambda x: scale * x, START)


def decayed(params, batch, *, decay):
    return loss(params, batch) + decay * jnp.sum(params["w"] ** 2)


def shifted(params, *, shift=0):
    return {"distance": jnp.sum(params["w"] ** 2) + shift}


SCORE = {"evaluate": shifted, "minimize": "distance"}
TASK = sweep.Task(scaled_init, decayed, data=(X, Y), **SCORE)
SPACE = RATE | {"decay": [0, 0.5], "scale": sweep.Uniform(0.5, 2.0), "shift": [0, 100]}


def test_a_name_goes_to_the_functions_that_take_it():
    result = run(SPACE, TASK, trials=12, lanes=8, keep_best=12)
    for i in (0, 5, 11):
        values, member = result.points[i], result.trial(i)
        tx = optfn.adam(values["learning_rate"])
        assert repr(member.optimizer) == repr(tx) and set(member.values) == set(SPACE)

        @jax.jit
        def train(params, tx=tx, decay=values["decay"]):
            def step(_, carry):
                params, state = carry
                grads = jax.grad(decayed)(params, (X, Y), decay=decay)
                return optfn.step(tx, params, grads, state)

            return jax.lax.fori_loop(0, 20, step, (params, tx.init(params)))[0]

        expected = train(scaled_init(None, scale=values["scale"]))
        close(member.params, expected)
        np.testing.assert_allclose(
            member.score, shifted(expected, shift=values["shift"])["distance"], rtol=1e-4
        )
    again = result.rerun(3)
    assert again.score == result.trial(3).score and again.values == result.points[3]


OPTIMIZERS = sweep.OneOf(
    "optimizer",
    {
        "sgd": (optfn.sgd, {"learning_rate": RATES, "momentum": 0.9}),
        "adam": (
            optfn.adam,
            {
                "learning_rate": sweep.OneOf(
                    "schedule",
                    {
                        "constant": (schedules.constant, {"value": RATES}),
                        "cosine": (
                            lambda peak: schedules.warmup_cosine(peak, 5, 20),
                            {"peak": RATES},
                        ),
                    },
                ),
                "b1": sweep.OneMinusLogUniform(0.01, 0.5),
            },
        ),
    },
)
NAMES = {
    "sgd": {"optimizer", "learning_rate", "momentum"},
    "constant": {"optimizer", "schedule", "value", "b1"},
    "cosine": {"optimizer", "schedule", "peak", "b1"},
}


def named(values):
    return set(values) == NAMES[values.get("schedule", values["optimizer"])]


def test_functions_of_one_name_take_each_their_own():
    """As all that are written as a lambda at the top of a file."""
    schedule = sweep.OneOf("schedule", {"constant": (lambda value: value, {"value": RATES})})
    space = {"learning_rate": schedule, "b1": 0.9}
    made = sweep.OneOf(
        "optimizer", {"adam": (lambda learning_rate, b1: (learning_rate, b1), space)}
    )
    check_names(made, {"optimizer": made}, {})
    with pytest.raises(
        TypeError, match=r"'b1' is taken by nobody: .*lambda> takes learning_rate; "
    ):
        check_names(lambda learning_rate: learning_rate, space, {})


@pytest.mark.parametrize("search", [sweep.random(), sweep.sobol(), sweep.optuna_search()])
def test_a_trial_has_what_applies_to_it(search):
    points = search.start({"optimizer": OPTIMIZERS}, 24, 0).ask(24)
    assert all(map(named, points))
    assert {p.get("schedule", p["optimizer"]) for p in points} == set(NAMES)


def test_several_optimizers_are_one_sweep(tmp_path):
    kwargs = {"optimizer": OPTIMIZERS, "task": STILL, "trials": 16, "lanes": 8}
    result = run({}, checkpoint=tmp_path, **kwargs)
    assert (result.status == "ok").all() and all(map(named, result.points))
    for i in (0, 7, 15):
        values = result.points[i]
        if values["optimizer"] == "sgd":
            tx = optfn.sgd(values["learning_rate"], momentum=0.9)
        elif values["schedule"] == "constant":
            tx = optfn.adam(schedules.constant(values["value"]), b1=values["b1"])
        else:
            tx = None
        assert tx is None or repr(result.trial(i).optimizer) == repr(tx)
    best = result.best().values
    line = result.table(1).splitlines()[1]
    assert best["optimizer"] in line
    result.to_csv(tmp_path / "trials.csv")
    head, *rows = (tmp_path / "trials.csv").read_text().splitlines()
    first = dict(zip(head.split(","), rows[0].split(","), strict=True))
    assert {n for n, x in first.items() if x} >= NAMES["sgd"] or first["optimizer"] == "adam"
    assert {"peak", "value", "learning_rate"} <= set(head.split(","))
    same(run({}, checkpoint=tmp_path, **kwargs), result)
    few = result.refined_space(4)["optimizer"]
    assert set(few.options) == {m.values["optimizer"] for m in result.top(4)}


def test_optuna_sees_the_condition():
    study = optuna.create_study()
    search = sweep.optuna_search(study)
    result = run({}, STILL, OPTIMIZERS, trials=10, lanes=8, search=search)
    for trial, point in zip(study.trials, result.points, strict=True):
        option = point["optimizer"]
        assert trial.params["optimizer"] == option
        assert all(
            key.startswith(f"optimizer.{option}.") for key in trial.params.keys() - {"optimizer"}
        )
        if option == "adam":
            assert trial.params["optimizer.adam.b1"] == point["b1"]
            assert trial.params["optimizer.adam.schedule"] == point["schedule"]
    again = search.start({"optimizer": OPTIMIZERS}, 4, 1).ask(4)  # it knows the study's trials
    assert all(map(named, again))


def test_a_grid_of_choices_has_every_combination():
    space = {
        "optimizer": sweep.OneOf(
            "optimizer",
            {
                "sgd": (optfn.sgd, {"learning_rate": [0.1, 0.2]}),
                "adam": (optfn.adam, {"learning_rate": 0.3, "b1": [0.5, 0.6, 0.7]}),
            },
        ),
        "decay": [0, 1],
    }
    points = sweep.grid().start(space, None, 0).ask(100)
    assert len(points) == 10 == len({tuple(p.items()) for p in points})
    assert points[0] == {"optimizer": "sgd", "learning_rate": 0.1, "decay": 0}
    assert points[-1] == {"optimizer": "adam", "learning_rate": 0.3, "b1": 0.7, "decay": 1}


@pytest.mark.parametrize("search", [sweep.random(), sweep.sobol(), sweep.optuna_search()])
def test_points_of_ones_own_come_first(search):
    mine = [{"learning_rate": 0.0625, "b1": 0.75}, {"learning_rate": 0.03125}]
    space = RATE | {"b1": sweep.OneMinusLogUniform(0.01, 0.5)}
    result = run(space, STILL, trials=8, lanes=8, search=search, enqueue=mine)
    assert len(result) == 8 and result.points[0] == mine[0]
    assert result.points[1]["learning_rate"] == 0.03125 and 0.5 <= result.points[1]["b1"] <= 0.99


def sometimes(learning_rate):
    if learning_rate > 0.01:
        raise ZeroDivisionError("too large")
    return optfn.adam(learning_rate)


def test_a_point_that_cannot_be_made_is_a_failed_trial(tmp_path):
    kwargs = {"task": STILL, "optimizer": sometimes, "trials": 16, "lanes": 8}
    result = run(RATE, checkpoint=tmp_path, **kwargs)
    failed = np.array([p["learning_rate"] > 0.01 for p in result.points])
    assert 0 < failed.sum() < 16 and ((result.status == "failed") == failed).all()
    assert result.best().values["learning_rate"] <= 0.01
    one = result.trial(int(np.flatnonzero(failed)[0]))
    assert one.error == "ZeroDivisionError: too large" and one.optimizer is None
    assert f"{failed.sum()} failed" in result.table(3) and len(result.columns()["status"]) == 16
    same(run(RATE, checkpoint=tmp_path, **kwargs), result)
    with pytest.raises(ZeroDivisionError):
        run(RATE, catch=(), **kwargs)
    with pytest.raises(ZeroDivisionError):  # where every trial fails
        run({"learning_rate": sweep.Uniform(0.5, 1.0)}, **kwargs)


def test_an_optimizer_that_does_not_run_fails_alone():
    """Of a choice whose second option refuses these params."""

    def optimizer(name, learning_rate):
        wrong = optfn.masked(optfn.sgd(learning_rate), {"other": True})
        return optfn.adam(learning_rate) if name == "adam" else wrong

    search = optuna.create_study()
    result = run(
        RATE | {"name": ["adam", "wrong"]},
        STILL,
        optimizer,
        trials=8,
        lanes=8,
        search=sweep.optuna_search(search),
    )
    wrong = [p["name"] == "wrong" for p in result.points]
    assert (result.status == np.where(wrong, "failed", "ok")).all() and 0 < sum(wrong) < 8
    states = [trial.state.name for trial in search.trials]
    assert states.count("FAIL") == sum(wrong)


DISTRIBUTIONS = [
    sweep.Uniform(0.1, 0.95, step=0.05),
    sweep.Uniform(-1.0, 1.0, step=0.3),
    sweep.IntUniform(16, 250, step=16),
    sweep.Normal(3.0, 0.5),
    sweep.Either(0.0, sweep.LogUniform(1e-4, 0.1)),
    sweep.as_space({"x": [sweep.Uniform(2, 3), -1, sweep.OneMinusLogUniform(0.01, 0.5)]})["x"],
]


@pytest.mark.parametrize("d", DISTRIBUTIONS, ids=repr)
def test_a_distribution_is_inverted_by_its_unit(d):
    places = [*np.random.default_rng(0).random(200).tolist(), 0.0, 1 - 2**-53]
    values = [d.at(u) for u in places]
    for u, value in zip(places, values, strict=True):
        assert 0 <= d.unit(value) < 1 and d.at(d.unit(value)) == pytest.approx(value, rel=1e-5)
        for factor in (0.7, 1.0, 1.6):
            d.unit(d.perturb(value, factor))  # it is a value
        part = d.between(0.9 * u, min(u + 0.05, 1.0))
        d.unit(part.at(0.0)), d.unit(part.at(0.7))
    if not isinstance(d, sweep.Either):
        assert [d.at(u) for u in sorted(places)] == sorted(values)
    with pytest.raises(ValueError, match="has no value"):
        d.unit(1e6)


def test_distributions_have_their_values():
    steps = sweep.Uniform(0.5, 2.0, step=0.5), sweep.IntUniform(1, 10, step=4)
    for d, values in zip(steps, ([0.5, 1.0, 1.5, 2.0], [1, 5, 9]), strict=True):
        drawn = [d.at(u) for u in (np.arange(1200) + 0.5) / 1200]
        assert sorted(set(drawn)) == values and len({drawn.count(x) for x in values}) == 1
    normal = [sweep.Normal(3.0, 0.5).at(u) for u in (np.arange(1000) + 0.5) / 1000]
    np.testing.assert_allclose([np.mean(normal), np.std(normal)], [3.0, 0.5], rtol=0.01)
    either = [sweep.Either(0, sweep.Uniform(1, 2)).at(u) for u in np.arange(100) / 100]
    assert either.count(0.0) == 50 and min(either[50:]) >= 1


def test_optuna_stores_the_values_that_are_used():
    space = {str(i): d for i, d in enumerate(DISTRIBUTIONS)}
    space["b"] = sweep.OneMinusLogUniform(0.01, 0.5)
    study = optuna.create_study()
    session = sweep.optuna_search(study).start(space, 16, 0)
    session.enqueue([point := sweep.random().start(space, 1, 5).ask(1)[0]])
    points = session.ask(16)
    for number in range(16):
        session.tell(number, float(number), "ok")
    session.flush()
    for trial, used in zip(study.trials, points, strict=True):
        assert trial.params == pytest.approx(used, rel=1e-6)
    assert trial.params["b"] == used["b"] and trial.params["3"] == used["3"]
    assert points[0] == pytest.approx(point, rel=1e-5)
    sweep.optuna_search(study).start(space, 16, 1).ask(2)  # it reads them


BAD = {
    "Uniform(step=...) must be above 0 and at most high - low": {
        "space": lambda: sweep.Uniform(0, 1, step=2)
    },
    "IntUniform(step=...) must be 1 with log=True": {
        "space": lambda: sweep.IntUniform(1, 9, log=True, step=2)
    },
    "Normal(mean, std) must be finite in float32, with std above 0": {
        "space": lambda: sweep.Normal(0, -1)
    },
    "the space's 'x' is a list with a distribution, of which Either(...) takes numbers "
    "and distributions of floats, found None: write a number that means the same, such as 0.0": {
        "space": lambda: sweep.as_space({"x": [None, sweep.Uniform(0, 1)]})
    },
    "the space's 'rate' is taken by nobody: adam takes learning_rate": {"space": {"rate": 0.1}},
    "the task's loss takes decay": {"space": RATE | {"decay": 0.1, "b3": 1.0}, "task": TASK},
    "Task(loss=...) needs the keyword-only argument 'decay'": {"space": RATE, "task": TASK},
    "the space's 'decay' goes to a function of the task, which takes numbers, found 'much'": {
        "space": RATE | {"decay": ["much", 0.1]},
        "task": TASK,
    },
    "OneOf('o'): the option 'sgd' must be a pair of a function and its space, or a OneOf": {
        "space": lambda: sweep.OneOf("o", {"sgd": optfn.sgd})
    },
    "the space has two hyperparameters 'b1' that a trial would have at once": {
        "space": {"b1": 0.9},
        "optimizer": sweep.OneOf("o", {"a": (optfn.adam, {"b1": [0.8, 0.9]})}),
    },
    "the space's 'b1' is taken by nobody: sgd takes learning_rate": {
        "space": {},
        "optimizer": sweep.OneOf("o", {"a": (optfn.sgd, {"b1": [0.8, 0.9]})}),
    },
    "a population copies the state of one member to another, which OneOf('optimizer', sgd, adam)": {
        "space": {},
        "optimizer": OPTIMIZERS,
        "policy": sweep.pbt(every=5),
    },
    "enqueue[0] names 'b3', which does not apply": {"space": RATE, "enqueue": [{"b3": 1}]},
    "enqueue[1], 'learning_rate': LogUniform(low=0.001, high=0.1) has no value 7": {
        "space": RATE,
        "enqueue": [{}, {"learning_rate": 7}],
    },
    "enqueue[0], 'optimizer': OneOf('optimizer', sgd, adam) has no value 'adamm'": {
        "space": {},
        "optimizer": OPTIMIZERS,
        "enqueue": [{"optimizer": "adamm"}],
    },
    "enqueue=...) must be a list of points, found a dict": {
        "space": RATE,
        "enqueue": {"learning_rate": 0.01},
    },
    "enqueue[0] must be a dict from names to values, found 0.01": {
        "space": RATE,
        "enqueue": [0.01],
    },
    "enqueue=...) has 9 points, more than trials=8": {"space": RATE, "enqueue": [{}] * 9},
    "search=...) must be a search such as sobol(), found the class sobol": {
        "space": RATE,
        "search": sweep.sobol,
    },
    "confirm=...) must be a Confirm(top, seeds) or None, found 3": {"space": RATE, "confirm": 3},
    "max_seconds=...) must be a number, found None": {"space": RATE, "max_seconds": None},
    "the space's 'decay' is a OneOf, but the task's loss takes it": {
        "space": RATE | {"decay": sweep.OneOf("kind", {"one": (float, {"x": 0.1})})},
        "task": TASK,
    },
    "where a population changes the task's 'decay' on the way": {
        "space": RATE | {"decay": [0, 0.5]},
        "task": TASK,
        "policy": sweep.pbt(every=5),
        "confirm": sweep.Confirm(),
    },
    "Either(...) needs something to choose from": {"space": sweep.Either},
    "catch=...) must be a class of errors": {"space": RATE, "catch": "ValueError"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_spaces_get_a_sentence(message):
    arguments = {"task": STILL, "trials": 8, "lanes": 8} | BAD[message]
    with pytest.raises((TypeError, ValueError)) as caught:
        if callable(arguments["space"]):
            arguments["space"]()
        run(**arguments)
    assert message in str(caught.value)


def test_no_trial_waits_for_one_that_failed():
    """Neither for one whose optimizer cannot be made, nor for one whose program cannot."""

    def optimizer(learning_rate, fails):
        if fails == "making":
            raise ZeroDivisionError
        tx = optfn.sgd(learning_rate)
        return optfn.masked(tx, {"other": True}) if fails == "running" else tx

    rates = {"learning_rate": [0.01 * i for i in range(1, 10)]}
    for fails in ("making", "running"):
        good, bad = [{"fails": ""}] * 8, [{"fails": fails}] * 8
        result = run(
            rates | {"fails": ["", fails]},
            STILL,
            optimizer,
            trials=16,
            lanes=8,
            enqueue=[*good, *bad],
            policy=sweep.successive_halving(first=5),
        )
        counts = {s: int((result.status == s).sum()) for s in ("ok", "pruned", "failed")}
        assert counts == {"ok": 5, "pruned": 3, "failed": 8}


def test_a_failed_first_or_last_trial_costs_no_checkpoint(tmp_path):
    def optimizer(learning_rate, runs):
        tx = optfn.sgd(learning_rate)
        if runs:
            return tx
        return optfn.masked(tx if runs is False else optfn.adam(learning_rate), {"other": True})

    points = [{"runs": False}, *[{"runs": True} for _ in range(6)], {"runs": None}]
    space = RATE | {"runs": [True, False, None]}
    kwargs = {"task": STILL, "optimizer": optimizer, "lanes": 8, "checkpoint": tmp_path}
    kwargs |= {"checkpoint_every": 3, "enqueue": points}
    result = run(space, trials=8, **kwargs)
    assert list(result.status) == ["failed", *["ok"] * 6, "failed"]
    same(run(space, trials=8, **kwargs), result)
    more = run(space, trials=10, **kwargs)
    np.testing.assert_array_equal(more.scores[:8], result.scores)


def test_points_of_ones_own_may_be_of_numpy(tmp_path):
    space = {"learning_rate": sweep.Uniform(0, 1), "b1": [0.5, 0.9], "n": sweep.IntUniform(1, 9)}

    def optimizer(learning_rate, b1, n):
        assert type(learning_rate) is type(b1) is float and type(n) is int
        return optfn.adam(learning_rate, b1)

    mine = {"learning_rate": np.float32(0.25), "b1": np.float64(0.5), "n": np.int64(3)}
    points = [mine, {"learning_rate": 1, "n": 4.0}]
    result = run(
        space, STILL, optimizer, trials=8, lanes=8, enqueue=points, checkpoint=tmp_path, seed=1
    )
    assert result.points[0] == mine and result.points[1]["learning_rate"] == 1.0
    assert (result.status == "ok").all()


def test_a_part_of_a_number_beside_a_range_is_narrow():
    whole = sweep.Either(0.0, sweep.LogUniform(1e-4, 1.0))
    part = whole.between(0.25, 0.75)
    assert part.parts[0].value == 0.0 and part.parts[1].high == pytest.approx(1e-2, rel=1e-5)
    assert whole.between(0.0, 0.5) == sweep.Fixed(0.0)


def test_a_part_of_a_normal_is_as_wide_as_its_values():
    """And not as far as its tails, in which there is little but space."""
    normal = sweep.Normal(0.0, 1.0)
    assert normal.around([0.5, 1.0, 1.5, 2.0]) == sweep.Uniform(0.0, 2.5)
    assert normal.around([5.5, 6.0]) == sweep.Uniform(5.0, 6.0)
    assert normal.around([0.5, 0.5]) == sweep.Fixed(0.5)
    assert sweep.Uniform(0.0, 1.0).around([0.25, 0.5]) == sweep.Uniform(0.0, 0.75)


def test_a_number_with_a_step_moves_by_one_at_least():
    coarse = sweep.Uniform(-1.0, 1.0, step=0.25)
    assert [coarse.perturb(x, 1.2) for x in (0.5, 1.0, -0.5, 0.0)] == [0.75, 1.0, -0.75, 0.25]
    assert [coarse.perturb(x, 0.8) for x in (0.5, 1.0, -0.5, 0.0)] == [0.25, 0.75, -0.25, -0.25]
    assert coarse.perturb(0.5, 1.0) == 0.5 and coarse.perturb(0.25, 3.0) == 0.75


def test_what_a_stream_raises_is_no_failure_of_a_trial():
    def stream(step):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as caught:
        run(RATE, sweep.Task(STILL.init, loss, stream=stream), trials=8)
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.slow
def test_structures_beyond_those_that_are_compiled_fail_alone(monkeypatch):
    monkeypatch.setattr("optfn.sweep.candidate.MOST_STRUCTURES", 2)

    def optimizer(learning_rate, momentum):
        return optfn.sgd(learning_rate, momentum=momentum[0], nesterov=momentum[1])

    space = RATE | {"momentum": [(None, False), (0.9, False), (0.9, True)]}
    result = run(space, STILL, optimizer, trials=9, lanes=8)
    failed = result.status == "failed"
    assert 0 < failed.sum() < 9 and (result.status[~failed] == "ok").all()
    assert all("Partial(function, number)" in error for error in result.errors.values())


def test_a_failed_trial_takes_no_part_in_halving():
    """Of eight that train a third continues, which is two, and not of the nine that there are."""
    rates = [0.001 * i for i in range(1, 9)]
    space = {"learning_rate": [*rates, "bad"]}
    kwargs = {"optimizer": lambda learning_rate: optfn.sgd(learning_rate + 0), "lanes": 16}
    kwargs |= {"search": sweep.grid(), "policy": sweep.asha(first=5)}
    result = run(space, STILL, **kwargs)
    assert list(result.status).count("ok") == 2 and result.status[-1] == "failed"
