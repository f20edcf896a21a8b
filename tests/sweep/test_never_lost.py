"""What is left of a sweep that ends before its time, and of a task that is gone."""

import gc
import json
import resource
import shutil
import time
import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from sweep.problem import RATE, STILL, X, Y, evaluate, loss, run

import optfn
from optfn import sweep
from optfn.sweep.checkpoint import Store
from optfn.sweep.one_of import applying
from optfn.sweep.progress import Progress, shown
from optfn.sweep.recorded import _described, _space

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


class Point(NamedTuple):
    w: jax.Array
    more: list


def made(key):
    return {"point": Point(jnp.ones(3), [jnp.zeros(()), None]), "b": (jnp.zeros(()),)}


def fit(params, batch):
    x, y = batch
    return jnp.mean((x @ params["point"].w + params["b"][0] - y) ** 2)


def test_a_sweep_is_read_without_its_code(tmp_path):
    """Also while it is under way; what cannot be written is there as its text."""
    task = sweep.Task(
        made, fit, data=(X, Y), evaluate=lambda p: {"fit": -fit(p, (X, Y))}, maximize="fit"
    )
    space = {
        "learning_rate": [0.0, sweep.LogUniform(1e-3, 0.1)],
        "with_": [jax.nn.relu, None, (1, 2)],
        "b1": sweep.Normal(0.5, 0.05),
        "eps": 1e-8,
    }
    kwargs = {"trials": 10, "lanes": 8, "checkpoint": tmp_path, "keep_best": 2}

    def optimizer(with_, **values):
        return optfn.adam(**values)

    for more in ({"max_seconds": 0.0}, {}):
        result = run(space, task, optimizer, **kwargs, **more)
        read = sweep.Result.load(tmp_path)
        for name in ("scores", "status", "steps", "ages", "segments"):
            np.testing.assert_array_equal(getattr(read, name), getattr(result, name))
        np.testing.assert_array_equal(read.curves["fit"], result.curves["fit"])
        best, there = result.best(), read.best()
        assert (there.trial, there.score, there.status) == (best.trial, best.score, best.status)
        assert there.values["learning_rate"] == best.values["learning_rate"]
        assert {p["with_"] for p in read.points} <= {"relu", None, "(1, 2)"}
        assert (there.params is None) == ("max_seconds" in more)
        assert read.table(3).rpartition("; ")[0] == result.table(3).rpartition("; ")[0]
        assert read.plan.space["learning_rate"] == result.plan.space["learning_rate"]
        assert read.refined_space(4)["b1"] == result.refined_space(4)["b1"]
        read.to_csv(tmp_path / "read.csv")
        result.to_csv(tmp_path / "result.csv")
        texts = [(tmp_path / f"{name}.csv").read_text() for name in ("read", "result")]
        assert texts[0] == texts[1] and "relu" in texts[0]
    point = there.params["point"]
    np.testing.assert_array_equal(point["w"], best.params["point"].w)
    assert point["more"][1] is None and type(there.params["b"]) is tuple
    assert there.optimizer is None
    with pytest.raises(ValueError, match="a result that was loaded has no code"):
        read.rerun(0)
    with pytest.raises(ValueError, match="has no checkpoint of a sweep"):
        sweep.Result.load(tmp_path / "none")


def test_a_sweep_that_goes_on_meanwhile_is_not_damaged(tmp_path, monkeypatch):
    """It writes its next checkpoint, and removes the one that is read."""
    folder, next_one, read = tmp_path / "sweep", tmp_path / "next", Store._read
    result = run(RATE, STILL, trials=8, lanes=8, checkpoint=folder, checkpoint_every=1)
    (folder / "4").rename(next_one)

    def go_on(store, step):
        if next_one.exists():
            next_one.rename(folder / "4")
            shutil.rmtree(folder / "3")
        return read(store, step)

    monkeypatch.setattr(Store, "_read", go_on)
    read_scores = sweep.Result.load(folder).scores
    np.testing.assert_array_equal(read_scores, result.scores)


def test_a_space_is_read_with_its_options():
    """Also numbers of NumPy, ranges that options do not share, and what has no name to be read."""

    class Own(sweep.Uniform):
        pass

    rate = sweep.LogUniform(1e-3, 0.1)
    inner = {
        "x": (max, {"peak": rate}),
        "y": (max, {"peak": sweep.IntUniform(0, 8, step=np.int64(2))}),
    }
    options = {"constant": (max, {"value": rate}), "shape": sweep.OneOf("shape", inner)}
    space = {
        "learning_rate": sweep.OneOf("schedule", options),
        "b1": sweep.Uniform(0, 1, np.float32(0.25)),
        "own": Own(0, 1),
    }
    point = {"schedule": "shape", "shape": "y", "peak": 4, "b1": 0.25, "own": 0.5}
    read = _space(json.loads(json.dumps(_described(space))))
    assert read["b1"] == space["b1"] and isinstance(read["own"], sweep.Fixed)
    found, wanted = applying(read, point), applying(space, point)
    assert list(found) == list(point)
    assert all(found[name] == wanted[name] for name in ("peak", "b1"))
    with pytest.raises(ValueError, match="loaded has no code"):
        read["learning_rate"](**point)


@pytest.mark.slow
def test_a_member_of_a_population_is_read_with_its_line(tmp_path):
    result = run(RATE, STILL, trials=8, policy=sweep.pbt(every=5), checkpoint=tmp_path)
    read = sweep.Result.load(tmp_path)
    assert [list(map(tuple, line)) for line in read.hyperparameter_history] == [
        list(map(tuple, line)) for line in result.hyperparameter_history
    ]
    np.testing.assert_array_equal(read.copied_from, result.copied_from)


@pytest.mark.slow
def test_a_finished_sweep_goes_on(tmp_path):
    """With more params, a confirmation and more trials, as if it had had them from the first."""
    kwargs = {"trials": 8, "lanes": 8, "policy": sweep.asha(first=10, eta=2)}
    run(RATE, STILL, checkpoint=tmp_path, **kwargs)
    for more in ({"keep_best": 3}, {"confirm": sweep.Confirm(top=2, seeds=2)}, {"trials": 12}):
        whole = run(RATE, STILL, **kwargs | more)
        again = run(RATE, STILL, checkpoint=tmp_path, **kwargs | more)
        np.testing.assert_array_equal(again.confirmed, whole.confirmed)
        if "keep_best" in more:
            assert len(again.kept) == 3
        assert again.best().score == whole.best().score
        jax.tree.map(np.testing.assert_array_equal, again.best().params, whole.best().params)


def test_a_folder_has_one_owner(tmp_path):
    def intrude(progress):
        with pytest.raises(ValueError, match="is in use: another sweep is writing there"):
            run(RATE, STILL, trials=8, lanes=8, checkpoint=tmp_path)

    result = run(RATE, STILL, trials=8, lanes=8, checkpoint=tmp_path, progress=intrude)
    again = run(RATE, STILL, trials=8, lanes=8, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.scores, result.scores)


@pytest.mark.slow
def test_what_init_and_a_stream_do_later_is_compared_too(tmp_path):
    def of_init(by):
        return sweep.Task(
            lambda key: {"w": by * jnp.ones(3), "b": jnp.zeros(())}, loss, data=(X, Y)
        )

    def of_stream(by):
        return sweep.Task(
            {"w": jnp.ones(3), "b": jnp.zeros(())},
            loss,
            stream=lambda step: (X[:16] * (by if step > 8 else 1), Y[:16]),
        )

    def of_list(by):
        return sweep.Task(of_stream(1).init, loss, stream=[(X, Y), (X * by, Y)])

    for what, make in {"init": of_init, "data": of_stream}.items():
        kwargs = {"trials": 8, "lanes": 8, "checkpoint": tmp_path / make.__name__}
        for by in (1, 1):
            run(RATE, make(by), **kwargs)
        with pytest.raises(ValueError, match=f"it differs in its {what}"):
            run(RATE, make(2), **kwargs)
    run(RATE, of_list(1), **kwargs | {"checkpoint": tmp_path / "list"})
    with pytest.raises(ValueError, match="it differs in its data"):
        run(RATE, of_list(2), **kwargs | {"checkpoint": tmp_path / "list"})


def test_a_result_prints_itself_in_a_line():
    result = run(RATE, STILL, trials=8, lanes=8)
    best = result.best()
    shown = f"Result(8 trials: 8 ok; best distance {best.score:.4g}; mode vmap; "
    assert repr(result).startswith(shown) and "array" not in repr(best)
