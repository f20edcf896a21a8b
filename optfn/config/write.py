"""`to_config`: plain data from an optimizer."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from optfn.config.names import all_names, name_of, parameters_of
from optfn.config.read import CALLS, VALUES
from optfn.core.data import Data
from optfn.core.numbers_by_path import times
from optfn.core.transform import Transform
from optfn.core.tree import PerLeaf


def to_config(tx: Any) -> dict[str, Any]:
    """Plain data that describes an optimizer: dicts, lists, numbers, text, bools and None.

        json.dumps(optfn.to_config(tx), allow_nan=False)
        tx = optfn.from_config(json.loads(text))

    It is the inverse of `from_config`, exactly: the optimizer that is built from it has the same
    structure and the same leaves. Like `repr`, it writes the stages of which an optimizer consists,
    with every argument, so that it means the same where a default has changed.

    Args:
        tx: an optimizer, a stage or a wrapper; also a schedule or a codec.

    Raises:
        ValueError: a function in it, such as a mask, is not `configurable`; or it holds what is no
            plain data, such as a transformation of optax or a model as a tree of values. The
            message starts with the path of the key.
    """
    if not isinstance(tx, Data):
        raise TypeError(
            f"to_config(tx=...) must be an optimizer, a schedule or a codec of optfn's, found "
            f"{type(tx).__name__}."
        )
    return _write(tx, "config")


def _write(value: Any, where: str, is_tree: bool = False) -> Any:
    """A part of a config; in a tree of values per leaf tuples and lists are told apart."""
    match value:
        case None | bool() | str():
            return value
        case Tracer():
            raise ValueError(f"{where} is traced: an optimizer is written outside of jit.")
        case int():
            return value
        case float():
            return _finite(value)
        case times():
            return {"times": _write(value.factor, f"{where}.times")}
        case jax.Array() | np.ndarray() | np.generic():
            return _array(value, where)
        case PerLeaf() if value.function is None:
            return _write(value.treedef.unflatten(value.leaves), where, is_tree=True)
        case PerLeaf():
            return _write(value.function, where)
        case _ if (factory := _factory_of(value)) is not None:
            return _call(factory, value, where)
        case jax.tree_util.Partial() if not (value.args or value.keywords):
            return _write(value.func, where)
        case _ if type(value) in (tuple, list):
            items = [_write(x, f"{where}[{i}]", is_tree) for i, x in enumerate(value)]
            return {"tuple": items} if is_tree and type(value) is tuple else items
        case Mapping() if type(value) is dict:
            return _dict(value, where, is_tree)
        case _ if callable(value) and name_of(value) is not None:
            return {"function": name_of(value)}
        case _ if callable(value) and not isinstance(value, Data):
            name = getattr(value, "__qualname__", repr(value))
            raise ValueError(
                f"{where} is the function {name}, which configs do not know: put "
                "@optfn.configurable before it, or choose by path with optfn.by_path."
            )
    raise ValueError(f"{where} is no plain data: {type(value).__name__}{_how(value)}.")


def _how(value: Any) -> str:
    if isinstance(value, Data):
        return (
            ", which configs do not know: put @optfn.configurable before the class, or before a "
            "function that makes it"
        )
    return "; a tree of values per leaf is of dicts and lists, or chosen by path with optfn.by_path"


def _call(factory: Any, value: Any, where: str) -> dict[str, Any]:
    entries: dict[str, Any] = {"name": name_of(factory)}
    for key in parameters_of(factory):
        if not hasattr(value, key):
            raise ValueError(
                f"{where}.{key}: {type(value).__name__} does not keep its argument {key!r} as an "
                "attribute, so it cannot be written."
            )
        entry = getattr(value, key)
        if key == "patterns":  # the first that fits decides, and files may sort the keys of a dict
            entry = [list(pair) for pair in entry]
        entries[key] = _write(entry, f"{where}.{key}")
    given = value._given_name if isinstance(value, Transform) else None
    return entries if given is None else {**entries, "named": given}


def _factory_of(value: Any) -> Any:
    """What makes an equal one: its class, or the function that its repr names."""
    if isinstance(value, type) or name_of(type(value)) is not None:
        return None if isinstance(value, type) else type(value)
    is_ours = type(value).__module__.startswith(f"{__name__.partition('.')[0]}.")
    return all_names().get(repr(value).partition("(")[0]) if is_ours else None


def _dict(value: dict[str, Any], where: str, is_tree: bool) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"{where} has the key {key!r}; in plain data keys are text.")
    entries = {key: _write(x, f"{where}.{key}", is_tree) for key, x in value.items()}
    return {"literal": entries} if any(word in value for word in (*CALLS, *VALUES)) else entries


def _array(value: Any, where: str) -> dict[str, Any]:
    array = np.asarray(value)
    entries: dict[str, Any] = {"array": _finite_entries(array.tolist()), "dtype": str(array.dtype)}
    if not array.size:  # the lists do not say how many columns no row has
        entries |= {"array": [], "shape": list(array.shape)}
    if not isinstance(value, jax.Array):
        entries["numpy"] = True
    elif value.weak_type:
        entries["weak_type"] = True
    return entries


def _finite_entries(values: Any) -> Any:
    return [_finite_entries(x) for x in values] if isinstance(values, list) else _finite(values)


def _finite(number: float) -> float | str:
    """The number, or a text in the place of what JSON has not."""
    return number if math.isfinite(number) else str(number)
