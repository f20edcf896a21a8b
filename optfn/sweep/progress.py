"""The progress of a sweep, for a terminal or a custom function."""

from typing import NamedTuple

from optfn.core.progress_display import shown as shown
from optfn.sweep.scheduler import Scheduler


class Progress(NamedTuple):
    """The progress of a sweep, after a segment.

    Attributes:
        best: the best score of a finished trial that breaks no constraint, in the units of the
            task; nan before the first.
        running: trials in training.
        ok: trials that finished.
        pruned: trials that the policy stopped.
        diverged: trials that diverged or have no finite score.
        trials: trials of the whole sweep.
        speed: lane-steps per second so far.
        seconds: seconds so far.
        seconds_left: an estimate from the trials so far; nan before the first has ended.
        host_bytes: an upper bound on the bytes that paused trials take in the host's memory.
        failed: trials that raised an error.
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
    failed: int = 0

    @classmethod
    def of(cls, scheduler: Scheduler, seconds: float) -> "Progress":
        """The progress of a scheduler."""
        status = [trial.status for trial in scheduler.trials]
        ended = len(status) - status.count("stopped")
        losses = [t.loss for t in scheduler.trials if t.status == "ok" and t.feasible]
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
            failed=status.count("failed"),
        )

    def __str__(self) -> str:
        ended = self.ok + self.pruned + self.diverged + self.failed
        lost = f"{self.diverged} diverged" + (f", {self.failed} failed" if self.failed else "")
        left = "" if self.seconds_left != self.seconds_left else f", {self.seconds_left:.0f} s left"
        paused = f"; paused trials take up to {self.host_bytes / 1e6:,.1f} MB"
        best = "none yet" if self.best != self.best else f"{self.best:.4g}"
        return (
            f"{ended}/{self.trials} trials: best {best}, {self.running} running, {self.ok} ok, "
            f"{self.pruned} pruned, {lost}; {self.speed:,.0f} lane-steps/s, "
            f"{self.seconds:.0f} s{left}{paused if self.host_bytes else ''}"
        )
