"""One sweep over two processes, each with two devices, as on two machines."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sweep.problem import RATE, run

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
