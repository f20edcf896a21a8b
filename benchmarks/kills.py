"""Sweeps that are killed again and again end with the bits of a sweep that never was.

For each policy a process trains 24 trials on the digits, with a checkpoint folder and everything
else at its default, and is killed by SIGKILL at random times: while it compiles, trains or saves.
It is started again with the same call until it ends by itself, and its result is compared with that
of a process that was left alone: points, status, steps, scores and curves of all trials, and the
params of the best.
"""

import argparse
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import digits
import jax
import numpy as np
from harness import Report, listed, parser, progress, shown

import optfn
from optfn import sweep

WIDTH = 16
SEGMENT = 20
POLICIES: dict[str, Callable[[], Any]] = {
    "run_all": sweep.run_all,
    "asha": lambda: sweep.asha(first=SEGMENT),
    "successive_halving": lambda: sweep.successive_halving(first=SEGMENT),
    "hyperband": lambda: sweep.hyperband(first=SEGMENT),
    "pbt": lambda: sweep.pbt(every=2 * SEGMENT),
    "from_optuna": lambda: sweep.from_optuna(optuna_pruner()),
}
KILLS = 9


def optuna_pruner() -> Any:
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=4)


def train(policy: str, folder: Path, steps: int) -> None:
    """Trains, or goes on, and writes what came out beside the folder."""
    result = sweep.run(
        digits.task(digits.images(), WIDTH),
        optfn.adam,
        digits.SPACE,
        trials=24,
        steps=steps,
        segment=SEGMENT,
        policy=POLICIES[policy](),
        checkpoint=folder,
        progress=False,
    )
    best = result.best()
    arrays = {name: getattr(result, name) for name in ("status", "steps", "scores", "curves")}
    params = jax.tree.map(np.asarray, jax.tree.leaves(best.params))
    outcome = arrays | {"points": result.points, "best": best.trial, "params": params}
    folder.with_suffix(".part").write_bytes(pickle.dumps(outcome))
    folder.with_suffix(".part").rename(folder.with_suffix(".pickle"))


def start(policy: str, folder: Path, steps: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", policy, str(folder), "--steps", str(steps)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen, folder: Path) -> dict[str, Any]:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode())
    return pickle.loads(folder.with_suffix(".pickle").read_bytes())


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    same = jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=_is_float(x)), a, b)
    return all(jax.tree.leaves(same))


def _is_float(x: Any) -> bool:
    return np.issubdtype(np.asarray(x).dtype, np.floating)


def measure(policy: str, kills: int, steps: int, seed: int) -> tuple[int, int, bool]:
    """The kills that came before the end, the starts, and whether the result has the same bits."""
    draw = random.Random(f"{policy} {seed}")
    with tempfile.TemporaryDirectory() as parent:
        alone, killed = Path(parent) / "alone", Path(parent) / "killed"
        began = time.perf_counter()
        wanted = finished(start(policy, alone, steps), alone)
        whole = time.perf_counter() - began
        done = starts = 0
        while done < kills:
            process = start(policy, killed, steps)
            starts += 1
            try:
                process.wait(draw.uniform(0.2, 0.9) * whole)
                break  # it ended first
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
        else:
            process = start(policy, killed, steps)
            starts += 1
        return done, starts, same_bits(wanted, finished(process, killed))


def main() -> None:
    if "--child" in sys.argv:
        options = argparse.ArgumentParser()
        options.add_argument("--child", nargs=2)
        options.add_argument("--steps", type=int)
        args = options.parse_args()
        policy, folder = args.child
        train(policy, Path(folder), args.steps)
        return
    options = parser(__doc__)
    options.add_argument("--policies", type=listed(POLICIES), default=list(POLICIES))
    args = options.parse_args()
    policies = ["asha"] if args.quick else args.policies
    kills, steps = (1, 4 * SEGMENT) if args.quick else (KILLS, 100 * SEGMENT)
    report, rows = Report("Killed sweeps"), []
    for policy in policies:
        progress(policy)
        done, starts, same = measure(policy, kills, steps, 0)
        verdict = report.judge(same, f"{policy}: the result differs after {done} kills.")
        rows.append(shown([policy, str(done), str(starts), verdict]))
    report.add_table(
        "Kills",
        f"24 trials of {steps} steps, killed up to {kills} times at random times, against a sweep "
        "that was left alone.",
        ["policy", "kills", "starts", "the same bits"],
        rows,
    )
    report.publish(args.record)


if __name__ == "__main__":
    main()
