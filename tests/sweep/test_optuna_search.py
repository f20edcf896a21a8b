"""Optuna's samplers by ask and tell, against studies that are driven directly."""

import gc
import json
import math
import subprocess
import sys

import numpy as np
import optuna
import pytest
from sweep.problem import START, STILL, X, Y, evaluate, loss, run

import optfn
from optfn import sweep
from optfn.sweep import Choice, IntUniform, LogUniform, OneMinusLogUniform, Uniform

SPACE = {
    "rate": LogUniform(1e-5, 1),
    "b1": OneMinusLogUniform(0.01, 0.5),
    "decay": Uniform(0, 1),
    "steps": IntUniform(1, 100, log=True),
    "kind": Choice("a", None, 3),
    "rule": Choice(math.sin, math.cos),
    "flag": Choice(1, True),
    "fixed": 7,
}
KINDS = {
    "rate": optuna.distributions.FloatDistribution(1e-5, 1, log=True),
    "b1": optuna.distributions.FloatDistribution(0.01, 0.5, log=True),
    "decay": optuna.distributions.FloatDistribution(0, 1),
    "steps": optuna.distributions.IntDistribution(1, 100, log=True),
    "kind": optuna.distributions.CategoricalDistribution(["a", None, 3]),
    "rule": optuna.distributions.CategoricalDistribution([0, 1]),
    "flag": optuna.distributions.CategoricalDistribution([0, 1]),
}
STATES = optuna.trial.TrialState

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def score(point):
    """Lowest at rate = 0.01, b1 = 0.9."""
    return math.log10(point["rate"] / 0.01) ** 2 + math.log10((1 - point["b1"]) / 0.1) ** 2


def search_in_batches(session, batch=8):
    """Asks for batches until there is no more, and tells each trial's fate backwards."""
    points = []
    while new := session.ask(batch):
        for index in reversed(range(len(points), len(points) + len(new))):
            point = new[index - len(points)]
            status = ("ok", "ok", "pruned", "ok", "diverged")[index % 5]
            reports = [(1, 9.0), (2, score(point))] if status == "pruned" else ()
            session.tell(index, score(point), status, reports)
        points += new
    return points


def direct(seed, trials, batch=8):
    """The same as Optuna is driven by hand."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(constant_liar=True))
    points = []
    while len(points) < trials:
        asked = []
        for _ in range(min(batch, trials - len(points))):
            number = len(points) + len(asked)
            word = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            study.sampler._rng.rng.seed(word)
            study.sampler._random_sampler._rng.rng.seed(word)
            asked.append(study.ask(KINDS))
        new = []
        for trial in asked:
            p = trial.params
            new.append(
                {
                    "rate": float(np.float32(p["rate"])),
                    "b1": float(np.float32(1 - p["b1"])),
                    "decay": float(np.float32(p["decay"])),
                    "steps": p["steps"],
                    "kind": p["kind"],
                    "rule": (math.sin, math.cos)[p["rule"]],
                    "flag": (1, True)[p["flag"]],
                    "fixed": 7,
                }
            )
        for trial, point in reversed(list(zip(asked, new, strict=True))):
            fate = trial.number % 5
            if fate == 2:
                trial.report(9.0, 1)
                trial.report(score(point), 2)
            if fate in (2, 4):
                study.tell(trial, state=STATES.PRUNED)
            else:
                study.tell(trial, score(point))
        points += new
    return points


def test_the_points_are_those_of_a_study_driven_by_hand():
    expected = direct(seed=3, trials=40)
    found = search_in_batches(sweep.optuna_search().start(SPACE, 40, seed=3))
    assert found == expected
    assert [type(p["flag"]) for p in found] == [type(p["flag"]) for p in expected]
    assert len({p["rate"] for p in found}) == 40


def test_tpe_finds_more_than_chance():
    space = {name: SPACE[name] for name in ("rate", "b1", "decay")}
    sessions = [
        search.start(space, 60, seed=0) for search in (sweep.optuna_search(), sweep.random())
    ]
    learned, drawn = [np.sort(list(map(score, search_in_batches(s)))) for s in sessions]
    assert np.median(learned) < 0.7 * np.median(drawn)


SAMPLERS = {
    "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=4),
    "random": lambda: optuna.samplers.RandomSampler(),
    "nsgaii": lambda: optuna.samplers.NSGAIISampler(population_size=5),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=1, warn_independent_sampling=False),
    "partial": lambda: optuna.samplers.PartialFixedSampler(
        {"decay": 0.5}, optuna.samplers.RandomSampler()
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_killed_search_goes_on_with_the_same_points(name):
    """Whatever the sampler, with a fresh one that has no seed of its own after the restart."""
    session = sweep.optuna_search(sampler=SAMPLERS[name]()).start(SPACE, 20, seed=2)
    for index, point in enumerate(session.ask(12)):
        if index not in (3, 7):
            session.tell(index, score(point), "ok")
    state = json.dumps(session.state())
    rest = session.ask(99)
    again = sweep.optuna_search(sampler=SAMPLERS[name]()).start(SPACE, 20, seed=2)
    again.restore(json.loads(state))
    assert again.ask(99) == rest and len(rest) == 8
    again.tell(3, 0.5, "ok")
    with pytest.raises(ValueError, match=r"tell\(index=...\) must be of a trial that runs"):
        again.tell(0, 0.5, "ok")


def test_the_given_sampler_is_not_changed():
    sampler = optuna.samplers.RandomSampler(seed=5)
    before = sampler._rng.rng.get_state()[1].copy()
    sweep.optuna_search(sampler=sampler).start(SPACE, 3, seed=2).ask(3)
    np.testing.assert_array_equal(sampler._rng.rng.get_state()[1], before)


def fates(session):
    session.ask(7)
    session.tell(0, 1.0, "ok", [(1, 2.0), (2, 1.0)])
    session.tell(1, 3.0, "pruned", [(1, 3.0)])
    session.tell(2, 4.0, "pruned")
    session.tell(3, -100.0, "diverged", [(1, -100.0)])
    session.tell(4, math.nan, "not_finite")
    session.tell(5, math.inf, "ok")
    session.flush()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_became_of_trials_is_written(direction):
    study = optuna.create_study(direction=direction)
    fates(sweep.optuna_search(study).start(SPACE, 7, seed=0))
    sign = 1 if direction == "minimize" else -1
    trials = study.trials
    assert [t.state for t in trials] == [STATES.COMPLETE] + [STATES.PRUNED] * 5
    assert [t.value for t in trials] == [sign, 3 * sign, 4 * sign, None, None, None]
    assert trials[0].intermediate_values == {1: 2 * sign, 2: sign}
    assert [t.user_attrs["status"] for t in trials] == [
        *("ok", "pruned", "pruned", "diverged", "not_finite", "not_finite")
    ]
    assert study.best_trial.number == 0
    values = trials[0].user_attrs["values"]
    assert list(values) == list(SPACE) and values["fixed"] == 7
    assert values["b1"] == float(np.float32(1 - trials[0].params["b1"]))
    assert values["rule"] in (repr(math.sin), repr(math.cos))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Optuna does not close SQLite's files
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_storage_holds_each_trial_once_after_a_kill(kind, tmp_path):
    """Flushed after the checkpoint, killed, restored, flushed again."""
    path = tmp_path / "study"
    storage = path if kind == "journal" else f"sqlite:///{path}"
    search = sweep.optuna_search(storage=storage)
    session = search.start(SPACE, 6, seed=1)
    points = session.ask(4)
    session.tell(0, 0.5, "ok")
    session.tell(1, 0.4, "pruned")
    state = json.loads(json.dumps(session.state()))
    session.flush()
    again = search.start(SPACE, 6, seed=1)
    again.restore(state)
    assert again.ask(1) == session.ask(1)
    again.tell(2, 0.3, "ok")
    again.flush()
    again.flush()
    opened = (
        optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        if kind == "journal"
        else storage
    )
    trials = optuna.load_study(study_name="sweep", storage=opened).trials
    assert [t.user_attrs["trial"] for t in trials] == [0, 1, 2]
    assert [t.user_attrs["values"]["rate"] for t in trials] == [p["rate"] for p in points[:3]]
    del session, again
    gc.collect()


def test_the_trials_of_others_are_learned_from_and_kept_over_a_kill():
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=5))
    space = {"rate": SPACE["rate"]}

    first = sweep.optuna_search(study).start(space, 12, seed=0)
    for index, point in enumerate(first.ask(12)):
        first.tell(index, point["rate"], "ok")
    first.flush()
    second = sweep.optuna_search(study).start(space, 6, seed=0)
    begun = second.ask(2)
    alone = sweep.optuna_search(sampler=study.sampler).start(space, 12, seed=0)
    assert begun != alone.ask(2)  # the seed is the same, the trials' numbers and history are not
    assert max(p["rate"] for p in begun) < 0.01  # and it knows that low rates are good here
    second.tell(0, 0.5, "ok")
    third = sweep.optuna_search(study).start(space, 2, seed=9)
    third.ask(1)
    third.tell(0, 0.1, "ok")
    third.flush()
    second.flush()
    assert len(study.trials) == 14
    state = json.loads(json.dumps(second.state()))
    assert [event[1] for event in state["log"] if event[0] == "add"] == [list(range(12)), [12]]
    again = sweep.optuna_search(study).start(space, 6, seed=0)
    again.restore(state)
    assert again.ask(9) == second.ask(9)


def test_another_space_in_the_study_is_refused():
    study = optuna.create_study()
    session = sweep.optuna_search(study).start({"rate": Uniform(0, 1)}, 1, seed=0)
    session.ask(1)
    session.tell(0, 1.0, "ok")
    session.flush()
    with pytest.raises(ValueError, match="trial 0 of the study is of another space: 'rate' is"):
        sweep.optuna_search(study).start({"rate": LogUniform(0.1, 1)}, 1, seed=0)


def test_a_state_from_elsewhere_is_refused():
    session = sweep.optuna_search().start(SPACE, 3, seed=0)
    session.ask(2)
    other = sweep.optuna_search().start(SPACE, 3, seed=1)
    with pytest.raises(ValueError, match="from another sampler, space, seed or version of Optuna"):
        other.restore(session.state())
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    state = sweep.optuna_search(study).start(SPACE, 3, seed=0).state()
    with pytest.raises(ValueError, match="the study has 0 trials, and the state of the search"):
        sweep.optuna_search(optuna.create_study()).start(SPACE, 3, seed=0).restore(state)


def test_what_samplers_store_is_neither_read_nor_written():
    """Of which CMA-ES would unpickle some."""
    study = optuna.create_study(sampler=optuna.samplers.NSGAIISampler(population_size=2))
    attrs = {"cma:optimizer:0": "80049500"}
    study.add_trial(optuna.trial.create_trial(value=1.0, system_attrs=attrs))
    session = sweep.optuna_search(study).start(SPACE, 3, seed=0)
    session.ask(1)
    session.tell(0, 1.0, "ok")
    session.flush()
    inside, outside = session.study.trials, study.trials
    assert inside[0].system_attrs == {} and inside[1].system_attrs
    assert outside[0].system_attrs == attrs and outside[1].system_attrs == {}


BAD = {
    "no study": (
        lambda: sweep.optuna_search(study=3),
        TypeError,
        "optuna_search(study=...) must be an optuna St",
    ),
    "no sampler": (
        lambda: sweep.optuna_search(sampler=optuna.samplers.TPESampler),
        TypeError,
        "optuna_search(sampler=...) must be an optuna BaseSampler, found ABCMeta",
    ),
    "no storage": (lambda: sweep.optuna_search(storage=3), TypeError, "must be a path, a URL or"),
    "no study name": (
        lambda: sweep.optuna_search(study_name=3),
        TypeError,
        "optuna_search(study_name=...)",
    ),
    "two places": (
        lambda: sweep.optuna_search(optuna.create_study(), storage="x"),
        ValueError,
        "takes a study or a storage",
    ),
    "two objectives": (
        lambda: sweep.optuna_search(optuna.create_study(directions=["minimize"] * 2)),
        ValueError,
        "must have one objective, found 2: the search goes by the task's one score. Make the study",
    ),
    "no status": (
        lambda: (
            (s := sweep.optuna_search().start({"a": 1}, 1, 0)).ask(1) and s.tell(0, 1.0, "done")
        ),
        ValueError,
        "tell(status=...) must be one of ok, pruned, diverged, not_finite, failed, found 'done'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_sentence(name):
    call, error, sentence = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert sentence in str(caught.value)


def test_optuna_is_needed_for_optuna_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "optfn\[sweep\]"'):
        sweep.optuna_search()


def test_optuna_is_not_imported_before():
    code = "import sys, optfn.sweep; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Watched:
    """A search that notes how many results there were when a point was asked for."""

    def __init__(self):
        self.known = []

    def start(self, space, trials, seed):
        session = sweep.optuna_search().start(space, trials, seed)
        ask = session.ask

        def watching(count):
            points = ask(count)
            self.known += [len(session.ended)] * len(points)
            return points

        session.ask = watching
        return session


RATES = {"learning_rate": LogUniform(1e-3, 1e-1)}


@pytest.mark.parametrize(
    "space",
    [pytest.param(RATES, marks=pytest.mark.slow), RATES | {"momentum": [None, 0.9]}],
)
def test_a_sampler_is_asked_for_few_points_at_a_time(space):
    """With several structures too: each point can use all results but those of the eight lanes."""
    search = Watched()
    result = run(space, STILL, optfn.sgd, trials=30, lanes=None, search=search, mode="auto")
    assert (result.status == "ok").all() and result.plan.lanes == 8
    assert all(known >= number - 7 for number, known in enumerate(search.known))
    assert len(search.known) == 30 and search.known[-1] >= 22


@pytest.mark.slow
def test_a_sampler_that_cannot_learn_is_a_warning():
    cases = {
        "is asked for all 12 trials": {"trials": 12, "lanes": 16},
        "GPSampler learns only of trials that ran": {
            "search": sweep.optuna_search(sampler=optuna.samplers.GPSampler(n_startup_trials=99)),
            "policy": sweep.asha(first=5),
        },
    }
    for words, kwargs in cases.items():
        kwargs = {"trials": 9, "lanes": 8, "search": sweep.optuna_search()} | kwargs
        with pytest.warns(UserWarning, match=words):
            run(RATES, STILL, **kwargs)


def test_what_was_enqueued_in_the_study_is_tried_first_and_gets_its_outcome(tmp_path):
    study = optuna.create_study()
    space = RATES | {"b1": OneMinusLogUniform(0.01, 0.5), "kind": Choice("a", "b")}
    study.enqueue_trial({"learning_rate": 0.0625, "b1": 0.75, "kind": "b"})
    study.enqueue_trial({"learning_rate": 0.03125})
    search = sweep.optuna_search(study)
    session = search.start(space, 5, seed=0)
    session.enqueue([{"learning_rate": 0.015625, "b1": 0.5, "kind": "a"}])
    points = session.ask(3)
    assert points[0] == {"learning_rate": 0.0625, "b1": 0.75, "kind": "b"}
    assert [p["learning_rate"] for p in points] == [0.0625, 0.03125, 0.015625]
    session.tell(0, 3.0, "ok", [(5, 4.0)])
    state = json.loads(json.dumps(session.state()))
    session.flush()
    assert [t.state for t in study.trials] == [STATES.COMPLETE, STATES.WAITING]
    assert study.trials[0].value == 3.0 and study.trials[0].params["b1"] == 0.75
    again = search.start(space, 5, seed=0)
    again.enqueue([{"learning_rate": 0.015625, "b1": 0.5, "kind": "a"}])
    again.restore(state)
    for index in (1, 2):
        again.tell(index, 2.0, "pruned", [(5, 2.0)])
    again.flush()
    again.flush()
    assert [t.state for t in study.trials] == [STATES.COMPLETE, STATES.PRUNED, STATES.PRUNED]
    assert [t.params["learning_rate"] for t in study.trials] == [0.0625, 0.03125, 0.015625]
    assert again.ask(9) == session.ask(9)
    study.enqueue_trial({"rate": 1.0})
    with pytest.raises(ValueError, match="trial 3 of the study, which is enqueued, has 'rate'"):
        search.start(space, 5, seed=0)


@pytest.mark.slow
def test_a_study_has_the_direction_and_the_scores_of_the_task(tmp_path):
    task = sweep.Task(START, loss, data=(X, Y), evaluate=evaluate, maximize="distance")
    path = f"{tmp_path}/study"
    search = sweep.optuna_search(storage=path)
    result = run(RATES, task, trials=9, lanes=8, search=search)
    file = optuna.storages.journal.JournalFileBackend(path)
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(file))
    assert study.direction.name == "MAXIMIZE" and study.best_value == result.best().score
    rate = np.float32(study.best_params["learning_rate"])
    assert rate == result.best().values["learning_rate"]
    with pytest.warns(UserWarning, match="is a study that minimizes, but the task maximizes"):
        run(RATES, task, trials=9, lanes=8, search=sweep.optuna_search(optuna.create_study()))


def test_a_grid_of_optunas_is_tried_once():
    sampler = optuna.samplers.GridSampler({"learning_rate": [0.0625, 0.03125], "b1": [0.5, 0.75]})
    space = {"learning_rate": Uniform(0.001, 0.1), "b1": Uniform(0.0, 0.9)}
    result = run(space, STILL, trials=20, lanes=8, search=sweep.optuna_search(sampler=sampler))
    assert len(result) == 4 and (result.status == "ok").all()
    assert {tuple(p.values()) for p in result.points} == {
        (rate, b1) for rate in (0.0625, 0.03125) for b1 in (0.5, 0.75)
    }
