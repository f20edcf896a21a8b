"""What a config may name: the public names of the library, and functions of users' own."""

import dataclasses
import functools
import inspect
import operator
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, overload

import optax

from optfn.core.data import Data, kind_of
from optfn.core.matrix_axes import MatrixAxes
from optfn.core.paths import by_path
from optfn.core.projection import Projection
from optfn.core.schedule import Schedule
from optfn.core.transform import Transform
from optfn.storage.codecs import Codec

F = TypeVar("F", bound=Callable[..., Any])

# What a config describes, and what it holds besides numbers.
_MADE = (Transform, Schedule, Codec, Projection, by_path, MatrixAxes)
# They give a function or a tree, for labels and views.
_OF_VIEWS = ("in_blocks", "matrix_labels")
# Functions that stand for themselves.
_FUNCTIONS = ("matrices_and_tables", "recipes.decays")
# optax's transformations and classes to inherit from are not data.
_LEFT_OUT = ("from_optax", "Transform", "Leafwise", "Matrixwise", "Wrapper")
_LEFT_OUT += ("Schedule", "Codec", "Projection")

# What the first argument of a wrapper of a user's is called, if it does not say its type.
_WRAPPED = ("transform", "inner", "tx", "optimizer", "base_optimizer")

_own: dict[str, Callable[..., Any]] = {}


@overload
def configurable(function: F, /) -> F: ...
@overload
def configurable(*, name: str | None = None) -> Callable[[F], F]: ...


def configurable(function: Any = None, /, *, name: str | None = None) -> Any:
    """Lets configs name a function or a class of your own.

        @optfn.configurable
        def decays(path, leaf):
            return leaf.ndim > 1

        optfn.from_config(
            {"name": "adamw", "learning_rate": 1e-3, "mask": {"function": "decays"}}
        )

    `{"name": "its_name", ...}` calls it with the other entries for arguments: a function that makes
    an optimizer, a stage, a schedule or a codec, or a class of one. `{"function": "its_name"}` is
    the function itself, for masks, labels and schedules. A function whose first argument is an
    optimizer, by its type or by the name `transform`, `inner`, `tx`, `optimizer` or
    `base_optimizer`, is a wrapper.

    Args:
        function: a function or a class. It is returned unchanged.
        name: what configs call it; its own name if None.

    Raises:
        TypeError: it cannot be called, or has no name.
        ValueError: the name is one of the library's, or stands for another function already.

    Warns:
        UserWarning: it takes the name from another function of the same place.
    """
    if function is None:
        return functools.partial(_configurable, name=name)
    return _configurable(function, name)


def _configurable(function: F, name: str | None) -> F:
    if not callable(function):
        raise TypeError(f"configurable(...) must be a function or a class, found {function!r}.")
    name = name or getattr(function, "__name__", None)
    if not name or not name.isidentifier():
        raise TypeError(
            f"configurable(name=...): {function!r} needs a name like those of Python, found "
            f"{name!r}."
        )
    if name in public_names():
        raise ValueError(f"configurable(name=...): {name!r} is a name of optfn's.")
    if name in _own and _place(_own[name]) != _place(function):
        raise ValueError(
            f"configurable(name=...): {name!r} is {_own[name]!r} already; give {function!r} "
            "another name."
        )
    if name in _own and _is_second(_own[name], function):
        warnings.warn(
            f"configurable(name=...): {name!r} was another function of {function.__module__} "
            "before, which configs cannot name any more: give one of the two another name.",
            stacklevel=3,
        )
    _own[name] = function
    return function


def _place(function: Any) -> tuple[Any, ...]:
    """Where it is defined: a cell that runs again defines the same function anew."""
    name = getattr(function, "__qualname__", function)
    is_lambda = isinstance(name, str) and name.endswith("<lambda>")  # a name that many have
    return getattr(function, "__module__", None), name, function.__code__ if is_lambda else None


def _is_second(old: Any, new: Any) -> bool:
    """Whether both stand in one file, or are one function around different values.

    A cell or a module that runs again, also after a change, defines the same function anew.
    """
    before, now = _codes(old), _codes(new)
    same_file = {x.co_filename for x in before} == {x.co_filename for x in now}
    moved = [x.co_firstlineno for x in before] != [x.co_firstlineno for x in now]
    changed = list(map(_text, before)) != list(map(_text, now))
    return (same_file and moved and changed) or _around(old) != _around(new)


def _codes(function: Any) -> list[types.CodeType]:
    """The code of a function, or of the methods that stand in a class."""
    parts = vars(function).values() if isinstance(function, type) else [inspect.unwrap(function)]
    codes = [x.__code__ for x in parts if inspect.isfunction(x)]
    return [code for code in codes if code.co_filename != "<string>"]


def _text(code: types.CodeType) -> tuple[Any, ...]:
    """What it says, without the lines on which it does."""
    constants = [x for x in code.co_consts if not isinstance(x, types.CodeType)]
    return code.co_code, code.co_names, repr(constants)


def _around(function: Any) -> list[Any]:
    """The values around a function that it holds: plain ones as they are, others by identity."""
    cells = getattr(inspect.unwrap(function), "__closure__", None) or ()
    values = map(_held, cells)
    return [x if isinstance(x, (bool, int, float, str)) else id(x) for x in values]


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is given later
        return None


@functools.cache
def factories() -> Mapping[str, Any]:
    """What makes a part of an optimizer, by what one writes behind `optfn.`."""
    library: Any = sys.modules[__name__.partition(".")[0]]
    spaces = {"": library}
    namespaces = ("projections", "recipes", "schedules", "storage")
    spaces |= {f"{x}.": getattr(library, x) for x in namespaces}
    return {
        f"{space}{name}": value
        for space, module in spaces.items()
        for name, value in vars(module).items()
        if name not in (*_LEFT_OUT, *_FUNCTIONS) and not name.startswith("_")
        if name in _OF_VIEWS or issubclass(made_by(value), _MADE) or isinstance(value, MatrixAxes)
    }


@functools.cache
def public_names() -> Mapping[str, Any]:
    """The factories and the functions of the library."""
    library: Any = sys.modules[__name__.partition(".")[0]]
    return {**factories(), **{name: operator.attrgetter(name)(library) for name in _FUNCTIONS}}


def all_names() -> dict[str, Any]:
    """The public names and the users' own."""
    return {**public_names(), **_own}


def made_by(factory: Any) -> type[Any]:
    """The class of what a factory makes, as far as it says."""
    made = factory
    if not isinstance(factory, type):
        made = getattr(inspect.unwrap(factory), "__annotations__", {}).get("return")
    return made if isinstance(made, type) else object


def is_wrapper(factory: Any) -> bool:
    """Whether the first argument is a transform to be wrapped."""
    first = next(iter(parameters_of(factory).values()), None)
    if first is None or first.kind is first.VAR_POSITIONAL:
        return False
    if isinstance(factory, type) and issubclass(factory, Data):
        fields = {field.name: field for field in dataclasses.fields(factory)}  # pyright: ignore[reportArgumentType]
        return first.name in fields and kind_of(fields[first.name]) == "child"
    hint = first.annotation
    if hint in (first.empty, Any, "Any"):
        return first.name in _WRAPPED
    if isinstance(hint, str):  # as with `from __future__ import annotations`
        return "Transform" in hint
    hints = get_args(hint) or (hint,)
    return any(isinstance(x, type) and issubclass(x, optax.GradientTransformation) for x in hints)


def name_of(factory: Any) -> str | None:
    """What configs call a factory or a function; None if they cannot."""
    return next((name for name, x in all_names().items() if x is factory), None)


def parameters_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments that a config may give."""
    parameters = inspect.signature(factory).parameters
    return {name: x for name, x in parameters.items() if x.kind is not x.VAR_KEYWORD}


@functools.cache
def argument_names(kind: str) -> frozenset[str]:
    """What the fields of a kind are called in the library; functions call theirs so too."""
    classes = [x for x in public_names().values() if isinstance(x, type) and issubclass(x, Data)]
    fields = [field for cls in classes for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    return frozenset(field.name for field in fields if kind_of(field) == kind)


def unknown(found: Any, choices: Iterable[str]) -> str:
    """The end of a message on a name that is none of these."""
    names = sorted(choices)
    near = nearest(found, names)
    hint = f"; did you mean {near!r}?" if near else "."
    return f"found {found!r}{hint} There are: {', '.join(names)}."


def nearest(found: Any, names: Iterable[str]) -> str | None:
    """The name that is most like what was written; None if no one is like it."""
    by_text: dict[str, str] = {}
    for name in names:
        by_text.setdefault(_plain(name), name)
    near = get_close_matches(_plain(found), by_text, 1, 0.7) if isinstance(found, str) else ()
    return by_text[near[0]] if near else None


def _plain(name: str) -> str:
    return name.rpartition(".")[2].replace("_", "").replace("-", "").lower()
