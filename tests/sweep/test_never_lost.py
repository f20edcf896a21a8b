"""What is left of a sweep that ends before its time, and of a task that is gone."""

import gc
import resource
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from sweep.problem import RATE, STILL, X, Y, evaluate, loss, run

import optfn
from optfn import sweep
from optfn.sweep.checkpoint import Store
from optfn.sweep.progress import Progress, shown

STOPPED = {"trials": 20, "lanes": 8, "max_seconds": 0.0}
POLICIES = {
    "all": sweep.run_all(),
    "asha": sweep.asha(first=5),
    "halving": sweep.successive_halving(first=5, bracket=4),
    "pbt": sweep.pbt(every=5),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_sweep_that_ran_out_of_time_has_the_params_of_its_best(name):
    trials = {"trials": 8} if name == "pbt" else {}
    result = run(RATE, STILL, policy=POLICIES[name], **STOPPED | trials)
    best = result.best()
    assert best.status in ("stopped", "pruned") and best.steps == 5
    np.testing.assert_allclose(evaluate(best.params)["distance"], best.score, rtol=1e-5)


def test_a_finished_trial_has_its_params_whatever_was_pruned_before():
    """Of a score that rises with time: the pruned have lower ones."""
    rising = sweep.Task({"w": jnp.zeros(())}, lambda p, _: -p["w"], data=X)
    result = run(RATE, rising, optfn.sgd, trials=20, lanes=8, policy=sweep.asha(first=5))
    assert {"ok", "pruned"} == set(result.status)
    assert result.best().status == "ok" and list(result.kept) == [result.best().trial]


def test_every_run_has_its_score_and_its_params():
    several = run(RATE, trials=4, seeds=2, lanes=8)
    confirmed = run(RATE, trials=4, lanes=8, confirm=sweep.Confirm(top=2, seeds=2))
    for best in (several.best(), confirmed.best()):
        scores = [float(evaluate(run.params)["distance"]) for run in best.runs]
        np.testing.assert_allclose(scores, [run.score for run in best.runs], rtol=1e-5)
        np.testing.assert_allclose(np.mean(scores), best.score, rtol=1e-5)
        assert len(scores) == 2 and best.params is best.runs[0].params
    np.testing.assert_array_equal(confirmed.confirmed[best.trial], [run.score for run in best.runs])


def test_the_first_checkpoint_comes_after_the_first_segment(tmp_path):
    """The next would come much later, as these segments are short."""
    seen = []

    def cut(progress):
        seen.append(progress)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(RATE, STILL, trials=8, lanes=8, checkpoint=tmp_path, progress=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_saving_takes_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("optfn.sweep.checkpoint.time.perf_counter", lambda: now[0])
    store = Store(tmp_path, sweep.random())
    assert store.is_due(1, None) and store.is_due(4, 2) and not store.is_due(5, 2)
    store.seconds = 2.0
    assert not store.is_due(2, None)
    now[0] += 99.0
    assert not store.is_due(3, None)
    now[0] += 1.0
    assert store.is_due(4, None)
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Orbax's
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_a_warning(tmp_path):
    """And the checkpoint before it stays: the same call goes on from there."""
    kwargs = {"trials": 8, "lanes": 8, "checkpoint": tmp_path, "checkpoint_every": 1}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []

    def fill(progress):
        seen.append(progress)
        if len(seen) == 2:
            while not (tmp_path / "1").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.warns(UserWarning, match="a checkpoint could not be written"):
            result = run(RATE, STILL, progress=fill, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result.status == "ok").all() and result.best().params is not None
    assert [path.name for path in tmp_path.iterdir() if path.name.isdigit()] == ["1"]
    seen.clear()
    again = run(RATE, STILL, progress=seen.append, **kwargs)
    np.testing.assert_array_equal(again.scores, result.scores)
    assert len(seen) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_save_gives_the_result(tmp_path, monkeypatch, error):
    def raises(*args, **kwargs):
        raise error

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", raises)
    with pytest.warns(UserWarning, match="a checkpoint could not be written"):
        result = run(RATE, STILL, trials=8, lanes=8, checkpoint=tmp_path)
    assert result.best().params is not None


def test_the_arrays_of_a_task_are_let_go():
    """Compiled programs outlive the task; they hold its functions alone."""
    data = jnp.asarray(X), jnp.asarray(Y)
    start = {"w": jnp.ones(3), "b": jnp.zeros(())}
    held = [weakref.ref(x) for x in jax.tree.leaves((data, start))]
    scores = {"held_out": data, "evaluate": lambda params, data: {"on": loss(params, data)}}
    task = sweep.Task(start, loss, data=data, **scores)
    run(RATE, task, trials=8, lanes=8, mode="loop", steps=2, segment=2)
    del task, data, start, scores
    gc.collect()
    assert [x() for x in held] == [None] * 4


def test_progress_in_a_pipe_is_lines(capsys):
    at = Progress(0.5, 1, 2, 3, 4, 20, 1e3, 0.0, 9.0, 0)
    with shown(True) as show:
        for seconds in (10.0, 10.5, 11.0, 11.5, 1000.0, 1059.0, 1061.0, 1061.5):
            show(at._replace(seconds=seconds))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("/s, ")[2].partition(" s,")[0] for line in lines] == [
        "10", "11", "1000", "1061", "1062"
    ]  # fmt: skip
    with shown(None) as show:
        show(at)
    assert not capsys.readouterr().err


def test_a_storage_that_fails_costs_a_warning(monkeypatch):
    def raises(*args):
        raise OSError("database is locked")

    search = sweep.optuna_search(optuna.create_study())
    monkeypatch.setattr(type(search.start(RATE, 1, 0)), "flush", raises)
    with pytest.warns(UserWarning, match="shared storage .* database is locked"):
        result = run(RATE, STILL, trials=8, lanes=8, search=search)
    assert (result.status == "ok").all()
