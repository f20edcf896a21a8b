"""How good a sweep's pick is, how true its score, and how much memory the sweep takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import digits
import numpy as np
from sweep_ways import Study

import optfn
from optfn import sweep
from optfn.sweep.search import listed

FRESH_SEEDS = range(100, 116)


@dataclass(frozen=True)
class InOrder:
    """A search over given points, in their order."""

    points: Sequence[digits.Point]

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> sweep.Session:
        return listed(self.points[:trials])


class Pick(NamedTuple):
    """ASHA's pick, judged by a full run of the same points.

    Attributes:
        place: its rank in the full run, 1 for the best.
        excess: how far its test loss is above the best, as a share of the best.
        steps: the steps of all lanes, idle ones included, as a share of the full run's.
        differing: the number of scores that differ from the full run's in any bit.
    """

    place: int
    excess: float
    steps: float
    differing: int


def picks(study: Study, orders: int, mode: str) -> list[Pick]:
    """ASHA's picks from shuffled orders of the same points, judged by one full run."""
    points = digits.points(study.trials, 0)

    def run(points: Sequence[digits.Point], prunes: bool, mode: str) -> sweep.Result:
        return sweep.run(
            study.task,
            optfn.adam,
            digits.SPACE,
            trials=study.trials,
            steps=study.steps,
            segment=study.segment,
            search=InOrder(points),
            policy=study.policy(prunes),
            mode=mode,
        )

    full = run(points, False, mode)
    places, best = np.argsort(full.order()), full.losses.min()
    found = []
    for number in range(orders):
        order = np.random.default_rng(number).permutation(study.trials)
        result = run([points[i] for i in order], True, full.mode)
        curves = result.curves["test_loss"]
        there = full.curves["test_loss"][order][:, : curves.shape[1]]
        pick = order[result.best().trial]
        found.append(
            Pick(
                int(places[pick]) + 1,
                float(full.losses[pick] / best - 1),
                result.lane_steps / full.lane_steps,
                int(np.sum(~np.isnan(curves) & (curves != there))),
            )
        )
    return found


class PickScores(NamedTuple):
    """The score of a sweep's pick: as reported, and the mean over fresh seeds; its lane steps."""

    reported: float
    fresh: float
    steps: int

    @property
    def optimism(self) -> float:
        return self.fresh - self.reported


def truths(
    study: Study, seeds: int, mode: str, confirmations: Sequence[Mapping[str, int]]
) -> list[list[PickScores]]:
    """The picks for each seed of a sweep: without confirmation, and with each."""
    confirms = [None, *(sweep.Confirm(**confirmation) for confirmation in confirmations)]
    found = []
    for seed in range(seeds):
        scores = []
        for confirm in confirms:
            result = sweep.run(
                study.task,
                optfn.adam,
                digits.SPACE,
                trials=study.trials,
                steps=study.steps,
                segment=study.segment,
                policy=study.policy(True),
                seed=seed,
                mode=mode,
                confirm=confirm,
            )
            mode, best = result.mode, result.best()
            fresh = result.rerun(best.trial, seeds=FRESH_SEEDS).score
            scores.append(PickScores(best.score, fresh, result.lane_steps))
        found.append(scores)
    return found


def peak_mebibytes(study: Study, lanes: int) -> float:
    """The peak memory of this process after a full sweep of all trials."""
    sweep.run(
        study.task,
        optfn.adam,
        digits.SPACE,
        trials=study.trials,
        steps=study.steps,
        segment=study.segment,
        policy=sweep.run_all(),
        lanes=lanes,
        mode="map",
    )
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
