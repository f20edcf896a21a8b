"""`from_config`: an optimizer from plain data."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optfn.compose.chain import chain
from optfn.compose.param_groups import param_groups
from optfn.config.names import (
    all_names,
    argument_names,
    factories,
    is_wrapper,
    made_by,
    nearest,
    parameters_of,
    public_names,
    unknown,
)
from optfn.core.matrix_axes import MatrixAxes
from optfn.core.numbers_by_path import times
from optfn.core.optax_names import what_to_write
from optfn.core.paths import by_path
from optfn.core.transform import Transform
from optfn.core.updates_kind import Updates

# Words that say what a mapping is; one with other keys alone is a dict.
CALLS = ("name", "schedule")
VALUES = ("function", "array", "times", "tuple", "literal")
LITERAL = "written {'literal': {...}}"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NO_FINITE_NUMBER = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def from_config(config: Any) -> Any:
    """The optimizer that plain data describes: what JSON and YAML files hold.

        optfn.from_config({
            "name": "adamw",
            "learning_rate": {
                "schedule": "warmup_cosine",
                "peak_value": 3e-4, "warmup_steps": 100, "total_steps": 1000,
            },
            "weight_decay": 0.1,
            "clip_by_global_norm": 1.0,
        })

    A mapping with a `name` is a call of what has this name behind `optfn.`, with the other entries
    for its arguments. So optimizers, stages and wrappers are written, recipes (`recipes.vit`),
    schedules (`schedules.linear`), codecs (`storage.int8`) and what chooses by path (`by_path`,
    `matrices`, `MatrixAxes`). `{"schedule": "linear", ...}` is short for the name
    `schedules.linear`. A list of transforms is their chain.

    An entry beside the arguments that has the name of a stage stands in front, and one with the
    name of a wrapper around: `"clip_by_global_norm": 1.0` and `"accumulate": 4`. Its value is the
    first argument, or a dict of arguments; None leaves it out. There is one of each, since their
    order would matter: several stages are a list under `"chain"`, several wrappers stand in each
    other.

    `"groups"` beside the arguments gives some leaves other numbers, as `param_groups` does:
    `{"head/**": {"learning_rate": {"times": 10}, "weight_decay": 0.0}}`. It is for what is named,
    not for what stands in front or around.

    The other words are `{"function": name}`, a function that was made `configurable`;
    `{"array": values, "dtype": name}`; `{"times": factor}`, in groups and in a `by_path` of
    numbers; `{"tuple": [...]}`, in a tree of values per leaf; and `{"literal": {...}}`, a dict
    whose keys may be words of these. `"named"` beside a name is the name of the stage. `to_config`
    writes such data. Nothing is evaluated or imported: names that are neither public nor
    `configurable` are errors.

    Args:
        config: a mapping or a list: of Python, or what reads like one, as `DictConfig` of Hydra
            and `ConfigDict` of ml_collections do. What is built already stays as it is.

    Returns:
        The optimizer; or the schedule, the codec or another part that the data describes.

    Raises:
        ValueError: a name or an argument is unknown, or a value is refused. The message starts with
            the path of the key, as in `config.transform.b1`.
        TypeError: the same for a value of a wrong type.
    """
    if not _is_mapping(config) and not _is_list(config):
        raise TypeError(
            "config must be a dict with a name, as in {'name': 'adamw', 'learning_rate': 0.001}, "
            f"or a list of such, found {type(config).__name__}: {config!r}."
        )
    made = _read(config, "config")
    if isinstance(made, dict | list) or type(made) is tuple:
        raise ValueError(
            "config must have a 'name', the optimizer's, or be a list of transforms; found "
            f"{_shown(config)}."
        )
    return made


def _read(value: Any, where: str) -> Any:
    """The value of a part of a config."""
    if _is_mapping(value):
        return _read_mapping(dict(value.items()), where)
    if _is_list(value):
        items = [_read(x, f"{where}[{i}]") for i, x in enumerate(value)]
        are_transforms = [isinstance(x, Transform) for x in items]
        if not any(are_transforms):
            return items
        if not all(are_transforms):
            other = are_transforms.index(False)
            raise TypeError(
                f"{where}[{other}] must be a transform, as the others of the list, with a 'name'; "
                f"found {_shown(value[other])}."
            )
        return _chain(items, where)
    return value


def _read_mapping(config: dict[str, Any], where: str) -> Any:
    for word in CALLS:
        if word in config:
            space = "schedules." if word == "schedule" else ""
            return _call(config.pop(word), config, where, word, space)
    for word in VALUES:
        if word in config:
            return _VALUES[word](config.pop(word), config, where)
    return {key: _read(value, f"{where}.{key}") for key, value in config.items()}


def _call(name: Any, entries: dict[str, Any], where: str, word: str, space: str) -> Any:
    """What a factory makes of the entries of a mapping."""
    factory = _factory(name, where, word, space)
    parameters = parameters_of(factory)
    own = {key: entries.pop(key) for key in list(entries) if key in parameters}
    named = entries.pop("named", None)
    groups = entries.pop("groups", None)
    around = _around(entries, factory, parameters, where)
    made = _made(factory, parameters, own, where)
    if groups is not None:
        made = _wrapped(param_groups, made, {"groups": groups}, where)
    if named is not None:
        made = _guarded(lambda: made.named(named), f"{where}.named", {})
    for key, outer, value in around:
        made = outer(made, value, f"{where}.{key}")
    return made


def _factory(name: Any, where: str, word: str, space: str) -> Callable[..., Any]:
    """What the config names, or an error with the nearest name and the choices."""
    choices = all_names()
    own = [x for x in choices if x not in public_names()]
    if isinstance(name, str):
        # Users' own names stand in one space.
        found = choices.get(f"{space}{name}", choices[name] if name in own else None)
        if isinstance(found, MatrixAxes):
            return lambda: found
        if found is not None:
            return found
    is_text = isinstance(name, str)
    elsewhere = what_to_write(name) if is_text else f"A key {word!r} of the params is {LITERAL}."
    of_space = [x.removeprefix(space) for x in public_names() if x.startswith(space)]
    kind = "schedule" if space else "name of optfn's or a configurable of yours"
    raise ValueError(
        f"{where}.{word} must be a {kind}, {unknown(name, of_space + own)}"
        f"{f' {elsewhere}' if elsewhere else ''}"
    )


def _around(
    entries: dict[str, Any], factory: Callable[..., Any], parameters: dict[str, Any], where: str
) -> list[tuple[str, Callable[..., Any], Any]]:
    """The stage in front and the wrapper around that entries beside the arguments name."""
    names = all_names()
    found: dict[str, list] = {"stage": [], "wrapper": []}
    for key, value in entries.items():
        other = names.get(key) if isinstance(key, str) else None
        # A function of a user's may not say what it makes.
        may_be = _makes_transforms(other) or key not in public_names()
        if other is None or not may_be or not _may_make_transforms(factory):
            raise _no_argument(key, factory, parameters, f"{where}.{key}")
        if value is not None:
            kind = "wrapper" if is_wrapper(other) else "stage"
            found[kind].append((key, other, value))
    for kind, given in found.items():
        if len(given) > 1:
            keys = " and ".join(repr(key) for key, _, _ in given)
            how = (
                "write a list of stages under 'chain'"
                if kind == "stage"
                else "write one as the name, and the other under its first argument"
            )
            raise ValueError(
                f"{where}: {keys} are {kind}s, and their order makes a difference: {how}."
            )
    put = {"stage": _in_front, "wrapper": _wrapped}
    return [
        (key, _with(put[kind], other), value)
        for kind, given in found.items()
        for key, other, value in given
    ]


def _with(put: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    return lambda made, value, where: put(other, made, value, where)


def _in_front(stage: Callable[..., Any], made: Any, value: Any, where: str) -> Any:
    parameters = parameters_of(stage)
    first = _made(stage, parameters, _as_arguments(value, list(parameters), where), where)
    if not isinstance(first, Transform):
        raise TypeError(f"{where} must make a stage, found {type(first).__name__}.")
    if first.updates_kind(Updates.DIRECTION) in (Updates.STEP, Updates.LAST):
        raise ValueError(
            f"{where} would stand in front of the optimizer, but it is an optimizer itself: write "
            "a list, or a partition of both."
        )
    return _chain([first, made], where)


def _wrapped(wrapper: Callable[..., Any], made: Any, value: Any, where: str) -> Any:
    parameters = parameters_of(wrapper)
    inner, *others = parameters
    arguments = {inner: made, **_as_arguments(value, others, where)}
    return _made(wrapper, parameters, arguments, where)


def _as_arguments(value: Any, names: list[str], where: str) -> dict[str, Any]:
    """The value of a stage or a wrapper as arguments: a dict of them, or the first one."""
    if _is_mapping(value) and not any(word in value for word in (*CALLS, *VALUES)):
        return dict(value.items())
    if not names:
        raise TypeError(f"{where} takes no arguments: write {{}}, found {_shown(value)}.")
    return {names[0]: value}


def _made(
    factory: Callable[..., Any], parameters: dict[str, Any], given: dict[str, Any], where: str
) -> Any:
    """The call of a factory, with an error that says where in the config it stands."""
    args, kwargs = [], {}
    for key in given:
        if key not in parameters:
            raise _no_argument(key, factory, parameters, f"{where}.{key}")
    missing = [
        name
        for name, x in parameters.items()
        if name not in given and x.default is x.empty and x.kind is not x.VAR_POSITIONAL
    ]
    if missing:
        raise ValueError(
            f"{where} lacks {' and '.join(map(repr, missing))}: {_name(factory)} takes "
            f"{', '.join(parameters)}."
        )
    for key, value in given.items():
        place = f"{where}.{key}"
        if parameters[key].kind is parameters[key].VAR_POSITIONAL:
            args = _positional(value, place)
        elif factory is param_groups and key == "groups":
            kwargs[key] = _groups(value, place)
        elif key in argument_names("per_leaf"):
            kwargs[key] = _read(value, place)
        elif issubclass(made_by(factory), by_path):  # its values are labels, which may be any text
            read = _in_order if key == "patterns" else _read
            kwargs[key] = _frozen(read(value, place))
        else:
            kwargs[key] = _with_numbers(_frozen(_read(value, place)))
    made = _guarded(lambda: factory(*args, **kwargs), where, given)
    if _makes_transforms(factory) and not isinstance(made, Transform):
        raise TypeError(
            f"{where}: {_name(factory)} must make a transform, found {type(made).__name__}."
        )
    return made


def _no_argument(key: Any, factory: Any, parameters: dict[str, Any], where: str) -> ValueError:
    beside = all_names() if _may_make_transforms(factory) else {}
    near = nearest(key, parameters) or nearest(key, beside)
    hint = f"; did you mean {near!r}?" if near else "."
    also = ", or the name of a stage or a wrapper" if beside else ""
    return ValueError(
        f"{where}: {_name(factory)} has no argument {key!r}{hint} "
        f"There are: {', '.join(parameters) or 'none'}{also}."
    )


def _positional(value: Any, where: str) -> list[Any]:
    if not _is_list(value):
        raise TypeError(f"{where} must be a list, found {_shown(value)}.")
    return [_read(x, f"{where}[{i}]") for i, x in enumerate(value)]


def _in_order(given: Any, where: str) -> Any:
    """A dict, also from pairs: of patterns the first decides, and files may sort a dict."""
    return {key: _frozen(_read(x, f"{where}.{key}")) for key, x in _pairs(given, where)}


def _pairs(given: Any, where: str) -> list[Any]:
    pairs = list(given.items()) if _is_mapping(given) else given
    if not _is_list(pairs) or not all(_is_list(pair) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"{where} must be a dict or pairs of its entries, found {_shown(given)}.")
    return list(pairs)


def _groups(given: Any, where: str) -> dict[str, Any]:
    """By pattern the numbers by name, in order."""
    groups = {}
    for pattern, values in _pairs(given, where):
        place = f"{where}.{pattern}"
        if not _is_mapping(values):
            raise TypeError(f"{place} must be a dict of hyperparameters, found {_shown(values)}.")
        read = {key: _frozen(_read(x, f"{place}.{key}")) for key, x in values.items()}
        groups[pattern] = {key: _with_numbers(x) for key, x in read.items()}
    return groups


def _frozen(value: Any) -> Any:
    """Lists as tuples, which hash."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _with_numbers(value: Any) -> Any:
    """Text that is a number, as YAML has 1e-3, as the number."""
    if type(value) is tuple:
        return tuple(map(_with_numbers, value))
    if type(value) is by_path:
        patterns = {pattern: _with_numbers(x) for pattern, x in value.patterns}
        return by_path(patterns, _with_numbers(value.default))
    return _number(value) if isinstance(value, str) else value


def _number(text: str) -> Any:
    """The number of a text with a point or an exponent; other text stays as it is."""
    if text.lower() in ("inf", "-inf", "+inf"):
        return float(text)
    looks_like_one = _NUMBER.fullmatch(text) and not text.lstrip("+-").isdigit()
    return float(text) if looks_like_one else text


def _guarded(build: Callable[[], Any], where: str, given: dict[Any, Any]) -> Any:
    """What is built, or its error with the path of the key in front."""
    try:
        return build()
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        found = re.search(r"\((\w+)=", str(error))
        key = found[1] if found and found[1] in given else None
        place = where if key is None else f"{where}.{key}"
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{place}: {error}{_call_hint(given.get(key))}") from error


def _call_hint(value: Any) -> str:
    """For the name of something in its place."""
    near = nearest(value, factories())
    return (
        f" If it is the name of one, write {{'name': {near!r}}} with its arguments." if near else ""
    )


def _chain(items: list[Any], where: str) -> chain:
    return _guarded(lambda: chain(*items), where, {})


def _function(name: Any, others: dict[str, Any], where: str) -> Any:
    _check_alone(others, "function", where)
    choices = {key: x for key, x in all_names().items() if key not in factories()}
    if not isinstance(name, str) or name not in choices:
        raise ValueError(
            f"{where}.function must be a function that is made configurable, as by "
            f"@optfn.configurable; {unknown(name, choices)}"
        )
    return choices[name]


def _array(values: Any, others: dict[str, Any], where: str) -> Any:
    words = ("dtype", "weak_type", "numpy", "shape")
    dtype, weak, numpy, shape = (others.pop(key, None) for key in words)
    _check_alone(others, "array", where, ", ".join(words))
    try:
        array = np.asarray(_finite_or_not(values), jnp.dtype(dtype or float))
        array = array if shape is None else array.reshape(shape)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}.array must be numbers of a dtype and a shape: {error}."
        ) from None
    if numpy:
        return array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype and dtype:
        raise ValueError(f"{where}.dtype is {dtype}, which needs jax_enable_x64.")
    if not weak or not array.size:
        return jnp.asarray(array)
    # An array of numbers without a dtype of their own.
    return jnp.stack([jnp.asarray(x) for x in array.ravel().tolist()]).reshape(array.shape)


def _finite_or_not(values: Any) -> Any:
    if _is_list(values):
        return [_finite_or_not(x) for x in values]
    return _NO_FINITE_NUMBER.get(values, values) if isinstance(values, str) else values


def _times(factor: Any, others: dict[str, Any], where: str) -> times:
    _check_alone(others, "times", where)
    value = _with_numbers(_read(factor, f"{where}.times"))
    return _guarded(lambda: times(value), f"{where}.times", {})


def _tuple(items: Any, others: dict[str, Any], where: str) -> tuple[Any, ...]:
    _check_alone(others, "tuple", where)
    return tuple(_positional(items, f"{where}.tuple"))


def _literal(entries: Any, others: dict[str, Any], where: str) -> dict[str, Any]:
    _check_alone(others, "literal", where)
    if not _is_mapping(entries):
        raise TypeError(f"{where}.literal must be a dict, found {_shown(entries)}.")
    return {key: _read(value, f"{where}.{key}") for key, value in entries.items()}


_VALUES = {
    "function": _function,
    "array": _array,
    "times": _times,
    "tuple": _tuple,
    "literal": _literal,
}


def _check_alone(others: dict[str, Any], word: str, where: str, besides: str = "nothing") -> None:
    if others:
        raise ValueError(
            f"{where}.{next(iter(others))}: beside {word!r} stands {besides}; a dict with this key "
            f"is {LITERAL}."
        )


def _is_mapping(value: Any) -> bool:
    """Also what reads like one, without the type."""
    return hasattr(value, "keys") and hasattr(value, "__getitem__")


def _is_list(value: Any) -> bool:
    plain = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return plain and not isinstance(value, optax.GradientTransformation)


def _makes_transforms(factory: Any) -> bool:
    return issubclass(made_by(factory), Transform)


def _may_make_transforms(factory: Any) -> bool:
    """A function of a user's may not say what it makes."""
    return made_by(factory) is object or _makes_transforms(factory)


def _name(factory: Any) -> str:
    return getattr(factory, "__name__", repr(factory))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
