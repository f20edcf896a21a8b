"""Frozen dataclasses that are pytrees: what optimizers and schedules are made of.

A subclass of `Data` lists its fields as a dataclass does. A plain field is a number and a pytree
leaf; `static`, `per_leaf`, `child` and `numbers` declare the other kinds, `number` a plain field
with more to it. Construction validates; unflattening does not, because `tree.map` and `vmap`'s
`in_axes` put anything into leaves.
"""

import dataclasses
import functools
import math
import operator
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar, cast, dataclass_transform

import jax
import numpy as np
from jax.core import Tracer

from optfn.core.arguments import Argument
from optfn.core.dtypes import floating_name
from optfn.core.tree import PerLeaf

F = TypeVar("F", bound=Callable[..., Any])

MISSING = dataclasses.MISSING


def static(
    *,
    default: Any = MISSING,
    choices: tuple[Any, ...] = (),
    kw_only: bool = False,
    init: bool = True,
    converter: Callable[..., Any] | None = None,
) -> Any:
    """Declares a field that changes structure or control flow: hashable, part of the treedef.

    Args:
        default: the value when none is given. A bool default admits only bools.
        choices: the admissible values; any hashable value if empty.
        kw_only: whether the field must be given by keyword.
        init: False leaves the field out of the constructor.
        converter: `(value, where) -> value` makes a hashable value of what users give, but for
            None; `where` names the field in errors.
    """
    return _field("static", default, kw_only, init, choices=choices, converter=converter)


def number(
    *,
    default: Any = MISSING,
    also_called: str | None = None,
    converter: Callable[..., Any] | None = None,
    is_one: bool = False,
) -> Any:
    """Declares a number with more to it: a second name, or another form that users may give.

    Args:
        default: the value when none is given.
        also_called: another keyword for it, such as optax's.
        converter: `value -> value` makes a number of the other form.
        is_one: it is the same for all leaves, also in a rule for one leaf.
    """
    more = {"also_called": also_called, "converter": converter, "is_one": is_one}
    return _field("number", default, False, **more)


def storage_dtype(*slots: str, default: Any = MISSING, kw_only: bool = False) -> Any:
    """Declares the dtype in which slots are stored; None is the rule's own.

    Users give it as jax takes it. It is kept by its name, so that all spellings are one treedef.

    Args:
        *slots: the names of the slots.
        default: the value when none is given, usually None.
        kw_only: whether the field must be given by keyword.
    """
    return _field("static", default, kw_only, converter=floating_name, slots=slots)


def storage_fields(cls: Any) -> dict[str, str]:
    """By slot the name of the `storage_dtype` field for it."""
    return {
        slot: field.name
        for field in dataclasses.fields(cls)
        for slot in field.metadata.get("slots", ())
    }


def per_leaf(
    *,
    default: Any = MISSING,
    of: type[Any] = object,
    kw_only: bool = False,
    none_is: Any = None,
    also_called: str | None = None,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """Declares a value per leaf of the params: a mask, a label, a multiplier.

    Users give it as a tree (a prefix of the params is enough), as a function
    `(path, leaf) -> value` with paths like `"encoder/kernel"`, or as a function `params -> tree`;
    None means what `none_is` says, or that no leaf has a value. The function gets the param as it
    is stored, or the update in its compute dtype where `update` is given no params. In a `Leafwise`
    rule the field reads as the value of the current leaf.

    Args:
        default: the value when none is given.
        of: the required type of each value.
        kw_only: whether the field must be given by keyword.
        none_is: what None stands for. A function is no default itself, since
            `optax.inject_hyperparams` takes every argument that can be called for a schedule.
        also_called: another keyword for it, such as optax's.
        read: makes a value of what is given by the other keyword; None takes it as it is.
    """
    more = {"of": of, "none_is": none_is, "also_called": also_called, "read": read}
    return _field("per_leaf", default, kw_only, **more)


def child(
    *,
    default: Any = MISSING,
    kw_only: bool = False,
    also_called: str | None = None,
    converter: Callable[..., Any] | None = None,
) -> Any:
    """Declares a field that holds inner transforms, or inner schedules.

    Args:
        default: the value when none is given.
        kw_only: whether the field must be given by keyword.
        also_called: another keyword for it, such as optax's.
        converter: `(value, where) -> value` makes what the field holds of what users give, and
            type checkers read what they may give from it; `where` names the field in errors. By
            default optax transformations become transforms and functions schedules, each alone, in
            a sequence or in a dict.
    """
    return _field("child", default, kw_only, also_called=also_called, converter=converter)


def part(*, converter: Callable[..., Any], kw_only: bool = False) -> Any:
    """Declares a field that holds other data with a meaning of its own, such as a codec.

    Args:
        converter: `(value, where) -> data`; `where` names the field in errors.
        kw_only: whether the field must be given by keyword.
    """
    return _field("part", MISSING, kw_only, converter=converter)


def numbers(*, default: Any = MISSING, kw_only: bool = False) -> Any:
    """Declares a sequence of numbers, or rows of them, kept as tuples of leaves or as one array."""
    return _field("numbers", default, kw_only)


def _field(kind: str, default: Any, kw_only: bool, init: bool = True, **metadata: Any) -> Any:
    metadata["kind"] = kind
    return dataclasses.field(default=default, kw_only=kw_only, init=init, metadata=metadata)


def kind_of(field: dataclasses.Field) -> str:
    return field.metadata.get("kind", "number")


@dataclass_transform(
    frozen_default=True,
    eq_default=False,
    field_specifiers=(static, number, storage_dtype, per_leaf, child, part, numbers),
)
class Data:
    """A frozen dataclass registered as a pytree; equality and hash are by identity."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        _take_other_names(cls)
        _register(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            where = Argument(f"{type(self).__name__}({field.name}=...)", value)
            object.__setattr__(self, field.name, self._normalise(value, field, where))

    def _normalise(self, value: Any, field: dataclasses.Field, where: Argument) -> Any:
        match kind_of(field):
            case "static":
                return _check_static(value, field, where)
            case "per_leaf":
                value = field.metadata["none_is"] if value is None else value
                of = field.metadata["of"]
                return None if value is None else PerLeaf.of(value, str(where), of)
            case "numbers":
                many = self._as_numbers if isinstance(value, (list, tuple)) else _as_vector
                return many(value, where)
            case "child":
                return (field.metadata["converter"] or self._as_child)(value, where)
            case "part":
                return field.metadata["converter"](value, where)
            case _ if value is None and field.default is None:
                return None
            case _:
                converter = field.metadata.get("converter")
                return self._as_number(converter(value) if converter else value, where)

    def _as_number(self, value: Any, where: Any) -> Any:
        return as_number(value, where)

    def _as_numbers(self, values: list[Any] | tuple[Any, ...], where: Argument) -> tuple[Any, ...]:
        """A sequence of numbers, or a table as a sequence of rows."""

        def entry(i: int, value: Any) -> Any:
            place = f"{where.where}, element {i}"
            if isinstance(value, (list, tuple)):
                return self._as_numbers(value, Argument(place, value))
            return self._as_number(value, f"{place},")

        return tuple(entry(i, value) for i, value in enumerate(values))

    def _as_child(self, value: Any, where: Any) -> Any:
        return value

    def rebuilt(self, **changes: Any) -> Self:
        """A copy with these attributes, unchecked."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__getstate__())
        new.__dict__.update(changes)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {k: x for k, x in self.__dict__.items() if getattr(x, "__self__", None) is not self}

    def __copy__(self) -> Self:
        return self  # frozen, and equal to itself alone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def fields(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """The names and values of the fields of the given kinds, in order."""
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            if kind_of(field) in kinds:
                yield field.name, getattr(self, field.name)

    def __repr__(self) -> str:
        return f"{self._repr_name()}({', '.join(self._arguments())})"

    def _arguments(self) -> list[str]:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return [f"{field.name}={show(getattr(self, field.name))}" for field in fields if field.init]

    def _repr_name(self) -> str:
        return type(self).__name__


class _KeptMethod:
    """A method whose bound form is kept by its instance, so that it is one object."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)  # pyright: ignore[reportArgumentType]
        self.function = function

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Callable[..., Any]:
        if instance is None:
            return self.function
        bound = types.MethodType(self.function, instance)
        # Not of a transform in a trace: what it holds must go when the trace ends.
        if not any(isinstance(x, Tracer) for x in jax.tree.leaves(instance)):
            instance.__dict__[self.function.__name__] = bound
        return bound


def kept(method: F) -> F:
    """Makes `instance.method` the same object at each access, as an attribute of a function's is.

    `jax.jit` finds the program of a function by the object: of `jax.jit(tx.update)` with a bound
    method that is made for the call, it would compile another at each call.
    """
    return cast(F, _KeptMethod(method))


def _take_other_names(cls: type[Any]) -> None:
    """Lets the constructor take the fields that are `also_called` something by that keyword."""
    fields = dataclasses.fields(cls)
    called = {f.metadata["also_called"]: f for f in fields if f.metadata.get("also_called")}
    if called and "__init__" in vars(cls):
        readers = {other: f.metadata.get("read") for other, f in called.items()}
        others = {other: f.name for other, f in called.items()}
        cls.__init__ = also_called(readers, **others)(cls.__init__)


def also_called(
    readers: Mapping[str, Callable[[Any], Any] | None] = types.MappingProxyType({}), **others: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Lets a function take arguments by other keywords too, as in `also_called(key="seed")`.

    Args:
        readers: by such a keyword what makes an argument of its value.
        **others: the argument of each.
    """

    def decorated(function: Callable) -> Callable:
        where = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def taking(*args: Any, **kwargs: Any) -> Any:
            for other in others.keys() & kwargs.keys():
                name = others[other]
                if name in kwargs:
                    raise TypeError(f"{where}({name}=..., {other}=...) are the same argument.")
                value, read = kwargs.pop(other), readers.get(other)
                kwargs[name] = read(value) if read else value
            return function(*args, **kwargs)

        return taking

    return decorated


def _register(cls: Any) -> None:
    fields = dataclasses.fields(cls)
    leaves = tuple(f.name for f in fields if kind_of(f) not in ("static", "per_leaf"))
    fixed = tuple(f.name for f in fields if kind_of(f) in ("static", "per_leaf"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)
    get_leaves, get_fixed = _getter(leaves), _getter(fixed)

    def flatten(self):
        return get_leaves(self), get_fixed(self)

    def flatten_with_keys(self):
        return tuple(zip(keys, get_leaves(self), strict=True)), get_fixed(self)

    def unflatten(aux, children):
        new = cls.__new__(cls)
        new.__dict__.update(zip(leaves, children, strict=True))
        new.__dict__.update(zip(fixed, aux, strict=True))
        return new

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def _getter(names: tuple[str, ...]):
    """`attrgetter`, but a tuple for any number of names; it is fast, since every call uses it."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    if not names:
        return lambda self: ()
    get = operator.attrgetter(*names)
    return lambda self: (get(self),)


def as_number(value: Any, where: Any) -> Any:
    """A hyperparameter leaf: Python and NumPy scalars become floats, arrays stay arrays.

    Counts become floats too: an int leaf would break `jax.grad`, and floats are exact to 2**24.
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where} is a number, found the bool {value}.")
    if isinstance(value, (int, float, np.integer, np.floating)):
        value = float(value)
        if value != value:
            raise ValueError(f"{where} is NaN; a hyperparameter must be a number.")
        return value
    if isinstance(value, (jax.Array, np.ndarray)):
        if not jax.numpy.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
            raise TypeError(f"{where} must be a real number, found an array of {value.dtype}.")
        if isinstance(value, np.ndarray) and np.isnan(value).any():
            raise ValueError(f"{where} holds a NaN; a hyperparameter must be a number.")
        return value
    raise TypeError(f"{where} must be a number or an array, found {_describe(value)}.")


def _as_vector(value: Any, where: Any) -> Any:
    value = as_number(value, where)
    if np.ndim(value) < 1:
        raise TypeError(f"{where} must be a sequence of numbers, found {_describe(value)}.")
    return value


def batch_shape(value: Any) -> tuple[int, ...]:
    """The shape of a number, or of the first batched number in a schedule; () for a scalar.

    A sequence of numbers kept as one array is a batch if it has two or more dimensions.
    """
    if not isinstance(value, Data):
        return np.shape(value)
    for name, inner in value.fields("number", "numbers", "child"):
        many = tuple(inner.values()) if isinstance(inner, dict) else inner
        many = many if isinstance(many, tuple) else (many,)
        for x in many:
            is_sequence = name in dict(value.fields("numbers")) and not isinstance(inner, tuple)
            if is_sequence:
                shape = np.shape(x)[:-1]
            elif isinstance(x, Data) or name in dict(value.fields("number", "numbers")):
                shape = batch_shape(x)
            else:
                shape = ()
            if shape:
                return shape
    return ()


def check_count(value: Any, where: str) -> None:
    """Refuses a value that is not a positive whole number."""
    try:
        is_count = not isinstance(value, bool) and operator.index(value) >= 1
    except TypeError:
        is_count = False
    if not is_count:
        argument = Argument(where, value)
        raise ValueError(f"{argument} must be a whole number above 0, found {value!r}.")


def check_within(value: Any, limits: tuple[float, float], where: str) -> None:
    """Refuses a number that is known and outside its limits."""
    least, most = limits
    if isinstance(value, float) and not least <= value <= most:
        wanted = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        argument = Argument(where, value)
        raise ValueError(f"{argument} must be {wanted}, found {show(value)}.")


def as_switch(value: Any, where: Any) -> bool:
    """A bool that is known when the program is traced."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(
        f"{where} is a switch that changes the program: it must be True or False, found "
        f"{_describe(value)}."
    )


def _check_static(value: Any, field: dataclasses.Field, where: Any) -> Any:
    choices, converter = map(field.metadata.get, ("choices", "converter"))
    if converter is not None:
        value = None if value is None else converter(value, where)
    elif isinstance(field.default, bool):
        value = as_switch(value, where)
    elif choices and not (isinstance(value, type(choices[0])) and value in choices):
        raise ValueError(f"{where} must be one of {choices}, found {_describe(value)}.")
    elif isinstance(value, (jax.Array, np.ndarray, Data)):
        kind = "an array" if not isinstance(value, Data) else f"the schedule {value!r}"
        raise TypeError(f"{where} is static and must be a Python value, found {kind}.")
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{where} is static and must hash, found {_describe(value)}.") from None
    return value


def _describe(value: Any) -> str:
    text = show(value)
    return f"{type(value).__name__}: {text if len(text) <= 80 else text[:77] + '...'}"


def show(value: Any) -> str:
    """A short text; for a number or an array of up to 64 entries it evaluates to the value."""
    if isinstance(value, Tracer):
        return f"<traced {value.dtype}{list(value.shape)}>"
    if isinstance(value, (jax.Array, np.ndarray)) and value.size <= 64:
        # `str` of a numpy scalar is the shortest text that reads back as the same value.
        text = np.array2string(
            np.asarray(value), separator=", ", max_line_width=10**9, floatmode="unique"
        )
        module = "jnp" if isinstance(value, jax.Array) else "np"
        text = text.replace("nan", f"{module}.nan").replace("inf", f"{module}.inf")
        if getattr(value, "weak_type", False):
            return f"{module}.asarray({text})"
        return f"{module}.asarray({text}, '{value.dtype}')"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f"float('{value}')"
    if type(value) is tuple:
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return repr(value)
