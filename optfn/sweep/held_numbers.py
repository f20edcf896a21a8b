"""The numbers that functions hold: in the cells of closures, in defaults, in partials."""

import functools
import itertools
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from dataclasses import fields
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.data import Data, kind_of
from optfn.core.tree import PerLeaf

T = TypeVar("T")


def taken_apart(tree: Any) -> tuple[tuple[Hashable, ...], list[Any]]:
    """The form of an optimizer, and the numbers that its functions hold.

    Two optimizers of one form differ in their leaves and in these numbers alone: functions made
    anew by the same lines of code are of one form. The form is the structure of the optimizer
    without its functions, and what these consist of, if there are any.
    """
    numbers: list[Any] = []

    def noted(number: Any) -> Any:
        numbers.append(number)
        return number

    walk = _Walk(noted)

    def without_code(value: Any) -> Any:
        if not _has_code(value):
            return value
        walk(value)
        return _any_function

    bare = _with_static(tree, without_code)
    return (jax.tree.structure(bare), *walk.form), numbers


def with_numbers(tree: T, numbers: Mapping[int, Any]) -> T:
    """The optimizer with other numbers in its functions, by their place in `taken_apart`.

    Functions that share a cell share it still.
    """
    places = itertools.count()
    walk = _Walk(lambda number: numbers.get(next(places), number))
    return _with_static(tree, lambda value: walk(value) if _has_code(value) else value)


def is_number(value: Any) -> bool:
    """Whether it is a number or an array of numbers, and no bool or random key."""
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (int, float)):
        return True
    is_array = isinstance(value, (np.number, np.ndarray, jax.Array))
    return is_array and jnp.issubdtype(value.dtype, np.number)


class _Walk:
    """Copies functions, with each of their numbers replaced, and notes what else there is.

    Args:
        replaced: what stands in the place of a number, called in the order of the walk.
    """

    def __init__(self, replaced: Callable[[Any], Any]):
        self.replaced = replaced
        self.form: list[Hashable] = []
        self.functions: dict[int, FunctionType] = {}
        self.cells: dict[int, CellType] = {}

    def __call__(self, value: Any) -> Any:
        kind: Any = type(value)
        if is_number(value):
            self.form.append((kind, np.shape(value), getattr(value, "dtype", None)))
            return self.replaced(value)
        if kind is FunctionType:
            return self._function(value)
        if kind is MethodType:
            self.form.append((kind, value.__func__))
            return MethodType(value.__func__, self(value.__self__))
        if _is_partial(value):
            self.form.append((kind, len(value.args), tuple(value.keywords)))
            keywords = {name: self(x) for name, x in value.keywords.items()}
            made = kind if isinstance(value, functools.partial) else functools.partial
            return made(self(value.func), *map(self, value.args), **keywords)
        if kind is PerLeaf:
            self.form.append((kind, value.leaves, value.treedef))
            new = copy(value)
            new.function = self(value.function)
            return new
        if isinstance(value, Data):
            leaves, structure = jax.tree.flatten(value)
            self.form.append(structure)
            return structure.unflatten(map(self, leaves))
        if kind is list or isinstance(value, tuple):
            self.form.append((kind, len(value)))
            parts = map(self, value)
            return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
        if kind is dict:
            self.form.append((kind, tuple(value)))
            return {name: self(x) for name, x in value.items()}
        self.form.append((kind, value if _hashes(value) else id(value)))
        return value

    def _function(self, function: FunctionType) -> FunctionType:
        if id(function) in self.functions:
            self.form.append(list(self.functions).index(id(function)))
            return self.functions[id(function)]
        cells = function.__closure__ or ()
        new_cells = [cell for cell in cells if id(cell) not in self.cells]
        own = tuple(self.cells.setdefault(id(cell), CellType()) for cell in cells)
        places = tuple(list(self.cells).index(id(cell)) for cell in cells)
        code, known = function.__code__, function.__globals__
        self.form.append((code, id(known), places))
        new = FunctionType(code, known, function.__name__, None, own)
        self.functions[id(function)] = new  # before what it holds, which may be itself
        new.__qualname__, new.__module__ = function.__qualname__, function.__module__
        new.__dict__.update(self(dict(function.__dict__)))
        new.__defaults__ = self(function.__defaults__)
        new.__kwdefaults__ = self(function.__kwdefaults__)
        for cell in new_cells:
            try:
                held = cell.cell_contents
            except ValueError:  # nothing yet
                self.form.append(None)
            else:
                self.cells[id(cell)].cell_contents = self(held)
        return new


def _with_static(tree: T, change: Callable[[Any], Any]) -> T:
    """The tree of `Data` with every value that is no leaf changed."""

    def is_node(x: Any) -> bool:
        return isinstance(x, (Data, jax.tree_util.Partial))

    def changed(node: Any) -> Any:
        if isinstance(node, Data):
            new = {}
            for field in fields(node):  # pyright: ignore[reportArgumentType]
                value = getattr(node, field.name)
                is_static = kind_of(field) in ("static", "per_leaf")
                new[field.name] = change(value) if is_static else _with_static(value, change)
            return node.rebuilt(**new)
        if isinstance(node, jax.tree_util.Partial):
            return type(node)(change(node.func), *node.args, **node.keywords)
        return node

    return jax.tree.map(changed, tree, is_leaf=is_node)


def _has_code(value: Any) -> bool:
    """Whether it is a function of the user's, or holds one."""
    if isinstance(value, (FunctionType, MethodType)) or _is_partial(value):
        return True
    if isinstance(value, PerLeaf):
        return _has_code(value.function)
    return isinstance(value, (tuple, list)) and any(map(_has_code, value))


def _is_partial(value: Any) -> bool:
    """Whether it is a `partial`, or what jax keeps of one in a `Partial`."""
    return callable(value) and all(hasattr(value, name) for name in ("func", "args", "keywords"))


def _any_function() -> None:
    """Stands for a function where only the rest counts."""


def _hashes(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
