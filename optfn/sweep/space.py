"""Distributions of hyperparameters, each a monotone map from [0, 1) to plain values."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from statistics import NormalDist
from typing import Any, Literal, cast

import numpy as np

LEAST_DISTANCE = 1e-6
NEAR = 1e-3  # of a step
FARTHEST = 6.0  # standard deviations
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

    def around(self, values: Sequence[Any]) -> "Distribution":
        """The part that holds the values, widened on both sides by the mean distance of neighbours.

        Args:
            values: one or more of the distribution's.
        """
        low, high = widened([self.unit(value) for value in values])
        return self.between(max(low, 0.0), min(high, 1.0))

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

        at(u) = low + u * (high - low), or with a step
        at(u) = low + step * floor(u * n), of the n values there are
        perturb(value, factor) = value * factor, so 0 stays 0 and the sign stays; with a step, the
            nearest value there is, at least a step away

    Args:
        low: the smallest.
        high: the largest.
        step: the distance of neighbours, counted from `low`; None is every number.

    Raises:
        TypeError: a bound is not a number.
        ValueError: the bounds are not finite and rising in float32; the step is not above 0, or
            larger than their distance.
    """

    low: float
    high: float
    step: float | None = None

    def __post_init__(self) -> None:
        self._check_bounds()
        if self.step is not None:
            _check_step(self, Real)

    @property
    def _count(self) -> int:
        """The values there are with a step."""
        return 1 + math.floor((self.high - self.low) / cast(float, self.step) + NEAR)

    def _nearest(self, value: float) -> float:
        if self.step is None:
            return value
        count = math.floor((value - self.low) / self.step + 0.5)
        return _single(self.low + self.step * _clip(count, 0, self._count - 1))

    def perturb(self, value: Any, factor: float) -> float:
        moved = super().perturb(value, factor)
        if self.step is None or factor == 1:
            return self._nearest(moved)
        change = moved - value if value else factor - 1
        least = self._nearest(value) + math.copysign(self.step, change)
        further = max if change > 0 else min
        return self._nearest(further(self._nearest(moved), least))

    def at(self, u: float) -> float:
        if self.step is not None:
            return self._nearest(self.low + self.step * math.floor(u * self._count))
        return _single(_clip(self.low + u * (self.high - self.low), self.low, self.high))

    def unit(self, value: Any) -> float:
        value = self._check_value(value, self.low, self.high)
        if self.step is None:
            return _clip_unit((value - self.low) / (self.high - self.low))
        if abs(self._nearest(value) - value) > NEAR * self.step:
            raise ValueError(f"{self!r} has no value {value!r}.")
        return (round((value - self.low) / self.step) + 0.5) / self._count

    def _from_to(self, low: float, high: float) -> Distribution:
        if self.step is not None:  # on the same grid, not beside it by a rounding
            low, high = (
                self.low + self.step * round((x - self.low) / self.step) for x in (low, high)
            )
        return Uniform(low, high, self.step)


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

    def __post_init__(self) -> None:
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

    def __post_init__(self) -> None:
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

        at(u) = low + step * floor(u * n), of the n values there are, or with log
        at(u) = round((low - 0.5) * ((high + 0.5) / (low - 0.5))^u)
        perturb(value, factor) = round(value * factor), at least 1 away from the value; with a step,
            the nearest value there is, at least a step away

    Args:
        low: the smallest.
        high: the largest.
        log: whether the logarithm is uniform; then `low` must be at least 1.
        step: the distance of neighbours, counted from `low`; 1 with `log`.

    Raises:
        TypeError: a bound is not a whole number; `log` is not a bool.
        ValueError: the bounds are not rising, are beyond 2^24, up to which float32 has every whole
            number, or are not above 0 with `log`; the step is not above 0, larger than their
            distance, or not 1 with `log`.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
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
        _check_step(self, Integral)
        if self.log and self.step != 1:
            raise ValueError(f"IntUniform(step=...) must be 1 with log=True, found {self.step!r}.")

    @property
    def _count(self) -> int:
        """The values there are without `log`."""
        return 1 + (self.high - self.low) // self.step

    @property
    def axis(self) -> Axis:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "log" if self.log else "linear"

    def at(self, u: float) -> int:
        if self.log:
            value = math.floor(_geometric(self.low - 0.5, self.high + 0.5, u) + 0.5)
        else:
            value = self.low + self.step * _clip(math.floor(u * self._count), 0, self._count - 1)
        return _clip(value, self.low, self.high)

    def unit(self, value: Any) -> float:
        value = self._check_value(value)
        if self.log:
            ends = self.low - 0.5, self.high + 0.5
            return (_log_share(*ends, value - 0.5) + _log_share(*ends, value + 0.5)) / 2
        return ((value - self.low) // self.step + 0.5) / self._count

    def perturb(self, value: Any, factor: float) -> int:
        value = self._check_value(value)
        change = value * (_positive(factor) - 1)
        up = factor > 1 if change == 0 else change > 0
        if factor != 1:
            least = self.step if up else -self.step
            moved = _clip(value + change, self.low - self.step, self.high + self.step)
            moved = self.low + self.step * math.floor((moved - self.low) / self.step + 0.5)
            value = max(moved, value + least) if up else min(moved, value + least)
        return _clip(value, self.low, self.low + self.step * (self._count - 1))

    def _from_to(self, low: int, high: int) -> Distribution:
        return IntUniform(low, high, self.log, self.step)

    def _check_value(self, value: Any) -> int:
        inside = _is_number(value, Real) and self.low <= value <= self.high
        if not (inside and value == math.floor(value) and not (value - self.low) % self.step):
            raise ValueError(f"{self!r} has no value {value!r}.")
        return int(value)


@dataclass(frozen=True)
class Normal(_Floats):
    """A number near a known one: a good value from elsewhere, and how far off it may be.

        at(u) = mean + std * z, with z the standard normal's quantile of u, within 6
        perturb(value, factor) = value * factor

    Args:
        mean: the middle.
        std: the standard deviation, above 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: mean - 6 std and mean + 6 std are not finite and rising in float32.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if not _is_number(value := getattr(self, name), Real):
                raise TypeError(f"Normal({name}=...) must be a number, found {value!r}.")
        low, high = (self.mean + sign * FARTHEST * self.std for sign in (-1, 1))
        if not (self.std > 0 and abs(low) <= LARGEST >= abs(high) and _single(low) < _single(high)):
            raise ValueError(
                "Normal(mean, std) must be finite in float32, with std above 0, found "
                f"{self.mean!r} and {self.std!r}."
            )

    @property
    def low(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return float(self.mean - FARTHEST * self.std)

    @property
    def high(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return float(self.mean + FARTHEST * self.std)

    def at(self, u: float) -> float:
        z = NormalDist().inv_cdf(_clip(u, SMALLEST_NORMAL, BELOW_ONE))
        return _single(self.mean + self.std * _clip(z, -FARTHEST, FARTHEST))

    def unit(self, value: Any) -> float:
        value = self._check_value(value, self.low, self.high)
        return _clip_unit(NormalDist().cdf((value - self.mean) / self.std))

    def around(self, values: Sequence[Any]) -> Distribution:
        low, high = widened([self._check_value(value, self.low, self.high) for value in values])
        low, high = (_single(_clip(x, self.low, self.high)) for x in (low, high))
        return Uniform(low, high) if low < high else Fixed(low)

    def between(self, low: float, high: float) -> Distribution:
        if low <= 0 and high >= 1:
            return self
        return super().between(low, high)

    def _from_to(self, low: float, high: float) -> Distribution:
        return Uniform(low, high)


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

    options: tuple[Any, ...]

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
        for same in (operator.is_, are_equal):
            for i, option in enumerate(self.options):
                if same(option, value):
                    return i
        raise ValueError(f"{self!r} has no value {value!r}.")

    def unit(self, value: Any) -> float:
        return (self.index(value) + 0.5) / len(self.options)

    def perturb(self, value: Any, factor: float) -> Any:
        move = (_positive(factor) > 1) - (factor < 1)
        return self.options[_clip(self.index(value) + move, 0, len(self.options) - 1)]


@dataclass(frozen=True, init=False)
class Either(Distribution):
    """A number beside a range, equally likely; `[0.0, LogUniform(...)]` in a space is one.

    For what is off at 0 and searched by its logarithm else, such as a weight decay.

        at(u) = parts[i].at(n * u - i), with i = floor(n * u), or parts[i] itself if it is a number
        perturb(value, factor) = that of the value's part; a number beside a range stays

    Args:
        *parts: two or more, numbers and distributions of floats.

    Raises:
        TypeError: a part is neither a number nor a distribution of floats.
        ValueError: there are no parts.
    """

    parts: tuple[Any, ...]

    def __init__(self, *parts: Any):
        if not parts:
            raise ValueError("Either(...) needs something to choose from.")
        for part in parts:
            if not (isinstance(part, _Floats) or _is_number(part, Real)):
                raise TypeError(
                    f"Either(...) takes numbers and distributions of floats, found {part!r}."
                )
        made = tuple(p if isinstance(p, _Floats) else Fixed(_single(p)) for p in parts)
        object.__setattr__(self, "parts", made)

    def __repr__(self) -> str:
        parts = (repr(p.value if isinstance(p, Fixed) else p) for p in self.parts)
        return f"Either({', '.join(parts)})"

    def _part(self, value: Any) -> int:
        """The part that has the value: a number before a range."""
        for kind in (Fixed, _Floats):
            for i, part in enumerate(self.parts):
                if isinstance(part, kind):
                    try:
                        part.unit(value)
                    except ValueError:
                        continue
                    return i
        raise ValueError(f"{self!r} has no value {value!r}.")

    def at(self, u: float) -> float:
        i = min(int(u * len(self.parts)), len(self.parts) - 1)
        return self.parts[i].at(_clip_unit(u * len(self.parts) - i))

    def unit(self, value: Any) -> float:
        i = self._part(value)
        return _clip_unit((i + self.parts[i].unit(value)) / len(self.parts))

    def between(self, low: float, high: float) -> Distribution:
        count = len(self.parts)
        first = min(int(low * count), count - 1)
        last = max(math.ceil(high * count) - 1, first)
        kept = [
            part.between(max(low * count - i, 0.0), min(high * count - i, 1.0))
            for i, part in enumerate(self.parts)
            if first <= i <= last
        ]
        if len(kept) == 1:
            return kept[0]
        return Either(*(part.value if isinstance(part, Fixed) else part for part in kept))

    def perturb(self, value: Any, factor: float) -> float:
        return self.parts[self._part(value)].perturb(value, factor)


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
        if value is not self.value and not are_equal(self.value, value):
            raise ValueError(f"{self!r} has no value {value!r}.")
        return 0.5

    def perturb(self, value: Any, factor: float) -> Any:
        return self.value


def as_space(space: Mapping[str, Any]) -> dict[str, Distribution]:
    """Distributions by name.

    A list becomes a `Choice`, which `grid` takes as an axis; of numbers beside distributions, an
    `Either`. A number, a string, a tuple, a schedule, None or the only option of a list becomes
    `Fixed`.

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
        if any(isinstance(option, Distribution) for option in value):
            for option in value:
                if len(value) > 1 and not (isinstance(option, _Floats) or _is_number(option, Real)):
                    raise TypeError(
                        f"the space's {name!r} is a list with a distribution, of which "
                        f"Either(...) takes numbers and distributions of floats, found {option!r}: "
                        "write a number that means the same, such as 0.0, or a OneOf with an "
                        "option for each."
                    )
            return Either(*value) if len(value) > 1 else value[0]
        return Choice(*value) if len(value) > 1 else Fixed(value[0])
    return Fixed(value)


def widened(places: Sequence[float]) -> tuple[float, float]:
    """The least and the largest, each moved outwards by the mean distance of neighbours."""
    low, high = min(places), max(places)
    margin = (high - low) / max(len(places) - 1, 1)
    return low - margin, high + margin


def _check_step(distribution: Any, kind: type[Any]) -> None:
    name, step = type(distribution).__name__, distribution.step
    if not _is_number(step, kind):
        raise TypeError(f"{name}(step=...) must be a number of its kind, found {step!r}.")
    if not (step > 0 and distribution._count > 1):
        raise ValueError(
            f"{name}(step=...) must be above 0 and at most high - low, found {step!r}."
        )


def _is_number(value: Any, kind: type[Any]) -> bool:
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


def are_equal(option: Any, value: Any) -> bool:
    """Whether the two are equal; True is not 1, and arrays, compared by element, never are."""
    if isinstance(option, bool) is not isinstance(value, bool):
        return False
    try:
        equal = option == value
    except (TypeError, ValueError):  # of arrays inside
        return False
    return isinstance(equal, (bool, np.bool_)) and bool(equal)
