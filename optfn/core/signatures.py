"""What a function says of its arguments."""

import inspect
from collections.abc import Callable


def parameters_of(function: Callable) -> list[inspect.Parameter] | None:
    """The parameters in a function's signature; None if it has none, as some builtins."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def needed_by(function: Callable, behind: int = 0) -> list[str]:
    """The names of the arguments without defaults that a function takes, behind the first few."""
    parameters = (parameters_of(function) or [])[behind:]
    starred = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [x.name for x in parameters if x.default is x.empty and x.kind not in starred]


def names_taken(function: Callable, *, keyword_only: bool = False) -> tuple[dict[str, bool], bool]:
    """By name whether an argument of a function is needed, and whether it takes any by `**`."""
    parameters = parameters_of(function)
    if parameters is None:
        return {}, True
    kinds = {inspect.Parameter.KEYWORD_ONLY}
    if not keyword_only:
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = {p.name: p.default is p.empty for p in parameters if p.kind in kinds}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
