"""How a minimization ended."""

import enum


class Status(enum.IntEnum):
    """How a minimization ended."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    LINE_SEARCH_FAILED = 3
    NOT_FINITE = 4
    UNBOUNDED = 5
    BOUNDS_CROSSED = 6
    INFEASIBLE = 7
    STALLED = 8


TEXTS = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "stopped at max_steps",
    Status.LINE_SEARCH_FAILED: "stopped where the line search found no lower value",
    Status.NOT_FINITE: "stopped where the value or the gradient is not finite",
    Status.UNBOUNDED: "stopped far out where the value still falls: no minimum was found",
    Status.BOUNDS_CROSSED: "stopped at the start, as a lower bound is not at most its upper bound",
    Status.INFEASIBLE: "stopped where no step brings the constraints nearer to holding",
    Status.STALLED: "stopped where rounding hides further progress: tol is too small for the dtype",
}
