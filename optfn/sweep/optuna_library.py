"""Optuna, where it is installed."""

import contextlib
from collections.abc import Iterator
from typing import Any

CONSTRAINTS = "constraints"  # where Optuna stores those of a trial, among its system attributes


def optuna_library(caller: str = "sweep.optuna_search(...)") -> Any:
    """The package.

    Args:
        caller: what needs it, for the message.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError(
            f'{caller} needs Optuna, which is not installed: pip install "optfn[sweep]", or pip '
            "install optuna."
        ) from None
    return optuna


@contextlib.contextmanager
def quiet_optuna() -> Iterator[Any]:
    """The package, with its log messages below warnings silenced."""
    optuna = optuna_library()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(level)
