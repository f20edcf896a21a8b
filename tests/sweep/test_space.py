"""Distributions against their closed forms, and what holds for every value."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from optfn import schedules, sweep
from optfn.sweep import Choice, Fixed, IntUniform, LogUniform, OneMinusLogUniform, Uniform

units = st.floats(0, 1, exclude_max=True)
factors = st.floats(0.01, 100)


def single(x):
    return float(np.float32(x))


@st.composite
def floats(draw):
    """Distributions of floats, with bounds that differ by more than a rounding."""
    kind = draw(st.sampled_from([Uniform, LogUniform, OneMinusLogUniform]))
    least, most = {
        Uniform: (-1e6, 1e6),
        LogUniform: (1e-20, 1e30),
        OneMinusLogUniform: (1e-6, 0.999),
    }[kind]
    low = draw(st.floats(least, most))
    high = draw(st.floats(least, most))
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-3 * max(abs(low), abs(high), 1e-17):
        low, high = least, most
    return kind(low, high)


@st.composite
def integers(draw):
    log = draw(st.booleans())
    low = draw(st.integers(1 if log else -1000, 1000))
    return IntUniform(low, low + draw(st.integers(1, 5000)), log=log)


choices = st.lists(st.integers(), min_size=1, max_size=9, unique=True).map(lambda o: Choice(*o))
everything = st.one_of(floats(), integers(), choices)


def bounds(d):
    """The smallest and largest value."""
    if isinstance(d, OneMinusLogUniform):
        return single(1 - d.high), single(1 - d.low)
    return single(d.low), single(d.high)


def close(d, u, v, value):
    """Whether two units give one value but for the rounding of float32 at it."""
    if isinstance(d, Uniform):
        slope = (max(abs(d.low), abs(d.high))) / (d.high - d.low)
    else:
        span = math.log(d.high / d.low)
        slope = 1 / span if isinstance(d, LogUniform) else 1 / span / (1 - value + 2**-24)
    return abs(u - v) <= 2**-23 * slope + 1e-12


@settings(deadline=None)
@given(floats(), units, units)
def test_floats_are_inverted_rise_and_stay_inside(d, u, v):
    value = d.at(u)
    assert type(value) is float and value == single(value)
    low, high = bounds(d)
    assert low <= value <= high
    assert close(d, u, d.unit(value), value)
    assert 0 <= d.unit(value) < 1
    if u < v:
        assert value <= d.at(v)
    assert d.at(0) == low
    assert abs(d.at(math.nextafter(1, 0)) - high) <= 2**-23 * max(abs(low), abs(high))


@settings(deadline=None)
@given(integers(), units, units)
def test_integers_are_inverted_rise_and_stay_inside(d, u, v):
    value = d.at(u)
    assert type(value) is int and d.low <= value <= d.high
    assert d.at(d.unit(value)) == value
    if u < v:
        assert value <= d.at(v)
    assert d.at(0) == d.low and d.at(math.nextafter(1, 0)) == d.high


@settings(deadline=None)
@given(everything, units, factors)
def test_a_perturbed_value_stays_inside(d, u, factor):
    value = d.at(u)
    moved = d.perturb(value, factor)
    assert type(moved) is type(value)
    assert 0 <= d.unit(moved) < 1  # which refuses what is not the distribution's
    assert d.perturb(value, 1) == value or isinstance(d, OneMinusLogUniform)


def test_quantiles():
    quarters = [0, 0.25, 0.5, 0.75]
    assert [Uniform(-1, 3).at(u) for u in quarters] == [-1, 0, 1, 2]
    assert [LogUniform(1, 16).at(u) for u in quarters] == [1, 2, 4, 8]
    assert [LogUniform(1, 16).unit(x) for x in (1, 2, 4, 8)] == pytest.approx(quarters, abs=1e-15)
    distances = OneMinusLogUniform(2**-9, 2**-1)
    assert [distances.at(u) for u in quarters] == [1 - 2**-n for n in (1, 3, 5, 7)]
    assert [IntUniform(1, 4).at(u) for u in quarters] == [1, 2, 3, 4]
    assert [Choice("a", None, 3, len).at(u) for u in quarters] == ["a", None, 3, len]
    assert [Fixed("x").at(u) for u in quarters] == ["x"] * 4


def test_every_whole_number_has_its_share():
    linear, log = IntUniform(-3, 6), IntUniform(1, 8, log=True)
    us = (np.arange(100_000) + 0.5) / 100_000
    counts = np.unique([linear.at(u) for u in us], return_counts=True)
    np.testing.assert_array_equal(counts, [np.arange(-3, 7), np.full(10, 10_000)])
    values, counts = np.unique([log.at(u) for u in us], return_counts=True)
    expected = np.diff(np.log(np.arange(9) + 0.5)) / np.log(17)
    np.testing.assert_array_equal(values, np.arange(1, 9))
    np.testing.assert_allclose(counts / 100_000, expected, atol=1.1e-5)  # one point at each end


@pytest.mark.parametrize(
    ("d", "cdf"),
    [
        (Uniform(-2, 5), stats.uniform(-2, 7).cdf),
        (LogUniform(1e-5, 1e-1), stats.loguniform(1e-5, 1e-1).cdf),
        (OneMinusLogUniform(0.01, 0.5), lambda x: stats.loguniform(0.01, 0.5).sf(1 - x)),
    ],
)
def test_drawn_values_have_the_distribution(d, cdf):
    values = [point["x"] for point in sweep.random().start({"x": d}, 2000, 0).ask(2000)]
    assert stats.kstest(values, cdf).pvalue > 0.01


def test_the_shown_value_is_the_one_that_is_used():
    value = OneMinusLogUniform(1e-6, 1e-2).at(0.9)
    assert np.float32(1) - np.float32(value) == 1 - value


def test_perturb_multiplies_the_natural_coordinate():
    assert Uniform(0, 1).perturb(0.5, 1.25) == 0.625
    assert Uniform(0, 1).perturb(0.9, 1.25) == 1
    assert Uniform(0, 1).perturb(0.0, 1.25) == 0
    assert LogUniform(0.25, 8).perturb(2.0, 2) == 4
    assert LogUniform(0.25, 8).perturb(0.25, 0.5) == 0.25
    assert OneMinusLogUniform(2**-6, 0.5).perturb(0.75, 0.5) == 0.875
    assert OneMinusLogUniform(2**-6, 0.5).perturb(0.75, 4) == 0.5
    assert IntUniform(1, 100).perturb(50, 1.2) == 60
    assert [IntUniform(0, 9).perturb(n, 1.2) for n in (0, 1, 9)] == [1, 2, 9]
    assert [IntUniform(0, 9).perturb(n, 0.8) for n in (0, 1, 9)] == [0, 0, 7]
    assert [IntUniform(-9, 9).perturb(n, 1.2) for n in (-1, -9)] == [-2, -9]
    assert [IntUniform(-9, 9).perturb(n, 0.8) for n in (-1, 0)] == [0, -1]
    assert [Choice(*"abc").perturb(x, 1.2) for x in "abc"] == ["b", "c", "c"]
    assert [Choice(*"abc").perturb(x, 0.8) for x in "abc"] == ["a", "a", "b"]
    assert [Choice(*"abc").perturb(x, 1) for x in "abc"] == ["a", "b", "c"]
    assert Fixed(3).perturb(3, 2) == 3


def test_choices_are_known_by_identity_first():
    arrays = Choice(np.zeros(2), np.ones(2), [1], None, 1, True)
    assert [arrays.index(option) for option in arrays.options] == list(range(6))
    assert arrays.index([1]) == 2
    assert Choice(np.float64(0.1), 2).index(0.1) == 0
    assert Fixed(arrays.options[0]).unit(arrays.options[0]) == 0.5


def test_axes():
    shown = [Uniform(0, 1), LogUniform(1, 2), OneMinusLogUniform(0.1, 0.2), IntUniform(1, 2)]
    shown += [IntUniform(1, 2, log=True), Choice(1), Fixed(1)]
    axes = ["linear", "log", "one minus log", "linear", "log", "choice", "choice"]
    assert [d.axis for d in shown] == axes


def test_a_space_is_made_of_anything():
    schedule = schedules.constant(0.1)
    given = {"a": Uniform(0, 1), "b": [0, None], "c": 3, "d": (0.9, 0.99), "e": schedule, "f": [7]}
    made = sweep.as_space(given)
    assert list(made) == list(given)
    assert made["a"] is given["a"] and made["b"] == Choice(0, None)
    assert [made[name].value for name in "cdef"] == [3, (0.9, 0.99), schedule, 7]
    assert sweep.as_space(made) == made


def test_numpy_bounds_become_plain():
    d = IntUniform(np.int64(1), np.int32(3))
    assert repr(d) == "IntUniform(low=1, high=3, log=False, step=1)"
    assert repr(Uniform(np.float32(0.5), 1)) == "Uniform(low=0.5, high=1.0, step=None)"
    assert repr(Choice(1, "a")) == "Choice(1, 'a')"


BAD = {
    "a bound of text": (lambda: Uniform("0", 1), TypeError, "Uniform(low=...) must be a number"),
    "a bool": (lambda: LogUniform(True, 2), TypeError, "LogUniform(low=...) must be a number"),
    "no end": (lambda: Uniform(0, math.inf), ValueError, "Uniform(high=...) must be finite"),
    "nan": (lambda: Uniform(math.nan, 1), ValueError, "Uniform(low=...) must be finite"),
    "above float32": (lambda: LogUniform(1, 1e39), ValueError, "(high=...) must be finite in"),
    "falling": (lambda: Uniform(1, 0), ValueError, "must be rising in float32, found 1.0 and 0.0"),
    "one in float32": (lambda: Uniform(1, 1 + 1e-9), ValueError, "must be rising in float32"),
    "log of 0": (lambda: LogUniform(0, 1), ValueError, "LogUniform(low=...) must be above 0"),
    "denormal": (lambda: LogUniform(1e-40, 1), ValueError, "at least 1.2e-38"),
    "b2 lost": (lambda: OneMinusLogUniform(1e-7, 0.1), ValueError, "1 - value is lost in float32"),
    "b1 below 0": (lambda: OneMinusLogUniform(0.1, 1), ValueError, "are distances from 1"),
    "half a step": (lambda: IntUniform(0, 1.5), TypeError, "(high=...) must be a whole number"),
    "a bool step": (lambda: IntUniform(False, 2), TypeError, "(low=...) must be a whole number"),
    "falling steps": (lambda: IntUniform(2, 2), ValueError, "must be rising, found 2 and 2"),
    "many steps": (lambda: IntUniform(0, 2**25), ValueError, "must be within 2^24"),
    "log of 0 steps": (lambda: IntUniform(0, 2, log=True), ValueError, "must be above 0 with log"),
    "no bool": (lambda: IntUniform(1, 2, log=1), TypeError, "IntUniform(log=...) must be True or"),
    "no option": (lambda: Choice(), ValueError, "needs something to choose from"),
    "one list": (lambda: Choice([1, 2]), TypeError, "one by one: Choice(*options)"),
    "no dict": (lambda: sweep.as_space([1]), TypeError, "must be a dict from names", "found list"),
    "no name": (lambda: sweep.as_space({1: 2}), TypeError, "must be strings, found 1"),
    "a class": (lambda: sweep.as_space({"a": Uniform}), TypeError, "'a' is Uniform without its"),
    "an empty list": (lambda: sweep.as_space({"a": []}), ValueError, "'a' is an empty list"),
    "outside": (lambda: Uniform(0, 1).unit(2), ValueError, "high=1.0, step=None) has no value 2"),
    "outside log": (lambda: LogUniform(1, 2).perturb(3, 2), ValueError, "has no value 3"),
    "outside, below 1": (lambda: OneMinusLogUniform(0.1, 0.5).unit(0.4), ValueError, "no value"),
    "no whole one": (lambda: IntUniform(0, 3).unit(1.5), ValueError, "has no value 1.5"),
    "an infinite one": (lambda: IntUniform(0, 3).unit(math.inf), ValueError, "has no value inf"),
    "no option's": (lambda: Choice(1, 2).unit(True), ValueError, "has no value True"),
    "not the fixed": (lambda: Fixed(1).unit(2), ValueError, "Fixed(value=1) has no value 2"),
    "a factor of 0": (lambda: Uniform(0, 1).perturb(0.5, 0), ValueError, "perturb(factor=...)"),
    "factor nan": (lambda: Choice(1).perturb(1, math.nan), ValueError, "must be above 0 and"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_sentence(name):
    call, error, *sentence = BAD[name]
    with pytest.raises(error) as caught:
        call()
    for part in sentence:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "distribution",
    [
        Uniform(-1.0, 3.0),
        LogUniform(1e-5, 1e-1),
        OneMinusLogUniform(1e-3, 0.5),
        IntUniform(3, 900),
        IntUniform(3, 900, log=True),
    ],
)
def test_a_part_of_a_distribution_has_its_values(distribution):
    part = distribution.between(0.25, 0.75)
    for u in (0.0, 0.3, 0.6, 0.999):
        whole = distribution.at(0.25 + u / 2)
        # Of rounding to float32, and to whole numbers, whose bounds are moved by a half.
        assert part.at(u) == pytest.approx(whole, rel=1e-5, abs=2.1 * isinstance(whole, int))
    whole = distribution.between(0.0, 1.0)
    assert type(whole) is type(distribution)
    assert (whole.low, whole.high) == pytest.approx((distribution.low, distribution.high), rel=1e-5)
    assert distribution.between(0.5, 0.5) == Fixed(distribution.at(0.5))
