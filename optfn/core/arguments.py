"""Where a bad value came from: the argument that the user wrote, for messages."""

import inspect
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Argument:
    """An argument of a stage; in a message, that of the function which its user called.

    An optimizer is a function that passes its arguments on to stages, some under other names:
    `sgd(momentum=...)` is `trace(decay=...)`. Only a message needs to know, so the user's call is
    looked up on the stack when a message is made, and no optimizer keeps account.

    Args:
        where: the argument of the stage, as in `"trace(decay=...)"`.
        value: what it was given.
    """

    def __init__(self, where: str, value: Any):
        self.where, self.value = where, value

    def __str__(self) -> str:
        own = self.where.partition("(")[2].partition("=")[0]
        for name, function, frame in reversed(list(_public_calls())):
            names = [n for n, held in _arguments(frame) if _holds(held, self.value)]
            if names:
                named = own if own in names else _first_not_default(function, frame, names)
                return f"{name}({named}=...)"
        return self.where


def _public_calls() -> Iterator[tuple[str, Callable[..., Any], FrameType]]:
    """The calls of the package's public functions and classes, the innermost first."""
    package = sys.modules[__name__.partition(".")[0]]
    recipes = getattr(package, "recipes", None)
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if name == "__init__":
            name = type(frame.f_locals.get("self")).__name__
        public: Any = getattr(package, name, None) or getattr(recipes, name, None)
        function = inspect.unwrap(public.__init__ if isinstance(public, type) else public)
        if getattr(function, "__code__", None) is frame.f_code:
            yield name, function, frame
        frame = frame.f_back


def _arguments(frame: FrameType) -> list[tuple[str, Any]]:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [(name, frame.f_locals.get(name)) for name in names]


def _holds(held: Any, value: Any) -> bool:
    return held is value or (type(held) in (tuple, list) and any(x is value for x in held))


def _first_not_default(function: Any, frame: FrameType, names: list[str]) -> str:
    positional = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    defaults = function.__defaults__ or ()
    by_name = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    by_name |= function.__kwdefaults__ or {}
    given = [n for n in names if frame.f_locals[n] is not by_name.get(n, by_name)]
    return (given or names)[0]
