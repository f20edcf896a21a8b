"""The settings of a sweep: fixed before the first step, and kept when its trials train again."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from optfn.core.transform import Transform
from optfn.sweep.candidate import Candidate
from optfn.sweep.constraints import Constraint, violation
from optfn.sweep.forms import Forms
from optfn.sweep.one_of import applying, call, names
from optfn.sweep.space import Choice, Distribution
from optfn.sweep.task import Training


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What every run of a sweep has in common.

    Attributes:
        task: the training run.
        make_optimizer: a function of the hyperparameters of a point that returns its optimizer;
            None for a result that was loaded.
        space: a distribution for each name of a point.
        steps: the updates of a whole run.
        segment: the steps between two looks at the scores.
        lanes: the runs side by side.
        seed: the seed of the sweep.
        max_loss: a run with a larger loss has diverged.
        mesh: the devices over which the lanes are spread; None is one device.
        score: which of the scores of a run counts: "last", "best", or ("mean", k) of the last k.
        patience: a run ends after so many segments without a better score; None is never.
        make_task: a function of a point that returns its task, where tasks differ in shape; None
            where all trials have `task`.
        constraints: functions of a trial's scores, see `violation`.
        forms: what is known of the functions in the optimizers, see `Forms`.
    """

    task: Training
    make_optimizer: Callable[..., Transform] | None
    space: Mapping[str, Distribution]
    steps: int
    segment: int
    lanes: int
    seed: int
    max_loss: float = math.inf
    mesh: Mesh | None = None
    score: str | tuple[str, int] = "last"
    patience: int | None = None
    make_task: Callable[[Mapping[str, Any]], Training] | None = None
    constraints: tuple[Constraint, ...] = ()
    forms: Forms = dataclasses.field(default_factory=Forms)

    @property
    def segments(self) -> int:
        """The segments of a whole run; the last may be short."""
        return ceil_div(self.steps, self.segment)

    @property
    def searched(self) -> tuple[str, ...]:
        """The names whose values differ between trials."""
        return names(self.space, searched=True)

    def violations(self, scores: Mapping[str, float]) -> list[float]:
        """How far the scores of a trial are from keeping each constraint; above 0 breaks it."""
        return [violation(constraint, scores) for constraint in self.constraints]

    def age(self, segments: int) -> int:
        """The steps a run has taken after this many segments of its own."""
        return min(segments * self.segment, self.steps)

    def training(self, point: Mapping[str, Any]) -> Training:
        """The task of a point."""
        return self.task if self.make_task is None else self.make_task(point)

    def of(self, point: Mapping[str, Any]) -> Self:
        """The plan with the task of this point for all."""
        return dataclasses.replace(self, task=self.training(point), make_task=None)

    def candidate(self, point: Mapping[str, Any]) -> Candidate:
        """What a lane trains for a point."""
        return Candidate(self.optimizer(point), self.task_values(point))

    def optimizer(self, point: Mapping[str, Any]) -> Transform:
        """The optimizer of a point."""
        if self.make_optimizer is None:
            raise ValueError(
                "a result that was loaded has no code to make an optimizer with: call sweep.run "
                "with the same checkpoint, which has."
            )
        others = (*self.training(point).hyperparameters, *getattr(self.make_task, "names", ()))
        return call(self.make_optimizer, self.space, point, others)

    def task_values(self, point: Mapping[str, Any]) -> dict[str, ArrayLike]:
        """The numbers of a point that the functions of the task take."""
        found, task = applying(self.space, point), self.training(point)
        return {n: as_number(n, found[n], point[n]) for n in task.hyperparameters if n in point}

    def for_runs(self, runs: int) -> Self:
        """The plan with lanes rounded up to whole trials of `runs` runs, even over the devices."""
        lanes = round_up(self.lanes, lanes_multiple(runs, self.mesh))
        return dataclasses.replace(self, lanes=lanes)


def as_number(name: str, distribution: Distribution, value: Any) -> np.ndarray:
    """A value as the functions of a task get it, with the same dtype in all trials."""
    options = distribution.options if isinstance(distribution, Choice) else (value,)
    for x in options:
        if not isinstance(x, (bool, int, float, np.generic, np.ndarray, jax.Array)):
            raise TypeError(
                f"the space's {name!r} goes to a function of the task, which takes numbers, found "
                f"{x!r}."
            )
    return np.asarray(value, jnp.result_type(*options))


def lanes_multiple(runs: int, mesh: Mesh | None) -> int:
    """The multiple of lanes that holds whole trials and divides evenly over the devices."""
    return math.lcm(runs, 1 if mesh is None else mesh.size)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return ceil_div(number, multiple) * multiple
