"""What a run tells while it runs: to a function of the user's, and to a terminal."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optfn.core.numerics import global_norm
from optfn.core.progress_display import Lines, shown
from optfn.core.slots import copy_params_wide
from optfn.core.tree import PyTree

# Seconds between two texts for a reader.
PAUSE = 0.2


class Iterate(NamedTuple):
    """A point of a run: numbers for `callback`, and arrays of all points in `Minimum.trace`.

    It is the start or the end of a step, or of a round of steps in a run under constraints.

    Attributes:
        step: the number of optimizer steps up to it; 0 at the start.
        value: the function's value.
        grad_norm: the largest magnitude of an entry of the gradient, with bounds of the projected
            one; with constraints of the Lagrangian's, and NaN at the start.
        step_size: the length of the step or round that led to it; 0 at the start.
        evaluations: the number of evaluations of the value up to it.
    """

    step: Any
    value: Any
    grad_norm: Any
    step_size: Any
    evaluations: Any


class _Text(NamedTuple):
    """The progress of a run, for a reader."""

    iterate: Iterate
    seconds: float
    is_last: bool

    def __str__(self) -> str:
        step, value, norm, _, evaluations = self.iterate
        return (
            f"step {step}: value {value:.6g}, gradient {norm:.2g}, {evaluations} evaluations, "
            f"{self.seconds:.0f} s"
        )


class _Listener:
    """Who listens to a run: a function, a display, or both.

    Attributes:
        error: the first error of the function, if errors are kept.
    """

    def __init__(
        self,
        callback: Callable[..., Any] | None,
        show: Callable[..., Any] | None,
        keeps_errors: bool,
    ):
        self.callback, self.show, self.keeps_errors = callback, show, keeps_errors
        self.began = self.shown = time.monotonic()
        self.error: Exception | None = None

    def hear(self, iterate: Iterate, is_last: bool) -> None:
        now = time.monotonic()
        if not iterate.step:
            self.began = self.shown = now
        if self.show is not None and (is_last or now - self.shown >= PAUSE):
            self.shown = now
            self.show(_Text(iterate, now - self.began, is_last))
        if self.callback is None or self.error is not None:
            return
        try:
            self.callback(iterate)
        except Exception as error:
            if not self.keeps_errors:
                raise
            self.error = error


class _LinesOfRuns(Lines):
    """The lines of one run after the other."""

    def show(self, progress: Any) -> None:
        super().show(progress)
        if progress.is_last:
            self.print_last()
            self.printed = 0.0


# Compiled runs find who listens by a number, which is data: a new listener compiles nothing.
_listeners: dict[int, _Listener] = {}
_numbers = itertools.count(1)


def listened_to(
    run: Callable[[Any], Any], callback: Callable[..., Any] | None, progress: bool, is_later: bool
) -> Any:
    """The result of a run, which is given the number of who listens to it, or None.

    Args:
        run: a function of the number.
        callback: it is called with each `Iterate`; None for none. Its first error is raised when
            the run is over.
        progress: whether to show the progress.
        is_later: whether the run is only traced here, and runs at any time and any number of times.
    """
    if callback is None and not progress:
        return run(None)
    number = next(_numbers)
    if is_later:
        show = _LinesOfRuns().show if progress else None
        _listeners[number] = _Listener(callback, show, keeps_errors=False)
        return run(np.int32(number))
    with shown(progress) as show:
        listener = _Listener(callback, show if progress else None, keeps_errors=True)
        _listeners[number] = listener
        try:
            result = jax.block_until_ready(run(np.int32(number)))
            jax.effects_barrier()
        finally:
            del _listeners[number]
    if listener.error is not None:
        raise listener.error
    return result


@dataclass(frozen=True)
class Watched:
    """Whether a run is told of, and the length of its trace, or None without one."""

    is_told: bool
    length: int | None

    def empty_trace(self, dtype: Any) -> Iterate | None:
        if self.length is None:
            return None
        counts = jnp.full(self.length, -1, jnp.int32)
        numbers = jnp.full(self.length, jnp.nan, dtype)
        return Iterate(counts, numbers, numbers, numbers, counts)

    def noted(
        self,
        number: Any,
        trace: Iterate | None,
        row: Any,
        iterate: Iterate,
        is_new: Any,
        is_last: Any,
    ) -> Iterate | None:
        """The trace with a point, of which who listens is told.

        Args:
            number: who listens, or None.
            trace: the trace so far, or None.
            row: where the point is in it.
            iterate: the point.
            is_new: whether it is not an old one, of a lane that has stopped.
            is_last: whether the run ends with it.
        """
        if self.is_told:
            # As bytes: double precision may be off in the thread that hears, which would round.
            numbers = [jnp.asarray(x) for x in iterate]
            told = partial(_told, [x.dtype for x in numbers])
            numbers = [lax.bitcast_convert_type(x, jnp.uint8) for x in numbers]
            jax.debug.callback(told, number, numbers, is_new, is_last)
        return trace and jax.tree.map(lambda numbers, x: numbers.at[row].set(x), trace, iterate)


UNWATCHED = Watched(is_told=False, length=None)


def distance(x: PyTree, y: PyTree) -> jax.Array:
    return global_norm(jax.tree.map(lax.sub, *map(copy_params_wide, (x, y))))


def _told(dtypes: list[Any], number: Any, numbers: list[Any], is_new: Any, is_last: Any) -> None:
    listener = _listeners.get(int(number))
    if listener is not None and is_new:
        pairs = zip(numbers, dtypes, strict=True)
        iterate = Iterate(*(np.asarray(x).view(dtype).item() for x, dtype in pairs))
        listener.hear(iterate, bool(is_last))
