"""One sweep over several processes, as on several machines: in step, and each for itself."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from sweep.problem import RATE, STILL, run

from optfn import sweep

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, sys
rank, port, tests, folder = int(sys.argv[1]), *sys.argv[2:]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path.insert(0, tests)
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from sweep.problem import RATE, run
from optfn import sweep
mesh = jax.make_mesh((4,), ("lanes",))
halving = run(RATE, trials=20, lanes=8, policy=sweep.successive_halving(first=5, bracket=10),
              keep_best=2, mesh=mesh, checkpoint=folder, checkpoint_every=2)
again = run(RATE, trials=20, lanes=8, policy=sweep.successive_halving(first=5, bracket=10),
            keep_best=2, mesh=mesh, checkpoint=folder)
population = run(RATE, trials=8, policy=sweep.pbt(every=5), mesh=mesh, mode="auto")
print(json.dumps([halving.scores.tolist(), halving.best().params["w"].tolist(),
                  again.scores.tolist(), population.mode, population.scores.tolist()]))
"""


def test_two_processes_come_to_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    arguments = [port, str(Path(__file__).parent.parent), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        told.append(json.loads(out.strip().splitlines()[-1]))
    assert told[0] == told[1]
    scores, w, again, mode, population = told[0]
    policy = sweep.successive_halving(first=5, bracket=10)
    alone = run(RATE, trials=20, lanes=8, policy=policy, keep_best=2)
    np.testing.assert_allclose(scores, alone.scores, rtol=1e-4)
    np.testing.assert_allclose(w, alone.best().params["w"], rtol=1e-4)
    assert again == scores
    expected = run(RATE, trials=8, policy=sweep.pbt(every=5), mode=mode)
    np.testing.assert_allclose(population, expected.scores, rtol=1e-3)


WORKER = """
import json, sys, time
tests, storage, hangs = sys.argv[1:]
sys.path.insert(0, tests)
from sweep.problem import RATE, STILL, run
from optfn import sweep
class Hang(sweep.Callback):
    def on_report(self, trial, step, scores):
        print("training", flush=True)
        time.sleep(600)
search = sweep.shared_search(storage, sweep.sobol(), heartbeat=2.0)
result = run(RATE, task=STILL, trials=24, lanes=8, search=search, seed=0,
             callbacks=[Hang()] if hangs == "yes" else [])
print(json.dumps([result.points, result.scores.tolist(), result.status.tolist()]))
"""


def test_of_three_workers_one_is_killed_and_every_trial_is_done_once(tmp_path):
    storage = str(tmp_path / "study.journal")

    def started(hangs):
        program = [sys.executable, "-c", WORKER, str(Path(__file__).parent.parent), storage, hangs]
        return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)

    killed = started("yes")
    assert killed.stdout.readline() == "training\n"
    workers = [started("no") for _ in range(2)]
    killed.kill()
    killed.communicate()
    told = [json.loads(w.communicate(timeout=240)[0].splitlines()[-1]) for w in workers]
    assert told[0] == told[1]
    alone = run(RATE, task=STILL, trials=24, lanes=8, search=sweep.sobol())
    points, scores, status = told[0]
    assert points == alone.points and set(status) == {"ok"}
    np.testing.assert_array_equal(scores, alone.scores)
    backend = optuna.storages.journal.JournalFileBackend(storage)
    (study,) = optuna.get_all_study_summaries(optuna.storages.JournalStorage(backend))
    trials = optuna.load_study(
        study_name=study.study_name, storage=optuna.storages.JournalStorage(backend)
    ).trials
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len({trial.params["learning_rate"] for trial in done}) == len(done) == 24
    assert sum(trial.state.name == "FAIL" for trial in trials) == 8  # those of the killed one
    assert len({trial.user_attrs["worker"] for trial in done}) <= 2
