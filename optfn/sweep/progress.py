"""The progress of a sweep, for a terminal or a custom function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from optfn.sweep.scheduler import Scheduler


class Progress(NamedTuple):
    """The progress of a sweep, after a segment.

    Attributes:
        best: the best score of a finished trial, in the units of the task; nan before the first.
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


class _Lines:
    """Progress as lines on the standard error stream, fewer and fewer of them."""

    def __init__(self) -> None:
        self.last: Progress | None = None
        self.printed = 0.0

    def show(self, progress: Progress) -> None:
        self.last = progress
        if progress.seconds >= min(1.1 * self.printed, self.printed + 60):
            self.print_last()

    def print_last(self) -> None:
        if self.last is not None:
            print(self.last, file=sys.stderr, flush=True)
            self.last, self.printed = None, self.last.seconds


@contextmanager
def shown(
    progress: bool | Callable[[Progress], None] | None,
) -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress: by default on a line of the terminal, if there is one.

    In a file or a pipe it prints lines: the first, the last, and one whenever the time has grown by
    a tenth, or a minute.
    """
    if callable(progress):
        yield progress
        return
    terminal = sys.stderr.isatty()
    if progress is False or (progress is None and not terminal):
        yield lambda progress: None
    elif terminal and find_spec("rich"):
        from rich.console import Console

        with Console(stderr=True).status("compiling") as status:
            yield lambda progress: status.update(str(progress))
    else:
        lines = _Lines()
        yield lines.show
        lines.print_last()
