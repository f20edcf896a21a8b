"""Callbacks hear of every report and every end, once, and cannot end a sweep."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import sweep

TASK = sweep.Task(
    lambda key: jnp.ones(2), lambda params, batch: jnp.sum(jnp.float32([1, 4]) * params**2) / 2
)
RATES = {"learning_rate": [0.01, 0.1, 0.3, 1e9, 0.0, 0.02, 0.05, 0.2]}
SETTINGS = {"search": sweep.grid(), "steps": 8, "segment": 2, "mode": "vmap", "max_loss": 1e3}


class Notes(sweep.Callback):
    def __init__(self):
        self.reports, self.ends, self.closed = [], [], 0

    def on_report(self, trial, step, scores):
        self.reports.append((trial.trial, step, scores["loss"]))

    def on_trial(self, trial):
        self.ends.append(trial)

    def close(self):
        self.closed += 1


def run(callbacks, **more):
    return sweep.run(TASK, optfn.sgd, RATES, callbacks=callbacks, **SETTINGS | more)


def sgd_of_small_rates(learning_rate):
    if learning_rate == 0.0:
        raise ValueError("a rate of 0")
    return optfn.sgd(learning_rate)


def sgd_of_half(learning_rate):
    return optfn.sgd(learning_rate / 2)


def check_complete(notes, result):
    """Every point of the curves was reported, and every trial's end was told, as it is."""
    told = {(trial, step): score for trial, step, score in notes.reports}
    assert len(told) == len(notes.reports)
    curves = {
        (i, int(age)): score
        for i, curve in enumerate(result.curves["loss"])
        for age, score in zip(result.ages, curve, strict=True)
        if not np.isnan(score)
    }
    assert told == curves
    assert sorted(trial.trial for trial in notes.ends) == list(range(len(result)))
    for trial in notes.ends:
        known = result.trial(trial.trial)
        assert (trial.status, trial.steps, trial.values) == (
            known.status,
            known.steps,
            known.values,
        )
        assert trial.score == known.score
        assert trial.error == known.error


def test_every_report_and_every_end_is_told_once():
    notes = Notes()
    result = sweep.run(TASK, sgd_of_small_rates, RATES, callbacks=[notes], **SETTINGS)
    check_complete(notes, result)
    assert {trial.status for trial in notes.ends} == {"ok", "pruned", "diverged", "failed"}
    assert notes.closed == 1


def test_a_resumed_sweep_tells_what_is_new(tmp_path):
    first, second = Notes(), Notes()
    settings = {"checkpoint": tmp_path / "sweep", "checkpoint_every": 1, "policy": sweep.run_all()}
    run([first], max_seconds=0.0, **settings)
    assert first.reports and len(first.ends) < len(RATES["learning_rate"]) and first.closed == 1
    result = run([second], **settings)
    both = Notes()
    both.reports, both.ends = first.reports + second.reports, first.ends + second.ends
    check_complete(both, result)


def test_a_trial_that_fails_after_the_last_segment_is_saved(tmp_path):
    """It is asked for when the others have ended: the same call does not tell of it again."""
    rates = {"learning_rate": [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.0]}
    settings = SETTINGS | {"lanes": 8, "policy": sweep.run_all(), "checkpoint": tmp_path}
    settings["checkpoint_every"] = 1
    first, second = Notes(), Notes()
    for notes in (first, second):
        sweep.run(TASK, sgd_of_small_rates, rates, callbacks=[notes], **settings)
        assert sweep.Result.load(tmp_path).status[-1] == "failed"
    assert first.ends[-1].status == "failed" and len(first.ends) == 9
    assert not (second.reports or second.ends)


def test_confirmation_is_not_told_as_trials():
    notes = Notes()
    result = run([notes], confirm=sweep.Confirm(top=2, seeds=2), policy=sweep.run_all())
    assert len(notes.ends) == len(result)


def test_an_error_of_a_callback_is_a_warning(tmp_path):
    class Broken(sweep.Callback):
        def on_report(self, trial, step, scores):
            raise OSError("no space left")

    notes = Notes()
    with pytest.warns(UserWarning, match=r"Broken\.on_report: OSError: no space left; the sweep"):
        result = run([Broken(), notes])
    check_complete(notes, result)


@pytest.mark.parametrize("wrong", [Notes(), [Notes], [print], None])
def test_what_is_no_callback_is_refused(wrong):
    with pytest.raises(TypeError, match=r"sweep\.run\(callbacks=\.\.\.\) must"):
        run(wrong)


def test_rows_of_a_file_are_the_reports(tmp_path):
    path = tmp_path / "trials.csv"
    notes = Notes()
    result = run([sweep.CsvLog(path), notes])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["trial", "step", "status", "loss", "hyperparameters"]
    running = [row for row in rows if row["status"] == "running"]
    assert [(int(r["trial"]), int(r["step"]), float(r["loss"])) for r in running] == notes.reports
    ended = {int(row["trial"]): row for row in rows if row["status"] != "running"}
    assert {i: row["status"] for i, row in ended.items()} == dict(enumerate(result.status))
    for i, row in ended.items():
        assert json.loads(row["hyperparameters"]) == result.points[i]


def test_rows_of_a_file_have_its_columns(tmp_path):
    """Also of a trial that failed before any had a score, and of scores that others lack."""
    path = tmp_path / "trials.csv"

    def told(number, status="stopped"):
        values = {"rate": None, "f": jnp.tanh, "step": np.float32(0.5)}
        return sweep.TrialResult(number, values, None, 1.0, float("nan"), status, 2)

    log = sweep.CsvLog(path)
    log.on_trial(told(0, "failed"))
    log.on_report(told(1), 2, {"loss": 1.0, "trial": 3.0})
    log.on_report(told(2), 2, {"top": 2.0, "loss": 0.5})
    log.on_trial(told(1, "ok"))
    sweep.CsvLog(path).on_trial(told(2, "pruned"))  # after a resume
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    values = rows[0][-1]
    assert head == ["trial", "step", "status", "loss", "trial", "top", "hyperparameters"]
    assert json.loads(values) == {"rate": None, "f": "tanh", "step": 0.5}
    assert rows == [
        ["0", "2", "failed", "", "", "", values],
        ["1", "2", "running", "1.0", "3.0", "", values],
        ["2", "2", "running", "0.5", "", "2.0", values],
        ["1", "2", "ok", "1.0", "3.0", "", values],
        ["2", "2", "pruned", "", "", "", values],
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_one_process_of_several_calls_its_callbacks(monkeypatch):
    notes = Notes()
    monkeypatch.setattr("jax.process_index", lambda: 1)
    run([notes])
    assert not (notes.reports or notes.ends or notes.closed)


def test_tensorboard_has_a_run_for_each_trial(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    notes = Notes()
    run([sweep.TensorBoardLog(tmp_path), notes])
    for trial in notes.ends:
        folder = tmp_path / f"trial {trial.trial}"
        found = {}
        for file in folder.glob("events*"):
            for record in records(file.read_bytes()):
                event = Event.FromString(record)
                for value in event.summary.value:
                    found[event.step] = value.simple_value
        wanted = {step: score for number, step, score in notes.reports if number == trial.trial}
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-6)
        assert list(found) == list(wanted)


def test_sweeps_that_are_compared_write_to_places_of_their_own(tmp_path):
    pytest.importorskip("tensorboardX")
    notes = Notes()
    callbacks = [sweep.TensorBoardLog(tmp_path / "logs"), sweep.CsvLog(tmp_path / "a.csv"), notes]
    optimizers = {"sgd": (optfn.sgd, RATES), "half": (sgd_of_half, RATES)}
    compared = sweep.compare(TASK, optimizers, callbacks=callbacks, **SETTINGS)
    for name, result in compared.items():
        folders = {path.name for path in (tmp_path / "logs" / name).iterdir()}
        assert folders == {f"trial {i}" for i in range(len(result))}
        with (tmp_path / f"a {name}.csv").open(newline="") as file:
            ends = [row for row in csv.DictReader(file) if row["status"] != "running"]
        assert sorted(int(row["trial"]) for row in ends) == list(range(len(result)))
    assert len(notes.ends) == 2 * len(result) and len(list(tmp_path.iterdir())) == 3


def records(data):
    """The records of a TensorBoard file: length, its checksum, the record, its checksum."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


@pytest.mark.parametrize(
    "make, package",
    [
        (lambda: sweep.TensorBoardLog("logs"), "tensorboardX"),
        (lambda: sweep.MlflowLog("digits"), "mlflow"),
        (lambda: sweep.WandbLog(), "wandb"),
    ],
)
def test_a_missing_package_is_named(make, package, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}, which is not installed: pip install"):
        make()
