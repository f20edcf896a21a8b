"""Ends a sweep early, with the results so far."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed; a second Ctrl-C interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = []
    before = signal.getsignal(signal.SIGINT)

    def press(*args: Any) -> None:
        pressed.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def any_process(wanted: bool) -> bool:
    """Whether any process wants to stop: all must leave the loop after the same segment."""
    if jax.process_count() == 1:
        return wanted
    return bool(multihost_utils.process_allgather(np.asarray(wanted)).any())
