"""Distributions of hyperparameters, each a monotone map from [0, 1) to plain values."""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

LEAST_DISTANCE = 1e-6
LARGEST = float(np.finfo(np.float32).max)
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
BELOW_ONE = math.nextafter(1, 0)

Axis = Literal["linear", "log", "one minus log", "choice"]


class Distribution:
    """The values of one hyperparameter and how likely each is.

    Attributes:
        axis: the scale on which a picture shows the values evenly: "linear", "log", "one minus log"
            for the logarithm of 1 - value, and "choice" for positions in a list.
    """

    axis: Axis = "linear"

    def at(self, u: float) -> Any:
        """The quantile of `u`: the inverse of the cumulative distribution function.

        Args:
            u: from 0 to below 1.
        """
        raise NotImplementedError

    def unit(self, value: Any) -> float:
        """The `u` for which `at(u)` is the value, from 0 to below 1.

        Where several `u` give the value, as for whole numbers, it is the middle one.

        Raises:
            ValueError: the distribution does not have the value.
        """
        raise NotImplementedError

    def between(self, low: float, high: float) -> "Distribution":
        """The part of the distribution from one `u` to another.

        Args:
            low: at least 0.
            high: at most 1. Where both give the same value, the part is that value, `Fixed`.
        """
        low_value, high_value = self.at(low), self.at(min(high, BELOW_ONE))
        same = low_value == high_value
        return Fixed(low_value) if same else self._from_to(low_value, high_value)

    def _from_to(self, low: Any, high: Any) -> "Distribution":
        """The same kind of distribution between two of its values."""
        raise NotImplementedError

    def perturb(self, value: Any, factor: float) -> Any:
        """The value times the factor, kept within the distribution.

        Args:
            value: one of the distribution's.
            factor: above 0; above 1 increases the multiplied quantity, below 1 decreases it.

        Raises:
            ValueError: the distribution does not have the value; the factor is not above 0.
        """
        raise NotImplementedError


class _Floats(Distribution):
    """A float32 number between two bounds, which are rounded to float32 as well."""

    low: float
    high: float

    def _check_bounds(self) -> None:
        name = type(self).__name__
        for bound in ("low", "high"):
            value = getattr(self, bound)
            if not _is_number(value, Real):
                raise TypeError(f"{name}({bound}=...) must be a number, found {value!r}.")
            if not abs(value) <= LARGEST:
                raise ValueError(f"{name}({bound}=...) must be finite in float32, found {value!r}.")
            object.__setattr__(self, bound, float(value))
        if not _single(self.low) < _single(self.high):
            raise ValueError(
                f"{name}(low, high) must be rising in float32, found {self.low!r} and "
                f"{self.high!r}."
            )

    def _check_value(self, value: Any, low: float, high: float) -> float:
        if not (_is_number(value, Real) and _single(low) <= _single(value) <= _single(high)):
            raise ValueError(f"{self!r} has no value {value!r}.")
        return float(value)

    def perturb(self, value: Any, factor: float) -> float:
        value = self._check_value(value, self.low, self.high)
        return _single(_clip(value * _positive(factor), self.low, self.high))


@dataclass(frozen=True)
class Uniform(_Floats):
    """A number between two bounds, all equally likely, such as a momentum up to 0.9.

    Not for a learning rate, or another number searched over orders of magnitude; see `LogUniform`.

        at(u) = low + u * (high - low)
        perturb(value, factor) = value * factor, so 0 stays 0 and the sign stays

    Args:
        low: the smallest.
        high: the largest.

    Raises:
        TypeError: a bound is not a number.
        ValueError: the bounds are not finite and rising in float32.
    """

    low: float
    high: float

    def __post_init__(self):
        self._check_bounds()

    def at(self, u: float) -> float:
        return _single(_clip(self.low + u * (self.high - self.low), self.low, self.high))

    def unit(self, value: Any) -> float:
        value = self._check_value(value, self.low, self.high)
        return _clip_unit((value - self.low) / (self.high - self.low))

    def _from_to(self, low: float, high: float) -> Distribution:
        return Uniform(low, high)


@dataclass(frozen=True)
class LogUniform(_Floats):
    """A positive number, each order of magnitude equally likely: learning rates, decays, eps.

        at(u) = low * (high / low)^u
        perturb(value, factor) = value * factor

    Args:
        low: the smallest, above 0.
        high: the largest.

    Raises:
        TypeError: a bound is not a number.
        ValueError: the bounds are not finite and rising in float32, or `low` is not a positive
            normal float32.
    """

    low: float
    high: float

    axis = "log"

    def __post_init__(self):
        self._check_bounds()
        if self.low < SMALLEST_NORMAL:
            raise ValueError(
                "LogUniform(low=...) must be above 0, and at least 1.2e-38 as float32 is, found "
                f"{self.low!r}."
            )

    def at(self, u: float) -> float:
        return _single(_geometric(self.low, self.high, u))

    def unit(self, value: Any) -> float:
        value = self._check_value(value, self.low, self.high)
        return _log_share(self.low, self.high, value)

    def _from_to(self, low: float, high: float) -> Distribution:
        return LogUniform(low, high)


@dataclass(frozen=True)
class OneMinusLogUniform(_Floats):
    """A number below 1 whose distance from 1 is log-uniform: b1, b2, decays of moving averages.

    `OneMinusLogUniform(0.01, 0.5)` is from 0.5 to 0.99, and rises with u as all distributions do.

        at(u) = 1 - high * (low / high)^u
        perturb(value, factor) = 1 - (1 - value) * factor

    Args:
        low: the smallest distance from 1, at least 1e-6. There 1 - value is already up to 3% off,
            since float32 has steps of 6e-8 below 1.
        high: the largest distance, below 1.

    Raises:
        TypeError: a bound is not a number.
        ValueError: the bounds are not rising, or not distances from 1e-6 to below 1.
    """

    low: float
    high: float

    axis = "one minus log"

    def __post_init__(self):
        self._check_bounds()
        if self.low < LEAST_DISTANCE or self.high >= 1:
            raise ValueError(
                "OneMinusLogUniform(low, high) are distances from 1, from "
                f"{LEAST_DISTANCE:g}, below which 1 - value is lost in float32, to below 1; found "
                f"{self.low!r} and {self.high!r}."
            )

    def at(self, u: float) -> float:
        return _single(1 - _geometric(self.high, self.low, u))

    def _from_to(self, low: float, high: float) -> Distribution:
        return OneMinusLogUniform(self.distance(high), self.distance(low))

    def distance(self, value: Any) -> float:
        """1 - value, within the bounds."""
        value = self._check_value(value, 1 - self.high, 1 - self.low)
        return _clip(1 - value, self.low, self.high)

    def unit(self, value: Any) -> float:
        return _log_share(self.high, self.low, self.distance(value))

    def perturb(self, value: Any, factor: float) -> float:
        distance = self.distance(value) * _positive(factor)
        return _single(1 - _clip(distance, self.low, self.high))


@dataclass(frozen=True)
class IntUniform(Distribution):
    """A whole number between two bounds, both included: steps, sizes, counts.

        at(u) = floor(low + u * (high + 1 - low)), or with log
        at(u) = round((low - 0.5) * ((high + 0.5) / (low - 0.5))^u)
        perturb(value, factor) = round(value * factor), at least 1 away from the value

    Args:
        low: the smallest.
        high: the largest.
        log: whether the logarithm is uniform; then `low` must be at least 1.

    Raises:
        TypeError: a bound is not a whole number; `log` is not a bool.
        ValueError: the bounds are not rising, are beyond 2^24, up to which float32 has every whole
            number, or are not above 0 with `log`.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self):
        for bound in ("low", "high"):
            value = getattr(self, bound)
            if not _is_number(value, Integral):
                raise TypeError(f"IntUniform({bound}=...) must be a whole number, found {value!r}.")
            if abs(value) > 2**24:
                raise ValueError(
                    f"IntUniform({bound}=...) must be within 2^24, up to which float32 has every "
                    f"whole number, found {value!r}."
                )
            object.__setattr__(self, bound, int(value))
        if not isinstance(self.log, bool):
            raise TypeError(f"IntUniform(log=...) must be True or False, found {self.log!r}.")
        if not self.low < self.high:
            raise ValueError(
                f"IntUniform(low, high) must be rising, found {self.low!r} and {self.high!r}."
            )
        if self.log and self.low < 1:
            raise ValueError(
                f"IntUniform(low=...) must be above 0 with log=True, found {self.low!r}."
            )

    @property
    def axis(self) -> Axis:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "log" if self.log else "linear"

    def at(self, u: float) -> int:
        if self.log:
            value = math.floor(_geometric(self.low - 0.5, self.high + 0.5, u) + 0.5)
        else:
            value = self.low + math.floor(u * (self.high + 1 - self.low))
        return _clip(value, self.low, self.high)

    def unit(self, value: Any) -> float:
        value = self._check_value(value)
        if self.log:
            ends = self.low - 0.5, self.high + 0.5
            return (_log_share(*ends, value - 0.5) + _log_share(*ends, value + 0.5)) / 2
        return (value - self.low + 0.5) / (self.high + 1 - self.low)

    def perturb(self, value: Any, factor: float) -> int:
        value = self._check_value(value)
        change = value * (_positive(factor) - 1)
        up = factor > 1 if change == 0 else change > 0
        if factor != 1:
            least = 1 if up else -1
            moved = math.floor(_clip(value + change, self.low - 1, self.high + 1) + 0.5)
            value = max(moved, value + least) if up else min(moved, value + least)
        return _clip(value, self.low, self.high)

    def _from_to(self, low: int, high: int) -> Distribution:
        return IntUniform(low, high, self.log)

    def _check_value(self, value: Any) -> int:
        inside = _is_number(value, Real) and self.low <= value <= self.high
        if not (inside and value == math.floor(value)):
            raise ValueError(f"{self!r} has no value {value!r}.")
        return int(value)


@dataclass(frozen=True, init=False)
class Choice(Distribution):
    """One of several values of any kind, all equally likely; a list in a space is a `Choice`.

        at(u) = options[floor(u * len(options))]
        perturb(value, factor) = the next option if factor > 1, the previous one if factor < 1

    Args:
        *options: numbers, strings, None, functions, schedules. They are passed on unchanged.

    Raises:
        TypeError: all options are in one list.
        ValueError: there are no options.
    """

    options: tuple

    axis = "choice"

    def __init__(self, *options: Any):
        if not options:
            raise ValueError("Choice(...) needs something to choose from.")
        if len(options) == 1 and isinstance(options[0], list):
            raise TypeError("Choice(...) takes its options one by one: Choice(*options).")
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        return f"Choice({', '.join(map(repr, self.options))})"

    def at(self, u: float) -> Any:
        return self.options[min(int(u * len(self.options)), len(self.options) - 1)]

    def index(self, value: Any) -> int:
        """The position of the same object among the options, else of the first equal one."""
        for same in (operator.is_, _equal):
            for i, option in enumerate(self.options):
                if same(option, value):
                    return i
        raise ValueError(f"{self!r} has no value {value!r}.")

    def unit(self, value: Any) -> float:
        return (self.index(value) + 0.5) / len(self.options)

    def perturb(self, value: Any, factor: float) -> Any:
        move = (_positive(factor) > 1) - (factor < 1)
        return self.options[_clip(self.index(value) + move, 0, len(self.options) - 1)]


@dataclass(frozen=True)
class Fixed(Distribution):
    """One value for all trials; a plain value in a space is `Fixed`.

    Args:
        value: any object.
    """

    value: Any

    axis = "choice"

    def at(self, u: float) -> Any:
        return self.value

    def unit(self, value: Any) -> float:
        if value is not self.value and not _equal(self.value, value):
            raise ValueError(f"{self!r} has no value {value!r}.")
        return 0.5

    def perturb(self, value: Any, factor: float) -> Any:
        return self.value


def as_space(space: Mapping[str, Any]) -> dict[str, Distribution]:
    """Distributions by name.

    A list becomes a `Choice`, which `grid` takes as an axis. A number, a string, a tuple, a
    schedule, None or the only option of a list becomes `Fixed`.

    Args:
        space: a mapping from names to distributions, lists or other values.

    Raises:
        TypeError: `space` is not a mapping; a name is not a string; a distribution lacks its
            arguments.
        ValueError: a list is empty.
    """
    if not isinstance(space, Mapping):
        raise TypeError(
            f"the space must be a dict from names to distributions, found {type(space).__name__}."
        )
    return {name: _distribution(name, value) for name, value in space.items()}


def _distribution(name: Any, value: Any) -> Distribution:
    if not isinstance(name, str):
        raise TypeError(f"the names of the space must be strings, found {name!r}.")
    if isinstance(value, Distribution):
        return value
    if isinstance(value, type) and issubclass(value, Distribution):
        raise TypeError(
            f"the space's {name!r} is {value.__name__} without its arguments; write "
            f"{value.__name__}(...)."
        )
    if isinstance(value, list):
        if not value:
            raise ValueError(f"the space's {name!r} is an empty list; wanted at least one option.")
        return Choice(*value) if len(value) > 1 else Fixed(value[0])
    return Fixed(value)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _single(x: Any) -> float:
    """The nearest float32, as programs compute in float32."""
    with np.errstate(over="ignore"):  # an infinity is refused where it matters
        return float(np.float32(x))


def _geometric(start: float, end: float, u: float) -> float:
    """The number at `u` from `start` to `end`, in equal ratios."""
    return _clip(start * (end / start) ** u, min(start, end), max(start, end))


def _log_share(start: float, end: float, value: float) -> float:
    return _clip_unit(math.log(value / start) / math.log(end / start))


def _clip(x: Any, low: Any, high: Any) -> Any:
    return min(max(x, low), high)


def _clip_unit(u: float) -> float:
    return _clip(u, 0.0, BELOW_ONE)


def _positive(factor: float) -> float:
    if not 0 < factor < math.inf:
        raise ValueError(f"perturb(factor=...) must be above 0 and finite, found {factor!r}.")
    return factor


def _equal(option: Any, value: Any) -> bool:
    """Whether the two are equal; True is not 1, and arrays, compared by element, never are."""
    if isinstance(option, bool) is not isinstance(value, bool):
        return False
    equal = option == value
    return isinstance(equal, (bool, np.bool_)) and bool(equal)
