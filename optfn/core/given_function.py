"""Functions that users give where a `Data` of a kind is expected: a schedule, a set."""

from typing import Any

from jax.tree_util import Partial, all_leaves

from optfn.core.data import Data, show


def as_pytree(function: Any, where: str) -> Any:
    """A function as a pytree; one that is none holds no leaves.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(function):
        raise TypeError(f"{where} must be callable, found {show(function)}.")
    return Partial(function) if all_leaves([function]) else function


def show_function(function: Any) -> str:
    """The text of a function from `as_pytree`, as it was given."""
    bare = type(function) is Partial and not (function.args or function.keywords)
    return show(function.func if bare else function)


def is_function(value: Any, where: Any) -> bool:
    """Whether a value is a function of the user's, and no `Data` of another kind.

    Raises:
        TypeError: it is a class that was not called.
    """
    if isinstance(value, type) and issubclass(value, Data):
        raise TypeError(
            f"{where} found the class {value.__name__}; call it, as in {value.__name__}(...)."
        )
    return callable(value) and not isinstance(value, Data)
