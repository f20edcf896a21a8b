"""Pytrees as users see them: paths, values per leaf, and descriptions of mismatches."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.core import Tracer

from optfn.core.paths import by_path
from optfn.core.signatures import parameters_of

PyTree: TypeAlias = Any


def path_string(path: tuple[Any, ...]) -> str:
    """`"encoder/0/kernel"` for a key path; the empty string at the root."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in flattening order.

    A box around a param (Flax's variables and metadata) adds nothing to the path: some calls get
    the box and some its content, and the path must be the same.
    """
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)[0]
    return [path_string(path) for path, box in entries for _ in jax.tree.leaves(box)]


def _places(tree: PyTree) -> list[str]:
    """The paths of all leaves and of every None, which marks a leaf that was left out."""
    entries = jax.tree_util.tree_flatten_with_path(tree, lambda x: x is None or is_box(x))[0]
    return [path_string(path) for path, _ in entries]


def is_box(node: PyTree) -> bool:
    """Whether a node of a tree is a box: one of Flax's variables, or a param with the names of its
    axes."""
    return hasattr(node, "get_metadata") or hasattr(node, "unbox")


def bare(tree: PyTree) -> PyTree:
    """The tree with the content of every box in the box's place.

    Flax's `nnx.Optimizer` gives params in boxes to `init` and bare ones to `update`, so a tree
    beside the params must fit both.
    """

    def opened(node: PyTree) -> PyTree:
        inside = list(_children(node).values()) if is_box(node) else []
        return bare(inside[0]) if len(inside) == 1 else node

    return jax.tree.map(opened, tree, is_leaf=is_box)


def in_form_of(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves of `tree` in the boxes of `like`, a tree of the same structure but for boxes."""
    return jax.tree.structure(like).unflatten(jax.tree.leaves(tree))


def location(path: str) -> str:
    """The place in a message: `at 'a/b'`, or `at the root` for a tree that is one leaf."""
    return f"at '{path}'" if path else "at the root"


def location_of(path: tuple[Any, ...]) -> str:
    """`location` of a key path."""
    return location(path_string(path))


def leaf_location(tree: PyTree, i: int) -> str:
    """`location` of a leaf by its number in flattening order."""
    return location(leaf_paths(tree)[i])


def flatten_like(tree: PyTree, like: PyTree, what: str, like_what: str) -> list[Any]:
    """The subtrees of `tree` at the leaves of `like`, or a `ValueError` that names the mismatch."""
    try:
        return jax.tree.structure(like).flatten_up_to(tree)
    except ValueError:
        reason = mismatch(like, tree, like_what, what) or "they differ in static parts"
        hint = difference_hint(tree, like)
        raise ValueError(f"{what} and {like_what} are different trees: {reason}{hint}.") from None


def difference_hint(tree: PyTree, like: PyTree) -> str:
    """What to do where trees differ in boxes alone, or where one holds more than floats."""

    def agree(form: Callable) -> bool:
        return jax.tree.structure(form(tree)) == jax.tree.structure(form(like))

    if agree(lambda x: x):
        return ""
    if agree(bare):
        return (
            "; nnx.as_pure(...) takes arrays out of Flax's variables, nn.unbox(...) out of metadata"
        )
    floats_agree = agree(partial(jax.tree.map, lambda x: x if _is_inexact(x) else None))
    return f". {LEAVE_OUT}" if floats_agree else ""


LEAVE_OUT = (
    "Leave out what cannot be optimized: integers by freeze(...), whatever else a model holds by "
    "taking its arrays alone, as eqx.filter(model, eqx.is_inexact_array) does"
)


def _is_inexact(leaf: Any) -> bool:
    return isinstance(leaf, complex | float) or jax.numpy.issubdtype(
        getattr(leaf, "dtype", object), np.inexact
    )


def mismatch(
    a: PyTree, b: PyTree, a_name: str, b_name: str, path: tuple[Any, ...] = ()
) -> str | None:
    """Where and how the trees `a` and `b` first differ, or None if they do not."""
    where = location_of(path)
    kind_a, kind_b = describe(a), describe(b)
    if kind_a != kind_b:
        return f"{where} {a_name} has {kind_a}, {b_name} has {kind_b}"
    if is_leaf(a):
        return None
    children_a, children_b = _children(a), _children(b)
    for name, more, less in ((a_name, children_a, children_b), (b_name, children_b, children_a)):
        extra = [key for key in more if key not in less]
        if extra:
            return f"only {name} has an entry {location_of((*path, *extra[0]))}"
    for key, value in children_a.items():
        found = mismatch(value, children_b[key], a_name, b_name, (*path, *key))
        if found:
            return found
    return None


def _children(tree: PyTree) -> dict[tuple[Any, ...], PyTree]:
    return dict(jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0])


def is_leaf(tree: PyTree) -> bool:
    """Whether `tree` is a single leaf; None is not."""
    return jax.tree_util.all_leaves([tree])


def describe(tree: PyTree) -> str:
    """The kind of a node, for a message."""
    if tree is None:
        return "None"
    return "an array" if is_leaf(tree) else f"a {type(tree).__name__}"


class PerLeaf:
    """A value for each leaf of the params, as a frozen tree or a function.

    It is part of a treedef, so it hashes and compares by content: a tree is kept as its leaves and
    its treedef.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        leaves: tuple[Any, ...],
        treedef: Any,
        where: str,
        kind: type[Any],
        is_of_params: bool = False,
    ):
        self.function, self.leaves, self.treedef = function, leaves, treedef
        self.where, self.kind, self.is_of_params = where, kind, is_of_params

    @classmethod
    def of(cls, value: Any, where: str, kind: type[Any] = object) -> "PerLeaf":
        """From a user's value; a callable that is a pytree node (a module) is a tree.

        A function takes the path and the leaf and gives a value, or takes the params and gives a
        tree.
        """
        if isinstance(value, PerLeaf):
            return value
        if callable(value) and is_leaf(value):
            if isinstance(value, by_path):
                _check_hashes(value, where)
            return cls(value, (), None, where, kind, count_arguments(value, where) == 1)
        is_value = _is_tuple_of_values if kind is tuple else None
        leaves, treedef = jax.tree_util.tree_flatten_with_path(bare(value), is_value)
        values = [_as_static(leaf, f"{where} {location_of(path)}", kind) for path, leaf in leaves]
        return cls(None, tuple(values), treedef, where, kind)

    @property
    def is_one(self) -> bool:
        """Whether one value was given for all leaves."""
        return self.function is None and jax.tree_util.treedef_is_leaf(self.treedef)

    def values(self, tree: PyTree, what: str = "the params") -> list[Any]:
        """The value for every leaf of `tree` (called `what` in messages), in flattening order."""
        if self.function is not None and not self.is_of_params:
            paths = leaf_paths(tree)
            if isinstance(self.function, by_path):
                self.function.check(paths, _places(tree), self.where)
            leaves = zip(paths, jax.tree.leaves(tree), strict=True)
            return [self._value_at(self.function, path, leaf) for path, leaf in leaves]
        if _stands_for_params(tree):
            return []
        if self.function is not None:
            result = _call(self.function, (tree,), self.where)
            return PerLeaf.of(result, self.where, self.kind).values(tree, what)
        return values_of_prefix(self.leaves, self.treedef, tree, self.where, what)

    def _value_at(self, function: Callable[..., Any], path: str, leaf: Any) -> Any:
        where = f"{self.where} {location(path)}"
        return _as_static(_call(function, (path, leaf), where), where, self.kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerLeaf) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        # True == 1 == 1.0 in Python, and a mask is not a multiplier.
        return self.function, self.leaves, tuple(map(type, self.leaves)), self.treedef

    def __repr__(self) -> str:
        if self.function is not None:
            return getattr(self.function, "__qualname__", repr(self.function))
        return repr(self.treedef.unflatten(map(_Literal, self.leaves)))


def values_of_prefix(
    values: Sequence[Any], prefix: Any, tree: PyTree, where: str, what: str
) -> list[Any]:
    """The value for every leaf of the tree, in flattening order.

    Args:
        values: a value for each leaf of the prefix.
        prefix: the treedef of the tree, or of one with leaves in the place of whole subtrees.
        tree: the tree.
        where: the argument that holds the prefix, for messages.
        what: what the tree is called in messages.
    """
    try:
        subtrees = prefix.flatten_up_to(tree)
    except ValueError:
        literals = prefix.unflatten(map(_Literal, values))
        reason = _prefix_mismatch(literals, tree, what) or "they differ in static parts"
        raise ValueError(f"{where} does not fit {what}: {reason}.") from None
    places = zip(values, subtrees, strict=True)
    return [value for value, subtree in places for _ in jax.tree.leaves(subtree)]


def _stands_for_params(tree: PyTree) -> bool:
    """Whether this is a node without leaves in the place of a whole tree.

    `optax.tree.map_params` gives one to `init`, to see which slots are like the params.
    """
    plain = tree is None or isinstance(tree, (dict, list, tuple))
    return not plain and not jax.tree.leaves(tree)


def _is_tuple_of_values(x: Any) -> bool:
    """Whether a tuple is one value, not a node of a tree of values."""
    return isinstance(x, tuple) and not any(isinstance(y, (tuple, list, dict)) for y in x)


class _Literal:
    """Prints as Python code for the value, also for `inf` and `nan`."""

    def __init__(self, value: Any):
        self.value = value

    def __repr__(self) -> str:
        is_odd = isinstance(self.value, float) and not math.isfinite(self.value)
        return f"float('{self.value}')" if is_odd else repr(self.value)


def _prefix_mismatch(
    prefix: PyTree, tree: PyTree, what: str, path: tuple[Any, ...] = ()
) -> str | None:
    """Like `mismatch`, but a leaf of `prefix` stands for a whole subtree."""
    if is_leaf(prefix):
        return None
    kind_a, kind_b = describe(prefix), describe(tree)
    if kind_a != kind_b:
        return f"{location_of(path)} it has {kind_a}, {what} have {kind_b}"
    children_a, children_b = _children(prefix), _children(tree)
    for key in children_b:
        if key not in children_a:
            return f"it has no value {location_of((*path, *key))}"
    for key, value in children_a.items():
        if key not in children_b:
            return f"it has a value {location_of((*path, *key))}, where {what} have no entry"
        found = _prefix_mismatch(value, children_b[key], what, (*path, *key))
        if found:
            return found
    return None


def _as_static(value: Any, where: str, kind: type[Any]) -> Any:
    """A hashable Python value of this type; concrete array scalars are read out."""
    if isinstance(value, Tracer):
        raise TypeError(f"{where} must be known when the program is traced, found a traced array.")
    if hasattr(value, "shape") and value.shape == () and hasattr(value, "item"):
        value = value.item()
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{where} must be one hashable value per leaf, found {type(value).__name__}."
        ) from None
    if kind is int and isinstance(value, bool):
        raise TypeError(f"{where} is a whole number, found the bool {value}.")
    if not isinstance(value, kind):
        raise TypeError(f"{where} must be a {kind.__name__}, found {value!r}.")
    return value


def _check_hashes(function: by_path, where: str) -> None:
    try:
        hash(function)
    except TypeError:
        raise TypeError(f"{where}: every value must hash, found {function!r}.") from None


def _call(function: Callable[..., Any], args: tuple[Any, ...], where: str) -> Any:
    try:
        return function(*args)
    except Exception as error:
        error.add_note(f"This was {where}.")
        raise


def count_arguments(function: Callable[..., Any], where: str) -> int:
    """2 for a function of a path and a leaf, 1 for a function of the params."""
    parameters = parameters_of(function)
    if parameters is None:
        return 2
    signature = inspect.Signature(parameters)
    named = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    # With one name and `*rest` it could take more trees, as `partial(jax.tree.map, f)` does.
    for count in (1, 2) if len(named) == 1 else (2, 1):
        try:
            signature.bind(*range(count))
            return count
        except TypeError:
            continue
    raise TypeError(
        f"{where} takes a tree, a function (path, leaf) -> value or a function params -> tree; "
        f"found the function {getattr(function, '__qualname__', function)}{signature}."
    )
