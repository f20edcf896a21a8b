"""Workers that share a study, as sessions side by side and as sweeps."""

import math

import numpy as np
import optuna
import pytest
from sweep.problem import RATE, STILL, TASK, run

from optfn import sweep
from optfn.sweep import Choice, LogUniform, OneMinusLogUniform, OneOf

SPACE = {
    "rate": LogUniform(1e-4, 1),
    "b1": OneMinusLogUniform(0.01, 0.5),
    "rule": Choice(math.sin, math.cos),
    "kind": OneOf("kind", {"a": (dict, {"x": [1, 2]}), "b": (dict, {})}),
}
SEARCHES = [sweep.random(), sweep.sobol(), sweep.optuna_search()]
SOBOL = sweep.sobol()
SQLITE = pytest.param("sqlite:///{}/study.db", marks=pytest.mark.slow)  # it takes long to begin


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def journal(path):
    return str(path / "study.journal")


def worker(storage, search=SOBOL, trials=12, seed=0, space=RATE, heartbeat=60.0):
    return sweep.shared_search(storage, search, heartbeat=heartbeat).start(space, trials, seed)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_workers_take_each_point_of_the_search_once(tmp_path, search):
    first, second = (worker(journal(tmp_path), search, seed=s, space=SPACE) for s in (0, 1))
    points = []
    while new := first.ask(3) + second.ask(2):
        points += new
    assert len(points) == len({str(point) for point in points}) == 12
    assert [t.number for t in first.study.get_trials(deepcopy=False)] == list(range(12))
    assert first.waits and not first.ask(1)
    for session in (first, second):
        for index in range(len(session.mine)):
            session.tell(index, 1.0, "ok")
    assert not first.ask(1) and not first.waits


def test_the_points_are_those_of_one_process(tmp_path):
    first, second = worker(journal(tmp_path)), worker(journal(tmp_path))
    points = first.ask(4) + second.ask(4) + first.ask(4)
    assert points == sweep.sobol().start(RATE, 12, 0).ask(12)


@pytest.mark.parametrize("search", SEARCHES[1:], ids=lambda search: type(search).__name__)
def test_what_a_dead_worker_left_is_done_once_by_another(tmp_path, search):
    dead, living = (
        worker(journal(tmp_path), search, trials=4, space=SPACE, heartbeat=1e-3) for _ in "ab"
    )
    left = dead.ask(3)
    points = living.ask(9)
    while len(points) < 4:
        points += living.ask(9)
    assert sorted(map(str, points[1:])) == sorted(map(str, left))
    for index in range(4):
        living.tell(index, float(index), "ok")
    dead.report(0, 5, 1.0)  # it was not dead after all
    dead.tell(0, -1.0, "ok")
    states = [t.state.name for t in living.study.get_trials(deepcopy=False)]
    assert states == ["FAIL"] * 3 + ["COMPLETE"] * 4
    assert not living.ask(1) and not living.waits


def test_a_worker_that_gives_signs_of_life_keeps_its_trials(tmp_path):
    slow, other = (worker(journal(tmp_path), trials=2, heartbeat=1e-3) for _ in "ab")
    slow.ask(2)
    for number in range(5):
        slow._beat(number)
        assert not other.ask(1)
    assert other.waits


@pytest.mark.parametrize("storage", ["study.journal", SQLITE])
def test_a_sweep_shared_with_others_has_the_trials_of_all(tmp_path, storage):
    storage = storage.format(tmp_path) if "://" in storage else str(tmp_path / storage)
    search = sweep.shared_search(storage, SOBOL)
    other = search.aimed(1).start(RATE, 8, 0)
    taken = other.ask(2)
    for index in range(2):
        other.report(index, 5, 3.0)
        other.tell(index, 0.0, "ok")
    result = run(RATE, task=STILL, trials=8, search=search, lanes=8)
    alone = run(RATE, task=STILL, trials=8, search=SOBOL, lanes=8)
    assert result.points == alone.points and result.points[:2] == taken
    np.testing.assert_array_equal(result.scores[2:], alone.scores[2:])
    np.testing.assert_array_equal(result.curves["distance"][2:], alone.curves["distance"][2:])
    assert np.isfinite(result.at_score["distance"]).all()
    assert result.best().score == 0 and result.best().params is None
    assert result.rerun(0).score == alone.scores[0, 0]
    live = other.study.get_trials()[5]
    assert live.intermediate_values == dict(
        zip(range(5, 25, 5), alone.curves["distance"][5].tolist(), strict=True)
    )
    assert live.params["learning_rate"] == alone.points[5]["learning_rate"]
    assert other.study.user_attrs["sweep"]["steps"] == 20


def test_asha_judges_among_the_trials_of_all(tmp_path):
    search = sweep.shared_search(journal(tmp_path), SOBOL)
    other = search.aimed(1).start(RATE, 16, 0)
    other.ask(8)
    for index in range(8):
        other.report(index, 5, 1e-9)
        other.tell(index, 1e-9, "ok")
    result = run(RATE, task=STILL, trials=16, search=search, policy=sweep.asha(first=5))
    assert set(result.status[8:]) == {"pruned"}  # none is among the best third of all


def test_a_stopped_worker_goes_on_from_its_checkpoint(tmp_path):
    settings = {"task": STILL, "trials": 16, "lanes": 8, "checkpoint": tmp_path / "here"}
    search = sweep.shared_search(journal(tmp_path), sweep.optuna_search())
    stopped = run(RATE, search=search, max_seconds=0.0, **settings)
    assert set(stopped.status) == {"stopped"}
    result = run(RATE, search=search, **settings)
    assert set(result.status) == {"ok"} and len(result) == 16
    assert result.points[:8] == stopped.points
    assert len(optuna.load_study(study_name=None, storage=search_storage(search)).trials) == 16


def search_storage(search):
    backend = optuna.storages.journal.JournalFileBackend(search.storage)
    return optuna.storages.JournalStorage(backend)


def test_what_workers_cannot_share_is_refused(tmp_path):
    search = sweep.shared_search(journal(tmp_path))
    for policy in (sweep.pbt(every=5), sweep.successive_halving(first=5)):
        with pytest.raises(ValueError, match="take asha"):
            run(RATE, task=STILL, trials=8, search=search, policy=policy)
    run(RATE, task=STILL, trials=1, search=search)
    with pytest.raises(ValueError, match="of another sweep: steps is 20 there, 10 here"):
        run(RATE, task=STILL, trials=1, search=search, steps=10)
    upward = sweep.Task(TASK.init, TASK.loss, data=TASK.data, batch_size=16, maximize="loss")
    with pytest.raises(ValueError, match="give another study_name"):
        run(RATE, task=upward, trials=1, search=search)
    for storage in (None, 3):
        with pytest.raises(
            TypeError, match=r"shared_search\(storage=\.\.\.\) must be a path, a URL"
        ):
            sweep.shared_search(storage)
    with pytest.raises(TypeError, match=r"search=\.\.\.\) must be random"):
        sweep.shared_search(journal(tmp_path), search="tpe")
    with pytest.raises(ValueError, match="sampler alone"):
        sweep.shared_search(journal(tmp_path), sweep.optuna_search(storage="x"))
    with pytest.raises(ValueError, match="heartbeat"):
        sweep.shared_search(journal(tmp_path), heartbeat=0)
