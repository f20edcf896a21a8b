"""Callbacks that write a sweep's trials where people look at them."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from optfn.sweep.callbacks import Callback
from optfn.sweep.recorded import readable_point
from optfn.sweep.replaced import replaced
from optfn.sweep.trials import TrialResult

FIRST, LAST = ("trial", "step", "status"), "hyperparameters"


class CsvLog(Callback):
    """Writes a row for each report of a trial while the sweep runs, and one for its end.

        sweep.run(..., callbacks=[sweep.CsvLog("trials.csv")])

    The columns are trial, step, status ("running" until its end), the scores, and the
    hyperparameters as JSON, since trials of a conditional space have different ones. Rows are added
    to a file that is there: a sweep that was interrupted goes on in it. `Result.to_csv` writes the
    outcomes of a sweep that has ended.

    Args:
        path: the file. In `compare` each optimizer has its own, with its name behind this one's.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.last: dict[int, Mapping[str, float]] = {}

    def named(self, name: str) -> "CsvLog":
        return CsvLog(self.path.with_stem(f"{self.path.stem} {name}"))

    def on_report(self, trial: TrialResult, step: int, scores: Mapping[str, float]) -> None:
        self.last[trial.trial] = scores
        self._write(trial, step, "running", scores)

    def on_trial(self, trial: TrialResult) -> None:
        self._write(trial, trial.steps, trial.status, self.last.pop(trial.trial, {}))

    def _write(
        self, trial: TrialResult, step: int, status: str, scores: Mapping[str, float]
    ) -> None:
        columns = self._columns()
        if new := [name for name in scores if name not in columns[len(FIRST) : -1]]:
            columns = self._with_columns(new)
        values = json.dumps(readable_point(trial.values))
        measured = [scores.get(name, "") for name in columns[len(FIRST) : -1]]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([trial.trial, step, status, *measured, values])

    def _columns(self) -> list[str]:
        """The head of the file, which is written if there is none."""
        if not self.path.exists() or not self.path.stat().st_size:
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow([*FIRST, LAST])
        with self.path.open(newline="") as file:
            return next(csv.reader(file))

    def _with_columns(self, new: Sequence[str]) -> list[str]:
        """Gives the file further columns, empty so far, as the first score that comes does."""
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        more = [new, *([""] * len(new) for _ in rows[1:])]
        rows = [[*row[:-1], *added, row[-1]] for row, added in zip(rows, more, strict=True)]
        with replaced(self.path) as file:
            csv.writer(file).writerows(rows)
        return rows[0]


class TensorBoardLog(Callback):
    """Writes a TensorBoard run for each trial: its scores over the steps, its hyperparameters.

        sweep.run(..., callbacks=[sweep.TensorBoardLog("logs")])  # tensorboard --logdir logs

    Args:
        folder: gets a folder for each trial, in `compare` inside of one for each optimizer.

    Raises:
        ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.writer_of = _library("tensorboardX", "TensorBoardLog").SummaryWriter
        self.folder = Path(folder)
        self.writers: dict[int, Any] = {}

    def named(self, name: str) -> "TensorBoardLog":
        return TensorBoardLog(self.folder / name)

    def on_report(self, trial: TrialResult, step: int, scores: Mapping[str, float]) -> None:
        if trial.trial not in self.writers:
            folder = self.folder / f"trial {trial.trial}"
            self.writers[trial.trial] = self.writer_of(str(folder))
        writer = self.writers[trial.trial]
        for name, score in scores.items():
            writer.add_scalar(name, score, step)
        writer.flush()

    def on_trial(self, trial: TrialResult) -> None:
        if writer := self.writers.pop(trial.trial, None):
            score = {"score": trial.score} if math.isfinite(trial.score) else {}
            values = readable_point(trial.values).items()
            writer.add_hparams(
                {name: "None" if value is None else value for name, value in values},
                score,
                name="outcome",
            )
            writer.close()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()


class MlflowLog(Callback):
    """Writes an MLflow run for each trial: hyperparameters, scores over the steps, its status.

        sweep.run(..., callbacks=[sweep.MlflowLog("digits")])

    Args:
        experiment: its name; it is made if it does not exist.
        tracking_uri: the server or folder; None is MLflow's own setting.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(self, experiment: str, *, tracking_uri: str | None = None):
        self.client = _library("mlflow", "MlflowLog").MlflowClient(tracking_uri)
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = (
            found.experiment_id if found else self.client.create_experiment(experiment)
        )
        self.runs: dict[int, str] = {}

    def on_report(self, trial: TrialResult, step: int, scores: Mapping[str, float]) -> None:
        run = self._run(trial)
        for name, score in scores.items():
            self.client.log_metric(run, name, score, step=step)

    def on_trial(self, trial: TrialResult) -> None:
        run = self._run(trial)
        self.client.set_tag(run, "status", trial.status)
        self.client.set_terminated(run, "FAILED" if trial.status == "failed" else "FINISHED")
        del self.runs[trial.trial]

    def close(self) -> None:
        for run in self.runs.values():
            self.client.set_terminated(run, "KILLED")
        self.runs.clear()

    def _run(self, trial: TrialResult) -> str:
        if trial.trial not in self.runs:
            made = self.client.create_run(self.experiment, run_name=f"trial {trial.trial}")
            self.runs[trial.trial] = made.info.run_id
            for name, value in readable_point(trial.values).items():
                self.client.log_param(made.info.run_id, name, value)
        return self.runs[trial.trial]


class WandbLog(Callback):
    """Writes a Weights & Biases run for each trial: configuration, scores over steps, its status.

        sweep.run(..., callbacks=[sweep.WandbLog(project="digits", group="adam")])

    Args:
        **settings: arguments of `wandb.init`, such as `project`, `group` and `mode="offline"`.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, **settings: Any):
        self.library = _library("wandb", "WandbLog")
        self.settings = {"reinit": "create_new"} | settings
        self.runs: dict[int, Any] = {}

    def on_report(self, trial: TrialResult, step: int, scores: Mapping[str, float]) -> None:
        self._run(trial).log(dict(scores), step=step)

    def on_trial(self, trial: TrialResult) -> None:
        run = self._run(trial)
        run.summary["status"] = trial.status
        run.finish(exit_code=int(trial.status == "failed"))
        del self.runs[trial.trial]

    def close(self) -> None:
        for run in self.runs.values():
            run.finish(exit_code=1)
        self.runs.clear()

    def _run(self, trial: TrialResult) -> Any:
        if trial.trial not in self.runs:
            name = f"trial {trial.trial}"
            self.runs[trial.trial] = self.library.init(
                name=name, config=readable_point(trial.values), **self.settings
            )
        return self.runs[trial.trial]


def _library(name: str, caller: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ImportError(
            f"sweep.{caller}(...) needs {name}, which is not installed: pip install {name}."
        ) from None
