"""How far a sweep has come, for a terminal or a function of one's own."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from optfn.sweep.scheduler import Scheduler


class Progress(NamedTuple):
    """How far a sweep has come, after a segment.

    Attributes:
        best: the best score of a trial that came to the end, in the units of the task; nan before.
        running: trials in lanes.
        ok: trials that came to the end.
        pruned: trials that were ended early.
        diverged: trials that were no longer finite.
        trials: of the whole sweep.
        speed: lane-steps per second so far.
        seconds: so far.
        seconds_left: at the pace of the trials so far; nan before the first has ended.
        host_bytes: the most that paused trials can take in the host's memory.
    """

    best: float
    running: int
    ok: int
    pruned: int
    diverged: int
    trials: int
    speed: float
    seconds: float
    seconds_left: float
    host_bytes: int

    @classmethod
    def of(cls, scheduler: Scheduler, seconds: float) -> "Progress":
        """That of a scheduler."""
        status = [trial.status for trial in scheduler.trials]
        ended = len(status) - status.count("stopped")
        losses = [trial.loss for trial in scheduler.trials if trial.status == "ok"]
        best = scheduler.plan.task.sign * min(losses) if losses else float("nan")
        left = seconds / ended * (scheduler.session.trials - ended) if ended else float("nan")
        return cls(
            best=best,
            running=len(scheduler.running),
            ok=status.count("ok"),
            pruned=status.count("pruned"),
            diverged=status.count("diverged") + status.count("not_finite"),
            trials=scheduler.session.trials,
            speed=scheduler.executor.lane_steps / seconds,
            seconds=seconds,
            seconds_left=left,
            host_bytes=scheduler.paused_bytes(),
        )

    def __str__(self) -> str:
        ended = self.ok + self.pruned + self.diverged
        left = "" if self.seconds_left != self.seconds_left else f", {self.seconds_left:.0f} s left"
        paused = f"; paused trials take up to {self.host_bytes / 1e6:,.1f} MB"
        best = "none yet" if self.best != self.best else f"{self.best:.4g}"
        return (
            f"{ended}/{self.trials} trials: best {best}, {self.running} running, {self.ok} ok, "
            f"{self.pruned} pruned, {self.diverged} diverged; {self.speed:,.0f} lane-steps/s, "
            f"{self.seconds:.0f} s{left}{paused if self.host_bytes else ''}"
        )


@contextmanager
def shown(
    progress: bool | Callable[[Progress], None] | None,
) -> Iterator[Callable[[Progress], None]]:
    """Where progress goes: a line of the terminal by default, nowhere if there is none."""
    if callable(progress):
        yield progress
        return
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda progress: None
        return
    try:
        from rich.console import Console
    except ImportError:
        yield lambda progress: print(progress, file=sys.stderr, flush=True)
        return
    with Console(stderr=True).status("compiling") as status:
        yield lambda progress: status.update(str(progress))
