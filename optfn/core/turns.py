"""What is refreshed every few steps: all leaves in the same step, or each in its turn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.numerics import is_multiple, whole

_in_turn: ContextVar[bool] = ContextVar("in_turn", default=False)


class Turn(NamedTuple):
    """Which of several leaves it is that are refreshed one after the other.

    Numbers and no constants, so that all leaves of a shape share a trace.

    Attributes:
        number: int32, from 0 on.
        of: int32, how many leaves there are.
    """

    number: Any
    of: Any


@contextmanager
def in_turn() -> Iterator[None]:
    """Makes the leaves of every rule that `refreshes` take turns."""
    token = _in_turn.set(True)
    try:
        yield
    finally:
        _in_turn.reset(token)


def turns(takes_part: Sequence[bool]) -> list[Turn | None]:
    """The turn of each leaf that takes part; None for others, and where all are due at once."""
    if not _in_turn.get():
        return [None] * len(takes_part)
    of, numbers = np.int32(sum(takes_part)), np.cumsum(takes_part) - 1
    pairs = zip(takes_part, numbers, strict=True)
    return [Turn(np.int32(number), of) if takes else None for takes, number in pairs]


def delay(every: Any, turn: Turn | None) -> Any:
    """How many steps after the first leaf this one is due.

    Of n leaves at most ceil(n / every) have the same.

    Args:
        every: the steps from one refresh to the next, rounded and at least 1.
        turn: the leaf's, or None.
    """
    if turn is None:
        return 0
    every, number, of = jnp.maximum(whole(every), 1), jnp.asarray(turn.number), turn.of
    # every * number // of, in range
    return every // of * number + every % of * number // of


def is_due(count: jax.Array, every: Any, turn: Turn | None) -> jax.Array:
    """Whether a leaf is due after this number of updates, which it is once in `every` of them.

    Args:
        count: an int32 number of updates; without a turn, multiples of `every` are due.
        every: a number, rounded and at least 1.
        turn: the leaf's, or None.
    """
    return is_multiple(count - delay(every, turn), every)
